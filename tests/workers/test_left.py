"""What a worker leaves that is killed, or out of touch for too long, is tried again: never by two at once."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from flask_llmstream.leases import LEASE, RENEWED_EVERY
from flask_llmstream.testing import Gate, Schedule
from flask_llmstream.writer import BACKOFF
from tests.servers.serving import until
from tests.workers.site import Site, run_id

pytestmark = pytest.mark.needs("redis-server")

TAKEN_OVER_WITHIN = LEASE + RENEWED_EVERY + 2.0
"""Seconds: a lease that was renewed just before, the time until it is noticed, and a busy machine's delays."""


def test_killed(works):
    """A reader sees it begin anew, and loses nothing; a job that computes keeps its lease meanwhile, and is not
    taken for left."""
    works.upstream.schedule = Schedule(tokens=5, stall_after=2)
    with works.worker() as first:
        location = works.submit()
        with works.web.get(f"{location}/events") as reader:
            assert [reader.token(), reader.token()] == ["w1 ", "w2 "]
            with works.worker() as second, works.worker(queues="spinning"), works.worker("fork"):
                spins = works.submit("/api/spin", json={"seconds": LEASE + 3})
                until(lambda: works.beginnings(spins))
                computes = works.submit("/api/compute", json={"seconds": LEASE + 3})
                works.upstream.schedule = schedule = Schedule()
                until(lambda: works.web.state()["judges"])
                first.tell(signal.SIGKILL)
                killed = time.monotonic()
                events = []
                for event in reader.events():
                    events.append(event)
                    if "restarted" in event:
                        assert time.monotonic() - killed < TAKEN_OVER_WITHIN
                assert [event for event in events if "token" not in event][:4] == [
                    {"restarted": 2},
                    {"status": "queued"},
                    {"status": "thinking"},
                    {"status": "writing"},
                ]
                assert "".join(event.get("token", "") for event in events) == schedule.text
                assert "done" in events[-1]
                ending = works.await_ending(location)
                assert (ending.state, ending.pid) == ("completed", second.pid)
                for undisturbed in (spins, computes):
                    works.await_run(undisturbed, status="completed", attempt=1)
                    works.await_ending(undisturbed)
    with works.web.get(f"{location}/events") as again:
        assert [event.get("token") for event in again.events() if "token" in event][:2] == ["w1 ", "w2 "]


def test_a_job_that_kills_its_worker(judging):
    """It is tried no more often than it may be, and then fails in words that say why."""
    with judging.worker(), judging.worker(), judging.worker("fork", queues="llmstream"):
        location = judging.submit("/api/deadly", json={})
        run = judging.await_run(location, status="failed")
        assert run["error"]["type"].endswith("run-interrupted")
        assert run["attempt"] == 2
        assert [beginning.attempt for beginning in judging.beginnings(location)] == [1, 2]
        assert judging.await_ending(location).state == "failed"
        survives = judging.submit()
        judging.await_run(survives, status="completed")


def test_a_forked_process_that_is_killed(judging):
    """The worker itself lives, and tries again."""
    with judging.worker("fork") as worker:
        location = judging.submit("/api/compute", json={"seconds": 1})
        [begun] = until(lambda: judging.beginnings(location))
        assert begun.pid != worker.pid
        os.kill(begun.pid, signal.SIGKILL)
        judging.await_run(location, status="completed", attempt=2)
        assert judging.await_ending(location).state == "completed"


def test_stopped_in_its_tracks(judging):
    """Whoever comes back after another has taken over has nothing more to say, whether or not that one is through."""
    woken, never, gate = Gate(), Gate(), Gate()
    judging.upstream.then(*[Schedule(tokens=("old ",), gates={1: after}) for after in (woken, never)])
    with judging.worker() as first:
        locations = [judging.submit(), judging.submit()]
        judging.upstream.wait_for(lambda upstream: upstream.active == 2)
        for location in locations:
            judging.await_run(location, text="old ")
        with judging.worker() as second:
            first.tell(signal.SIGSTOP)
            judging.upstream.then(Schedule(tokens=("new ",)))
            judging.upstream.schedule = Schedule(tokens=("new ",), gates={1: gate})
            for location in locations:
                judging.await_run(location, text="new ", attempt=2)
            until(lambda: "completed" in [judging.run(location)["status"] for location in locations])
            woken.release()  # one of its functions finds that it is through when it wakes up, the other that it waits
            first.tell(signal.SIGCONT)
            first.await_log("was closed by another process")
            survives = judging.submit()
            gate.release()
            for location in [*locations, survives]:
                run = judging.await_run(location, status="completed")
                assert run["text"] == "new "
                until(lambda location=location: judging.endings(location))
            first.tell(signal.SIGTERM)
            assert first.wait() == 0
            for location in locations:
                [ending] = judging.endings(location)
                assert (ending.state, ending.pid) == ("completed", second.pid)
                assert [b.pid for b in judging.beginnings(location)] == [first.pid, second.pid]


def test_an_entry_that_is_there_twice(works):
    """Two workers, and one with two places, race for the same job: it is done once, and holds one place."""
    gate = Gate()
    works.upstream.schedule = Schedule(gates={1: gate})
    with works.worker("flask", "--concurrency 3"), works.worker("flask", "--concurrency 3"):
        location = works.submit()
        works.upstream.wait_for(lambda upstream: upstream.active == 1)
        for _ in range(8):
            put_again(works, location)
        until(lambda: not works.queue())
        others = [works.submit() for _ in range(5)]
        works.upstream.wait_for(lambda upstream: upstream.active == 6)
        gate.release()
        for done in [location, *others]:
            works.await_run(done, status="completed")
            assert len(works.beginnings(done)) == 1
        put_again(works, location)
        until(lambda: not works.queue())
        # All places are free again.
        works.upstream.schedule = Schedule(gates={1: (gate := Gate())})
        more = [works.submit() for _ in range(6)]
        works.upstream.wait_for(lambda upstream: upstream.active == 6)
        gate.release()
        for done in more:
            works.await_run(done, status="completed")
    assert len(works.beginnings(location)) == 1


def put_again(works: Site, location: str, attempt: int = 1) -> None:
    """Put a run into RQ's queue as a web process does."""
    name = f"{run_id(location)}-{attempt}"
    entry = ["flask_llmstream.worker.perform", None, ["llmstream", run_id(location), attempt], {}]
    client = works.redis.client()
    client.hset(f"rq:job:{name}", mapping={"data": json.dumps(entry), "origin": "llmstream"})
    client.rpush("rq:queue:llmstream", name)


@pytest.mark.parametrize("lost", ["the queue", "the job"])
def test_an_entry_that_is_lost(judging, lost):
    """It is put there again."""
    location = judging.submit()
    [entry] = judging.queue()
    judging.redis.client().delete("rq:queue:llmstream" if lost == "the queue" else f"rq:job:{entry}")
    with judging.worker():
        assert judging.await_run(location, status="completed")["attempt"] == 1
    assert len(judging.beginnings(location)) == 1


def test_a_worker_of_rqs_own_takes_it(judging):
    """It cannot read it, or does it as a forking one of ours does; and what it has dropped is put there again."""
    judging.upstream.schedule = Schedule()
    with judging.process(f"-m rq.cli worker --url {judging.redis.url} llmstream") as mistaken:
        location = judging.submit()
        mistaken.await_log("DeserializationError")
        mistaken.tell(signal.SIGKILL)
    assert judging.beginnings(location) == []
    with judging.worker():
        judging.await_run(location, status="completed", attempt=1)
    rq = f"-m rq.cli worker --url {judging.redis.url} --serializer json --worker-class rq.worker.SimpleWorker llmstream"
    with judging.process(rq):
        judging.await_run(judging.submit(), status="completed", attempt=1)


def test_tried_again_after_the_models_passing_fault(judging):
    """Later each time, by the lease that lapses when it is due."""
    judging.upstream.then(*[Schedule(status=429, retry_after=0.1)] * 2)
    with judging.worker():
        location = judging.submit()
        with judging.web.get(f"{location}/events") as reader:
            assert reader.event("restarted") == {"restarted": 2}
            assert reader.event("restarted") == {"restarted": 3}
            assert reader.text() == judging.upstream.schedule.text
        run = judging.await_run(location, status="completed")
        assert run["attempt"] == 3
        judging.await_ending(location)
    first, second, third = (request.started_at for request in judging.upstream.requests)
    assert second - first > 0.1 + BACKOFF / 2
    assert third - second > 0.1 + BACKOFF
