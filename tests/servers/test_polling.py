"""Clients that poll take no more of a process than those that stream, and are noticed just so when they leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.servers.client import Answer
from tests.servers.serving import Server
from tests.servers.test_leaving import in_every_way
from tests.servers.test_stopping import AT_ONCE, stop

MANY = 14
"""More than the threads of a server that has a thread for each connection."""


@contextmanager
def polled_by_many(server: Server, location: str) -> Iterator[list[Answer]]:
    """Clients that wait for the end of a run, as many of them as may; one stream is open besides."""
    with ExitStack() as clients:
        polls = [clients.enter_context(server.get(f"{location}?wait=30")) for _ in range(MANY)]
        server.await_state(readers=min(MANY + 1, server.state()["limit"]))
        yield polls


def test_polls_whose_clients_have_gone_keep_nobody_from_stopping(server, upstream):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post("/api/patient") as answer:
        assert answer.token() == "w1 "
        with polled_by_many(server, answer.location) as polls:
            for poll in polls:
                poll.leave_by_reset()
        asked = time.monotonic()
        assert stop(server, answer.location)["status"] == "cancelled"
        assert time.monotonic() - asked < AT_ONCE
        assert answer.terminal()["cancelled"] is True


def test_polls_whose_clients_are_there_keep_nobody_from_stopping_either(server, upstream):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post("/api/patient") as answer:
        assert answer.token() == "w1 "
        with polled_by_many(server, answer.location) as polls:
            asked = time.monotonic()
            assert stop(server, answer.location)["status"] == "cancelled"
            assert time.monotonic() - asked < AT_ONCE
            # Those that waited are told of the end; those for which there was no place were told where it stood.
            told = [poll.json()["status"] for poll in polls]
        assert set(told) <= {"cancelled", "in_progress"}
        assert told.count("cancelled") == min(MANY, server.state()["limit"] - 1)
        assert answer.terminal()["cancelled"] is True


@in_every_way
def test_a_poll_is_over_when_its_client_leaves(server, upstream, leave):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    with server.post("/api/patient") as answer:
        assert answer.token() == "w1 "
        with server.get(f"{answer.location}?wait=30") as poll:
            server.await_state(open=2, readers=2, watched=2)
            left = time.monotonic()
            leave(poll)
            server.await_state(open=1, readers=1, watched=1)
            assert time.monotonic() - left < AT_ONCE
        gate.release()
        assert answer.text() == "w2 w3 "


def test_nobody_pays_for_what_only_a_poll_waited_for_that_has_gone(server, upstream):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with server.post() as answer:  # whose grace time is none
        assert answer.token() == "w1 "
        with server.get(f"{answer.location}?wait=30") as poll:
            server.await_state(readers=2)
            answer.leave_by_reset()
            server.await_state(open=1, readers=1, live=1)
            poll.leave_by_reset()
            upstream.wait_for(lambda upstream: upstream.cancelled == 1)


@pytest.mark.parametrize("query", ["?wait=30", ""])
def test_where_all_places_are_taken_a_poll_is_answered_at_once(server, upstream, query):
    """It is what a client does that has no stream: it is never refused, and comes again when it is told to."""
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    small = server.at("/small")
    with small.post(X_User="somebody") as one, small.post(X_User="another") as other:
        assert (one.token(), other.token()) == ("w1 ", "w1 ")
        asked = time.monotonic()
        with small.get(f"{one.location}{query}", Connection="close") as poll:
            assert poll.status == 200
            assert poll.headers["retry-after"] == "2"
            assert poll.json()["status"] == "in_progress"
        assert time.monotonic() - asked < AT_ONCE
        assert small.state()["open"] == 2
        gate.release()
        assert (one.text(), other.text()) == ("w2 w3 ", "w2 w3 ")


def test_the_place_of_a_poll_is_free_again_after_it(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=3, gates={1: gate})
    small = server.at("/small")
    with small.post() as answer:
        assert answer.token() == "w1 "
        for _ in range(3):
            with small.get(f"{answer.location}?wait=0.1", Connection="close") as poll:
                assert poll.json()["status"] == "in_progress"
        small.await_state(open=1)
        gate.release()
        assert answer.text() == "w2 w3 "
