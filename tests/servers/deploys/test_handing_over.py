"""A gunicorn worker that is told to go: nothing is begun there any more, and nothing of what it has is lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.redis_server import RedisServer
from tests.servers.client import QUESTION, Answer
from tests.servers.deploys.masters import (
    QUICKLY,
    SHORT,
    Start,
    await_fresh_worker,
    gone,
    last_id,
    reload,
    resume,
    sent_away,
    term_master,
    term_worker,
    workers,
)
from tests.servers.serving import TROUBLE, Server, until


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(
    ("kind", "end"), [("gevent", term_worker), ("gevent", term_master), ("gevent", reload), ("gthread", term_worker)]
)
def test_readers_go_on_in_another_process_while_the_old_one_goes_on_writing(
    start: Start,
    redis_server: RedisServer,
    other: Server,
    upstream: ModelServer,
    kind: str,
    end: Callable[[Server], None],
):
    old = start(kind, redis=redis_server)
    leaving = workers(old)
    middle, late = Gate(), Gate()
    upstream.schedule = Schedule(tokens=8, gates={2: middle, 5: late})
    with old.post("/api/lasting") as first:
        assert [first.token(), first.token()] == ["w1 ", "w2 "]
        end(old)
        assert sent_away(first) == []
        with resume(other, first) as second:
            middle.release()
            assert [second.token() for _ in range(3)] == ["w3 ", "w4 ", "w5 "]
            assert not gone(leaving)
            late.release()
            assert second.text() == "w6 w7 w8 "
    until(lambda: gone(leaving), patience=QUICKLY)
    assert len(upstream.requests) == 1
    if end is not term_master:
        await_fresh_worker(old)
    assert not TROUBLE.findall(old.news())


@pytest.mark.needs("redis-server")
def test_a_reader_that_comes_back_when_it_was_told_to_finds_a_fresh_worker(
    start: Start, redis_server: RedisServer, upstream: ModelServer, kind: str
):
    """A lone master that gets HUP."""
    server = start(kind, redis=redis_server)
    leaving = workers(server)
    middle = Gate()
    upstream.schedule = Schedule(tokens=4, gates={2: middle})
    with server.post("/api/lasting") as first:
        assert [first.token(), first.token()] == ["w1 ", "w2 "]
        reload(server)
        assert sent_away(first) == []
        assert not gone(leaving)
    time.sleep(2.0)
    with resume(server, first) as second:
        assert second.status == 200
        middle.release()
        assert second.text() == "w3 w4 "
    until(lambda: gone(leaving), patience=QUICKLY)


@pytest.mark.needs("redis-server")
def test_whoever_watches_their_runs_is_sent_away_too(
    start: Start, redis_server: RedisServer, other: Server, upstream: ModelServer
):
    old = start(redis=redis_server)
    leaving = workers(old)
    with old.get("/api/runs/events") as feed:
        assert feed.event("runs") == {"runs": []}
        term_master(old)
        sent_away(feed)
        until(lambda: gone(leaving), patience=QUICKLY)
    with other.post("/api/lasting") as answer:
        answer.text()
    with other.get("/api/runs/events", Last_Event_ID=last_id(feed)) as feed:
        assert feed.event("started")["started"]["id"] in answer.location


@pytest.mark.needs("redis-server")
def test_many_readers_do_not_leave_all_at_once(start: Start, redis_server: RedisServer, upstream: ModelServer):
    server = start(redis=redis_server, graceful_timeout=SHORT)
    upstream.schedule = Schedule(tokens=2, stall_after=1)

    def leave(answer: Answer) -> float:
        assert sent_away(answer) == []
        return time.monotonic()

    with ExitStack() as stack:
        answers = [stack.enter_context(server.post("/api/lasting", X_User=f"user {n}")) for n in range(12)]
        assert {answer.token() for answer in answers} == {"w1 "}
        term_master(server)
        with ThreadPoolExecutor(len(answers)) as readers:
            left = list(readers.map(leave, answers))
        waits = {re.findall(rb"^retry: (\d+)$", answer.body, re.MULTILINE)[1] for answer in answers}
    assert max(left) - min(left) > 0.1
    assert len(waits) > 6


@pytest.mark.needs("redis-server")
def test_a_run_that_nobody_reads_holds_its_process_until_it_has_ended(
    start: Start, redis_server: RedisServer, other: Server, upstream: ModelServer, kind: str
):
    old = start(kind, redis=redis_server)
    leaving = workers(old)
    gate = Gate()
    upstream.schedule = Schedule(tokens=4, gates={2: gate})
    with old.post("/api/lasting") as answer:
        assert answer.token() == "w1 "
    old.await_state(open=0, live=1)
    term_master(old)
    old.await_news("Worker exiting")
    assert not gone(leaving)
    gate.release()
    until(lambda: gone(leaving), patience=QUICKLY)
    run = other.run(answer.location)
    assert (run["status"], run["text"]) == ("completed", "w1 w2 w3 w4 ")


@pytest.mark.needs("redis-server")
def test_what_stops_without_readers_waits_for_those_who_were_sent_away(
    start: Start, redis_server: RedisServer, other: Server, upstream: ModelServer
):
    old = start(redis=redis_server)
    gate = Gate()
    upstream.schedule = Schedule(tokens=4, gates={2: gate})
    with old.post("/api/fleeting") as first:
        assert [first.token(), first.token()] == ["w1 ", "w2 "]
        term_master(old)
        sent_away(first)
        assert other.run(first.location)["status"] == "in_progress"
        with resume(other, first) as second:
            gate.release()
            assert second.text() == "w3 w4 "


def hanging(server: Server, method: str, path: str, accept: str = "text/event-stream") -> tuple[Answer, bytes]:
    """A request of which a worker has accepted the connection, and what is still to be sent of it."""
    body = json.dumps(QUESTION).encode() if method == "POST" else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: {server.address[0]}:{server.address[1]}\r\n"
    rest = f"Accept: {accept}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return Answer(server.address, head.encode()), rest.encode() + body


@pytest.mark.parametrize(
    ("kind", "shared"), [pytest.param("gevent", True, marks=pytest.mark.needs("redis-server")), ("gthread", False)]
)
def test_only_starts_are_refused(
    start: Start, request: pytest.FixtureRequest, upstream: ModelServer, kind: str, shared: bool
):
    old = start(kind, redis=request.getfixturevalue("redis_server") if shared else None)
    upstream.schedule = Schedule(tokens=2, stall_after=1)
    with old.post("/api/lasting") as live:
        assert live.token() == "w1 "
        asked = [
            hanging(old, "POST", "/api/lasting"),
            hanging(old, "GET", "/api/lasting?message=Hello"),
            hanging(old, "GET", live.location),
            hanging(old, "POST", f"{live.location}/cancel"),
        ]
        time.sleep(0.1)  # they are accepted
        term_master(old)
        old.await_news("is told to go")
        for answer, rest in asked:
            answer._socket.sendall(rest)
            if answer is asked[2][0]:
                assert answer.json()["status"] == "in_progress"
        (refused, passing, _, stopped), _ = zip(*asked, strict=True)
        assert refused.status == 503
        assert 2 <= int(refused.headers["retry-after"]) <= 5
        assert refused.json()["type"].endswith("shutting-down")
        assert passing.status == 200
        assert re.fullmatch(rb"retry: \d{4}\n\n", passing.read())
        assert passing.ending == "reset"
        assert stopped.json()["status"] == "cancelled"
        for answer, _ in asked:
            answer.leave()
    assert len(upstream.requests) == 1
