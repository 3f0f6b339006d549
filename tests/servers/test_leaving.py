"""A client that has gone is noticed by its socket, not by the next write; nobody pays for what nobody will read.

Heartbeats come every five seconds here, so whatever is noticed within one is noticed without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.servers.client import Answer
from tests.servers.serving import until
from tests.servers.test_stopping import assert_closed_at_once

WAYS = {
    "fin": Answer.leave_by_fin,
    "reset": Answer.leave_by_reset,
    "half-close": Answer.leave_by_half_close,
    "unread": Answer.leave,
}
in_every_way = pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS)


@in_every_way
def test_leaving_in_midstream_closes_the_model(server, upstream, leave: Callable[[Answer], None]):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post() as answer:
        if leave is not Answer.leave:
            assert answer.token() == "w1 "
        upstream.wait_for(lambda upstream: upstream.requests and upstream.requests[0].tokens_sent == 1)
        left = time.monotonic()
        leave(answer)
        assert_closed_at_once(upstream, left)
        server.await_state(open=0, live=0, watched=0)


@in_every_way
def test_leaving_before_the_responses_headers_closes_the_model(server, upstream, leave: Callable[[Answer], None]):
    gate = Gate()
    upstream.schedule = Schedule(gates={"headers": gate})
    with server.post() as answer:
        gate.wait()
        left = time.monotonic()
        leave(answer)
        assert_closed_at_once(upstream, left)
        server.await_state(open=0, live=0, watched=0)


def test_leaving_ends_a_function_that_waits(server):
    with server.post("/api/waiting") as answer:
        assert answer.token() == "one"
        server.await_state(marks=["waits"])
        answer.leave_by_fin()
        server.await_state(open=0)
        if server.kind != "gevent":
            server.await_state(stopping=1)
            server.do("/go")
        server.await_state(marks=["waits", "RunCancelled", "finally"])


def test_reader_that_comes_back_gets_the_rest(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=5, gates={3: gate})
    with server.post("/api/patient") as answer:
        last = [answer.server_event("token") for _ in range(2)][-1]
        answer.leave_by_reset()
    server.await_state(readers=0)
    gate.release()
    upstream.wait_for(lambda upstream: upstream.completed == 1)
    with server.get(f"{answer.location}/events", Last_Event_ID=last.id) as back:
        assert back.status == 200
        assert back.text() == "w3 w4 w5 "
    assert len(upstream.requests) == 1


def test_reader_that_comes_back_goes_on_live(server, upstream):
    gates = {2: Gate(), 3: Gate()}
    upstream.schedule = Schedule(tokens=4, gates=gates)
    with server.post("/api/patient") as answer:
        last = [answer.server_event("token") for _ in range(2)][-1]
        answer.leave_by_fin()
    server.await_state(readers=0)
    with server.get(f"{answer.location}/events?after={last.id}") as back:
        gates[2].release()
        assert back.token() == "w3 "
        gates[3].release()
        assert back.token() == "w4 "
        assert back.terminal()["tokens"] == 4


def test_run_is_stopped_after_the_grace_time(server, upstream):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post("/api/brief") as answer:
        assert answer.token() == "w1 "
        left = time.monotonic()
        answer.leave_by_fin()
    upstream.wait_for(lambda upstream: upstream.cancelled == 1)
    assert 0.8 <= upstream.requests[0].ended_at - left < 5
    until(lambda: server.run(answer.location)["status"] == "cancelled")


def test_run_that_may_finish_with_nobody_reading(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post("/api/endless") as answer:
        assert answer.token() == "w1 "
        answer.leave_by_fin()
    server.await_state(readers=0)
    gate.release()
    upstream.wait_for(lambda upstream: upstream.completed == 1)
    until(lambda: server.run(answer.location)["status"] == "completed")
    assert server.run(answer.location)["text"] == "w1 w2 w3 "


def test_run_goes_on_for_the_reader_that_stays(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post() as first:
        assert first.token() == "w1 "
        with server.get(f"{first.location}/events") as second:
            assert second.token() == "w1 "
            first.leave_by_reset()
            server.await_state(readers=1)
            gate.release()
            assert second.text() == "w2 w3 "
    assert upstream.completed == 1


@pytest.mark.parametrize("query", ["", "?wait=0.2"])
def test_poll_counts_as_a_reader(server, upstream, query):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post("/api/brief") as answer:
        assert answer.token() == "w1 "
        answer.leave_by_fin()
    polled_until = time.monotonic() + 2.5  # three times the grace
    while (polled := time.monotonic()) < polled_until:
        assert server.run(answer.location + query)["status"] == "in_progress"
    upstream.wait_for(lambda upstream: upstream.cancelled == 1)
    assert upstream.requests[0].ended_at - polled < 5
