"""Structured answers over HTTP: the real client asks a server that behaves as OpenAI's does, and fails as it does."""

import subprocess
import sys
import threading
from contextlib import closing
from decimal import Decimal

import pytest
from marshmallow import Schema, fields, validate

from flask_llmstream import errors
from flask_llmstream.models import BoundModel, Meter, ModelSettings
from flask_llmstream.providers import Timeouts
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.shapes import Shape
from flask_llmstream.testing import ModelServer, Schedule
from tests.puppet import PATIENCE

QUESTION = [{"role": "user", "content": "What does it come to?"}]


class Line(Schema):
    text = fields.String(required=True, validate=validate.Length(max=20))
    amount = fields.Decimal(required=True, as_string=True)


class BillSchema(Schema):
    total = fields.Decimal(required=True, validate=validate.Range(min=0))
    due = fields.Date()
    kind = fields.String(required=True, validate=validate.OneOf(["invoice", "receipt"]))
    lines = fields.List(fields.Nested(Line))


BILL = Shape(BillSchema)
GOOD = {"total": 12.5, "due": None, "kind": "receipt", "lines": [{"text": "Nails", "amount": "12.50"}]}
LOADED = {
    "total": Decimal("12.5"),
    "kind": "receipt",
    "lines": [{"text": "Nails", "amount": Decimal("12.50")}],
}


@pytest.fixture
def server():
    with ModelServer() as server:
        yield server


@pytest.fixture
def meter():
    return Meter()


@pytest.fixture
def model(server, meter):
    """The run's model; nothing is waited for between two attempts but what the server asks for."""
    with closing(OpenAI("m", base_url=server.base_url)) as provider:
        yield BoundModel(provider, ModelSettings(max_tokens=100, retries=2), meter)


def test_the_server_gets_the_schema_and_the_function_what_marshmallow_makes_of_the_answer(server, model):
    server.schedule = Schedule(json=GOOD)
    assert model.reply(QUESTION, BILL) == LOADED
    [request] = server.requests
    assert request.json_schema == BILL.json_schema
    assert request.body["response_format"]["json_schema"]["name"] == "Bill"
    assert request.body["response_format"]["json_schema"]["strict"] is True
    assert request.body["max_tokens"] == 100
    assert "stream" not in request.body


def test_an_invalid_answer_is_tried_again_with_its_errors(server, model, meter):
    rejected = []
    meter.rejected = lambda attempt, problems: rejected.append((attempt, problems))
    server.then(Schedule(json=GOOD | {"total": -1}), Schedule(tokens="Sure! Here it is."), Schedule(json=GOOD))
    assert model.reply(QUESTION, BILL) == LOADED
    too_small = {"total": ["Must be greater than or equal to 0."]}
    assert rejected[0] == (1, too_small)
    assert rejected[1][1]["_schema"][0].startswith("Not a JSON document")
    first, second, third = (request.body["messages"] for request in server.requests)
    assert first == QUESTION
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert "greater than or equal to 0" in second[-1]["content"]
    assert third[1]["content"] == "Sure! Here it is."
    assert meter.usage.completion_tokens == sum(
        len(schedule.text_tokens())
        for schedule in (Schedule(json=GOOD | {"total": -1}), Schedule(tokens="Sure! Here it is."), Schedule(json=GOOD))
    )


def test_three_invalid_answers_are_a_problem_that_lists_what_is_wrong_with_the_last(server, model):
    server.schedule = Schedule(json={"total": 1, "kind": "letter", "lines": [{"text": "x" * 21}]})
    with pytest.raises(errors.InvalidAnswer) as invalid:
        model.reply(QUESTION, BILL)
    problem = invalid.value.problem()
    assert (problem["status"], problem["attempts"], len(server.requests)) == (502, 3, 3)
    assert problem["type"].endswith(":invalid-answer")
    assert problem["errors"] == {
        "kind": ["Must be one of: invoice, receipt."],
        "lines": {"0": {"text": ["Longer than maximum length 20."], "amount": ["Missing data for required field."]}},
    }


def test_an_answer_that_was_cut_is_its_own_problem(server, model):
    server.schedule = Schedule(tokens='{"total": 12', finish_reason="length")
    with pytest.raises(errors.AnswerCut) as cut:
        model.reply(QUESTION, BILL, max_tokens=3)
    assert len(server.requests) == 1
    assert cut.value.problem()["status"] == 502 and cut.value.problem()["max_tokens"] == 3


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(tokens=(), refusal="I'm sorry, I can't help with that."),
        Schedule(tokens=(), finish_reason="content_filter"),
        Schedule(tokens='{"total": 12', finish_reason="content_filter"),
    ],
    ids=["refusal", "filter", "filter midway"],
)
def test_a_refusal_is_no_invalid_answer(server, model, schedule):
    server.schedule = schedule
    with pytest.raises(errors.ContentFiltered):
        model.reply(QUESTION, BILL)
    assert len(server.requests) == 1


def test_a_rate_limit_is_waited_for_as_long_as_the_server_wants(server, model, meter):
    pauses = []
    meter.pause = pauses.append
    server.then(Schedule(status=429, retry_after=7), Schedule(json=GOOD | {"kind": "?"}), Schedule(status=503))
    server.schedule = Schedule(json=GOOD)
    assert model.reply(QUESTION, BILL) == LOADED
    assert [request.state for request in server.requests] == ["refused", "completed", "refused", "completed"]
    assert 7 <= pauses[0] <= 7.5 and pauses[1] <= 0.5


def test_one_layer_repeats_and_only_one(server, model, meter):
    """Neither the official client nor the attempts at a shape multiply the retries."""
    meter.pause = lambda seconds: None
    server.schedule = Schedule(status=429)
    with pytest.raises(errors.UpstreamRateLimited):
        model.reply(QUESTION, BILL, attempts=5)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "message",
    ["Unknown parameter: 'response_format'", "Invalid schema for response_format 'Bill': …"],
    ids=["no structured outputs", "not this schema"],
)
def test_a_server_that_does_not_take_the_schema_is_named_as_the_cause(server, model, message):
    server.schedule = Schedule(status=400, body={"error": {"message": message, "code": None}})
    with pytest.raises(errors.UpstreamRefused) as refused:
        model.reply(QUESTION, BILL)
    assert "response_format" in refused.value.problem()["detail"]
    assert "Bill" not in refused.value.problem()["detail"]
    assert message in refused.value.diagnosis
    assert len(server.requests) == 1


def test_plain_text_needs_no_schema(server, model):
    server.schedule = Schedule(tokens="Twelve fifty.")
    assert model.reply(QUESTION).text == "Twelve fifty."
    assert "response_format" not in server.requests[0].body


# Leaving early


def test_the_time_of_each_attempt_is_limited(server):
    server.schedule = Schedule(headers_delay=20)
    with closing(OpenAI("m", base_url=server.base_url)) as provider:
        settings = ModelSettings(max_tokens=100, timeouts=Timeouts(total=0.2))
        with pytest.raises(errors.UpstreamTimeout):
            BoundModel(provider, settings, Meter()).reply(QUESTION, BILL)
    server.wait_for(lambda s: s.cancelled == 1)


def stopped(model, meter, when):
    """Whether a stop at that moment ends the reply."""
    left = []

    def ask():
        try:
            model.reply(QUESTION, BILL)
        except errors.RunCancelled:
            left.append(True)

    asking = threading.Thread(target=ask)
    asking.start()
    when()
    meter.cancel()
    asking.join(PATIENCE)
    return left == [True]


def test_a_stop_ends_the_second_attempt(server, model, meter):
    server.then(Schedule(json={}), Schedule(headers_delay=60))
    assert stopped(model, meter, lambda: server.wait_for(lambda s: len(s.requests) == 2))
    server.wait_for(lambda s: s.cancelled == 1)


def test_a_stop_ends_the_pause_that_a_rate_limit_asks_for(server, model, meter):
    waiting = threading.Event()
    pause = meter.pause
    meter.pause = lambda seconds: (waiting.set(), pause(seconds))
    server.schedule = Schedule(status=429, retry_after=20)
    assert stopped(model, meter, lambda: waiting.wait(PATIENCE))
    assert len(server.requests) == 1


GEVENT = """
from gevent import monkey; monkey.patch_all()
import sys
import gevent
from marshmallow import Schema, fields
from flask_llmstream.errors import RunCancelled
from flask_llmstream.models import BoundModel, Meter, ModelSettings
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.shapes import Shape

shape = Shape(Schema.from_dict({"total": fields.Integer(required=True)}))
provider = OpenAI("m", base_url=sys.argv[1])

def ask(words, meter):
    model = BoundModel(provider, ModelSettings(max_tokens=9, retries=1), meter)
    try:
        return model.reply([{"role": "user", "content": words}], shape)
    except RunCancelled:
        return "cancelled"

assert ask("answer", Meter()) == {"total": 5}
for words in ("silence", "limit"):
    meter = Meter()
    stopped = gevent.spawn(ask, words, meter)
    gevent.spawn_later(0.2, meter.cancel)
    killed = gevent.spawn(ask, words, Meter())
    gevent.spawn_later(0.2, killed.kill, RunCancelled, block=False)
    gevent.joinall([stopped, killed], timeout=10)
    assert stopped.value == killed.value == "cancelled", (words, stopped.value, killed.value)
assert ask("answer", Meter()) == {"total": 5}
provider.close()
print("ok")
"""


def by_the_question(received):
    return {
        "answer": Schedule(json={"total": 5}),
        "silence": Schedule(headers_delay=60),
        "limit": Schedule(status=429, retry_after=25),
    }[received.body["messages"][0]["content"]]


def test_under_gevent_a_stop_and_a_kill_end_the_call_and_the_pause():
    with ModelServer(by_the_question) as server:
        command = [sys.executable, "-c", GEVENT, server.base_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == "ok\n", done.stderr
        server.wait_for(lambda s: s.active == 0 and s.open_connections == 0)
        assert [request.state for request in server.requests].count("cancelled") == 2
