"""What a client gets over a real server: each token at once, proper headers, signs of life, one run a click."""

from __future__ import annotations

import time
import uuid

import pytest

from flask_llmstream.codecs.native import HEARTBEAT
from flask_llmstream.testing import Gate, Schedule
from tests.servers.client import QUESTION


@pytest.fixture
def key() -> str:
    """As a browser makes one for each click."""
    return str(uuid.uuid4())


def test_token_leaves_before_the_next_one_exists(server, upstream):
    gates = {n: Gate() for n in range(6)}
    upstream.schedule = Schedule(tokens=6, gates=gates)
    with server.post() as answer:
        for n, gate in gates.items():
            gate.release()
            assert answer.token() == f"w{n + 1} "
        assert answer.terminal()["tokens"] == 6


def test_head_of_a_stream(server):
    with server.post() as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["content-encoding"] == "identity"
        run_id = answer.location.removeprefix("/api/runs/")
        assert answer.text() == "Hello, world!"
        opening = answer.body.split(b"\n\n")[0].split(b"\n")
    assert opening[0].startswith(b"retry: ")
    assert opening[1:] == [f"id: {run_id}:1-0".encode(), b": heartbeat=5"]


def test_ids_are_consecutive(server):
    with server.post() as answer:
        ids = [event.id for event in answer.server_events()]
        run_id = answer.location.removeprefix("/api/runs/")
    assert ids == [f"{run_id}:1-{n}" for n in range(1, len(ids) + 1)]


def test_early_failure_keeps_its_status(server, upstream):
    upstream.schedule = Schedule(status=429, retry_after=7)
    with server.post() as answer:
        assert answer.status == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "7"
        assert answer.json()["type"].endswith("upstream-rate-limited")
    assert server.run(answer.location)["status"] == "failed"


def test_failure_that_is_retried_is_no_end(server, upstream):
    upstream.then(Schedule(status=503))
    with server.at("/retrying").post() as answer:
        assert answer.status == 200
        assert answer.text() == "Hello, world!"
    assert len(upstream.requests) == 2


def test_failure_in_midstream_is_an_event(server, upstream):
    upstream.schedule = Schedule(tokens=5, cut_after=2)
    with server.post() as answer:
        assert (answer.token(), answer.token()) == ("w1 ", "w2 ")
        terminal = answer.terminal()
    assert terminal["problem"]["type"].endswith("upstream-truncated")
    assert terminal["problem"]["status"] == 502


def test_response_begins_within_a_second_of_silence(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(status=500, gates={"headers": gate})
    asked = time.monotonic()
    with server.post() as answer:
        assert answer.status == 200
        assert time.monotonic() - asked < 3
        gate.release()
        assert answer.terminal()["problem"]["type"].endswith("upstream-unavailable")


def test_answer_of_the_model_begins_the_response(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(gates={0: gate})
    with server.post() as answer:
        gate.wait()  # the model's headers are out, its first token is not
        assert answer.status == 200
        gate.release()
        assert answer.text() == "Hello, world!"


@pytest.mark.parametrize("when", ["early", "late"])
def test_exception_in_a_function(server, when):
    with server.post("/api/broken", {"messages": [{"role": "user", "content": when}]}) as answer:
        if when == "late":
            assert answer.token() == "one"
            server.do("/go")
            problem = answer.terminal()["problem"]
        else:
            problem = answer.json()
            assert answer.status == 500
    assert problem["type"].endswith("feature-failed")
    assert b"swordfish" not in answer.body
    assert "RuntimeError: the secret is swordfish" in server.await_news("swordfish")


def test_heartbeats_flow_before_and_between_tokens(server, upstream):
    before, between = Gate(), Gate()
    upstream.schedule = Schedule(tokens=2, gates={"headers": before, 1: between})
    quick = server.at("/quick")
    with quick.post() as answer:
        answer.read_until(HEARTBEAT, 2)
        before.release()
        answer.read_until(b"w1 ")
        so_far = answer.body.count(HEARTBEAT)
        answer.read_until(HEARTBEAT, so_far + 2)
        between.release()
        answer.read()
    assert answer.ending == "end"
    assert b": heartbeat=0.2\n" in answer.body


def test_one_timer_serves_all_heartbeats(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(gates={0: gate})
    answers = [server.post(X_User=f"user {n}") for n in range(5)]
    upstream.wait_for(lambda upstream: upstream.active == 5)
    assert server.await_state(open=5)["pulses"] == 1
    gate.release()
    for answer in answers:
        with answer:
            assert answer.text() == "Hello, world!"
    server.await_state(open=0, pulses=0)


@pytest.mark.parametrize("path", ["/api/chat/stream", "events"])
def test_head_request_opens_no_stream(server, upstream, path):
    if path == "events":
        with server.post() as answer:
            answer.read()
            path = f"{answer.location}/events"
    already = len(upstream.requests)
    with server.ask("HEAD", path) as head:
        assert head.status == 200
        assert head.headers["content-type"].startswith("text/event-stream")
        assert server.state()["open"] == 0
    assert len(upstream.requests) == already


@pytest.mark.parametrize("spelling", ["{}", '"{}"', None])
def test_second_click_joins_the_first(server, upstream, key, spelling):
    gate = Gate()
    upstream.schedule = Schedule(tokens=4, gates={2: gate})
    with server.post(**({"Idempotency_Key": key} if spelling else {})) as first:
        assert first.token() == "w1 "
        with server.post(**({"Idempotency_Key": spelling.format(key)} if spelling else {})) as second:
            assert second.token() == "w1 "
            gate.release()
            assert first.location == second.location
            assert first.text() == "w2 w3 w4 "
            assert second.text() == "w2 w3 w4 "
    assert len(upstream.requests) == 1


def test_key_replays_a_run_that_has_ended(server, upstream, key):
    with server.post(Idempotency_Key=key) as first, server.post(Idempotency_Key=key, X_User="another") as other:
        assert first.text() == other.text() == "Hello, world!"
    assert first.location != other.location
    with server.post(Idempotency_Key=key) as again:
        assert again.location == first.location
        assert again.text() == "Hello, world!"
    with server.post(json=QUESTION | {"temperature": 1}, Idempotency_Key=key) as different:
        assert different.status == 422
    assert len(upstream.requests) == 2
