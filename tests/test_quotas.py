"""What a visitor is told of their limits: by headers with each start, and by the body of a refusal."""

from __future__ import annotations

import json
import re

import pytest

from flask_llmstream.admission import Standing
from flask_llmstream.errors import UpstreamRateLimited
from flask_llmstream.quotas import describe, rate_limits
from flask_llmstream.sse import Decoder
from tests.conversation import ask, events, problem, text
from tests.puppet import PATIENCE, Pause, Puppet, stage

LIMITS = {"STARTS_PER_USER": "3/day", "TOKEN_BUDGET": "10000/day", "MAX_TOKENS": 1000}
POLICY = '"starts";q=3;w=86400, "tokens";q=10000;w=86400'
KEYED = {"Idempotency-Key": "8f14e45f-ceea-467f-a0e6-3d1f2b7c9a10"}


def question(number):
    """A request that no other one is taken for."""
    return {"messages": [{"role": "user", "content": f"Question {number}"}]}


def left(response):
    """What a response says is left, by quota; and that the window ends when a day does at the latest."""
    said = re.findall(r'"(\w+)";r=(\d+);t=(\d+)', response.headers["RateLimit"])
    assert all(0 < int(seconds) <= 86_400 for _, _, seconds in said)
    return {name: int(remaining) for name, remaining, _ in said}


def test_each_start_says_what_is_left():
    with stage(**LIMITS) as (app, _):
        for n in range(3):
            response = ask(app, body=question(n))
            assert response.headers["RateLimit-Policy"] == POLICY
            assert left(response)["starts"] == 2 - n
            assert 8900 < left(response)["tokens"] < 9000
            assert text(response) == "Hello"


def test_without_quotas_nothing_is_said():
    pause = Pause()
    with stage(Puppet([pause, "Hello"]), MAX_RUNS_PER_USER=1) as (app, _), ask(app, body=question(1)) as first:
        refused = ask(app, body=question(2))
        for response in (first, refused):
            assert "RateLimit" not in response.headers and "RateLimit-Policy" not in response.headers
        assert problem(refused)["quotas"] == []
        pause.go_on()


def test_a_repeat_says_nothing_for_it_has_started_nothing():
    with stage(**LIMITS) as (app, _):
        responses = [ask(app, headers=KEYED) for _ in range(2)]
        assert "RateLimit" in responses[0].headers and "RateLimit" not in responses[1].headers
        for response in responses:
            events(response)


def test_a_refusal_says_which_limit_and_when_to_come_back():
    with stage(**LIMITS) as (app, _):
        for n in range(3):
            events(ask(app, body=question(n)))
        refused = ask(app, body=question(3))
        said = problem(refused)
        assert (refused.status_code, said["limit"]) == (429, "starts")
        assert said["type"] == "urn:problem-type:flask-llmstream:limit-reached"
        assert said["live"] == []
        assert refused.headers["Retry-After"] == str(said["retry_after"])
        assert 0 < said["retry_after"] <= 86_400
        assert refused.headers["RateLimit-Policy"] == POLICY
        assert left(refused)["starts"] == 0
        starts, tokens = said["quotas"]
        assert starts == {"name": "starts", "quota": 3, "used": 3, "remaining": 0, "window": 86_400} | {
            "reset": starts["reset"]
        }
        assert tokens["used"] + tokens["remaining"] == tokens["quota"] == 10_000
        assert text(ask(app, body=question(4), headers={"X-User": "bob"})) == "Hello"


def test_a_refusal_lists_the_live_runs_so_that_one_can_be_stopped():
    pause = Pause()
    with stage(Puppet(["Hel", pause], ["Hello"]), MAX_RUNS_PER_USER=1) as (app, _), ask(app, body=question(1)) as first:
        refused = ask(app, body=question(2))
        said = problem(refused)
        assert (said["limit"], refused.headers["Retry-After"]) == ("runs", "2")
        (live,) = said["live"]
        assert live == {"id": live["id"], "location": first.headers["Location"]}
        assert app.test_client().post(live["location"] + "/cancel").json["status"] == "cancelled"
        assert text(ask(app, body=question(2))) == "Hello"
        events(first)


@pytest.mark.needs("redis-server")
def test_it_lists_those_of_other_processes_too(redis_server):
    pause = Pause()
    limits = {"REDIS_URL": redis_server.url, "MAX_RUNS_PER_USER": 1}
    with stage(Puppet([pause]), **limits) as (here, _), stage(**limits) as (there, _), ask(here) as first:
        assert pause.reached.wait(PATIENCE)
        (live,) = problem(ask(there, body=question(2)))["live"]
        assert live["location"] == first.headers["Location"]
        assert there.test_client().post(live["location"] + "/cancel").json["status"] == "cancelled"
        assert text(ask(there, body=question(2))) == "Hello"
        assert events(first)[-1]["cancelled"] is True


def test_a_feature_may_replace_instead_of_refusing():
    pause = Pause()
    with stage(Puppet(["Hel", pause], ["Hello"]), MAX_RUNS_PER_USER=1) as (app, llm):
        llm.stream("/api/latest", when_busy="replace")(lambda run: run.model.stream(run.input.messages))
        with ask(app) as first:
            assert text(ask(app, "/api/latest")) == "Hello"
            assert events(first)[-1]["cancelled"] is True


def test_an_answer_gets_the_tokens_that_are_left():
    puppet = Puppet()
    with stage(puppet, TOKEN_BUDGET="600/day", MAX_TOKENS=1000) as (app, _):
        response = ask(app, body=question(1))
        assert left(response) == {"tokens": 0}
        events(response)
        assert 500 < puppet.calls[0].max_tokens < 600
        assert left(ask(app, body=question(2), buffered=True)) == {"tokens": 0}
        assert puppet.calls[1].max_tokens > 500  # what the first did not use was given back


def test_what_never_fits_has_no_time_to_come_back():
    with stage(TOKEN_BUDGET="100/day", MAX_TOKENS=1000) as (app, _):
        refused = ask(app)
        assert problem(refused)["limit"] == "tokens"
        assert "Retry-After" not in refused.headers and "retry_after" not in problem(refused)


def test_an_event_source_is_told_by_the_event_that_it_can_see():
    pause = Pause()
    with stage(Puppet(["Hel", pause], ["Hello"]), MAX_RUNS_PER_USER=1) as (app, _), ask(app) as first:
        client = app.test_client()
        refused = client.get("/api/chat/stream?message=Hello", headers={"Accept": "text/event-stream"})
        assert refused.status_code == 200
        (event,) = Decoder().feed(refused.data)
        said = json.loads(event.data)
        assert said["error"] == said["problem"]["detail"]
        assert said["problem"]["limit"] == "runs"
        assert [live["location"] for live in said["problem"]["live"]] == [first.headers["Location"]]
        again = {"Accept": "text/event-stream", "Last-Event-ID": event.id}
        assert client.get("/api/chat/stream?message=Hello", headers=again).status_code == 204
        pause.go_on()


def test_a_start_that_the_model_refuses_says_what_is_left_all_the_same():
    with stage(Puppet([UpstreamRateLimited(retry_after=7)]), **LIMITS) as (app, _):
        refused = ask(app)
        assert problem(refused)["type"].endswith("upstream-rate-limited")
        assert refused.headers["Retry-After"] == "7"
        assert left(refused)["starts"] == 2


def test_of_many_quotas_each_header_is_one_list():
    """As the draft's structured fields have it."""
    standing = [Standing("starts", 30, 60_000, 18, 32_100), Standing("tokens", 100, 86_400_000, 120, 400)]
    assert rate_limits(standing) == {
        "RateLimit-Policy": '"starts";q=30;w=60, "tokens";q=100;w=86400',
        "RateLimit": '"starts";r=12;t=33, "tokens";r=0;t=1',
    }
    assert [quota["remaining"] for quota in describe(standing)] == [12, 0]
