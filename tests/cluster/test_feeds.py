"""The stream that tells of all of one's runs, in a process that writes none of them."""

from __future__ import annotations

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.servers.serving import until

pytestmark = pytest.mark.needs("redis-server")

FEED = "/api/runs/events"


def test_a_run_is_told_of_and_listed_everywhere(pair, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=2, gates={1: gate})
    here, there = pair.servers
    with there.get(FEED) as feed:
        assert feed.event() == {"runs": []}
        with pair.start(0) as answer:
            run = feed.event("started")["started"]
            assert run["links"]["self"] == answer.location
            for server in pair.servers:
                with server.get("/api/runs?status=live", Connection="close") as listed:
                    assert [one["id"] for one in listed.json()["data"]] == [run["id"]]
            gate.release()
            assert feed.event("ended")["ended"]["status"] == "completed"
            answer.read()
    for server in (here, there):
        server.await_state(open=0)


def test_a_reader_whose_process_is_killed_goes_on_in_another(pair, upstream):
    gate = Gate()
    upstream.schedule = Schedule(tokens=2, gates={1: gate})
    with pair.servers[1].get(FEED) as feed:
        feed.event("runs")
        with pair.start(0) as answer:
            started = feed.server_event("started")
            pair.kill_worker(1)
            feed.read()
            assert feed.ending in ("reset", "torn")
            with pair.servers[0].get(FEED, Last_Event_ID=started.id) as again:
                gate.release()
                assert again.event("ended")["ended"]["status"] == "completed"
            answer.read()


def test_the_end_of_a_run_whose_writer_was_killed_is_told(pair, upstream):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with pair.servers[1].get(FEED) as feed:
        feed.event("runs")
        with pair.start(0) as answer:
            feed.event("started")
            assert answer.token() == "w1 "
            pair.kill_worker(0)
            ended = feed.event("ended")["ended"]
            assert (ended["id"], ended["status"]) == (answer.location.rpartition("/")[2], "failed")
    until(lambda: len(pair.pids()) == 2)


def test_two_workers_of_one_address(workers):
    """Whoever a browser is connected to: each of them tells of what all do."""
    server = workers.servers[0]
    feeds = [server.get(FEED) for _ in range(6)]
    for feed in feeds:
        feed.event("runs")
    with workers.start() as answer:
        answer.text()
        for feed in feeds:
            with feed:
                assert feed.event("started")["started"]["links"]["self"] == answer.location
                feed.event("ended")
