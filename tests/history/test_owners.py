"""Conversations are their owner's alone."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from flask_llmstream import LLMStream
from tests.conversation import events, new_app, problem
from tests.history.talk import LIST, ONE, REFUSED, TALK, read, say, sent
from tests.puppet import Puppet, stage


@pytest.mark.parametrize(
    ("method", "url"), [("get", ONE), ("patch", ONE), ("delete", ONE), ("get", f"{ONE}/export")], ids=str
)
def test_to_anybody_else_it_does_not_exist(config, method, url):
    """Not even to whom `authorize` lets at runs."""
    with stage(hooks={"authorize": lambda *_: True}, **config) as (app, _):
        events(say(app, "Hello"))
        refused = app.test_client().open(url, method=method, headers={"X-User": "bob"}, json={"title": "Mine"})
        assert refused.status_code == 404
        assert problem(refused)["type"] == REFUSED + "conversation-not-found"
        assert read(app, LIST, **{"X-User": "bob"})["data"] == []
        assert read(app)["title"] == "Hello"


def test_the_same_name_is_another_conversation_for_another_owner(config):
    puppet = Puppet()
    with stage(puppet, **config) as (app, _):
        events(say(app, "Ann's secret"))
        events(say(app, "Hello", headers={"X-User": "bob"}))
        assert sent(puppet) == ["Hello"]
        assert read(app, **{"X-User": "bob"})["title"] == "Hello"
        assert read(app)["title"] == "Ann's secret"


ROUTES = [("get", LIST), ("post", LIST), ("get", ONE), ("patch", ONE), ("delete", ONE), ("get", f"{ONE}/export")]


@pytest.mark.parametrize(("method", "url"), ROUTES)
def test_pages_of_other_origins_are_refused(method, url):
    with stage() as (app, _):
        events(say(app, "Hello"))
        foreign = {"Origin": "https://evil.example"}
        refused = app.test_client().open(url, method=method, headers=foreign, json={"title": "Mine"})
        assert problem(refused)["type"] == REFUSED + "origin-refused"
        assert read(app)["title"] == "Hello"


@pytest.mark.parametrize(("method", "url"), ROUTES)
def test_nobody_is_let_in_without_a_name(method, url):
    with stage(hooks={"identify": lambda: None}) as (app, _):
        refused = app.test_client().open(url, method=method, json={"title": "Mine"})
        assert refused.status_code == 401
        assert problem(refused)["type"] == REFUSED + "not-authenticated"


@pytest.mark.parametrize(("method", "url"), ROUTES)
def test_view_decorators_are_around_each(method, url):
    seen = []

    def count(view):
        def counted(**view_args):
            seen.append(view_args)
            return view(**view_args)

        return counted

    with stage(hooks={"decorators": [count]}) as (app, _):
        app.test_client().open(url, method=method, json={"title": "Mine"})
    assert seen == [{"conversation_id": TALK} if TALK in url else {}]


def test_an_anonymous_visitor_has_conversations_too():
    with visitors() as app:
        first, other = app.test_client(), app.test_client()
        assert first.get(LIST).json["data"] == []
        assert first.get(ONE).status_code == 404
        events(say(first, "Hello"))
        assert first.get(ONE).json["title"] == "Hello"
        made = other.post(LIST, json={"title": "Mine"})
        assert other.get(made.headers["Location"]).json["title"] == "Mine"
        assert other.get(ONE).status_code == 404


@contextmanager
def visitors():
    """An application that lets in whoever comes."""
    app = new_app()
    llm = LLMStream(app, model=Puppet())
    yield app
    llm.record(app).close()
