"""Batches of a thousand, with workers that are killed, stopped in their tracks, or told to go."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from flask_llmstream.testing import ModelServer
from tests.redis_server import RedisServer
from tests.servers.serving import until
from tests.webhooks.receiver import Receiver, receiver
from tests.workers.site import PATIENCE, Site, Worker, site

pytestmark = pytest.mark.needs("redis-server")

APP = "tests.batches.app:create_app"
WEB = f"-m flask --app {APP} run --port 0"
LEASE = "2"
"""Seconds: what is waited for here is that a lease lapses, and not how long it is."""
BATCH_KEPT = {"counts", "done", "results"}


class Works:
    """A web process, a Redis, two workers, and who hears of the ends of jobs."""

    def __init__(self, site: Site, workers: dict[int, Worker], hears: Receiver) -> None:
        self.site = site
        self.workers = workers
        self.hears = hears

    def start(self, n: int, **more: Any) -> str:
        order = {"feature": "count", "inputs": [{"n": i} for i in range(n)]} | more
        return self.site.submit("/api/batches", json=order)

    def status(self, batch: str) -> dict[str, Any]:
        return self.site.run(batch)

    def await_count(self, batch: str, n: int) -> None:
        until(lambda: self.status(batch)["request_counts"]["completed"] >= n, patience=60)

    def await_end(self, batch: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            status = self.status(batch)
            return status if status["status"] not in ("queued", "in_progress") else None

        return until(ended, patience=120)

    def results(self, batch: str) -> list[tuple[int, Any]]:
        """Index and result, or error, of each line."""
        found: list[tuple[int, Any]] = []
        while True:
            with self.site.web.get(f"{batch}/results?after={len(found)}") as answer:
                lines = [json.loads(line) for line in answer.read().splitlines()]
            if not lines:
                return sorted(found)
            found += [(line["index"], line.get("result", line.get("error"))) for line in lines]

    def counted(self) -> Counter[int]:
        """How often each input was begun."""
        return Counter(int(n) for n, _ in self.site._noted("counted", 3))

    def drivers(self) -> list[Worker]:
        """Who has driven, one after the other."""
        return [self.workers[int(pid)] for _, _, pid in self.site._noted("drives", 4)]

    def other(self, worker: Worker) -> Worker:
        return next(one for one in self.workers.values() if one is not worker)

    def left(self) -> list[str]:
        """Keys of Redis' that only what goes on should have."""
        redis = self.site.redis
        batches = [key for key in redis.keys("llmstream:batch:*") if key.split(":")[-1] not in BATCH_KEPT]
        # What RQ has of a job that a worker had just taken when it was killed expires.
        jobs = [key for key in redis.keys("rq:job:*") if redis.client().ttl(key) < 0]
        return [*batches, *redis.keys("llmstream:live:*"), *jobs]

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.hears.requests]

    def assert_all_is_done(self, batch: str, n: int) -> None:
        """Each input is in the results once, and of what was carried out nothing is left but what is kept of the
        batch and of the delivery that tells of its end."""
        status = self.await_end(batch)
        assert status["status"] == "completed"
        assert self.results(batch) == [(i, i) for i in range(n)]
        assert status["request_counts"] == {"total": n, "completed": n, "failed": 0}
        assert set(self.counted()) == set(range(n))
        until(lambda: len(self.told()) == 1, patience=30)
        [told] = self.told()
        assert (told["type"], told["data"]["id"]) == ("run.completed", batch.rsplit("/", 1)[1])
        until(lambda: not self.left(), patience=30)
        until(lambda: len(self.site.redis.keys("llmstream:run:*")) == 2, patience=30)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as model:
        yield model


@pytest.fixture(scope="module")
def hears() -> Iterator[Receiver]:
    with receiver() as hears:
        yield hears


@pytest.fixture(scope="module")
def running(model: ModelServer, hears: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The web process and its Redis, which nobody kills."""
    directory = tmp_path_factory.mktemp("batches")
    more = {"LEASE": LEASE, "RECEIVER": f"http://127.0.0.1:{hears.port}/"}
    with RedisServer() as redis, site(redis, model, directory, web=WEB, **more) as running:
        yield running


@pytest.fixture
def works(running: Site, hears: Receiver) -> Iterator[Works]:
    """With two workers of the test's own."""
    running.redis.client().flushall()
    Path(running.environment["NOTES"]).write_text("")
    hears.requests.clear()
    with ExitStack() as stack:
        workers = [stack.enter_context(running.worker(app=APP, ready=False)) for _ in range(2)]
        for worker in workers:
            running.await_at_work(worker)
        yield Works(running, {worker.pid: worker for worker in workers}, hears)
        running.redis.resume()


@pytest.mark.parametrize("drives", [True, False], ids=["the one that drives", "the other"])
def test_a_worker_is_killed(works, drives):
    """What it was about is done again by the other, and all else once."""
    batch = works.start(1000)
    works.await_count(batch, 300)
    [driver] = works.drivers()
    killed = driver if drives else works.other(driver)
    killed.tell(signal.SIGKILL)
    works.assert_all_is_done(batch, 1000)
    assert works.drivers() == ([driver, works.other(driver)] if drives else [driver])
    assert not killed.running
    twice = sum(count - 1 for count in works.counted().values())
    assert twice <= 100  # as many as go on at a time


def test_a_driver_that_wakes_up_after_another_has_taken_over(works):
    """It has nothing more to say, and stops nobody: neither its successor's parts, nor the batch."""
    batch = works.start(1000, concurrency=10)
    works.await_count(batch, 100)
    [driver] = works.drivers()
    driver.tell(signal.SIGSTOP)
    until(lambda: len(works.drivers()) == 2, patience=30)
    works.await_count(batch, works.status(batch)["request_counts"]["completed"] + 20)
    driver.tell(signal.SIGCONT)
    works.assert_all_is_done(batch, 1000)
    assert works.drivers() == [driver, works.other(driver)]
    assert sum(count - 1 for count in works.counted().values()) <= 10
    assert "Traceback" not in driver.log


def test_a_driver_that_is_told_to_go(works):
    """The other goes on at once, and nothing is done twice."""
    batch = works.start(1000)
    works.await_count(batch, 200)
    [driver] = works.drivers()
    driver.tell(signal.SIGTERM)
    assert driver.wait() == 0
    works.assert_all_is_done(batch, 1000)
    assert works.drivers() == [driver, works.other(driver)]
    assert set(works.counted().values()) == {1}


def test_a_cancel_while_nobody_drives(works):
    """Nobody goes on with it, and what goes on of it is stopped."""
    batch = works.start(1000, concurrency=5)
    works.await_count(batch, 20)
    [driver] = works.drivers()
    driver.tell(signal.SIGKILL)
    works.site.cancel(batch)
    status = works.await_end(batch)
    assert status["status"] == "cancelled"
    assert len(works.results(batch)) == status["request_counts"]["completed"] < 1000
    until(lambda: not works.left(), patience=30)
    until(lambda: len(works.site.redis.keys("llmstream:run:*")) == 2, patience=30)
    [told] = works.told()
    assert told["type"] == "run.cancelled"


def test_both_workers_are_killed(works):
    """What comes up next goes on where they were."""
    batch = works.start(400)
    works.await_count(batch, 100)
    for worker in works.workers.values():
        worker.tell(signal.SIGKILL)
    with works.site.worker(app=APP) as next_one:
        works.workers[next_one.pid] = next_one
        works.assert_all_is_done(batch, 400)


def test_redis_is_away_for_longer_than_a_lease(works):
    """All wait for it, and go on from where they were."""
    batch = works.start(1000)
    works.await_count(batch, 200)
    works.site.redis.pause()
    time.sleep(2 * float(LEASE))
    works.site.redis.resume()
    works.assert_all_is_done(batch, 1000)


def test_the_last_attempt_is_told_of_by_whoever_finds_it_left(works):
    """A job that is in no batch, and whose worker is killed."""
    location = works.site.submit("/api/last", json={"n": 1})
    [(_, pid)] = until(lambda: works.site._noted("counted", 3), patience=PATIENCE)
    works.workers[int(pid)].tell(signal.SIGKILL)
    works.site.await_run(location, status="failed")
    until(lambda: works.told(), patience=PATIENCE)
    [told] = works.told()
    assert (told["type"], told["data"]["id"]) == ("run.failed", location.rsplit("/", 1)[1])
    assert told["data"]["error"]["type"].endswith("run-interrupted")
