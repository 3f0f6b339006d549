"""Workers of each kind do what web processes have been asked for."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.servers.serving import until
from tests.workers.site import COMMANDS

pytestmark = pytest.mark.needs("redis-server")

AT_ONCE = 1.0
"""Seconds: many times what it takes, and half of what it takes where only the renewal of a lease tells of it."""


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_job_is_done(works, kind):
    """Whichever way the worker is started; it writes nothing of what it was asked, nor how it gets to the model."""
    with works.worker(kind) as worker:
        if kind == "fork":
            location = works.submit("/api/compute", json={"seconds": 0.1, "name": "swordfish"})
        else:
            location = works.submit(json={"messages": [{"role": "user", "content": "swordfish"}]})
        run = works.await_run(location, status="completed")
        if kind == "fork":
            assert run["result"] > 0
        else:
            assert run["text"] == works.upstream.schedule.text
        assert (works.await_ending(location).state, run["attempt"]) == ("completed", 1)
        worker.tell(signal.SIGTERM)
        assert worker.wait() == 0
        assert "swordfish" not in worker.log
        assert "Traceback" not in worker.log
    assert works.redis.keys("rq:job:*") == []


@pytest.mark.parametrize("kind", ["flask", "flask threads"])
def test_many_at_a_time(works, kind):
    """200 in greenlets, and 16 in threads, where nothing else is said; the next one has to wait."""
    most = 200 if kind == "flask" else 16
    gate = Gate()
    works.upstream.schedule = Schedule(gates={1: gate})
    with works.worker(kind):
        locations = [works.submit() for _ in range(most + 1)]
        works.upstream.wait_for(lambda upstream: upstream.active == most, timeout=30)
        assert works.run(locations[-1])["status"] == "queued"
        gate.release()
        for location in locations:
            works.await_run(location, status="completed")
    assert len(works.upstream.requests) == most + 1


def test_as_many_as_the_command_line_says(works):
    gate = Gate()
    works.upstream.schedule = Schedule(gates={1: gate})
    with works.worker("flask", "--concurrency 2"):
        locations = [works.submit() for _ in range(3)]
        works.upstream.wait_for(lambda upstream: upstream.active == 2)
        until(lambda: sorted(works.run(location)["status"] for location in locations)[-1] == "queued")
        gate.release()
        for location in locations:
            works.await_run(location, status="completed")


def test_the_queue_that_is_named_first_goes_first(works):
    calm = [works.submit("/api/calm", json={"name": "calm"}) for _ in range(2)]
    hurried = [works.submit("/api/hurried", json={"name": "hurried"}) for _ in range(2)]
    with works.worker("flask", "--concurrency 1 --burst", queues="urgent default", ready=False) as worker:
        assert worker.wait() == 0
    begun = works.beginnings()
    assert [beginning.name for beginning in begun[-4:]] == ["hurried", "hurried", "calm", "calm"]
    for location in calm + hurried:
        assert works.run(location)["status"] == "completed"


def test_burst_ends_when_nothing_is_left(works):
    """Neither before what it has begun is through, nor without having begun all."""
    gate = Gate()
    works.upstream.schedule = Schedule(gates={1: gate})
    locations = [works.submit() for _ in range(3)]
    with works.worker("flask", "--burst") as worker:
        works.upstream.wait_for(lambda upstream: upstream.active == 3, timeout=30)
        assert worker.running
        gate.release()
        assert worker.wait() == 0
    assert [works.run(location)["status"] for location in locations] == ["completed"] * 3
    assert works.redis.client().smembers("rq:workers") == set()


def test_extensions_beside_each_other(works):
    """One worker has those of all."""
    with works.worker():
        locations = [works.submit("/api/tell"), works.submit("/other/tell")]
        for location in locations:
            assert works.await_run(location, status="completed")["text"] == works.upstream.schedule.text


def test_stop_from_another_process(works):
    """The model's connection is closed at once."""
    works.upstream.schedule = Schedule(tokens=5, stall_after=1)
    with works.worker():
        location = works.submit()
        works.await_run(location, text="w1 ")
        asked = time.monotonic()
        works.cancel(location)
        works.upstream.wait_for(lambda upstream: upstream.cancelled == 1)
        assert works.upstream.requests[-1].ended_at - asked < AT_ONCE
        assert works.await_run(location, status="cancelled")["text"] == "w1 "
        assert works.await_ending(location).state == "cancelled"


def test_stop_of_one_that_computes(works):
    with works.worker("fork"):
        location = works.submit("/api/compute", json={"seconds": 60})
        until(lambda: works.beginnings(location))
        works.cancel(location)
        works.await_run(location, status="cancelled")
        works.await_ending(location)


def test_a_batch_takes_no_place(works):
    """It waits for others, of which there is one at a time here."""
    with works.worker("flask", "--concurrency 1"):
        batch = {"feature": "calm", "inputs": [{"name": str(n)} for n in range(3)]}
        location = works.submit("/api/batches", json=batch)
        run = works.await_run(location, status="completed")
        assert run["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


def test_stop_of_one_that_waits(works):
    location = works.submit()
    works.cancel(location)
    works.await_run(location, status="cancelled")
    with works.worker("flask", "--burst", ready=False) as worker:
        assert worker.wait() == 0
    assert works.beginnings(location) == []


def test_time_out(works):
    """It is closed on both sides, and not tried again."""
    with works.worker():
        works.await_run(works.submit(), status="completed")  # the official client is slow to be imported
        works.upstream.schedule = Schedule(tokens=5, stall_after=1)
        location = works.submit("/api/brief")
        run = works.await_run(location, status="failed")
        assert run["error"]["type"].endswith("run-timeout")
        assert (run["attempt"], run["text"]) == (1, "w1 ")
        works.upstream.wait_for(lambda upstream: upstream.cancelled == 1)


def test_time_out_of_one_that_computes(works):
    """The forked process, which cannot be interrupted, goes with it."""
    with works.worker("fork") as worker:
        location = works.submit("/api/endless", json={})
        run = works.await_run(location, status="failed")
        assert run["error"]["type"].endswith("run-timeout")
        [begun] = works.beginnings(location)
        assert begun.pid != worker.pid
        until(lambda: not alive(begun.pid))
        follows = works.submit("/api/compute", json={})
        works.await_run(follows, status="completed")


def test_a_stop_of_one_that_computes(works):
    with works.worker("fork"):
        location = works.submit("/api/deaf", json={})
        begun = until(lambda: works.beginnings(location))[0]
        works.cancel(location)
        assert works.await_run(location, status="cancelled")["attempt"] == 1
        until(lambda: not alive(begun.pid))
        follows = works.submit("/api/compute", json={})
        works.await_run(follows, status="completed")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
