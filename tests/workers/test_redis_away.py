"""Redis restarts, pauses or comes late: jobs go on, and workers with them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rq.executions import Execution

from flask_llmstream import worker
from flask_llmstream.leases import LEASE
from flask_llmstream.testing import Gate, Schedule
from tests.puppet import stage
from tests.redis_server import RedisServer
from tests.servers.serving import until

pytestmark = pytest.mark.needs("redis-server")

AWAY = 3.0
"""Seconds: longer than anything waits for an answer of Redis."""


@pytest.mark.parametrize("kind", ["flask", "flask threads", "fork"])
def test_restarts_while_nothing_is_going_on(own, own_redis, kind):
    path, job = ("/api/compute", {}) if kind == "fork" else ("/api/tell", None)
    with own.worker(kind) as at_work:
        own.await_run(own.submit(path, job), status="completed")
        own_redis.restart()
        location = until(lambda: submitted(own, path, job))
        own.await_run(location, status="completed", attempt=1)
        assert at_work.running
        assert "Traceback" not in at_work.log


def submitted(site, path, job):
    """A job, where Redis takes it."""
    try:
        return site.submit(path, job)
    except AssertionError:
        return None


@pytest.mark.parametrize("kind", ["flask", "flask threads"])
def test_restarts_in_midstream(own, own_redis, kind):
    """What is being done goes on, and is done once."""
    gate = Gate()
    own.upstream.schedule = schedule = Schedule(tokens=6, gates={2: gate})
    with own.worker(kind) as at_work:
        location = own.submit()
        own.await_run(location, text="w1 w2 ")
        own_redis.restart()
        gate.release()
        assert until(lambda: ended(own, location))["text"] == schedule.text
        assert own.run(location)["attempt"] == 1
        own.await_run(own.submit(), status="completed")
        assert at_work.running
        assert "Traceback" not in at_work.log
    assert len(own.beginnings(location)) == 1


def ended(site, location):
    with site.web.get(location, Connection="close") as answer:
        run = answer.json()
        return run if answer.status == 200 and run["status"] == "completed" else None


def test_away_for_longer_than_a_lease(own, own_redis):
    """All leases have lapsed when it is back, and nobody is judged by that. What ends meanwhile is told then."""
    gates = Gate(), Gate()
    own.upstream.then(Schedule(tokens=3, gates={1: gates[0]}), Schedule(tokens=3, gates={1: gates[1]}))
    with own.worker() as at_work:
        locations = [own.submit(), own.submit()]
        own.upstream.wait_for(lambda upstream: upstream.active == 2)
        for location in locations:
            own.await_run(location, text="w1 ")
        with own_redis.paused():
            gates[0].release()
            begun = time.monotonic()
            until(lambda: time.monotonic() - begun > LEASE + 1)
        gates[1].release()
        for location in locations:
            run = until(lambda location=location: ended(own, location))
            assert (run["text"], run["attempt"]) == ("w1 w2 w3 ", 1)
        own.await_run(own.submit(), status="completed")
        assert at_work.running
        assert "Traceback" not in at_work.log
    assert [len(own.beginnings(location)) for location in locations] == [1, 1]


def test_a_forked_run_ends_while_it_is_away(own, own_redis):
    """Its process stays until it has told how it ended; else it would be done again."""
    with own.worker("fork") as at_work:
        location = own.submit("/api/compute", json={"seconds": 1})
        until(lambda: own.beginnings(location))
        with own_redis.paused():
            until(lambda: own.endings(location))
            begun = time.monotonic()
            until(lambda: time.monotonic() - begun > AWAY)
        run = until(lambda: ended(own, location))
        assert run["attempt"] == len(own.beginnings(location)) == 1
        own.await_run(own.submit("/api/compute", json={}), status="completed")
        assert at_work.running


def test_between_two_jobs(monkeypatch):
    """Nothing that a worker does there needs Redis: it goes on to wait for it."""
    with RedisServer() as redis, stage(REDIS_URL=redis.url) as (app, _):
        performer = worker.prepare(app, ["default"], concurrency=1, grace=0)
        monkeypatch.setattr(worker, "BEATS_EVERY", 0)
        redis.stop()
        performer.check_for_suspension(burst=False)
        performer.heartbeat()
        assert performer.dequeue_job_and_maintain_ttl(None) is None
        performer.connection.close()


def test_between_two_forks():
    """As soon as a run is done, its worker tells RQ what it is about: so it may go just then."""
    with RedisServer() as redis, stage(REDIS_URL=redis.url) as (app, llm), app.app_context():
        store = llm.record(app).store
        performer = worker.ForkWorker(["default"], connection=worker.rq_connection(store))
        redis.stop()
        performer.check_for_suspension(burst=False)
        performer.set_state("idle")
        performer.heartbeat()
        job = worker.RunJob("nothing", performer.connection)
        performer.execute_job(job, performer.queues[0])
        performer.execution = Execution("x", job.id, performer.connection)
        performer.maintain_heartbeats(job)
        with ThreadPoolExecutor(1) as waiting:
            found = waiting.submit(performer.dequeue_job_and_maintain_ttl, None)
            redis.start()
            assert found.result(10) is None, "there is none"
        performer.connection.close()


def test_rqs_own_listing(works):
    """It names the worker; also when Redis has lost that meanwhile."""
    with works.worker(BEATS_EVERY="0.5") as at_work:
        with works.process(f"-m rq.cli info --url {works.redis.url}") as listing:
            assert listing.wait() == 0
            assert "1 workers" in listing.log
            assert f"{at_work.pid}): started llmstream" in listing.log
        client = works.redis.client()
        [key] = client.smembers("rq:workers")
        assert client.ttl(key) > 60
        client.flushall()
        until(lambda: client.smembers("rq:workers") == {key})
        assert client.hget(key, "pid") == str(at_work.pid)
        works.await_run(works.submit(), status="completed")
