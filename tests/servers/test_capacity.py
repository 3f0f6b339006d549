"""A process refuses at once what it can't carry, and goes on to answer who asks about what it carries."""

from __future__ import annotations

import time
from contextlib import ExitStack

from flask_llmstream.testing import Gate, Schedule
from tests.servers.serving import CAPACITY


def test_full_process_refuses_at_once_but_not_status_and_stop(server, upstream):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    small = server.at("/small")
    with small.post(X_User="a") as first, small.post(X_User="b") as second:
        assert first.token() == second.token() == "w1 "
        asked = time.monotonic()
        with small.post(X_User="c") as refused:
            assert refused.status == 503
            assert time.monotonic() - asked < 0.9
            assert 1 <= int(refused.headers["retry-after"]) <= 5
            assert refused.json()["type"].endswith("overloaded")
        with small.get(f"{first.location}/events", X_User="a") as reader:
            assert reader.status == 503
        with small.get(first.location, X_User="a") as status:
            assert status.json()["status"] == "in_progress"
        with small.post(f"{first.location}/cancel", json=None, X_User="a") as stopped:
            assert stopped.json()["status"] == "cancelled"
        first.read()
        small.await_state(open=1)
        with small.post(X_User="c") as admitted:
            assert admitted.token() == "w1 "
    small.await_state(open=0)


def test_cap_follows_from_the_servers_own_limits(server, upstream):
    """As many streams as that are open at the same time, and the process can still be asked."""
    gate = Gate()
    upstream.schedule = Schedule(gates={0: gate})
    capacity = CAPACITY[server.kind]
    with ExitStack() as stack:
        answers = [stack.enter_context(server.post(X_User=f"user {n}")) for n in range(capacity)]
        upstream.wait_for(lambda upstream: upstream.active == capacity, timeout=30)
        with server.post(X_User="one more") as refused:
            assert refused.status == 503
        assert server.state()["limit"] == capacity
        assert {answer.status for answer in answers} == {200}
        gate.release()
        assert {answer.text() for answer in answers} == {"Hello, world!"}
