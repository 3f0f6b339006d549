"""One stream that tells of all of one's runs."""

from __future__ import annotations

import time

import pytest

from tests.conversation import ask, events, problem
from tests.puppet import Pause, Puppet, stage
from tests.runs.listener import FEED, Listener, finished_run, key, links


def test_it_has_the_headers_and_the_opening_of_any_stream(client):
    with Listener(client) as listener:
        headers = listener.response.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["X-Accel-Buffering"] == "no"
        assert "Location" not in headers
        opening = next(listener.response.response).split(b"\n\n")[0].split(b"\n")
        assert opening[0].startswith(b"retry: ")
        assert opening[1:] == [b"id: runs:0-0", b": heartbeat=0.1"]


def test_whoever_comes_is_told_which_runs_are_live(live):
    client, url = live
    with Listener(client) as listener:
        said, place = listener.event()
        run = client.get(url).json
        told = {name: run[name] for name in ("id", "feature", "status", "created_at", "links")}
        assert said == {"runs": [told]}
        assert place.startswith("runs:") and place == listener.decoder.last_event_id


def test_the_live_runs_are_told_in_the_order_in_which_they_started():
    with stage(Puppet(["Hel", Pause()])) as (app, _):
        client = app.test_client()
        with ask(client, headers=key()) as first, ask(client, headers=key()) as second, Listener(client) as listener:
            runs = listener.hears("runs")
            assert [run["links"]["self"] for run in runs] == [first.headers["Location"], second.headers["Location"]]


def test_what_happens_is_told(client):
    with Listener(client) as listener:
        assert listener.hears("runs") == []
        run_id = finished_run(client)
        started = listener.hears("started")
        assert (started["id"], started["feature"], started["links"]) == (run_id, "chat", links(run_id))
        ended = listener.hears("ended")
        assert (ended["id"], ended["status"], ended["links"]) == (run_id, "completed", links(run_id))
        assert started["created_at"] <= ended["ended_at"] <= time.time()
        client.delete(links(run_id)["self"])
        assert listener.hears("forgotten") == {"id": run_id}


def test_links_lead_through_the_prefix_of_the_application(client):
    with Listener(client, environ_overrides={"SCRIPT_NAME": "/ai"}) as listener:
        listener.hears("runs")
        run_id = finished_run(client)
        assert listener.hears("started")["links"]["self"] == f"/ai/api/runs/{run_id}"


def test_from_any_place_only_what_follows(client):
    with Listener(client) as listener:
        listener.hears("runs")
        for _ in range(3):
            finished_run(client)
        told = [listener.event() for _ in range(6)]
    for at, (_, place) in enumerate(told[:-1], 1):
        for again in (Listener(client, place), Listener(client, query_string={"after": place})):
            with again:
                assert [again.event() for _ in told[at:]] == told[at:]


def test_at_the_end_of_a_feed_it_waits(client):
    with Listener(client) as listener:
        listener.hears("runs")
        finished_run(client)
        listener.hears("started")
        _, place = listener.event()
    with Listener(client, place) as again:
        assert f"id: {place}\n".encode() in next(again.response.response)
        run_id = finished_run(client)
        assert again.hears("started")["id"] == run_id


def test_a_place_that_is_not_kept_is_told_how_things_stand(live):
    client, _ = live
    for place in ("runs:1-0", "runs:999999999999999-0"):
        with Listener(client, place) as listener:
            (run,) = listener.hears("runs")
            assert run["status"] == "in_progress"


@pytest.mark.parametrize("after", ["abc:1-1", "runs", "17", "runs:x-1", "runs:1"])
def test_a_cursor_of_something_else_is_refused(client, after):
    assert problem(client.get(FEED, query_string={"after": after}))["status"] == 400


def test_nothing_is_told_of_others(client):
    with Listener(client) as ann, Listener(client, headers={"X-User": "bob"}) as bob:
        assert ann.hears("runs") == bob.hears("runs") == []
        events(ask(client, headers=key() | {"X-User": "bob"}))
        run_id = finished_run(client)
        assert ann.hears("started")["id"] == run_id
        assert bob.hears("started")["id"] != run_id


def test_it_never_ends_by_itself_and_has_signs_of_life(client):
    with Listener(client) as listener:
        listener.hears("runs")
        beats = [next(listener.response.response) for _ in range(3)]
        assert beats == [b":\n\n"] * 3


def test_head_opens_no_stream(app, client):
    response = client.head(FEED)
    assert (response.status_code, response.mimetype, response.data) == (200, "text/event-stream", b"")
    assert len(app.extensions["llmstream"]["llmstream"].open) == 0


def test_a_foreign_page_is_refused(client):
    assert problem(client.get(FEED, headers={"Origin": "https://evil.example"}))["status"] == 403


def test_nobody_is_refused():
    with stage(hooks={"identify": lambda: None}) as (app, _):
        assert problem(app.test_client().get(FEED))["status"] == 401


def test_an_anonymous_visitor_gets_the_identity_with_which_their_runs_are_told():
    with stage(hooks={"identify": None}) as (app, _):
        client = app.test_client()
        with Listener(client) as listener:
            assert listener.hears("runs") == []
            assert "Set-Cookie" in listener.response.headers
            run_id = finished_run(client)
            assert listener.hears("started")["id"] == run_id


def test_what_happens_while_the_live_runs_are_listed_is_told(client, app, monkeypatch):
    """Twice, if need be."""
    registry = app.extensions["llmstream"]["llmstream"].registry
    listed, started = registry.listed, []

    def slowly(*args, **more):
        runs = listed(*args, **more)
        started.append(finished_run(client))
        return runs

    monkeypatch.setattr(registry, "listed", slowly)
    with Listener(client) as listener:
        assert listener.hears("runs") == []
        assert [listener.hears(kind)["id"] for kind in ("started", "ended")] == started * 2
