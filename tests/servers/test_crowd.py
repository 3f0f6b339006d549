"""Many at once: all get everything in order, and those who leave, at whatever moment, leave nothing behind."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from flask_llmstream.testing import Schedule
from tests.servers.client import Answer
from tests.servers.serving import CAPACITY, Server, until

LEAVING = (Answer.leave, Answer.leave_by_fin, Answer.leave_by_reset, Answer.leave_by_half_close)


def test_fifty_streams_are_complete_and_in_order(gevent_server, upstream):
    upstream.schedule = schedule = Schedule(tokens=100, rate=100)
    with ExitStack() as stack:
        answers = [stack.enter_context(gevent_server.post(X_User=f"user {n}")) for n in range(50)]
        for answer in answers:
            assert answer.text() == schedule.text
    assert upstream.completed == 50
    assert len({answer.location for answer in answers}) == 50


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_storm(server, upstream, seed):
    """A hundred clients leave before, in and behind the response; some stop their run first."""
    dice = random.Random(seed)
    at_once = min(25, CAPACITY[server.kind])
    before = server.state()["descriptors"]
    for _ in range(0, 100, at_once):
        upstream.schedule = Schedule(tokens=300, rate=300, headers_delay=dice.random() / 20)
        storm(server, dice, at_once)
        server.await_state(open=0, live=0, watched=0, readers=0)
    upstream.wait_for(lambda upstream: upstream.active == 0)
    assert len(upstream.requests) == upstream.cancelled + upstream.completed
    assert upstream.cancelled > 20
    until(lambda: server.state()["descriptors"] <= before)


def storm(server: Server, dice: random.Random, count: int) -> None:
    users = [{"X_User": f"user {dice.random()}"} for _ in range(count)]
    with ExitStack() as stack:
        answers = [stack.enter_context(server.post(**user)) for user in users]
        for answer, user in zip(answers, users, strict=True):
            phase = dice.random()
            if phase > 0.3:
                assert answer.status == 200
            if phase > 0.5:
                for _ in range(dice.randrange(1, 25)):
                    answer.token()
            if phase > 0.9:
                with server.post(f"{answer.location}/cancel", **user) as stopped:
                    assert stopped.status == 200
            dice.choice(LEAVING)(answer)
