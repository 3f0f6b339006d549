"""What an application does with an `LLMStream`: registers it, declares features on it, decorates them."""

from __future__ import annotations

import gc
import weakref
from functools import wraps

import pytest
from flask import Blueprint, Flask, abort, request, url_for
from marshmallow import Schema

from flask_llmstream import LLMStream
from flask_llmstream.errors import ConfigurationError
from tests.conversation import QUESTION, ask, events, instant, new_app, problem, text


def test_features_may_be_declared_before_the_application_exists():
    llm = LLMStream(model=instant())

    @llm.stream("/api/greet")
    def greet(run):
        yield "Good morning"

    def create_app():
        app = new_app()
        llm.init_app(app)
        return app

    assert text(ask(create_app(), "/api/greet")) == "Good morning"


def test_a_decorator_returns_the_function_unchanged():
    llm = LLMStream(new_app(), model=instant())

    def greet(run):
        yield "Good morning"

    assert llm.stream("/api/greet")(greet) is greet
    assert list(greet(None)) == ["Good morning"]


def test_the_default_chat_is_a_plain_proxy_to_the_model():
    app = new_app()
    LLMStream(app, model=instant())
    assert text(ask(app)) == "Hello, you"


def test_it_holds_no_application():
    llm = LLMStream(model=instant())

    def create_and_forget():
        app = new_app()
        llm.init_app(app)
        assert app.test_client().get("/api/runs/none").status_code == 404
        return weakref.ref(app)

    app = create_and_forget()
    gc.collect()
    assert app() is None


def test_a_feature_declared_after_init_app_is_added_to_each_application():
    llm = LLMStream(model=instant())
    apps = new_app(), new_app()
    for app in apps:
        llm.init_app(app)

    @llm.stream("/api/late")
    def late(run):
        yield "still in time"

    assert [text(ask(app, "/api/late")) for app in apps] == ["still in time"] * 2


def test_after_the_first_request_flask_s_own_error_applies():
    app = new_app()
    llm = LLMStream(app, model=instant())
    app.test_client().get("/")
    with pytest.raises(AssertionError, match="setup method 'add_url_rule' can no longer be called"):
        llm.stream("/api/late")(lambda run: "too late")
    assert ask(app, "/api/late").status_code == 404


@pytest.mark.parametrize("early", [True, False], ids=["before init_app", "after init_app"])
@pytest.mark.parametrize("name", ["chat", "support"])
def test_declaring_on_a_default_s_rule_replaces_the_default(name, early):
    app, llm = new_app(), LLMStream(model=instant())

    def own(run):
        yield "my own"

    own.__name__ = name
    if early:
        llm.stream("/api/chat/stream")(own)
    llm.init_app(app)
    if not early:
        llm.stream("/api/chat/stream")(own)
    assert text(ask(app)) == "my own"


def test_a_replacement_has_its_own_methods_and_decorators():
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/chat/stream", methods=["POST"], decorators=[members_only])
    def chat(run):
        yield "for members"

    client = app.test_client()
    assert ask(client).status_code == 403
    assert text(ask(client, headers={"Member": "yes"})) == "for members"
    refused = client.get("/api/chat/stream?message=Hi", headers={"Accept": "text/event-stream", "Member": "yes"})
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
    assert problem(refused)["title"] == "Method Not Allowed"


def members_only(view):
    @wraps(view)
    def checked(**view_args):
        if "Member" not in request.headers:
            abort(403)
        return view(**view_args)

    return checked


def passing(name, passed):
    """A view decorator that leaves its name behind."""

    def decorate(view):
        @wraps(view)
        def passed_by(**view_args):
            passed.append(name)
            return view(**view_args)

        return passed_by

    return decorate


def test_a_feature_s_decorators_surround_its_view_the_first_outermost():
    app, passed = new_app(), []
    llm = LLMStream(app, model=instant(), decorators=[passing("everywhere", passed)])

    @llm.stream("/api/<place>/greet", decorators=[passing("outer", passed), passing("inner", passed)])
    def greet(run):
        passed.append("function")
        yield f"Good morning, {run.view_args['place']}"

    assert text(ask(app, "/api/Oslo/greet")) == "Good morning, Oslo"
    assert passed == ["everywhere", "outer", "inner", "function"]


def test_decorators_of_the_extension_surround_all_its_views():
    app, passed = new_app(), []
    LLMStream(app, model=instant(), decorators=[passing("everywhere", passed)])
    client = app.test_client()
    answer = ask(client)
    run = answer.headers["Location"]
    events(answer)
    assert client.get(run).status_code == 200
    assert client.get(f"{run}/events?after={client.get(run).json['cursor']}").status_code == 204
    assert client.post(f"{run}/cancel").status_code == 200
    assert client.delete(run).status_code == 204
    assert passed == ["everywhere"] * 6
    with client.get("/api/llmstream.js") as script:  # the same for everybody
        assert script.mimetype == "text/javascript"
    assert len(passed) == 6


def test_an_error_of_a_decorator_is_a_problem():
    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/secret", decorators=[members_only])(lambda run: "secret")
    assert problem(ask(app, "/api/secret"))["title"] == "Forbidden"


def test_a_decorator_may_answer_by_itself():
    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/closed", decorators=[lambda view: lambda **view_args: ("closed today", 503)])(lambda run: "open")
    answer = ask(app, "/api/closed")
    assert (answer.status_code, answer.text) == (503, "closed today")


@pytest.mark.parametrize(("methods", "get", "post"), [(["POST"], 405, 200), (["GET"], 200, 405)])
def test_methods_say_what_starts_a_feature(methods, get, post):
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/greet", methods=methods)
    def greet(run):
        yield "Good morning"

    client = app.test_client()
    with ask(client, "/api/greet") as posted:
        assert posted.status_code == post
        posted.get_data()
    with client.get("/api/greet?message=Hi", headers={"Accept": "text/event-stream"}) as got:
        assert got.status_code == get
        got.get_data()


def test_several_applications_in_one_process_know_nothing_of_each_other():
    llm = LLMStream(model=instant())
    one, other = new_app(SECRET_KEY="shared", LLMSTREAM_MAX_MESSAGE=5), new_app(SECRET_KEY="shared")
    llm.init_app(one)
    llm.init_app(other)
    assert problem(ask(one))["errors"] == {"messages": {"0": {"content": ["Longer than 5 characters."]}}}
    visitor = other.test_client()
    answer = ask(visitor)
    assert text(answer) == "Hello, you"
    assert visitor.get(answer.headers["Location"]).status_code == 200
    elsewhere = one.test_client()
    elsewhere.set_cookie("session", visitor.get_cookie("session").value)
    assert elsewhere.get(answer.headers["Location"]).status_code == 404


def test_registering_twice_is_refused_with_advice():
    app = new_app()
    llm = LLMStream(app, model=instant())
    for again in (lambda: llm.init_app(app), lambda: LLMStream(app, model=instant())):
        with pytest.raises(ConfigurationError, match=r"already has an LLMStream under /api.*another url_prefix"):
            again()


def test_endpoints_have_names_for_url_for():
    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/<place>/greet")(greet_somebody)
    other = LLMStream(app, model=instant(), url_prefix="/other")
    with app.test_request_context():
        assert url_for("llmstream.chat") == "/api/chat/stream"
        assert url_for("llmstream.greet_somebody", place="Oslo") == "/api/Oslo/greet"
        assert url_for("llmstream.run", run_id="r1") == "/api/runs/r1"
        assert url_for("llmstream.events", run_id="r1") == "/api/runs/r1/events"
        assert url_for("llmstream.cancel", run_id="r1") == "/api/runs/r1/cancel"
        assert url_for("llmstream.forget", run_id="r1") == "/api/runs/r1"
        assert url_for("llmstream.script") == "/api/llmstream.js"
        assert url_for("llmstream.types") == "/api/llmstream.d.ts"
        assert url_for(f"{other.name}.chat") == "/other/chat/stream"
        assert other.name == "llmstream-other"


def greet_somebody(run):
    yield f"Good morning, {run.view_args['place']}"


def test_endpoints_belong_to_the_blueprint_of_the_extension():
    app, seen = new_app(), []
    llm = LLMStream(app, model=instant())
    llm.stream("/api/<place>/greet")(greet_somebody)
    app.before_request(lambda: seen.append(request.blueprint))
    text(ask(app))
    text(ask(app, "/api/Oslo/greet"))
    assert seen == ["llmstream", "llmstream"]
    assert isinstance(app.blueprints["llmstream"], Blueprint)


@pytest.mark.parametrize(
    ("rule", "name", "advice"),
    [
        ("/api/greet", "other", "Each feature has a rule and a name of its own"),
        ("/api/other", "greet", "Each feature has a rule and a name of its own"),
        ("/api/other", "run", "give the function another name"),
        ("/api/other", "chat", "give the function another name"),
    ],
)
def test_a_rule_or_name_that_is_taken_is_refused_with_advice(rule, name, advice):
    llm = LLMStream(new_app(), model=instant())

    @llm.stream("/api/greet")
    def greet(run):
        yield "Good morning"

    def second(run):
        yield "Good evening"

    second.__name__ = name
    with pytest.raises(ConfigurationError, match=advice):
        llm.stream(rule)(second)
    second.__name__ = "evening"
    llm.stream("/api/evening")(second)  # what was refused is not half there


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input": Schema()}, "input= takes a marshmallow Schema class"),
        ({"input": dict}, "input= takes a marshmallow Schema class"),
        ({"methods": ["PUT"]}, "it answers GET and POST, not PUT"),
        ({"methods": []}, "it answers GET and POST"),
        ({"roles": "user"}, "roles= takes a list of names, not 'user'"),
        ({"roles": []}, "roles= takes a list of names"),
        ({"max_tokens": 0}, "max_tokens= takes a whole number from 1, not 0"),
        ({"max_tokens": -5}, "max_tokens= takes a whole number from 1, not -5"),
        ({"orphan_grace": -1}, "orphan_grace= takes a number of seconds, not -1"),
        ({"orphan_grace": float("nan")}, "orphan_grace= takes a number of seconds"),
    ],
)
def test_a_wrong_option_is_refused_where_it_stands(options, sentence):
    llm = LLMStream(model=instant())
    with pytest.raises(ConfigurationError, match=sentence):
        llm.stream("/api/greet", **options)(greet_somebody)


async def coroutine(run):
    return "Good morning"


async def async_generator(run):
    yield "Good morning"


@pytest.mark.parametrize("function", [coroutine, async_generator])
def test_an_async_function_is_refused_where_it_stands(function):
    """Each request would be told that what it returns cannot be sent."""
    with pytest.raises(ConfigurationError, match=f"{function.__name__} is async: features are ordinary functions"):
        LLMStream(model=instant()).stream("/api/greet")(function)


@pytest.mark.parametrize("prefix", ["", "/", "api", "/api/"])
def test_a_wrong_prefix_is_refused(prefix):
    with pytest.raises(ConfigurationError, match="begins with a slash and does not end with one"):
        LLMStream(url_prefix=prefix)


def test_an_application_that_it_is_not_registered_with_is_told_so():
    with (
        Flask(__name__).test_request_context(),
        pytest.raises(ConfigurationError, match=r"Call llm\.init_app\(app\)"),
    ):
        LLMStream(model=instant()).visitor()


@pytest.fixture
def nothing_configured(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nothing_configured")
def test_without_a_model_a_start_is_a_problem_that_names_the_setting():
    app = new_app()
    LLMStream(app)
    said = problem(ask(app))
    assert said["status"] == 503
    assert said["type"].endswith("model-not-configured")
    assert "OPENAI_API_KEY" in said["detail"]
    assert "OPENAI_BASE_URL" in said["detail"]


@pytest.mark.usefixtures("nothing_configured")
def test_an_event_source_is_told_by_an_event_that_no_model_is_configured():
    app = new_app()
    LLMStream(app)
    question = {"message": QUESTION["messages"][0]["content"]}
    answer = app.test_client().get("/api/chat/stream", query_string=question, headers={"Accept": "text/event-stream"})
    assert events(answer)[-1]["problem"]["status"] == 503
