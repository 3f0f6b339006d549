"""A worker that is told to go finishes what it has begun, and puts back what it cannot finish."""

from __future__ import annotations

import signal

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.servers.serving import until
from tests.workers.site import Site, run_id

pytestmark = pytest.mark.needs("redis-server")

AT_ONCE = 6.0
"""Seconds that the end of a worker takes at most that does not wait for anything, and lets go of all connections."""


def test_what_it_has_begun_is_finished(works):
    """Nothing more is begun meanwhile."""
    gate = Gate()
    works.upstream.schedule = Schedule(gates={1: gate})
    with works.worker() as worker:
        location = works.submit()
        works.upstream.wait_for(lambda upstream: upstream.active == 1)
        worker.tell(signal.SIGTERM)
        until(lambda: leaves(works))
        waits = works.submit()
        gate.release()
        assert worker.wait() == 0
    assert works.run(location)["status"] == "completed"
    assert (works.run(waits)["status"], works.beginnings(waits)) == ("queued", [])
    works.cancel(waits)


@pytest.mark.parametrize("kind", ["flask", "flask threads"])
def test_what_lasts_longer_is_put_back(works, kind):
    """Another worker takes it up at once. It was nobody's failure, and its readers are told to begin anew."""
    works.upstream.schedule = Schedule(tokens=5, stall_after=1)
    with works.worker(kind, "--grace 0.5") as first:
        location = works.submit()
        with works.web.get(f"{location}/events") as reader:
            assert reader.token() == "w1 "
            with works.worker(kind) as second:
                works.upstream.schedule = schedule = Schedule()
                first.tell(signal.SIGTERM)
                assert reader.event("restarted") == {"restarted": 2}
                assert reader.text() == schedule.text
                assert first.wait() == 0
                assert [(b.attempt, b.pid) for b in works.beginnings(location)] == [(1, first.pid), (2, second.pid)]
                assert works.await_ending(location)[1:3] == ("completed", second.pid)
    assert works.upstream.cancelled == 1
    assert "Traceback" not in first.log


def test_it_counts_for_no_failure(works):
    """However often that happens; otherwise three times would be too many."""
    works.upstream.schedule = Schedule(tokens=5, stall_after=1)
    location = works.submit()
    for attempt in range(1, 4):
        with works.worker("flask", "--grace 0") as worker:
            works.await_run(location, attempt=attempt, text="w1 ")
            worker.tell()
            assert worker.wait() == 0
    works.upstream.schedule = Schedule()
    with works.worker():
        assert works.await_run(location, status="completed")["attempt"] == 4


def test_told_twice_it_goes_at_once(works):
    works.upstream.schedule = Schedule(tokens=5, stall_after=1)
    with works.worker() as worker:
        location = works.submit()
        works.await_run(location, text="w1 ")
        worker.tell(signal.SIGTERM)
        until(lambda: leaves(works))
        worker.tell(signal.SIGINT)
        assert worker.wait(AT_ONCE) == 0
    works.await_run(location, status="queued", attempt=2)
    assert works.queue() == [f"{run_id(location)}-2"]
    works.cancel(location)


def test_told_by_redis(works):
    """RQ's own command for that."""
    with works.worker() as worker:
        [key] = works.redis.client().smembers("rq:workers")
        channel = key.replace("rq:worker:", "rq:pubsub:")
        until(lambda: works.redis.client().publish(channel, '{"command": "shutdown"}'))
        assert worker.wait() == 0


def test_a_forked_run_is_finished(works):
    with works.worker("fork") as worker:
        location = works.submit("/api/compute", json={"seconds": 1})
        worker.horse()
        worker.tell()
        assert worker.wait() == 0
    works.await_run(location, status="completed", attempt=1)


def leaves(works: Site) -> bool:
    """Whether a worker looks into its queue no longer: its connection waits for nothing."""
    clients = works.redis.client().client_list()
    return not any(client["cmd"] in ("blmove", "blpop") and "b" in client["flags"] for client in clients)
