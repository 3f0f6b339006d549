"""Replies: one object, whole and validated, or a problem that says why there is none."""

import datetime
import json
import socket
import threading
from contextlib import ExitStack, closing, suppress
from decimal import Decimal

import pytest
from marshmallow import Schema, fields, post_load, validate

from flask_llmstream import Data, errors, registry, replies, run_ended
from flask_llmstream.errors import ConfigurationError
from flask_llmstream.events import Usage
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.conversation import KEY, events, problem
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage
from tests.recipes.conftest import served


class Text(Schema):
    text = fields.String(required=True, validate=validate.Length(min=1))


class Sentiment(Schema):
    sentiment = fields.String(required=True, validate=validate.OneOf(["positive", "negative", "neutral"]))


GOOD, BAD = '{"sentiment": "positive"}', '{"sentiment": "so so"}'
BODY = {"text": "Call me Ishmael."}


def classifying(llm, **options):
    @llm.reply("/api/classify", **{"input": Text, "result": Sentiment, "max_tokens": 20} | options)
    def classify(run):
        return run.model.reply([{"role": "user", "content": run.input["text"]}], run.result_schema)


def saying(llm, **options):
    @llm.reply("/api/say", **{"input": Text, "max_tokens": 20} | options)
    def say(run):
        return run.model.reply([]).text


@pytest.fixture
def open_reply(request, store_server):
    """Opens an application with a reply: over the embedded store and over a Redis."""
    url = {} if store_server is None else {"REDIS_URL": request.getfixturevalue("redis_server").url}
    with ExitStack() as stack:

        def open_(model, declare=classifying, config=None, **options):
            app, llm = stack.enter_context(stage(model, **url, **config or {}))
            declare(llm, **options)
            return app.test_client()

        yield open_


def classify(client, **headers):
    return client.post("/api/classify", json=BODY, headers=headers)


# The answer


def test_the_answer_is_the_object_itself(open_reply):
    client = open_reply(Puppet([GOOD], usage=Usage(3, 2)))
    response = classify(client)
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.json == {"sentiment": "positive"}
    assert response.headers["Cache-Control"] == "no-store"
    run = client.get(response.headers["Location"]).json
    assert (run["feature"], run["status"], run["result"]) == ("classify", "completed", {"sentiment": "positive"})
    assert run["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert client.get("/api/runs").json["data"][0]["id"] == run["id"]


@pytest.mark.parametrize(
    "function",
    [
        lambda run: "Ay, ay!",
        lambda run: iter(["Ay, ", "ay!"]),
        lambda run: run.model.stream([]),
        lambda run: run.model.reply([]).text,
    ],
    ids=["returned", "yielded", "streamed", "asked for"],
)
def test_a_text_is_an_object_too(open_reply, function):
    def declare(llm):
        llm.reply("/api/hail", max_tokens=20)(hail)

    def hail(run):
        return function(run)

    client = open_reply(Puppet(["Ay, ay!"]), declare)
    response = client.post("/api/hail", json={"messages": [MESSAGE]})
    assert (response.status_code, response.json) == (200, {"text": "Ay, ay!"})


MESSAGE = {"role": "user", "content": "Ahoy"}


@pytest.mark.parametrize("value", [[1, 2], 42, True, 0.5])
def test_what_is_no_object_is_put_into_one(open_reply, value):
    client = open_reply(Puppet(), lambda llm: llm.reply("/api/hail", max_tokens=20)(lambda run: value))
    response = client.post("/api/hail", json={"messages": [MESSAGE]})
    assert (response.status_code, response.json) == (200, {"result": value})


def test_what_the_answer_is_made_into_is_answered_as_its_schema_dumps_it(open_reply):
    class Bill(Schema):
        total = fields.Decimal(required=True)
        due = fields.Date()

        @post_load
        def make(self, data, **more):
            return type("Bill", (), data)

    seen = []

    def declare(llm):
        @llm.reply("/api/bill", input=Text, result=Bill, max_tokens=50)
        def bill(run):
            answer = run.model.reply([], run.result_schema)
            seen.append((answer.total, answer.due))
            return answer

    client = open_reply(Puppet(['{"total": 12.5, "due": "2026-01-02"}']), declare)
    assert client.post("/api/bill", json=BODY).json == {"total": 12.5, "due": "2026-01-02"}
    assert seen == [(Decimal("12.5"), datetime.date(2026, 1, 2))]


def test_the_model_is_bound_to_the_tokens_of_the_reply_and_asked_for_its_form():
    with ModelServer() as server, closing(OpenAI("m", base_url=server.base_url)) as model, stage(model) as (app, llm):
        classifying(llm)
        server.then(Schedule(tokens=GOOD))
        assert classify(app.test_client()).json == {"sentiment": "positive"}
        (request,) = server.requests
        assert request.body["max_tokens"] == 20
        form = request.body["response_format"]["json_schema"]
        assert form["strict"] is True and form["schema"]["required"] == ["sentiment"]


def test_a_large_answer_is_answered_whole(open_reply):
    def declare(llm):
        @llm.reply("/api/copy", input=Text, max_tokens=20)
        def copy(run):
            return {"words": ["whale"] * 20_000}

    response = open_reply(None, declare).post("/api/copy", json=BODY)
    assert len(response.json["words"]) == 20_000


# What is wrong with the request


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": 1}, {"text": "x", "more": 1}])
def test_input_that_is_not_valid_is_told_by_field(open_reply, body):
    client = open_reply(Puppet([GOOD]))
    response = client.post("/api/classify", json=body)
    assert response.status_code == 422
    assert problem(response)["errors"].keys() & {"text", "more"}


def test_who_has_used_up_their_share_is_told_when_to_come_again(open_reply):
    client = open_reply(Puppet([GOOD]), config={"STARTS_PER_USER": "1/hour"})
    assert classify(client).headers["RateLimit"].startswith('"starts";r=0;')
    refused = classify(client)
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0


def test_one_that_finds_no_place_is_refused(open_reply):
    client = open_reply(Puppet([GOOD]), config={"MAX_OPEN": 1})
    record = client.application.extensions["llmstream"]["llmstream"]
    for _ in range(3):
        assert classify(client).status_code == 200  # each gives its place back
    with record.open.place():
        refused = classify(client)
    assert refused.status_code == 503 and refused.headers["Retry-After"]
    assert problem(refused)["type"].endswith(":overloaded")
    record.open.give_back()
    assert len(record.open) == 0


# What is wrong with the answer


def test_an_answer_that_does_not_fit_is_asked_for_again_and_the_run_says_so(open_reply):
    model = Puppet([BAD], ["{"], [GOOD])
    client = open_reply(model)
    response = classify(client)
    assert response.json == {"sentiment": "positive"} and len(model.calls) == 3
    rejected = [event["data"]["rejected"] for event in log_of(client, response) if "data" in event]
    assert [said["attempt"] for said in rejected] == [1, 2]
    assert rejected[0]["errors"] == {"sentiment": ["Must be one of: positive, negative, neutral."]}


def log_of(client, response):
    return events(client.get(response.headers["Location"] + "/events"))


def test_an_answer_that_never_fits_is_a_problem_that_lists_what_is_wrong(open_reply):
    model = Puppet([BAD])
    client = open_reply(model, attempts=2)
    response = classify(client)
    said = problem(response)
    assert (said["status"], said["type"].rsplit(":", 1)[1], said["attempts"]) == (502, "invalid-answer", 2)
    assert said["errors"] == {"sentiment": ["Must be one of: positive, negative, neutral."]}
    assert len(model.calls) == 2
    run = client.get(response.headers["Location"]).json
    assert run["status"] == "failed" and run["error"]["errors"] == said["errors"]


@pytest.mark.parametrize(
    ("declare", "path", "text"), [(classifying, "/api/classify", '{"sentiment": "pos'), (saying, "/api/say", "Call me")]
)
def test_an_answer_that_is_cut_is_a_problem_of_its_own(open_reply, declare, path, text):
    model = Puppet([text], finish_reason="length")
    if declare is saying:
        declare = streaming
    client = open_reply(model, declare)
    response = client.post(path, json=BODY)
    assert response.status_code == 502 and problem(response)["type"].endswith(":answer-cut")
    assert len(model.calls) == 1


def streaming(llm, **options):
    @llm.reply("/api/say", input=Text, max_tokens=20)
    def say(run):
        return run.model.stream([])


def test_one_that_a_filter_has_cut_is_said_to_be_so(open_reply):
    client = open_reply(Puppet(["Call me"], finish_reason="content_filter"), streaming)
    assert problem(client.post("/api/say", json=BODY))["type"].endswith(":content-filtered")


def test_a_result_that_is_none_of_its_schema_s_is_the_application_s_mistake(open_reply):
    def declare(llm):
        llm.reply("/api/classify", input=Text, result=Sentiment, max_tokens=5)(classify_)

    def classify_(run):
        return {"mood": "good"}

    assert problem(classify(open_reply(None, declare)))["type"].endswith(":invalid-output")


# What is wrong with the model's server


def test_a_model_that_is_asked_too_much_passes_on_when_to_come_again(open_reply):
    client = open_reply(Puppet([errors.UpstreamRateLimited(retry_after=7)]))
    response = classify(client)
    assert (response.status_code, response.headers["Retry-After"]) == (429, "7")
    assert problem(response)["type"].endswith(":upstream-rate-limited")


def test_a_fault_that_passes_is_waited_out(open_reply, monkeypatch):
    monkeypatch.setattr("flask_llmstream.models.BACKOFF", 0.01)
    model = Puppet([errors.UpstreamRateLimited()], [errors.UpstreamUnavailable()], [GOOD])
    response = classify(open_reply(model, config={"RETRIES": 2}))
    assert response.status_code == 200 and len(model.calls) == 3


def test_one_that_takes_too_long_is_stopped_and_says_so(open_reply):
    pause = Pause()
    client = open_reply(Puppet([pause]), timeout=0.1)
    response = classify(client)
    said = problem(response)
    assert (response.status_code, said["type"].rsplit(":", 1)[1]) == (504, "run-timeout")
    assert client.get(response.headers["Location"]).json["status"] == "failed"


def test_thirty_seconds_are_what_it_may_take():
    with stage() as (app, llm):
        classifying(llm)
        assert llm.record(app).feature("classify").timeout == 30.0


def test_a_function_that_does_not_listen_is_not_waited_for(open_reply, monkeypatch):
    monkeypatch.setattr(registry, "INTERRUPTED_WITHIN", 0.05)
    monkeypatch.setattr(replies, "SLACK", PATIENCE)
    over = threading.Event()

    def declare(llm):
        @llm.reply("/api/classify", input=Text, max_tokens=5, timeout=0.05)
        def deaf(run):
            while not over.is_set():
                with suppress(errors.RunCancelled):
                    over.wait(PATIENCE)

    assert classify(open_reply(None, declare)).status_code == 504
    over.set()


def test_an_exception_is_told_to_nobody(open_reply, caplog):
    def declare(llm):
        @llm.reply("/api/classify", input=Text, max_tokens=5)
        def broken(run):
            raise ValueError("the secret")

    response = classify(open_reply(None, declare))
    assert response.status_code == 500 and "secret" not in response.text and "the secret" in caplog.text


def test_one_that_is_stopped_from_elsewhere_says_so(open_reply):
    pause = Pause()
    client = open_reply(Puppet([pause]))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(classify(client.application.test_client())))
    thread.start()
    assert pause.reached.wait(PATIENCE)
    run = client.get("/api/runs").json["data"][0]
    assert client.post(run["links"]["cancel"]).json["status"] == "cancelled"
    thread.join(PATIENCE)
    assert problem(answers[0])["status"] == 409


# The same key, and those who leave


def test_the_same_key_gets_the_same_answer(open_reply):
    model = Puppet([GOOD], ['{"sentiment": "negative"}'])
    client = open_reply(model)
    first, second = (classify(client, **{"Idempotency-Key": KEY}) for _ in range(2))
    assert first.json == second.json and first.headers["Location"] == second.headers["Location"]
    assert second.headers["Idempotent-Replayed"] == "true" and "Idempotent-Replayed" not in first.headers
    assert len(model.calls) == 1
    other = client.post("/api/classify", json={"text": "x"}, headers={"Idempotency-Key": KEY})
    assert other.status_code == 422


def test_the_same_key_gets_the_same_problem(open_reply):
    model = Puppet([errors.UpstreamForbidden()], [GOOD])
    client = open_reply(model)
    first, second = (classify(client, **{"Idempotency-Key": KEY}) for _ in range(2))
    assert (first.status_code, second.status_code) == (502, 502)
    assert first.json == second.json and len(model.calls) == 1


def test_a_problem_that_may_pass_gives_the_key_back(open_reply):
    """Or who comes again with it, when they were told to, would only hear the same."""
    model = Puppet([errors.UpstreamRateLimited(retry_after=7)], [GOOD])
    client = open_reply(model)
    first, second = (classify(client, **{"Idempotency-Key": KEY}) for _ in range(2))
    assert (first.status_code, second.json) == (429, {"sentiment": "positive"})
    assert first.headers["Location"] != second.headers["Location"]


def test_two_at_once_under_the_same_key_wait_for_one_answer(open_reply):
    pause = Pause()
    model = Puppet([pause, GOOD])
    client = open_reply(model)
    answers = []

    def click():
        answers.append(classify(client.application.test_client(), **{"Idempotency-Key": KEY}))

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert pause.reached.wait(PATIENCE)
    pause.go_on()
    for thread in threads:
        thread.join(PATIENCE)
    assert [answer.json for answer in answers] == [{"sentiment": "positive"}] * 4
    assert len(model.calls) == 1


def test_a_client_that_leaves_takes_its_run_with_it():
    """The server watches the socket of a request that it has not answered yet."""
    gate, told = Gate(), []

    def hear(sender, run, state, **more):
        told.append(state)

    with (
        ModelServer(Schedule(tokens=GOOD, gates={0: gate})) as server,
        closing(OpenAI("m", base_url=server.base_url)) as model,
        stage(model, ORPHAN_GRACE=0) as (app, llm),
        run_ended.connected_to(hear),
    ):
        classifying(llm)
        with served(app) as url:
            host, port = url.removeprefix("http://").split(":")
            body = json.dumps(BODY).encode()
            head = f"POST /api/classify HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            with socket.create_connection((host, int(port))) as client:
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                gate.wait()
            eventually(lambda: told == ["cancelled"])
        server.wait_for(lambda s: s.cancelled == 1)
        gate.release()


# Declaring


def test_a_reply_says_how_many_tokens_it_may_have():
    with stage() as (_, llm), pytest.raises(ConfigurationError, match="say: a reply needs max_tokens="):
        saying(llm, max_tokens=None)


def test_a_result_that_cannot_be_expressed_is_refused_where_it_is_declared():
    class Anything(Schema):
        words = fields.Dict()

    with stage() as (app, llm):
        with pytest.raises(ConfigurationError, match=r"Anything\.words"):
            classifying(llm, result=Anything)
        with pytest.raises(ConfigurationError, match=r"Anything\.words"):
            llm.job("/api/job", result=Anything)(lambda run: None)
        assert app.test_client().post("/api/classify", json=BODY).status_code == 404


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": None}, {"attempts": 0}, {"max_tokens": 0}], ids=str)
def test_wrong_options_are_refused(options):
    with stage() as (_, llm), pytest.raises(ConfigurationError, match=f"classify: {next(iter(options))}= takes"):
        classifying(llm, **options)


def test_what_a_reply_says_while_it_works_is_in_its_run(open_reply):
    def declare(llm):
        @llm.reply("/api/classify", input=Text, max_tokens=5)
        def chatty(run):
            yield Data({"step": 1})
            return "done"

    client = open_reply(None, declare)
    response = classify(client)
    assert response.json == {"text": "done"}
    assert {"data": {"step": 1}} in log_of(client, response)
