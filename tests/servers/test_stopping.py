"""Stop closes the model's connection at once, wherever the run is, and the stream ends properly behind it."""

from __future__ import annotations

import time

from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.servers.serving import Server

AT_ONCE = 1.0
"""Seconds: a thousand times what it takes, and far below every time-out and heartbeat."""


def stop(server: Server, location: str) -> dict:
    with server.ask("POST", f"{location}/cancel") as answer:
        run = answer.json()
        assert answer.status == 200, run
    return run


def assert_closed_at_once(upstream: ModelServer, asked: float) -> None:
    """The only request's client has closed its connection right after `asked`."""
    upstream.wait_for(lambda upstream: upstream.cancelled == 1)
    [request] = upstream.requests
    assert request.ended_at is not None
    assert request.ended_at - asked < AT_ONCE


def test_stop_before_the_models_headers(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(gates={"headers": gate})
    with server.post() as answer:
        assert answer.status == 200  # after a second of silence
        asked = time.monotonic()
        run = stop(server, answer.location)
        assert_closed_at_once(upstream, asked)
        assert answer.terminal()["cancelled"] is True
    assert run["status"] == "cancelled"


def test_stop_before_the_first_token(server, upstream):
    upstream.schedule = Schedule(stall_after=0)
    with server.post() as answer:
        assert answer.status == 200
        asked = time.monotonic()
        stop(server, answer.location)
        assert_closed_at_once(upstream, asked)
        assert answer.terminal()["cancelled"] is True


def test_stop_in_midstream_keeps_what_was_said(server, upstream):
    upstream.schedule = Schedule(tokens=5, stall_after=2)
    with server.post() as answer:
        assert (answer.token(), answer.token()) == ("w1 ", "w2 ")
        asked = time.monotonic()
        run = stop(server, answer.location)
        assert_closed_at_once(upstream, asked)
        terminal = answer.terminal()
    assert (terminal["done"], terminal["cancelled"], terminal["tokens"]) == (True, True, 2)
    assert terminal["usage"]["estimated"] is True
    assert (run["status"], run["text"]) == ("cancelled", "w1 w2 ")


def test_stop_while_a_failed_call_waits_to_be_repeated(server, upstream):
    upstream.schedule = Schedule(status=503, retry_after=20)
    quick = server.at("/retrying")
    with quick.post() as answer:
        assert answer.status == 200
        asked = time.monotonic()
        stop(quick, answer.location)
        assert answer.terminal()["cancelled"] is True
        assert time.monotonic() - asked < AT_ONCE
    assert len(upstream.requests) == 1


def test_stop_is_idempotent(server, upstream):
    upstream.schedule = Schedule(tokens=5, stall_after=2)
    with server.post() as answer:
        assert answer.token() == "w1 "
        first = stop(server, answer.location)
        assert stop(server, answer.location) == first
        assert answer.terminal()["cancelled"] is True


def test_stop_after_the_end_changes_nothing(server):
    with server.post() as answer:
        assert answer.text() == "Hello, world!"
    assert stop(server, answer.location)["status"] == "completed"


def test_delete_stops_and_forgets(server, upstream):
    upstream.schedule = Schedule(tokens=5, stall_after=2)
    with server.post() as answer:
        assert answer.token() == "w1 "
        asked = time.monotonic()
        server.do(answer.location, "DELETE")
        assert_closed_at_once(upstream, asked)
        assert answer.terminal()["cancelled"] is True
        with server.get(answer.location) as gone:
            assert gone.status == 404


def test_stop_is_the_owners_alone(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post() as answer:
        assert answer.token() == "w1 "
        with server.ask("POST", f"{answer.location}/cancel", headers={"X-User": "another"}) as other:
            assert other.status == 404
        gate.release()
        assert answer.text() == "w2 w3 "


def test_greenlet_function_is_interrupted_where_it_waits(gevent_server):
    with gevent_server.post("/api/waiting") as answer:
        assert answer.token() == "one"
        gevent_server.await_state(marks=["waits"])
        asked = time.monotonic()
        stop(gevent_server, answer.location)
        assert answer.terminal()["cancelled"] is True
        assert time.monotonic() - asked < AT_ONCE
    gevent_server.await_state(marks=["waits", "RunCancelled", "finally"])


def test_function_in_a_thread_is_interrupted_at_its_next_yield(threaded_server):
    server = threaded_server
    with server.post("/api/waiting") as answer:
        assert answer.token() == "one"
        server.await_state(marks=["waits"])
        with server.ask("POST", f"{answer.location}/cancel"):
            server.await_state(stopping=1)
            assert server.state()["marks"] == ["waits"]
            server.do("/go")
            events = list(answer.events())
        assert [event for event in events if "token" in event] == []
        assert events[-1]["cancelled"] is True
    server.await_state(marks=["waits", "RunCancelled", "finally"])
