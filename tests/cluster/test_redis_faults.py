"""Redis restarts, pauses, runs out of memory, or goes: who reads from the writer's process hardly notices."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from threading import Thread
from typing import Any

import pytest

from flask_llmstream.leases import LEASE, RENEWED_EVERY
from flask_llmstream.log import ENTRY_OVERHEAD
from flask_llmstream.testing import Gate, Schedule
from tests.cluster.app import SLOTS
from tests.cluster.processes import Cluster, cluster
from tests.redis_server import RedisServer
from tests.servers.client import Answer
from tests.servers.serving import until

pytestmark = pytest.mark.needs("redis-server")

RATE = 50
PAUSE = 0.5
"""Seconds between two tokens that are a reader's waiting for something: time-outs are longer, a busy machine's
delays shorter."""
REFUSED_WITHIN = 2.5
"""Seconds in which a start is refused: the time-outs of one second and a half, and some more."""


class Tape(Thread):
    """Reads an answer to its end, and notes when each token came."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(daemon=True)
        self.answer = answer
        self.tokens: list[str] = []
        self.times: list[float] = []
        self.terminal: dict[str, Any] | None = None
        self.start()

    def run(self) -> None:
        for event in self.answer.events():
            if "token" in event:
                self.times.append(time.monotonic())
                self.tokens.append(event["token"])
            elif "done" in event or "error" in event:
                self.terminal = event

    def await_tokens(self, count: int) -> None:
        until(lambda: len(self.tokens) >= count)

    def gone(self) -> bool:
        """Whether the response has ended, in whatever way."""
        return not self.is_alive()

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    def longest_pause(self, since: float, until: float) -> float:
        """The longest time without a token in a span of time."""
        times = [since, *(moment for moment in self.times if since < moment < until), until]
        return max(later - earlier for earlier, later in pairwise(times))

    def finish(self) -> dict[str, Any]:
        """The terminal, once it is there."""
        self.join(30)
        assert not self.is_alive(), f"no end after {len(self.tokens)} tokens"
        assert self.terminal is not None, f"the response ended by {self.answer.ending}"
        assert self.answer.ending == "end"
        return self.terminal


def come_back(cluster: Cluster, at: int, answer: Answer) -> Tape:
    """Read a run from its first event to its end, coming back as often as one is sent away."""

    def whole() -> Tape | None:
        with cluster.tail(at, answer) as tail:
            if tail.status == 503:
                return None
            tape = Tape(tail)
            tape.join()
            return tape if tape.terminal else None

    return until(whole)


@contextmanager
def paused(redis: RedisServer, seconds: float) -> Iterator[None]:
    with redis.paused():
        begun = time.monotonic()
        yield
        time.sleep(max(0, begun + seconds - time.monotonic()))


def refused(cluster: Cluster, at: int = 0, *, within: float = REFUSED_WITHIN) -> None:
    """A start is refused for now, soon, and in the usual form."""
    asked = time.monotonic()
    with cluster.start(at, X_User="another") as answer:
        problem = answer.json()
        assert time.monotonic() - asked < within
    assert (answer.status, problem["status"]) == (503, 503)
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0


def test_restarted_in_midstream(own_pair, own_redis, upstream):
    """Its data is lost."""
    pair, redis = own_pair, own_redis
    upstream.schedule = schedule = Schedule(tokens=200, rate=RATE)
    with pair.start(0) as answer, pair.tail(1, answer) as tail:
        here, there = Tape(answer), Tape(tail)
        here.await_tokens(20)
        there.await_tokens(1)
        begun = time.monotonic()
        redis.restart()
        here.await_tokens(120)
        assert here.longest_pause(begun, here.times[-1]) < PAUSE
        assert here.finish()["finish_reason"] == there.finish()["finish_reason"] == "stop"
        assert here.text == there.text == schedule.text
    assert come_back(pair, 1, answer).text == schedule.text
    assert pair.endings(answer) == [("completed", len(schedule.text))]


def test_restarted_while_the_model_is_silent(own_pair, own_redis, upstream):
    """The run is put back by a renewal, its slot with it."""
    gate = Gate()
    upstream.schedule = schedule = Schedule(gates={1: gate})
    with ExitStack() as stack:
        started = [stack.enter_context(own_pair.start(0)) for _ in range(SLOTS)]
        for answer in started:
            assert answer.token() == "Hello"
        own_redis.restart()

        def found() -> bool:
            with own_pair.servers[1].get(started[-1].location) as status:
                return status.status == 200 and status.json()["text"] == "Hello"

        until(found, patience=RENEWED_EVERY + 1)
        with own_pair.start(1) as refused:
            assert refused.status == 429
        gate.release()
        for answer in started:
            assert answer.text() == schedule.text.removeprefix("Hello")
    assert come_back(own_pair, 1, started[0]).text == schedule.text


def test_away_for_longer_than_a_lease(upstream, tmp_path):
    """All leases have lapsed when it is back. Whoever was out of touch does not judge others by that."""
    upstream.schedule = schedule = Schedule(tokens=int(RATE * (LEASE + 4)), rate=RATE)
    with RedisServer(persistent=True) as redis, cluster(redis.url, upstream, tmp_path) as pair:
        with pair.start(0) as first, pair.start(1) as second:
            tapes = [Tape(first), Tape(second)]
            for tape in tapes:
                tape.await_tokens(10)
            redis.kill()
            time.sleep(LEASE + 1)
            redis.start()
            for tape in tapes:
                assert "durable" not in tape.finish()
                assert tape.text == schedule.text
        for at, answer in ((1, first), (0, second)):
            assert come_back(pair, at, answer).text == schedule.text
            assert pair.endings(answer) == [("completed", len(schedule.text))]
        pair.await_empty()


@pytest.mark.parametrize("seconds", [3, LEASE + 3])
def test_paused_in_midstream(pair, redis, upstream, seconds):
    long = Schedule(tokens=int(RATE * (seconds + 2)), rate=RATE)
    upstream.schedule = long
    with pair.start(0) as answer, pair.tail(1, answer) as tail:
        here, there = Tape(answer), Tape(tail)
        here.await_tokens(10)
        there.await_tokens(1)
        upstream.schedule = short = Schedule(tokens=RATE, rate=RATE)
        with pair.start(0) as ends_meanwhile:
            ending = Tape(ends_meanwhile)
            ending.await_tokens(1)
            with paused(redis, seconds):
                begun = time.monotonic()
                refused(pair)
                terminal = ending.finish()
                assert ending.text == short.text
                assert terminal["durable"] is False
                assert time.monotonic() - ending.times[-1] < 2 + PAUSE
            assert here.longest_pause(begun, time.monotonic()) < PAUSE
            assert here.terminal is None
        assert here.finish() == there.finish()
        assert here.text == there.text == long.text
    for started, schedule in ((answer, long), (ends_meanwhile, short)):
        assert come_back(pair, 1, started).text == schedule.text
        assert pair.endings(started) == [("completed", len(schedule.text))]
        assert pair.servers[1].run(started.location)["status"] == "completed"


def test_out_of_memory(pair, redis, upstream):
    upstream.schedule = schedule = Schedule(tokens=150, rate=RATE)
    with pair.start(0) as answer, pair.tail(1, answer) as tail:
        here, there = Tape(answer), Tape(tail)
        here.await_tokens(10)
        begun = time.monotonic()
        redis.client().config_set("maxmemory", 1)
        refused(pair, 0)
        refused(pair, 1)
        here.await_tokens(len(here.tokens) + RATE)
        assert here.longest_pause(begun, here.times[-1]) < PAUSE
        redis.client().config_set("maxmemory", 0)
        with pair.start(1, X_User="another") as next_one:
            assert next_one.status == 200
        assert here.finish() == there.finish()
        assert here.text == there.text == schedule.text


def test_gone(own_pair, own_redis, upstream):
    """Answers go on to their end, which says that nobody elsewhere can read it."""
    pair, redis = own_pair, own_redis
    upstream.schedule = schedule = Schedule(tokens=100, rate=RATE)
    with pair.start(0) as answer:
        here = Tape(answer)
        here.await_tokens(10)
        redis.kill()
        begun = time.monotonic()
        for at in (0, 1):
            refused(pair, at, within=1)
        terminal = here.finish()
        assert here.longest_pause(begun, here.times[-1]) < PAUSE
        assert time.monotonic() - here.times[-1] < 2 + PAUSE
        assert (terminal["durable"], here.text) == (False, schedule.text)
        # The process that wrote it has it still; the other does not know, and says so.
        assert pair.servers[0].run(answer.location)["text"] == schedule.text
        for path in (answer.location, f"{answer.location}/events"):
            with pair.servers[1].get(path) as status:
                assert status.status == 503
    redis.start()
    assert come_back(pair, 1, answer).text == schedule.text


def test_reader_elsewhere_while_it_is_gone(own_pair, own_redis, upstream):
    """Is sent away, and may come back to where the run is written."""
    upstream.schedule = Schedule(tokens=50, rate=RATE)
    with own_pair.start(0) as answer, own_pair.tail(1, answer) as tail:
        tail.token()
        own_redis.kill()
        until(Tape(tail).gone, patience=30)
        assert tail.ending == "reset"
    own_redis.start()
    assert come_back(own_pair, 1, answer).text == upstream.schedule.text


def test_memory_while_it_is_gone(own_pair, own_redis, upstream):
    """What cannot be told is not piled up beside the log."""
    upstream.schedule = schedule = Schedule(tokens=10_000, rate=5000)
    server = own_pair.servers[0]
    with own_pair.start(0) as answer:
        answer.read()
    with own_pair.start(0) as answer:
        answer.token()
        before = server.state()["resident"]
        own_redis.kill()
        assert json.loads(answer.server_events()[-1].data)["durable"] is False
    entries = len(schedule.text_tokens()) * (len(b'{"token":"w10000 "}') + ENTRY_OVERHEAD)
    assert server.state()["resident"] - before < 3 * entries
    own_redis.start()
