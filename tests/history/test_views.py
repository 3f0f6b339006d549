"""The views of conversations: list, begin, read, rename, delete, export; and their limits."""

from __future__ import annotations

import pytest

from flask_llmstream import conversations as module
from flask_llmstream.errors import UpstreamUnavailable
from flask_llmstream.store import digest
from tests.conversation import KEY, events, problem, text
from tests.history.talk import LIST, ONE, REFUSED, TALK, contents, processes, read, say
from tests.puppet import PATIENCE, Pause, Puppet, stage

# The list


def begin(app, **body):
    response = app.test_client().post(LIST, json=body)
    assert response.status_code == 201
    assert response.headers["Location"] == response.json["links"]["self"]
    return response.json


def test_a_conversation_may_be_begun_without_a_message(config):
    with stage(**config) as (app, _):
        made = begin(app, title="Times")
        assert (made["object"], made["title"], made["head"]) == ("conversation", "Times", None)
        assert read(app, made["links"]["self"]) == made | {"messages": [], "run": None}
        assert begin(app)["title"] is None
        nothing = app.test_client().post(LIST)
        assert nothing.status_code == 201, "a body is not needed"
        events(say(app, "What is the time?", conversation=made["id"]))
        assert read(app, made["links"]["self"])["title"] == "Times"


def test_the_list_is_read_page_by_page(config):
    with stage(**config) as (app, _):
        assert read(app, LIST) == {"data": [], "has_more": False}
        made = {begin(app, title=str(number))["id"] for number in range(5)}
        events(say(app, "Hello"))
        found, url = [], f"{LIST}?limit=2"
        while True:
            page = read(app, url)
            found += page["data"]
            assert len(page["data"]) == 2
            if not page["has_more"]:
                break
            url = f"{LIST}?limit=2&before={found[-1]['id']}"
        assert {item["id"] for item in found} == made | {TALK}
        times = [item["updated_at"] for item in found]
        assert times == sorted(times, reverse=True)
        assert all("messages" not in item for item in found)


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1.5", "", "\u0663"])
def test_a_page_has_a_size(limit):
    with stage() as (app, _):
        refused = app.test_client().get(LIST, query_string={"limit": limit})
        assert refused.status_code == 400
        assert "from 1 to 100" in problem(refused)["detail"]
        assert read(app, f"{LIST}?limit=100")["data"] == []


def test_a_page_follows_one_that_is_there():
    with stage() as (app, _):
        refused = app.test_client().get(f"{LIST}?before={TALK}")
        assert problem(refused)["type"] == REFUSED + "conversation-not-found"


# Rename, delete, export


def test_it_is_renamed(config):
    with stage(**config) as (app, _):
        events(say(app, "Hello"))
        renamed = app.test_client().patch(ONE, json={"title": "Über alles Mögliche"})
        assert renamed.status_code == 200
        assert read(app)["title"] == renamed.json["title"] == "Über alles Mögliche"
        assert read(app, LIST)["data"] == [renamed.json]


@pytest.mark.parametrize("body", [{}, {"title": ""}, {"title": None}, {"title": "x" * 201}, {"colour": "blue"}, []])
def test_a_title_that_is_none_is_refused(body):
    with stage() as (app, _):
        events(say(app, "Hello"))
        refused = app.test_client().patch(ONE, json=body)
        assert problem(refused)["status"] == 422
        assert read(app)["title"] == "Hello"


def test_it_is_deleted_with_its_messages(config):
    with stage(**config) as (app, llm):
        events(say(app, "Hello"))
        client = app.test_client()
        assert client.delete(ONE).status_code == 204
        assert client.get(ONE).status_code == client.patch(ONE, json={"title": "x"}).status_code == 404
        assert read(app, LIST)["data"] == []
        refused = say(app, "Are you there?")
        assert problem(refused)["type"] == REFUSED + "conversation-not-found"
        assert llm.record(app).registry.live == []


def test_deleting_stops_its_answer_which_is_not_kept_then(config):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"]), **config) as (app, _), say(app, "Hi") as response:
        assert pause.reached.wait(PATIENCE)
        assert app.test_client().delete(ONE).status_code == 204
        assert events(response)[-1]["cancelled"] is True
        assert app.test_client().get(ONE).status_code == 404
        assert read(app, LIST)["data"] == []


@pytest.mark.needs("redis-server")
def test_another_process_deletes_it(shared):
    pause = Pause()
    with processes(shared, Puppet(["Hel", pause, "lo"])) as [(first, _), (second, _)]:
        with say(first, "Hi") as response:
            assert pause.reached.wait(PATIENCE)
            assert second.test_client().delete(ONE).status_code == 204
            assert events(response)[-1]["cancelled"] is True
        assert first.test_client().get(ONE).status_code == second.test_client().get(ONE).status_code == 404


def test_a_question_that_comes_as_it_is_deleted_starts_nothing(config, monkeypatch):
    puppet = Puppet()
    with stage(puppet, **config) as (app, llm):
        events(say(app, "Hi"))
        record = llm.record(app)
        recall = record.conversations.recall

        def and_delete(*args, **more):
            found = recall(*args, **more)
            record.conversations.delete("user:ann", TALK)
            return found

        monkeypatch.setattr(record.conversations, "recall", and_delete)
        refused = say(app, "Are you there?")
        assert problem(refused)["type"] == REFUSED + "conversation-not-found"
        assert record.registry.live == []
        assert app.test_client().get(ONE).status_code == 404
    assert len(puppet.calls) == 1


def test_export_as_json(config):
    with stage(**config) as (app, _):
        events(say(app, "Hello, é"))
        response = app.test_client().get(f"{ONE}/export")
        assert response.headers["Content-Disposition"] == f"attachment; filename=conversation-{TALK}.json"
        found = read(app)
        assert response.json["messages"] == found["messages"]
        assert {response.json[name] == found[name] for name in ("id", "title", "created_at", "head")} == {True}


def test_export_as_markdown_is_the_branch_that_was_gone_on_with(config):
    with stage(Puppet(["1"], ["2", UpstreamUnavailable()], ["2'"]), **config) as (app, _):
        events(say(app, "One\nand a half"))
        head = read(app)["head"]
        events(say(app, "Two"))
        client = app.test_client()
        response = client.get(f"{ONE}/export?format=markdown")
        assert response.content_type == "text/markdown; charset=utf-8"
        assert response.headers["Content-Disposition"] == f"attachment; filename=conversation-{TALK}.md"
        assert response.text == (
            "# One and a half\n\n## User\n\nOne\nand a half\n\n## Assistant\n\n1\n\n"
            "## User\n\nTwo\n\n## Assistant\n\n2\n\n*Broken off by an error.*\n"
        )
        events(say(app, "Two again", parent=head))
        again = client.get(f"{ONE}/export?format=markdown").text
        assert "Two again" in again and "Broken off" not in again
        assert client.get(f"{ONE}/export?format=pdf").status_code == 400


# Limits


def test_a_full_conversation_says_so_and_loses_nothing(config, monkeypatch):
    monkeypatch.setattr(module, "MOST_MESSAGES", 3)
    keyed = {"Idempotency-Key": KEY}
    puppet = Puppet()
    with stage(puppet, **config) as (app, llm):
        events(say(app, "Hi", headers=keyed))
        refused = say(app, "Once more")
        assert refused.status_code == 409
        said = problem(refused)
        assert (said["type"], said["limit"], said["most"]) == (REFUSED + "history-full", "messages", 3)
        assert llm.record(app).registry.live == []
        assert text(say(app, "Hi", headers=keyed)) == "Hello", "what is there can still be repeated"
        assert contents(app) == ["Hi", "Hello"]
        assert read(app)["run"] is None
    assert len(puppet.calls) == 1


def test_one_has_so_many_conversations(config, monkeypatch):
    monkeypatch.setattr(module, "MOST_CONVERSATIONS", 1)
    with stage(**config) as (app, _):
        events(say(app, "Hello"))
        for refused in (app.test_client().post(LIST), say(app, "Hello", conversation="another-conversation")):
            assert (refused.status_code, problem(refused)["limit"]) == (409, "conversations")
        app.test_client().delete(ONE)
        events(say(app, "Hello", conversation="another-conversation"))


def test_it_is_kept_as_long_as_the_configuration_says(config):
    with stage(CONVERSATION_RETENTION=100, **config) as (app, llm):
        events(say(app, "Hello"))
        store = llm.record(app).store
        names = [("conversation", "user:ann", TALK), ("messages", "user:ann", TALK), ("conversations", "user:ann")]
        for kind, *parts in names:
            assert 0 < store.command("PTTL", store.key(kind, digest(*parts))) <= 100_000
