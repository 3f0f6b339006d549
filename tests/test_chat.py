"""The stream view: what starts a run, when its response begins, and what it says."""

import json
import re

import pytest

from flask_llmstream import streams
from flask_llmstream.errors import UpstreamRateLimited, UpstreamUnavailable
from flask_llmstream.sse import Decoder
from tests.conversation import KEY, QUESTION, ask, events, problem, text
from tests.puppet import PATIENCE, Pause, Puppet, eventually, follow, stage

CHAT = "/api/chat/stream"
EVENT_STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def patient(monkeypatch):
    """A response that begins for want of anything else does so too late for the test."""
    monkeypatch.setattr(streams, "HEADERS_WITHIN", 3600)


def get(app, query="message=Hello", **headers):
    return app.test_client().get(f"{CHAT}?{query}", headers=EVENT_STREAM | headers)


# POST


def test_the_headers_of_a_stream():
    with stage() as (app, _), ask(app) as response:
        headers = response.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "no-cache, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["Content-Encoding"] == "identity"
        assert re.fullmatch(r"/api/runs/[\w-]{22,}", headers["Location"])


def test_the_whole_stream():
    with stage() as (app, _):
        response = ask(app)
        run_id = response.headers["Location"].rsplit("/", 1)[1]
        with response:
            body = response.data
    opening = re.match(rb"retry: (\d+)\nid: (\S+)\n: heartbeat=5\n\n", body)
    assert 2000 <= int(opening[1]) <= 3000
    assert opening[2].decode() == f"{run_id}:1-0"
    found = Decoder().feed(body)
    assert [event.id for event in found] == [f"{run_id}:1-{n}" for n in range(1, len(found) + 1)]
    *said, done = [json.loads(event.data) for event in found]
    assert said == [
        {"status": "queued"},
        {"status": "thinking"},
        {"status": "writing"},
        {"token": "Hel"},
        {"token": "lo"},
    ]
    assert (done["done"], done["tokens"], done["finish_reason"]) == (True, 2, "stop")


def test_those_who_lost_their_line_together_do_not_come_back_together():
    with stage() as (app, _):
        waits = {ask(app, headers={"Idempotency-Key": KEY}).data[:12] for _ in range(20)}
    assert len(waits) > 5


def test_a_token_leaves_as_soon_as_it_arrives():
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"])) as (app, _), ask(app) as response:
        stream = follow(response)
        assert next(event for event in stream if "token" in event) == {"token": "Hel"}
        assert pause.reached.wait(PATIENCE)
        pause.go_on()
        assert next(stream) == {"token": "lo"}


# When the response begins


def test_it_begins_when_the_models_server_has_taken_the_request(patient):
    pause = Pause()
    with stage(Puppet(["", pause, "Hello"])) as (app, _), ask(app) as response:
        assert response.status_code == 200
        pause.go_on()
        assert text(response) == "Hello"


def test_it_begins_with_the_first_event_that_is_no_status(patient):
    pause = Pause()
    with stage(Puppet([pause])) as (app, llm):

        @llm.stream("/search")
        def search(run):
            from flask_llmstream import Progress, Status

            yield Status("tool")
            yield Progress(0.5)
            yield from run.model.stream(run.input.messages)

        with ask(app, "/search") as response:
            assert response.status_code == 200
            pause.go_on()


def test_it_begins_when_the_run_has_ended(patient):
    with stage() as (app, llm):

        @llm.stream("/nothing")
        def nothing(run):
            return None

        assert events(ask(app, "/nothing"))[-1]["tokens"] == 0


def test_it_begins_after_a_moment_whatever_the_model_does(monkeypatch):
    monkeypatch.setattr(streams, "HEADERS_WITHIN", 0.02)
    pause = Pause()
    with stage(Puppet([pause, UpstreamRateLimited()])) as (app, _), ask(app) as response:
        assert response.status_code == 200
        pause.go_on()
        assert events(response)[-1]["problem"]["status"] == 429


def test_an_early_refusal_keeps_its_status(patient):
    with stage(Puppet([UpstreamRateLimited(retry_after=2.5)])) as (app, llm):
        response = ask(app)
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "3"
        said = problem(response)
        assert said["type"].endswith("upstream-rate-limited") and said["retry_after"] == 2.5
        run = app.test_client().get(response.headers["Location"]).json
        assert (run["status"], run["error"]) == ("failed", said)
        assert len(llm.record(app).open) == 0


def test_one_that_is_being_retried_is_no_end(patient, monkeypatch):
    monkeypatch.setattr("flask_llmstream.models.BACKOFF", 0.01)
    puppet = Puppet([UpstreamUnavailable()], ["Hello"])
    with stage(puppet, RETRIES=1) as (app, _):
        assert text(ask(app)) == "Hello"
    assert len(puppet.calls) == 2


def test_a_late_failure_is_an_event():
    with stage(Puppet(["Hel", UpstreamUnavailable(diagnosis="sk-secret")])) as (app, _):
        *_, token, failed = events(ask(app))
    assert token == {"token": "Hel"}
    assert failed["problem"]["status"] == 502
    assert failed["error"] == failed["problem"]["detail"]
    assert "sk-secret" not in json.dumps(failed)


# What is refused


@pytest.mark.parametrize(
    ("request_", "status", "slug"),
    [
        ({"data": "{}", "content_type": "text/plain"}, 415, "not-json"),
        ({"data": "{", "content_type": "application/json"}, 400, "bad-request"),
        ({"json": {"messages": []}}, 422, "invalid-input"),
        ({"json": [1]}, 422, "invalid-input"),
        ({"json": QUESTION | {"colour": "blue"}}, 422, "invalid-input"),
        ({"json": {"messages": [{"role": "user", "content": "x" * 100_000}]}}, 413, "content-too-large"),
        ({"json": QUESTION, "headers": {"Idempotency-Key": "short"}}, 400, "invalid-idempotency-key"),
        ({"json": QUESTION, "headers": {"Origin": "https://evil.example"}}, 403, "origin-refused"),
    ],
    ids=["type", "syntax", "no message", "no object", "unknown field", "size", "key", "origin"],
)
def test_refusals_are_problems_and_start_nothing(request_, status, slug):
    puppet = Puppet()
    with stage(puppet, MAX_INPUT=100) as (app, llm):
        response = app.test_client().post(CHAT, **request_)
        assert response.status_code == status
        said = problem(response)
        assert said["type"] == f"urn:problem-type:flask-llmstream:{slug}"
        assert "Location" not in response.headers
        assert llm.record(app).registry.live == [] and len(llm.record(app).open) == 0
    assert puppet.calls == []


def test_each_wrong_field_is_named():
    with stage() as (app, _):
        said = problem(ask(app, body={"messages": [{"role": "system"}], "max_tokens": "many"}))
    assert set(said["errors"]) == {"messages", "max_tokens"}


def test_when_all_places_are_taken_it_says_so_at_once(patient):
    pause = Pause()
    with stage(Puppet(["Hel", pause]), MAX_OPEN=1, JOIN_IDENTICAL=False) as (app, _):
        with ask(app) as first:
            refused = ask(app)
            assert problem(refused)["type"].endswith("overloaded")
            assert refused.status_code == 503 and 1 <= int(refused.headers["Retry-After"]) <= 4
            location = first.headers["Location"]
            assert app.test_client().get(location).status_code == 200, "status is exempt"
            assert app.test_client().post(location + "/cancel").status_code == 200, "and so is cancel"
            events(first)
        with ask(app) as again:
            assert again.status_code == 200


# What a client can choose


@pytest.mark.parametrize(
    ("wish", "given"), [({}, 50), ({"max_tokens": 10}, 10), ({"max_tokens": 50}, 50), ({"max_tokens": 9999}, 50)]
)
def test_tokens_up_to_the_limit(wish, given):
    puppet = Puppet()
    with stage(puppet, MAX_TOKENS=50) as (app, _):
        events(ask(app, body=QUESTION | wish))
    assert puppet.calls[0].max_tokens == given


@pytest.mark.parametrize(("limit", "given"), [(10, 10), (9999, 50)])
def test_a_feature_has_a_limit_below_that_of_all(limit, given):
    puppet = Puppet()
    with stage(puppet, MAX_TOKENS=50) as (app, llm):

        @llm.stream("/short", max_tokens=limit)
        def short(run):
            return run.model.stream(run.input.messages)

        events(ask(app, "/short", QUESTION | {"max_tokens": 40 if limit > 40 else 9999}))
    assert puppet.calls[0].max_tokens == min(given, 40)


def test_models_from_the_list():
    puppet = Puppet()
    with stage(puppet, MODEL="small", MODELS=["small", "large"]) as (app, _):
        events(ask(app))
        events(ask(app, body=QUESTION | {"model": "large", "temperature": 0.5}))
        assert problem(ask(app, body=QUESTION | {"model": "huge"}))["status"] == 422
    assert [(call.model, call.temperature) for call in puppet.calls] == [("small", None), ("large", 0.5)]


@pytest.mark.parametrize(("models", "status"), [(None, 422), ("*", 200)])
def test_without_a_list_only_the_configured_one(models, status):
    with stage(MODELS=models) as (app, _):
        for model in ("puppet", "huge"):
            with ask(app, body=QUESTION | {"model": model}) as response:
                assert response.status_code == (200 if model == "puppet" else status)


def test_the_conversation_goes_to_the_model_as_it_is():
    puppet = Puppet()
    messages = [*QUESTION["messages"], {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "é\n"}]
    with stage(puppet) as (app, _):
        events(ask(app, body={"messages": messages}))
    assert puppet.calls[0].messages == messages


# While it is open, and when it is closed


def test_a_silent_stream_shows_that_it_is_alive():
    pause = Pause()
    with stage(Puppet(["Hel", pause]), HEARTBEAT=0.05) as (app, _), ask(app) as response:
        beats = 0
        for chunk in response.response:
            beats += chunk == b":\n\n"
            if beats == 3:
                break
        pause.go_on()
        assert list(follow(response))[-1]["done"] is True


@pytest.mark.parametrize("consumed", [False, True], ids=["never begun", "begun"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_client_that_goes_leaves_its_place_and_its_run(consumed, method):
    pause = Pause()
    with stage(Puppet(["Hel", pause]), ORPHAN_GRACE=0) as (app, llm):
        record = llm.record(app)
        response = ask(app) if method == "post" else get(app)
        if consumed:
            next(follow(response))
        (run,) = record.registry.live
        assert len(record.open) == 1
        response.close()
        assert len(record.open) == 0
        eventually(lambda: run.ended)
        assert run.state == "cancelled"


def test_a_run_that_may_finish_without_readers_does():
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"])) as (app, llm):

        @llm.stream("/keep", orphan_grace=None)
        def keep(run):
            return run.model.stream(run.input.messages)

        with ask(app, "/keep") as response:
            location = response.headers["Location"]
        pause.go_on()
        eventually(lambda: app.test_client().get(location).json["status"] == "completed")
        assert app.test_client().get(location).json["text"] == "Hello"


def test_a_full_log_ends_the_answer_and_says_why():
    with stage(MAX_LOG=2000) as (app, llm):

        @llm.stream("/endless")
        def endless(run):
            while True:
                yield "more "

        heard = events(ask(app, "/endless"))
        assert heard[-1]["finish_reason"] == "log_full"
        assert heard[-2] == {"token": "more "}
