"""A run is stopped from any process, and when nobody reads it in any process."""

from __future__ import annotations

import time

import pytest

from flask_llmstream.leases import RENEWED_EVERY
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.cluster.app import GRACE
from tests.cluster.processes import PREFIX
from tests.servers.serving import until

pytestmark = pytest.mark.needs("redis-server")

AT_ONCE = 1.0
"""Seconds: hundreds of times what it takes, and half of what it takes without a nudge."""
NOTICED = RENEWED_EVERY + AT_ONCE


def closed_after(upstream: ModelServer, asked: float) -> float:
    """The seconds after which the only request's connection was closed from the other side."""
    upstream.wait_for(lambda upstream: upstream.cancelled == 1, timeout=15)
    [request] = upstream.requests
    assert request.ended_at is not None
    return request.ended_at - asked


@pytest.mark.parametrize("said", [0, 2], ids=["while the model is silent", "in midstream"])
def test_stop_from_the_other_process(pair, upstream, said):
    upstream.schedule = Schedule(tokens=5, stall_after=said)
    with pair.start(0) as answer, pair.tail(1, answer) as tail:
        assert [answer.token() for _ in range(said)] == ["w1 ", "w2 "][:said]
        upstream.wait_for(lambda upstream: len(upstream.requests) == 1)
        asked = time.monotonic()
        with pair.servers[1].post(f"{answer.location}/cancel") as stopped:
            run = stopped.json()
        assert closed_after(upstream, asked) < AT_ONCE
        assert (stopped.status, run["status"], run["text"]) == (200, "cancelled", "w1 w2 "[: 3 * said])
        assert answer.terminal() == tail.terminal()
    until(lambda: pair.endings(answer) == [("cancelled", 3 * said)])


def test_forgetting_on_the_other_process(pair, redis, upstream):
    upstream.schedule = Schedule(tokens=5, stall_after=1)
    with pair.start(0) as answer:
        assert answer.token() == "w1 "
        asked = time.monotonic()
        pair.servers[1].do(answer.location, "DELETE")
        assert closed_after(upstream, asked) < AT_ONCE
        assert answer.terminal()["cancelled"] is True
    for server in pair.servers:
        with server.get(answer.location) as gone:
            assert gone.status == 404
    run_id = answer.location.rpartition("/")[2]
    until(lambda: not redis.keys(f"*{run_id}*"))


def test_a_nudge_that_is_lost(pair, redis, upstream):
    """The flag alone is acted on with the next renewal."""
    upstream.schedule = Schedule(tokens=5, stall_after=1)
    with pair.start(0) as answer:
        assert answer.token() == "w1 "
        asked = time.monotonic()
        redis.client().hset(f"{PREFIX}run:{answer.location.rpartition('/')[2]}", "stop", 1)
        assert closed_after(upstream, asked) < NOTICED
        assert answer.terminal()["cancelled"] is True


def test_a_nudge_while_the_writer_is_not_connected(pair, redis, upstream):
    """What is published just when the connection was lost nobody hears."""
    upstream.schedule = Schedule(tokens=5, stall_after=1)
    with pair.start(0) as answer:
        assert answer.token() == "w1 "
        redis.client().client_kill_filter(_type="pubsub")
        asked = time.monotonic()
        with pair.servers[1].post(f"{answer.location}/cancel") as stopped:
            stopped.read()
        assert closed_after(upstream, asked) < NOTICED
        assert answer.terminal()["cancelled"] is True


def test_run_goes_on_for_a_reader_on_the_other_process(pair, upstream):
    upstream.schedule = Schedule(tokens=500, rate=20)
    with pair.start(0, "/api/brief") as answer:
        assert answer.token() == "w1 "
        with pair.tail(1, answer) as tail:
            assert tail.token() == "w1 "
            answer.leave_by_fin()
            left = time.monotonic()
            while time.monotonic() < left + 3 * GRACE:
                tail.token()
            assert upstream.active == 1
            tail.leave_by_fin()
            left = time.monotonic()
        assert GRACE - 0.1 < closed_after(upstream, left) < 2 * GRACE + AT_ONCE
    until(lambda: [state for state, _ in pair.endings(answer)] == ["cancelled"])


def test_poll_on_the_other_process_counts_as_a_reader(pair, upstream):
    upstream.schedule = Schedule(tokens=5, stall_after=1)
    with pair.start(0, "/api/brief") as answer:
        assert answer.token() == "w1 "
        answer.leave_by_fin()
    polled_until = time.monotonic() + 3 * GRACE
    while (polled := time.monotonic()) < polled_until:
        assert pair.servers[1].run(answer.location)["status"] == "in_progress"
        time.sleep(GRACE / 10)
    assert closed_after(upstream, polled) < 2 * GRACE + AT_ONCE


def test_reader_who_changes_process_in_time(pair, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with pair.start(0, "/api/brief") as answer:
        last = answer.server_event("token")
        answer.leave_by_reset()
    pair.servers[0].await_state(open=0)
    with pair.tail(1, answer, after=last.id) as tail:
        assert tail.status == 200
        time.sleep(2 * GRACE)  # the grace time passes, which nothing announces
        gate.release()
        assert tail.text() == "w2 w3 "
