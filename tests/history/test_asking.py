"""Chats whose history is kept: what a client sends, and what the model is told."""

from __future__ import annotations

import json

import pytest
from marshmallow import fields

from flask_llmstream import ChatInput
from tests.conversation import ask, events, problem, text
from tests.history.talk import CHAT, REFUSED, TALK, read, say, sent
from tests.puppet import Puppet, follow, stage


def test_the_history_is_loaded_and_the_exchange_is_kept(config):
    puppet = Puppet(["Noon"], ["Still noon"])
    with stage(puppet, **config) as (app, _):
        assert text(say(app, "What is the time?")) == "Noon"
        response = say(app, "And now?")
        assert text(response) == "Still noon"
        run = app.test_client().get(response.headers["Location"]).json
        found = read(app)
    assert puppet.calls[1].messages == [
        {"role": "user", "content": "What is the time?"},
        {"role": "assistant", "content": "Noon"},
        {"role": "user", "content": "And now?"},
    ]
    assert run["conversation"] == TALK
    assert (found["title"], found["head"], found["run"]) == ("What is the time?", run["id"], None)
    question, answer = found["messages"][2:]
    assert question["id"] == f"{run['id']}.q" and question["parent"] == found["messages"][1]["id"]
    assert (answer["id"], answer["parent"], answer["run"]) == (run["id"], question["id"], run["id"])
    assert (answer["status"], answer["finish_reason"]) == ("completed", "stop")
    assert answer["usage"]["completion_tokens"] == 1
    assert found["created_at"] <= found["updated_at"]


def test_an_event_source_asks_in_a_conversation_too(config):
    puppet = Puppet(["Noon"])
    with stage(puppet, **config) as (app, _):
        stream = {"Accept": "text/event-stream"}
        for query in ({"message": "One"}, {"message": "Two"}, {"message": "Anew", "parent": ""}):
            with app.test_client().get(CHAT, query_string={"conversation": TALK, **query}, headers=stream) as response:
                assert list(follow(response))[-1]["done"] is True
    assert [sent(puppet, call) for call in range(3)] == [["One"], ["One", "Noon", "Two"], ["Anew"]]


def test_a_feature_of_the_applications_own_has_the_whole(config):
    class Tutoring(ChatInput):
        level = fields.String(load_default="beginner")

    puppet = Puppet()
    with stage(puppet, **config) as (app, llm):

        @llm.stream("/tutor", input=Tutoring)
        def tutor(run):
            assert run.conversation == run.input.conversation == TALK
            yield f"{run.input.more['level']} {len(run.input.messages)}"

        body = {"conversation": TALK, "message": "Hello", "level": "expert"}
        assert text(ask(app, "/tutor", body)) == "expert 1"
        assert text(ask(app, "/tutor", body)) == "expert 3"
        assert text(say(app, "And you?")) == "Hello", "features may share a conversation"
    assert sent(puppet) == ["Hello", "expert 1", "Hello", "expert 3", "And you?"]


def test_a_question_may_be_asked_anew_from_any_place(config):
    puppet = Puppet(["1"], ["2"], ["2'"], ["3"], ["1'"])
    with stage(puppet, **config) as (app, _):
        events(say(app, "One"))
        first = read(app)["head"]
        events(say(app, "Two"))
        events(say(app, "Two, please", parent=first))
        events(say(app, "Three"))
        events(say(app, "Another one", parent=None))
        parents = [message["parent"] for message in read(app)["messages"]]
    assert sent(puppet, 2) == ["One", "1", "Two, please"]
    assert sent(puppet, 3) == ["One", "1", "Two, please", "2'", "Three"]
    assert sent(puppet, 4) == ["Another one"]
    assert parents[2] == parents[4] == first
    assert parents[0] is parents[8] is None


def test_what_is_too_much_for_the_model_is_kept_and_not_told(config):
    puppet = Puppet(["b" * 40], ["d" * 40], ["f"])
    with stage(puppet, MAX_INPUT=130, MAX_MESSAGE=50, **config) as (app, _):
        for question in ("a" * 40, "c" * 40, "e" * 40):
            events(say(app, question))
        assert len(read(app)["messages"]) == 6
    assert sent(puppet) == ["c" * 40, "d" * 40, "e" * 40]


def test_an_answer_longer_than_a_message_may_be_is_told_all_the_same(config):
    puppet = Puppet(["x" * 60], ["yes"])
    with stage(puppet, MAX_MESSAGE=50, **config) as (app, _):
        events(say(app, "Tell me"))
        events(say(app, "Go on"))
    assert sent(puppet) == ["Tell me", "x" * 60, "Go on"]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"conversation": TALK}, {"message"}),
        ({"message": "Hello"}, {"conversation"}),
        ({"parent": None}, {"conversation", "message"}),
        ({"conversation": TALK, "message": "Hi", "messages": [{"role": "user", "content": "Hi"}]}, {"messages"}),
        ({}, {"messages"}),
        ({"conversation": "short", "message": "Hello"}, {"conversation"}),
        ({"conversation": "x" * 65, "message": "Hello"}, {"conversation"}),
        ({"conversation": TALK + "\n", "message": "Hello"}, {"conversation"}),
        ({"conversation": "a/b" * 6, "message": "Hello"}, {"conversation"}),
        ({"conversation": TALK, "message": ""}, {"message"}),
        ({"conversation": TALK, "message": "x" * 51}, {"message"}),
        ({"conversation": TALK, "message": 1, "model": "huge"}, {"message", "model"}),
        ({"conversation": TALK, "message": "Hello", "parent": 1}, {"parent"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else json.dumps(value)[-60:],
)
def test_what_is_refused(body, wrong):
    puppet = Puppet()
    with stage(puppet, MAX_MESSAGE=50) as (app, llm):
        assert set(problem(ask(app, body=body))["errors"]) == wrong
        assert llm.record(app).registry.live == []
    assert puppet.calls == []


def test_a_parent_that_is_not_there(config):
    with stage(**config) as (app, _):
        refused = say(app, "Hello", parent="nobody")
        assert problem(refused)["type"] == REFUSED + "conversation-not-found"
        events(say(app, "Hello"))
        refused = say(app, "Hello", parent="nobody")
        assert refused.status_code == 422 and set(problem(refused)["errors"]) == {"parent"}
        assert len(read(app)["messages"]) == 2
