"""A process that is killed leaves runs behind: they end, once, with what is kept of them, and hold nothing any more."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import Any

import pytest

from flask_llmstream.cursor import Cursor
from flask_llmstream.sse import ServerEvent
from flask_llmstream.testing import Gate, Schedule
from tests.cluster.app import SLOTS
from tests.cluster.processes import PREFIX, Cluster
from tests.redis_server import RedisServer
from tests.servers.serving import until

pytestmark = pytest.mark.needs("redis-server")

CLOSED_WITHIN = 12.0
"""Seconds: a lease of eight that was renewed just before, two until it is noticed, and a busy machine's delays."""


@pytest.fixture
def judging(pair: Cluster) -> Cluster:
    """The second process has been in touch for long enough to judge others."""
    until(lambda: pair.servers[1].state()["judges"])
    return pair


def used(redis: RedisServer) -> int:
    """What of the only owner's budget is used or reserved."""
    [window] = redis.keys(PREFIX + "tokens:*")
    return int(redis.client().hget(window, "n"))


def assert_interrupted(event: ServerEvent, last: Cursor) -> dict[str, Any]:
    """It is the end, by another process, of a run of which the writer's events are kept up to the last."""
    assert Cursor.parse(event.id) == Cursor(last.run_id, last.epoch + 1, 1)
    terminal: dict[str, Any] = json.loads(event.data)
    assert terminal["problem"]["type"].endswith("run-interrupted")
    assert terminal["problem"]["kept"] == str(last)
    return terminal


def test_runs_of_a_killed_process_are_closed(judging, redis, upstream):
    upstream.schedule = Schedule(tokens=6, stall_after=3)
    with ExitStack() as stack:
        started = [stack.enter_context(judging.start(0, X_User="ann")) for _ in range(SLOTS)]
        lasts = [[answer.server_event("token") for _ in range(3)][-1] for answer in started]
        tails = [stack.enter_context(judging.tail(1, answer, X_User="ann")) for answer in started]
        for tail in tails:
            assert [tail.token() for _ in range(3)] == ["w1 ", "w2 ", "w3 "]
        reserved = used(redis)

        killed = time.monotonic()
        judging.kill_worker(0)
        for answer in started:
            answer.read()
            assert answer.ending != "end"
        # Those who come back, be it to the process that took the killed one's place, hear the same.
        tails += [
            stack.enter_context(judging.tail(n % 2, answer, after=last.id, X_User="ann"))
            for n, (answer, last) in enumerate(zip(started, lasts, strict=True))
        ]
        terminals = [
            assert_interrupted(tail.server_event("error"), Cursor.parse(last.id))
            for tail, last in zip(tails, 2 * lasts, strict=True)
        ]
        assert time.monotonic() - killed < CLOSED_WITHIN
        assert terminals[:SLOTS] == terminals[SLOTS:]

    for answer, terminal in zip(started, terminals[:SLOTS], strict=True):
        assert (terminal["tokens"], terminal["usage"]["estimated"]) == (3, True)
        with judging.servers[0].get(answer.location, X_User="ann") as status:
            assert status.json() | {"status": "failed", "text": "w1 w2 w3 "} == status.json()
        until(lambda answer=answer: ("failed", len("w1 w2 w3 ")) in judging.endings(answer))
    settled = [terminal["usage"]["prompt_tokens"] + 3 for terminal in terminals[:SLOTS]]
    assert used(redis) == sum(settled) < reserved
    upstream.schedule = Schedule()
    for at in (0, 1):
        with judging.start(at, X_User="ann") as answer:
            assert answer.text() == upstream.schedule.text


def test_reader_who_has_more_than_was_kept_hears_the_end(judging, redis, upstream):
    gates = {3: Gate(), 4: Gate()}
    upstream.schedule = Schedule(tokens=8, stall_after=6, gates=gates)
    with judging.start(0) as answer, judging.tail(1, answer) as tail:
        assert [answer.token() for _ in range(3)] == ["w1 ", "w2 ", "w3 "]
        assert [tail.token() for _ in range(3)] == ["w1 ", "w2 ", "w3 "]
        with redis.paused():
            gates[3].release()
            assert answer.token() == "w4 "  # the journal now waits for Redis to have this
            gates[4].release()
            ahead = [answer.server_event("token") for _ in range(2)][-1]
            judging.kill_worker(0)
            assert answer.read() and answer.ending != "end"
        last = tail.server_event("token")
        assert json.loads(last.data) == {"token": "w4 "}
        with judging.tail(1, answer, after=ahead.id) as back, judging.tail(0, answer, after=ahead.id) as other:
            [event] = back.server_events()
            terminal = assert_interrupted(event, Cursor.parse(last.id))
            assert other.server_events() == [event] == tail.server_events()
    assert Cursor.parse(ahead.id).n == Cursor.parse(last.id).n + 2
    assert terminal["tokens"] == 4
    until(lambda: ("failed", len("w1 w2 w3 w4 ")) in judging.endings(answer))
    # Whoever has the end is told that nothing follows it, and whoever has nothing gets all that is kept.
    with judging.tail(0, answer, after=event.id) as nothing:
        assert nothing.status == 204
    with judging.tail(0, answer) as all_of_it:
        assert "".join(e.get("token", "") for e in all_of_it.events()) == "w1 w2 w3 w4 "


def test_stop_of_a_run_whose_process_is_gone(judging, upstream):
    """It ends as cancelled: that is what was asked for."""
    upstream.schedule = Schedule(tokens=6, stall_after=2)
    with judging.start(0) as answer:
        assert [answer.token() for _ in range(2)] == ["w1 ", "w2 "]
        with judging.tail(1, answer) as tail:
            assert [tail.token() for _ in range(2)] == ["w1 ", "w2 "]  # so they are kept
            judging.kill_worker(0)
            with judging.servers[1].post(f"{answer.location}/cancel") as stopped:
                assert stopped.status == 202
            terminal = tail.terminal()
            assert (terminal["cancelled"], terminal["tokens"]) == (True, 2)
