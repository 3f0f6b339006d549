"""One feature that calls another: its function, as a part of the same run."""

import pytest
from marshmallow import Schema, fields, validate

from flask_llmstream import errors
from flask_llmstream.events import Usage
from tests.jobs.house import ending, submit
from tests.puppet import PATIENCE, Pause, Puppet, eventually


class Text(Schema):
    text = fields.String(required=True)


class Sentiment(Schema):
    sentiment = fields.String(required=True, validate=validate.OneOf(["positive", "negative"]))


GOOD = '{"sentiment": "positive"}'
BODY = {"text": "Call me Ishmael."}


def features(caller):
    """A job that does what a test wants, and what it may call."""

    def declare(llm):
        llm.job("/api/work", input=Text, max_tokens=50, timeout=None)(work)

        @llm.reply("/api/classify", input=Text, result=Sentiment, max_tokens=200)
        def classify(run):
            return run.model.reply([{"role": "user", "content": run.input["text"]}], run.result_schema)

        @llm.stream("/api/tell", input=Text, max_tokens=5)
        def tell(run):
            yield from run.model.stream([])

        @llm.job("/api/twice", input=Text)
        def twice(run):
            return [run.call("classify", run.input), run.call("classify", run.input)]

    def work(run):
        return caller(run)

    return declare


def performed(house, model, caller):
    """How a job ends that calls others."""
    client = house.open(features(caller), model)
    return ending(client, submit(client, "/api/work", BODY))


def test_it_returns_what_the_other_does(house):
    run = performed(house, Puppet([GOOD]), lambda run: {"it is": run.call("classify", {"text": "x"})})
    assert (run["status"], run["result"]) == ("completed", {"it is": {"sentiment": "positive"}})


def test_of_one_that_writes_it_returns_the_text_which_goes_nowhere_else(house):
    run = performed(house, Puppet(["Hel", "lo"]), lambda run: [run.call("tell", BODY)])
    assert (run["result"], run["text"]) == (["Hello"], "")


def test_what_is_called_may_call(house):
    model = Puppet([GOOD])
    run = performed(house, model, lambda run: run.call("twice", BODY))
    assert run["result"] == [{"sentiment": "positive"}] * 2 and len(model.calls) == 2


def test_its_usage_is_the_run_s(house):
    run = performed(house, Puppet([GOOD], usage=Usage(3, 2)), lambda run: run.call("twice", BODY))
    assert run["usage"] == {"prompt_tokens": 6, "completion_tokens": 4}
    usage = house.app.test_client().get("/api/usage").json["total"]
    assert (usage["runs"], usage["prompt_tokens"]) == (1, 6)


def test_it_may_use_the_model_as_far_as_both_may(house):
    model = Puppet([GOOD])
    performed(house, model, lambda run: [run.call("classify", BODY), run.call("tell", BODY)])
    assert [call.max_tokens for call in model.calls] == [50, 5]


def test_its_input_is_what_the_other_s_schema_takes(house):
    run = performed(house, None, lambda run: run.call("classify", {"words": 1}))
    assert run["status"] == "failed" and run["error"]["type"].endswith(":invalid-input")
    assert run["error"]["errors"].keys() == {"text", "words"}


def test_what_is_no_feature_is_the_application_s_mistake(house, caplog):
    run = performed(house, None, lambda run: run.call("clasify", BODY))
    assert run["error"]["type"].endswith(":configuration-error")
    assert "clasify" not in str(run["error"])
    assert "work calls clasify, which is no feature; there are" in caplog.text


def test_what_fails_can_be_caught(house):
    def caller(run):
        try:
            return run.call("tell", BODY)
        except errors.UpstreamForbidden as error:
            return {"forbidden": error.status}

    run = performed(house, Puppet([errors.UpstreamForbidden()]), caller)
    assert (run["status"], run["result"]) == ("completed", {"forbidden": 502})


def test_what_fails_by_what_may_pass_has_the_whole_job_tried_again(house, soon):
    run = performed(house, Puppet([errors.UpstreamRateLimited()], [GOOD]), lambda run: run.call("classify", BODY))
    assert (run["status"], run["attempt"]) == ("completed", 2)


def test_what_was_rejected_is_in_the_caller_s_log(house):
    client = house.open(features(lambda run: run.call("classify", BODY)), Puppet(['{"sentiment": "?"}'], [GOOD]))
    url = submit(client, "/api/work", BODY)
    assert ending(client, url)["result"] == {"sentiment": "positive"}
    assert b'"rejected"' in client.get(f"{url}/events").data


@pytest.mark.parametrize("feature", ["tell", "classify", "twice"])
def test_a_stop_reaches_what_is_called(house, feature):
    pause = Pause()
    went_on = []

    def caller(run):
        run.call(feature, BODY)
        went_on.append(True)

    client = house.open(features(caller), Puppet([pause, GOOD]))
    url = submit(client, "/api/work", BODY)
    assert pause.reached.wait(PATIENCE)
    assert client.post(f"{url}/cancel").json["status"] == "cancelled"
    eventually(lambda: not house.performer.live)
    assert went_on == []


def test_the_caller_s_time_is_all_that_there_is(house):
    """The called one's own time-out is for requests that start it."""
    pause = Pause()

    def declare(llm):
        features(None)(llm)
        llm.job("/api/hurry", input=Text, timeout=0.1)(hurry)

    def hurry(run):
        return run.call("classify", BODY)

    client = house.open(declare, Puppet([pause]))
    run = ending(client, submit(client, "/api/hurry", BODY))
    assert run["error"]["type"].endswith(":run-timeout")


def test_it_knows_whose_run_it_is(house):
    seen = []

    def declare(llm):
        @llm.job("/api/outer", input=Text)
        def outer(run):
            return run.call("inner", {"text": "inside"})

        @llm.job("/api/inner", input=Text)
        def inner(run):
            seen.append((run.id, run.feature, run.user, run.owner, run.input))

    client = house.open(declare)
    url = submit(client, "/api/outer", BODY, headers={"X-User": "ann"})
    ending(client, url)
    assert seen == [(url.rsplit("/", 1)[1], "inner", "ann", "user:ann", {"text": "inside"})]
