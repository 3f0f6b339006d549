"""The list of one's own runs, wherever they are written."""

from __future__ import annotations

import time

import pytest

from flask_llmstream import registry as registry_module
from flask_llmstream.errors import UpstreamForbidden
from flask_llmstream.events import Usage
from flask_llmstream.journal import SharedJournal
from tests.conversation import QUESTION, ask, events, problem
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage
from tests.redis_server import RedisServer

WITHHELD = {"cursor", "text", "result"}
"""What belongs to an answer's text, which the list leaves out."""


def listed(client, **query):
    response = client.get("/api/runs", query_string=query)
    assert response.status_code == 200, response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json.keys() == {"data"}
    return response.json["data"]


def key():
    """A question of its own."""
    return {"Idempotency-Key": f"{time.monotonic_ns():022}"}


def without_answer(run):
    return {name: value for name, value in run.items() if name not in WITHHELD}


def test_each_run_is_as_it_is_by_itself_but_without_its_answer(live, pause):
    client, url = live
    (run,) = listed(client)
    assert run == without_answer(client.get(url).json)
    assert run["status"] == "in_progress"
    pause.go_on()
    eventually(lambda: listed(client)[0]["status"] == "completed")
    (run,) = listed(client)
    assert run == without_answer(client.get(url).json)
    assert run["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


def test_the_newest_comes_first():
    with stage(Puppet(["Hel", Pause()], ["lo"])) as (app, _):
        client = app.test_client()
        with ask(client, headers=key()) as first:
            second = ask(client, headers=key())
            events(second)
            urls = [run["links"]["self"] for run in listed(client)]
            assert urls == [second.headers["Location"], first.headers["Location"]]
            assert [run["links"]["self"] for run in listed(client, status="live")] == urls[1:]


def test_what_is_forgotten_is_not_listed(ended):
    client, url = ended
    client.delete(url)
    assert listed(client) == []


def test_a_live_run_that_is_forgotten_is_not_listed_while_it_stops(live):
    client, url = live
    client.delete(url)
    assert listed(client) == listed(client, status="live") == []


def test_runs_of_others_are_not_listed(ended):
    client, _ = ended
    assert client.get("/api/runs", headers={"X-User": "bob"}).json == {"data": []}


def test_whoever_has_no_identity_yet_has_no_runs():
    with stage(hooks={"identify": None}) as (app, _):
        response = app.test_client().get("/api/runs")
        assert response.json == {"data": []}
        assert "Set-Cookie" not in response.headers


def test_nobody_is_refused():
    with stage(hooks={"identify": lambda: None}) as (app, _):
        assert problem(app.test_client().get("/api/runs"))["status"] == 401


@pytest.mark.parametrize("status", ["ended", "Live", "", "completed"])
def test_another_status_is_refused(ended, status):
    client, _ = ended
    assert problem(client.get("/api/runs", query_string={"status": status}))["status"] == 400


def test_a_foreign_page_is_refused(ended):
    client, _ = ended
    assert problem(client.get("/api/runs", headers={"Origin": "https://evil.example"}))["status"] == 403


def test_a_long_list_has_the_live_ones_and_those_that_ended_last(monkeypatch):
    monkeypatch.setattr(registry_module, "LISTED", 3)
    with stage(Puppet(["Hel", Pause()], ["lo"])) as (app, _):
        client = app.test_client()
        with ask(client, headers=key()) as first:
            later = []
            for _ in range(4):
                later.append(ask(client, headers=key()))
                events(later[-1])
            urls = [run["links"]["self"] for run in listed(client)]
            assert urls == [answer.headers["Location"] for answer in (later[3], later[2], first)]


# Elsewhere


@pytest.fixture
def two_processes(redis_server):
    """Two applications that know of each other's runs by Redis alone, with a client of the same visitor each."""
    pause = Pause()
    model = Puppet(["Hel", pause, "lo"], [UpstreamForbidden()], usage=Usage(3, 2))
    with stage(model, REDIS_URL=redis_server.url) as (here, _), stage(REDIS_URL=redis_server.url) as (there, _):
        yield here.test_client(), there.test_client(), pause


@pytest.mark.needs("redis-server")
def test_a_run_is_listed_alike_in_every_process(two_processes):
    here, there, pause = two_processes
    with ask(here, headers=key()) as answer:
        assert pause.reached.wait(PATIENCE)
        eventually(lambda: listed(there)[0]["status"] == "in_progress")
        (run,) = listed(there)
        assert run == without_answer(here.get(answer.headers["Location"]).json)
        assert listed(there, status="live") == [run]
        pause.go_on()
        events(answer)
    failed = ask(here, headers=key())
    assert failed.status_code == 502
    runs = listed(there)
    assert [run["status"] for run in runs] == ["failed", "completed"]
    assert runs == listed(here) == [without_answer(there.get(run["links"]["self"]).json) for run in runs]
    assert listed(there, status="live") == []


@pytest.mark.needs("redis-server")
def test_a_list_loads_no_logs(two_processes, redis_server):
    here, there, pause = two_processes
    pause.go_on()
    events(ask(here, headers=key()))
    before = redis_server.commands()["xrange"]
    assert len(listed(there)) == 1
    assert redis_server.commands()["xrange"] == before


@pytest.mark.needs("redis-server")
def test_without_redis_nobody_can_tell():
    with RedisServer() as server, stage(REDIS_URL=server.url) as (app, _):
        client = app.test_client()
        assert listed(client) == []
        server.stop()
        refused = client.get("/api/runs")
        assert problem(refused)["status"] == 503
        assert "Retry-After" in refused.headers
        server.start()


@pytest.mark.needs("redis-server")
def test_of_a_run_that_ends_at_once_every_process_knows_when_it_began(redis_server, monkeypatch):
    """Before the journal has written a word of it."""
    monkeypatch.setattr(SharedJournal, "_write", lambda journal, taken: None)
    with stage(REDIS_URL=redis_server.url) as (here, _), stage(REDIS_URL=redis_server.url) as (there, _):
        events(ask(here.test_client(), headers=key()))
        (run,) = listed(there.test_client())
        assert run["created_at"] <= run["started_at"] <= run["ended_at"]


def test_those_of_one_feature_are_found_behind_many_others(monkeypatch):
    monkeypatch.setattr(registry_module, "LISTED", 2)
    with stage() as (app, llm):

        @llm.stream("/api/rare")
        def rare(run):
            yield "seldom"

        client = app.test_client()
        events(ask(client, "/api/rare"))
        for _ in range(5):
            events(ask(client, headers=key()))
        assert [run["feature"] for run in listed(client)] == ["chat", "chat"]
        assert [run["feature"] for run in listed(client, feature="rare")] == ["rare"]
        assert listed(client, feature="none") == []


def test_what_goes_on_is_not_hidden_by_what_is_kept_for_long(monkeypatch):
    monkeypatch.setattr(registry_module, "LISTED", 2)
    with stage(Puppet(["Hel", Pause()])) as (app, llm):

        @llm.job("/api/quick")
        def quick(run):
            return "done"

        client = app.test_client()
        with ask(client, headers=key()) as answer:
            for _ in range(3):
                client.post("/api/quick", json=QUESTION, headers=key() | {"Prefer": "wait=5"})
            assert answer.headers["Location"] in [run["links"]["self"] for run in listed(client)]
