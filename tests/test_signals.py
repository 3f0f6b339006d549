"""`run_ended`: how an application learns of each end, to save the answer in a database of its own."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager

import pytest
from flask import current_app, has_request_context

from flask_llmstream import LLMStream, Usage, run_ended
from tests.conversation import ask, events, instant, new_app, problem, text


@contextmanager
def received(app, keep=lambda **brought: brought):
    """What `run_ended` brings of this application's runs."""
    heard = []

    def receive(sender, **brought):
        heard.append(keep(**brought))

    with run_ended.connected_to(receive, sender=app):
        yield heard


def test_brings_the_run_its_text_its_state_and_its_usage():
    app = new_app()
    LLMStream(app, model=instant(), identify=lambda: "ada")
    with received(app) as heard:
        answer = ask(app)
        assert text(answer) == "Hello, you"
    (brought,) = heard
    assert brought.keys() == {"run", "text", "state", "usage"}
    assert (brought["text"], brought["state"]) == ("Hello, you", "completed")
    assert isinstance(brought["usage"], Usage)
    assert brought["usage"].completion_tokens == 3
    run = brought["run"]
    assert answer.headers["Location"].endswith(run.id)
    assert (run.user, run.feature, run.view_args) == ("ada", "chat", {})
    assert run.timing.total_ms > 0


def test_is_sent_in_an_application_context_and_no_request():
    app = new_app()
    LLMStream(app, model=instant())
    with received(app, lambda **_: (current_app._get_current_object(), has_request_context())) as heard:
        text(ask(app))
    assert heard == [(app, False)]


def test_what_else_follows_an_end_does_not_depend_on_what_fails(caplog):
    app = new_app()
    llm = LLMStream(app, model=instant())
    followed = []
    llm.record(app).after_end[:] = [lambda run: 1 / 0, lambda run: followed.append(run.decided)]
    assert text(ask(app)) == "Hello, you"
    assert followed == ["completed"]
    assert "ZeroDivisionError" in caplog.text


def test_is_sent_to_the_receivers_of_this_application_alone():
    llm = LLMStream(model=instant())
    app, other = new_app(), new_app()
    llm.init_app(app)
    llm.init_app(other)
    with received(other) as heard:
        text(ask(app))
    assert heard == []


def test_costs_nothing_where_only_others_listen():
    """A receiver of another application's runs opens no context in this one."""
    llm = LLMStream(model=instant())
    app, other = new_app(), new_app()
    llm.init_app(app)
    llm.init_app(other)
    opened = []
    app.teardown_appcontext(lambda _: opened.append(has_request_context()))
    with received(other):
        text(ask(app))
    with_none = opened.count(False)
    with received(app):
        text(ask(app))
    assert opened.count(False) - with_none == with_none + 1


def test_is_sent_after_a_stop_with_the_text_so_far():
    app, wrote = new_app(), threading.Event()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/slow")
    def slow(run):
        yield "as far as "
        yield "this"
        wrote.set()
        yield from run.model.stream([{"role": "user", "content": "/stall first"}])

    client = app.test_client()
    with received(app) as heard:
        answer = ask(client, "/api/slow")
        assert wrote.wait(5)
        client.post(f"{answer.headers['Location']}/cancel")
        assert events(answer)[-1]["cancelled"] is True
    (brought,) = heard
    assert (brought["state"], brought["text"]) == ("cancelled", "as far as this")


def test_is_sent_after_an_error_with_the_text_so_far():
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/broken")
    def broken(run):
        yield "as far as this"
        raise ValueError

    with received(app) as heard:
        assert "error" in events(ask(app, "/api/broken"))[-1]
    (brought,) = heard
    assert (brought["state"], brought["text"], brought["usage"]) == ("failed", "as far as this", None)
    assert brought["run"].outcome.error.slug == "feature-failed"


def test_is_sent_for_a_run_that_was_refused_before_it_said_anything():
    app = new_app()
    llm = LLMStream(app, model=instant())
    llm.stream("/api/refused")(lambda run: run.model.stream([{"role": "user", "content": "/fail filter"}]))
    with received(app) as heard:
        assert problem(ask(app, "/api/refused"))["type"].endswith("content-filtered")
    (brought,) = heard
    assert (brought["state"], brought["text"]) == ("failed", "")


def test_is_sent_once_a_run_however_many_read_it():
    app = new_app()
    LLMStream(app, model=instant())
    client = app.test_client()
    client.post("/api/chat/stream")  # a refusal starts no run
    with received(app) as heard:
        answer = ask(client)
        text(answer)
        text(client.get(f"{answer.headers['Location']}/events"))
        client.post(f"{answer.headers['Location']}/cancel")
    assert len(heard) == 1


def test_a_receiver_that_fails_breaks_nothing(caplog):
    app = new_app()
    LLMStream(app, model=instant())

    def fail(**_):
        raise ValueError("no database")

    with received(app, fail):
        assert text(ask(app)) == "Hello, you"
    assert "a receiver of run_ended failed" in caplog.text
    assert "no database" in caplog.text


def test_the_client_hears_of_the_end_after_the_receivers(monkeypatch):
    monkeypatch.setattr("flask_llmstream.ending.END_WAITS", 30.0)
    app, saved = new_app(), []
    LLMStream(app, model=instant())
    began, go_on = threading.Event(), threading.Event()

    def save(text, run, **_):
        began.set()
        assert go_on.wait(10)
        saved.append((text, run.ended))

    with received(app, save):
        client = app.test_client()
        answer = ask(client)
        assert began.wait(10)
        assert client.get(f"{answer.headers['Location']}?wait=0.2").json["status"] == "in_progress"
        go_on.set()
        assert text(answer) == "Hello, you"
        assert saved == [("Hello, you", False)]


def test_a_receiver_that_hangs_holds_nobody_up_for_long():
    app, go_on = new_app(), threading.Event()
    LLMStream(app, model=instant())
    with received(app, lambda **_: go_on.wait(20)):
        assert text(ask(app)) == "Hello, you"
        assert not go_on.is_set()
        go_on.set()


@pytest.mark.parametrize("level", [logging.ERROR])
def test_nothing_is_logged_where_nobody_listens(caplog, level):
    app = new_app()
    LLMStream(app, model=instant())
    text(ask(app))
    assert [record for record in caplog.records if record.levelno >= level] == []
