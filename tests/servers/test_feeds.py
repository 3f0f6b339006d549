"""The stream that tells of all of one's runs, over real servers: at once, to many, and gone when its client is."""

from __future__ import annotations

import pytest

from flask_llmstream.codecs.native import HEARTBEAT
from flask_llmstream.testing import Gate, Schedule
from tests.servers.test_leaving import WAYS

FEED = "/api/runs/events"


def test_what_happens_is_told_at_once(server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=2, gates={1: gate})
    with server.get(FEED) as feed:
        assert feed.status == 200
        assert feed.event() == {"runs": []}
        with server.post() as answer:
            started = feed.event("started")["started"]
            assert started["links"]["self"] == answer.location
            with server.get(FEED) as later:
                assert [run["id"] for run in later.event("runs")["runs"]] == [started["id"]]
                gate.release()
                assert answer.terminal()["done"]
                for told in (feed, later):
                    assert told.event("ended")["ended"]["id"] == started["id"]


@pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS)
def test_a_client_that_leaves_is_noticed(server, leave):
    with server.get(FEED) as feed:
        feed.event("runs")
        server.await_state(open=1, watched=1)
        leave(feed)
        server.await_state(open=0, watched=0)


def test_signs_of_life(server):
    with server.at("/quick").get(FEED) as feed:
        feed.read_until(HEARTBEAT, 3)
        assert feed.ending is None


def test_a_full_process_sends_readers_away_in_words_of_an_event_source(server):
    small = server.at("/small")
    with small.get(FEED) as first, small.get(FEED) as second:
        first.event("runs")
        second.event("runs")
        with small.get(FEED) as third:
            assert third.status == 200
            assert third.read().startswith(b"retry: ")
            assert third.ending == "reset"
    small.await_state(open=0)


def test_who_comes_back_hears_what_they_missed(server):
    with server.get(FEED) as feed:
        feed.event("runs")
        with server.post() as answer:
            answer.text()
        told = [feed.server_event(), feed.server_event()]
    with server.get(FEED, Last_Event_ID=told[0].id) as again:
        assert again.server_event() == told[1]
