"""Behind a real nginx, which speaks HTTP/1.0 to us unless it is told otherwise, and gathers what it is not told to
pass on at once."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.servers.client import QUESTION, Answer, ask
from tests.servers.test_cuts import BIG, WINDOW
from tests.servers.test_leaving import in_every_way
from tests.servers.test_stopping import assert_closed_at_once

pytestmark = [
    pytest.mark.needs("nginx"),
    pytest.mark.parametrize("way", ["default", "http11", "gzip"]),
]


@pytest.fixture
def post(proxied: tuple[str, int], way: str) -> Callable[..., Answer]:
    def post(path: str = "/api/chat/stream", **more: object) -> Answer:
        headers = {"Accept-Encoding": "gzip"} if way == "gzip" else {}
        return ask(proxied, "POST", f"/{way}{path}", json=QUESTION, headers=headers, **more)

    return post


def test_token_passes_before_the_next_one_exists(server, upstream, post):
    gates = {n: Gate() for n in range(4)}
    upstream.schedule = Schedule(tokens=4, gates=gates)
    with post() as answer:
        for n, gate in gates.items():
            gate.release()
            assert answer.token() == f"w{n + 1} "
        assert answer.headers.get("content-encoding", "identity") == "identity"
        assert answer.terminal()["tokens"] == 4


@in_every_way
def test_leaving_closes_the_model(server, upstream, post, leave: Callable[[Answer], None]):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with post() as answer:
        if leave is not Answer.leave:
            assert answer.token() == "w1 "
        upstream.wait_for(lambda upstream: upstream.requests and upstream.requests[0].tokens_sent == 1)
        left = time.monotonic()
        leave(answer)
        assert_closed_at_once(upstream, left)


def test_leaving_before_the_headers_closes_the_model(server, upstream, post):
    gate = Gate()
    upstream.schedule = Schedule(gates={"headers": gate})
    with post() as answer:
        gate.wait()
        left = time.monotonic()
        answer.leave_by_fin()
        assert_closed_at_once(upstream, left)


def test_cut_is_no_end(server, upstream, post):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with post() as answer:
        assert answer.token() == "w1 "
        server.do("/break/" + answer.location.removeprefix("/api/runs/"))
        answer.read()
        assert answer.ending in ("torn", "reset")
    assert "TypeError" in server.await_news("TypeError")


def test_client_that_does_not_read_takes_no_cut_for_an_end(server, upstream, post):
    upstream.schedule = Schedule(tokens=BIG)
    quick = server.at("/quick")
    with post("/quick/api/endless", window=WINDOW) as answer:
        upstream.wait_for(lambda upstream: upstream.completed == 1)
        quick.await_state(open=1)
        quick.await_state(open=0, watched=0)
        answer.read()
        assert answer.ending in ("torn", "reset")
    assert len(answer.body) < len("".join(BIG))


def test_early_failure_passes_with_its_status(server, upstream, post):
    upstream.schedule = Schedule(status=403)
    with post() as answer:
        assert answer.status == 502
        assert answer.headers["content-type"] == "application/problem+json"
