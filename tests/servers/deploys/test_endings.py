"""The process that is told to go stays until its runs have ended, and closes what takes too long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.redis_server import RedisServer
from tests.servers.client import QUESTION
from tests.servers.deploys.masters import (
    CLOSING,
    QUICKLY,
    SHORT,
    Start,
    await_fresh_worker,
    gone,
    interrupted,
    reload,
    resume,
    sent_away,
    term_master,
    term_worker,
    workers,
)
from tests.servers.serving import Server, until


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(("kind", "feature"), [("gevent", "lasting"), ("gevent", "stubborn"), ("gthread", "stubborn")])
def test_a_run_that_outlasts_the_grace_is_closed_before_it_is_killed(
    start: Start, redis_server: RedisServer, other: Server, upstream: ModelServer, kind: str, feature: str
):
    old = start(kind, redis=redis_server, graceful_timeout=SHORT)
    leaving = workers(old)
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with old.post(f"/api/{feature}") as first:
        assert first.token()
        told = time.monotonic()
        term_master(old)
        sent_away(first)
        with resume(other, first) as second:
            assert interrupted(second.terminal())
            assert CLOSING - 0.5 < time.monotonic() - told < SHORT
    assert other.run(first.location)["status"] == "failed"
    assert redis_server.client().zrange("llmstream:leases", 0, -1) == []
    until(lambda: gone(leaving), patience=QUICKLY)


def test_without_redis_readers_stay_to_the_end(start: Start, upstream: ModelServer, kind: str):
    """No other process knows the run."""
    server = start(kind)
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post("/api/lasting") as answer:
        assert answer.token() == "w1 "
        leaving = workers(server)
        term_master(server)
        server.await_news("is told to go")
        time.sleep(1.5)  # who is sent away, is cut within a second
        gate.release()
        assert answer.text() == "w2 w3 "
    until(lambda: gone(leaving), patience=QUICKLY)


@pytest.mark.parametrize(("kind", "end"), [("gevent", term_worker), ("gevent", reload), ("gthread", term_master)])
def test_without_redis_readers_hear_that_a_run_is_broken_off(
    start: Start, upstream: ModelServer, kind: str, end: Callable[[Server], None]
):
    server = start(kind, graceful_timeout=SHORT)
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.ask("POST", "/api/lasting", json=QUESTION, version="1.0") as answer:
        assert answer.token() == "w1 "
        end(server)
        server.await_news("is told to go")
        told = time.monotonic()
        assert interrupted(answer.terminal())
        assert CLOSING - 0.5 < time.monotonic() - told < SHORT
    if end is not term_master:
        await_fresh_worker(server)


def test_without_redis_whoever_watches_their_runs_stays_until_these_have_ended(
    start: Start, upstream: ModelServer, kind: str
):
    server = start(kind)
    leaving = workers(server)
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.get("/api/runs/events") as feed:
        assert feed.event("runs") == {"runs": []}  # answered before the run starts
        with server.post("/api/lasting", Connection="close") as answer:
            assert feed.event("started")
            assert answer.token() == "w1 "
            reload(server)
            server.await_news("is told to go")
            gate.release()
            assert answer.text() == "w2 w3 "
            assert feed.event("ended")["ended"]["status"] == "completed"
            sent_away(feed)
    until(lambda: gone(leaving), patience=QUICKLY)
    await_fresh_worker(server)


@pytest.mark.parametrize(("kind", "number"), [("gevent", signal.SIGINT), ("gthread", signal.SIGQUIT)])
def test_one_that_is_told_to_go_at_once_says_so_first(start: Start, upstream: ModelServer, kind: str, number: int):
    """As by Ctrl-C."""
    server = start(kind)
    leaving = workers(server)
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post("/api/lasting") as answer:
        assert answer.token() == "w1 "
        told = time.monotonic()
        for pid in (server.pid, *leaving):
            os.kill(pid, number)
        assert interrupted(answer.terminal())
    until(lambda: gone(leaving))
    assert time.monotonic() - told < QUICKLY


def test_a_worker_whose_master_is_gone_drains(start: Start, upstream: ModelServer, kind: str):
    server = start(kind)
    leaving = workers(server)
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post("/api/lasting") as answer:
        assert answer.token() == "w1 "
        os.kill(server.pid, signal.SIGKILL)
        server.await_news("is told to go")
        gate.release()
        until(lambda: gone(leaving))


@pytest.mark.needs("redis-server")
def test_the_last_request_of_a_worker_is_served(
    start: Start, redis_server: RedisServer, upstream: ModelServer, kind: str
):
    """With one worker, whoever reads it stays: nobody else is there until it has gone."""
    server = start(kind, redis=redis_server, max_requests=3)
    (leaving,) = workers(server)
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.get("/state") as answer:
        answer.read()
    with server.post("/api/lasting") as answer:
        assert answer.status == 200
        assert answer.token() == "w1 "
        server.await_news("is told to go")
        time.sleep(1.5)  # who is sent away, is cut within a second
        gate.release()
        assert answer.text() == "w2 w3 "
    until(lambda: gone([leaving]), patience=QUICKLY)
    assert server.run(answer.location)["status"] == "completed"


@pytest.mark.needs("redis-server")
def test_with_several_workers_the_others_take_over_from_one_that_has_had_its_requests(
    start: Start, redis_server: RedisServer, upstream: ModelServer
):
    server = start(redis=redis_server, max_requests=10, workers=2)
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post("/api/lasting") as first:
        assert first.token() == "w1 "

        def told() -> bool:
            server.do("/state", "GET")
            return "is told to go" in server.news()

        until(told)
        assert sent_away(first) == []
    time.sleep(2.0)
    with resume(server, first) as second:
        gate.release()
        assert second.text() == "w2 w3 "


def test_a_worker_that_did_not_load_the_application_itself_drains(start: Start, upstream: ModelServer):
    server = start("gthread", preload="", graceful_timeout=SHORT)
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post("/api/lasting") as answer:
        assert answer.token() == "w1 "
        term_worker(server)
        assert interrupted(answer.terminal())
    await_fresh_worker(server)


def test_gunicorn_does_not_take_a_worker_for_stuck_that_still_writes(start: Start, upstream: ModelServer):
    server = start(timeout=2)
    (leaving,) = workers(server)
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post("/api/lasting") as answer:
        assert answer.token() == "w1 "
    server.await_state(open=0, live=1)
    reload(server)
    server.await_news("Worker exiting")
    time.sleep(3.5)
    assert not gone([leaving])
    gate.release()
    until(lambda: gone([leaving]), patience=QUICKLY)
    assert "TIMEOUT" not in server.news()
