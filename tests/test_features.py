"""The function contract: what an application's function is given, what it may give back, and where it runs."""

from __future__ import annotations

import datetime
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flask import abort, current_app, g, has_request_context, request
from marshmallow import Schema, fields

from flask_llmstream import ChatInput, Data, LLMStream, Progress, Reasoning, Status, Token, Tool, errors
from flask_llmstream.testing import ModelServer, Schedule
from tests.conversation import ask, events, instant, new_app, problem, result, text

# What it gives back


def test_it_yields_text_and_events():
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/report")
    def report(run):
        yield Status("tool")
        yield Tool({"id": "1", "name": "search", "arguments": "{}"})
        yield Progress(0.5, "page 1")
        yield Reasoning("Hm.")
        yield ""
        yield "All "
        yield Token("read.")
        yield Data({"pages": [1, 2]})

    *heard, done = events(ask(app, "/api/report"))
    assert [event for event in heard if "status" not in event] == [
        {"tool": {"id": "1", "name": "search", "arguments": "{}"}},
        {"progress": 0.5, "message": "page 1"},
        {"reasoning": "Hm."},
        {"token": "All "},
        {"token": "read."},
        {"data": {"pages": [1, 2]}},
    ]
    assert done["done"] is True
    assert "result" not in done


def test_an_iterator_that_it_returns_is_consumed():
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/iterator")
    def iterator(run):
        return iter(["Hel", "lo"])

    @llm.stream("/api/model")
    def model(run):
        return run.model.stream(run.input.messages)

    assert text(ask(app, "/api/iterator")) == "Hello"
    assert text(ask(app, "/api/model")) == "Hello, you"


@pytest.mark.parametrize("value", [{"answer": 42}, ["a", "list"], "a text", 0, False])
def test_a_value_that_it_returns_is_the_result(value):
    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/compute")(lambda run: value)
    (done,) = (event for event in events(ask(app, "/api/compute")) if "status" not in event)
    assert done["result"] == value


def test_a_generator_s_return_value_is_the_result():
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/summary")
    def summary(run):
        yield "Two pages."
        return {"pages": 2}

    answer = ask(app, "/api/summary")
    assert result(answer) == {"pages": 2}


def test_a_result_outlives_the_stream():
    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/compute")(lambda run: {"answer": 42})
    client = app.test_client()
    answer = ask(client, "/api/compute")
    events(answer)
    assert client.get(answer.headers["Location"]).json["result"] == {"answer": 42}


@pytest.mark.parametrize(
    "make",
    [lambda: iter([42]), lambda: iter([{"token": "x"}]), lambda: iter([Data(object())]), lambda: object()],
    ids=["a number", "a mapping", "data that is no JSON", "a result that is no JSON"],
)
def test_what_cannot_be_sent_fails_the_run(make, caplog):
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/wrong")
    def wrong(run):
        return make()

    said = problem(ask(app, "/api/wrong"))
    assert said["type"].endswith("invalid-output")
    assert "object" not in said["detail"]
    assert "of wrong failed" in caplog.text


def test_an_exception_fails_the_run_and_says_nothing_of_itself(caplog):
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/early")
    def early(run):
        raise ValueError("the secret")

    @llm.stream("/api/late")
    def late(run):
        yield "so far"
        raise ValueError("the secret")

    refused = ask(app, "/api/early")
    assert problem(refused)["type"].endswith("feature-failed")
    assert refused.status_code == 500
    broken = ask(app, "/api/late")
    *_, token, error = events(broken)
    assert token == {"token": "so far"}
    assert error["error"] == error["problem"]["detail"]
    assert error["problem"]["type"].endswith("feature-failed")
    assert "secret" not in refused.text + broken.text
    assert caplog.text.count("ValueError: the secret") == 2


def test_an_error_of_the_package_s_own_tree_is_passed_on():
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/fussy")
    def fussy(run):
        raise errors.ContentFiltered("I would rather not.")

    refused = ask(app, "/api/fussy")
    assert (problem(refused)["detail"], refused.status_code) == ("I would rather not.", 422)


# What it gets


def test_input_is_a_conversation_where_no_schema_is_named():
    app, inputs = new_app(), []
    llm = LLMStream(app, model=instant())
    llm.stream("/api/chat2")(lambda run: inputs.append(run.input))
    body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "max_tokens": 7}
    events(ask(app, "/api/chat2", body))
    (chat,) = inputs
    assert [dict(message) for message in chat.messages] == body["messages"]
    assert (chat.temperature, chat.max_tokens, chat.model) == (0.5, 7, None)


class Trip(Schema):
    place = fields.String(required=True)
    day = fields.Date(required=True)


def test_input_is_validated_by_the_feature_s_schema():
    app, inputs = new_app(), []
    llm = LLMStream(app, model=instant())
    llm.stream("/api/plan", input=Trip)(lambda run: inputs.append(run.input))
    events(ask(app, "/api/plan", {"place": "Oslo", "day": "2026-11-20"}))
    assert inputs == [{"place": "Oslo", "day": datetime.date(2026, 11, 20)}]
    refused = ask(app, "/api/plan", {"day": "soon", "hour": 12})
    assert refused.status_code == 422
    assert problem(refused)["errors"] == {
        "place": ["Missing data for required field."],
        "day": ["Not a valid date."],
        "hour": ["Unknown field."],
    }
    assert len(inputs) == 1


def test_a_schema_may_extend_the_conversation():
    class Tutoring(ChatInput):
        level = fields.String(load_default="beginner")

    app, inputs = new_app(), []
    llm = LLMStream(app, model=instant())
    llm.stream("/api/tutor", input=Tutoring)(lambda run: inputs.append(run.input))
    answer = ask(app, "/api/tutor", {"messages": [{"role": "user", "content": "Hi"}], "level": "expert"})
    events(answer)
    (chat,) = inputs
    assert chat.messages[0]["content"] == "Hi"
    assert chat.more == {"level": "expert"}


def test_view_args_are_what_the_rule_captures():
    app, seen = new_app(), []
    llm = LLMStream(app, model=instant())
    llm.stream("/api/<place>/<int:day>/plan")(lambda run: seen.append(run.view_args))
    events(ask(app, "/api/Oslo/7/plan"))
    assert seen == [{"place": "Oslo", "day": 7}]


def test_user_and_context_are_what_the_hooks_said_at_the_request():
    app, seen = new_app(), []

    def remember():
        return {"locale": request.accept_languages.best, "path": (request.path,)}

    llm = LLMStream(app, model=instant(), identify=lambda: request.headers["User"], context=remember)
    llm.stream("/api/whoami")(lambda run: seen.append((run.user, run.context)))
    events(ask(app, "/api/whoami", headers={"User": "ada", "Accept-Language": "nb"}))
    assert seen == [("ada", {"locale": "nb", "path": ["/api/whoami"]})]  # as JSON has it: no tuples


def test_context_holds_json_only(caplog):
    app, seen = new_app(), []
    llm = LLMStream(app, model=instant(), context=lambda: {"request": request})
    llm.stream("/api/whoami")(seen.append)
    refused = ask(app, "/api/whoami")
    assert problem(refused)["type"].endswith("configuration-error")
    assert "context hook must return what JSON can hold" in caplog.text
    assert seen == []


def test_without_the_hook_there_is_no_context():
    app, seen = new_app(), []
    llm = LLMStream(app, model=instant())
    llm.stream("/api/whoami")(lambda run: seen.append(run.context))
    events(ask(app, "/api/whoami"))
    assert seen == [None]


def test_the_model_is_bound_to_what_the_client_may_use_of_it(monkeypatch):
    app = new_app(LLMSTREAM_MODEL="house", LLMSTREAM_MODELS=["house", "best"], LLMSTREAM_MAX_TOKENS=100)
    with ModelServer(Schedule(tokens=["Hel", "lo"])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        llm = LLMStream(app)

        @llm.stream("/api/brief", max_tokens=20)
        def brief(run):
            assert run.model.name in ("house", "best")
            return run.model.stream(run.input.messages, max_tokens=1_000_000)

        messages = [{"role": "user", "content": "Hi"}]
        assert text(ask(app, "/api/brief", {"messages": messages})) == "Hello"
        assert text(ask(app, "/api/brief", {"messages": messages, "model": "best", "max_tokens": 9})) == "Hello"
        assert text(ask(app, body={"messages": messages, "max_tokens": 1_000_000})) == "Hello"
        assert [(seen.body["model"], seen.body["max_tokens"]) for seen in server.requests] == [
            ("house", 20),
            ("best", 9),
            ("house", 100),
        ]
        assert problem(ask(app, body={"messages": messages, "model": "dearest"}))["errors"].keys() == {"model"}
        app.extensions["llmstream"]["llmstream"].close()


def test_a_feature_may_allow_more_roles():
    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/open", roles=["user", "system"])(lambda run: run.model.stream(run.input.messages))
    body = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "/echo Hi"}]}
    assert text(ask(app, "/api/open", body)) == "Hi"
    assert problem(ask(app, body=body))["errors"] == {"messages": {"0": {"role": ["Must be one of: user, assistant."]}}}


def test_a_function_that_does_not_yield_looks_at_cancelled():
    app, began, seen = new_app(), threading.Event(), []
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/compute")
    def compute(run):
        yield "let me see"
        began.set()
        seen.append(run.cancelled)
        while not run.cancelled:
            threading.Event().wait(0.005)
        seen.append(run.cancelled)

    client = app.test_client()
    answer = ask(client, "/api/compute")
    assert began.wait(5)
    assert client.post(f"{answer.headers['Location']}/cancel").json["status"] == "cancelled"
    assert events(answer)[-1]["cancelled"] is True
    assert seen == [False, True]


def test_a_stop_is_raised_at_the_next_yield_where_finally_clauses_are():
    app, began, go_on, cleaned = new_app(), threading.Event(), threading.Event(), []
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/careful")
    def careful(run):
        try:
            yield "one"
            began.set()
            go_on.wait(5)
            yield "two"
        except Exception:
            cleaned.append("swallowed")
        finally:
            cleaned.append("cleaned")

    client = app.test_client()
    answer = ask(client, "/api/careful")
    assert began.wait(5)
    run = app.extensions["llmstream"]["llmstream"].registry.live[0]
    app.extensions["llmstream"]["llmstream"].registry.stop(run)
    go_on.set()
    *_, last, done = events(answer)
    assert last == {"token": "one"}
    assert done["cancelled"] is True
    assert cleaned == ["cleaned"]


# Where it runs


def test_it_runs_in_an_application_context_of_its_own():
    app, seen, torn_down = new_app(), {}, []
    app.before_request(lambda: setattr(g, "mark", "the request's"))
    app.teardown_appcontext(lambda error: torn_down.append(g.get("mark")))
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/where")
    def where(run):
        seen.update(app=current_app.name, request=has_request_context(), g=g.get("mark"))
        g.mark = "the run's"
        yield "here"
        assert g.mark == "the run's"  # one context from the first to the last yield
        with run.app_context():
            assert g.get("mark") is None
            g.mark = "a short one's"
        assert torn_down.count("a short one's") == 1
        assert torn_down.count("the run's") == 0
        yield "and there"

    assert text(ask(app, "/api/where")) == "hereand there"
    assert seen == {"app": app.name, "request": False, "g": None}
    assert sorted(torn_down, key=str) == ["a short one's", "the request's", "the run's"]


UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all()
from flask import current_app, has_request_context
from flask_llmstream import LLMStream
from tests.conversation import ask, instant, new_app, result

app = new_app()
llm = LLMStream(app, model=instant())

@llm.stream("/api/where")
def where(run):
    yield "here"
    return [current_app._get_current_object() is app, has_request_context()]

print(result(ask(app, "/api/where")))
"""


def test_it_does_so_under_gevent():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-W", "error", "-c", UNDER_GEVENT]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[True, False]"


def test_a_function_may_abort_as_a_view_may():
    llm = LLMStream(app := new_app(), model=instant())

    @llm.stream("/api/notes/<int:note>/stream")
    def summary(run):
        abort(404, "There is no such note.")

    answer = ask(app, "/api/notes/7/stream")
    assert answer.status_code == 404
    assert problem(answer)["detail"] == "There is no such note."
