"""No client takes a cut for an end; and one that does not read costs nobody else anything, and not for long."""

from __future__ import annotations

import time

from flask_llmstream.testing import Gate, Schedule
from tests.servers.client import QUESTION

BIG = ["x" * 40_000 + " "] * 150
"""Six megabytes: more than what the kernel takes for a client that does not read, less than a log's limit."""
WINDOW = 4096


def test_mistake_in_midstream_resets(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post() as answer:
        assert answer.token() == "w1 "
        server.do("/break/" + answer.location.removeprefix("/api/runs/"))
        answer.read()
        assert answer.ending == "reset"
    assert "TypeError" in server.await_news("TypeError")


def test_end_of_a_run_is_a_clean_end(server):
    with server.post() as answer:
        answer.read()
        assert answer.ending == "end"


def test_client_that_does_not_read_is_cut_after_the_write_deadline(server, upstream):
    upstream.schedule = Schedule(tokens=BIG)
    quick = server.at("/quick")
    with quick.ask("POST", "/api/endless", json=QUESTION, window=WINDOW) as answer:
        upstream.wait_for(lambda upstream: upstream.completed == 1)
        quick.await_state(open=1)
        quick.await_state(open=0, watched=0)
        answer.read()
        assert answer.ending == "reset"
    assert len(answer.body) < len("".join(BIG))


def test_client_that_does_not_read_holds_nobody_else_up(server, upstream):
    gates = {n: Gate() for n in range(5)}
    upstream.then(Schedule(tokens=BIG))
    upstream.schedule = Schedule(tokens=5, gates=gates)
    with server.ask("POST", "/api/endless", json=QUESTION, window=WINDOW):
        upstream.wait_for(lambda upstream: upstream.completed == 1)
        with server.post(X_User="another") as other:
            for n, gate in gates.items():
                asked = time.monotonic()
                gate.release()
                assert other.token() == f"w{n + 1} "
                assert time.monotonic() - asked < 1
            assert other.terminal()["tokens"] == 5
        assert server.state()["open"] == 1


def test_clients_that_do_not_read_are_given_no_memory(server, upstream):
    upstream.schedule = Schedule(tokens=BIG)
    with server.post("/api/endless") as first:
        first.read()
        before = server.state()["resident"]
        slow = [server.ask("GET", f"{first.location}/events", window=WINDOW) for _ in range(8)]
        grown = server.await_state(open=8)["resident"] - before
        for answer in slow:
            answer.leave()
    # Eight copies of what is to be sent would be fifty megabytes.
    assert grown < 15_000_000
