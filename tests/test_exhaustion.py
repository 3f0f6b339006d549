"""A process at its limits: no thread is to be had for a run, or what follows its end cannot be done."""

from __future__ import annotations

import pytest

from flask_llmstream import run_ended
from flask_llmstream.runtime import threads
from tests.conversation import KEY, ask, text
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage


@pytest.fixture
def no_threads(monkeypatch):
    """Nothing can be started until the returned function is called."""
    start = threads.start_thread

    def refuse(work, name):
        if name == "llmstream-run":
            raise RuntimeError("can't start new thread")
        start(work, name)

    monkeypatch.setattr(threads, "start_thread", refuse)
    return lambda: monkeypatch.setattr(threads, "start_thread", start)


def test_a_run_that_cannot_begin_leaves_nothing(no_threads):
    """Neither a run that never ends, nor a key by which the next click would join it and wait for ever."""
    with stage() as (app, llm):
        app.config.update(TESTING=False, PROPAGATE_EXCEPTIONS=False)
        client = app.test_client()
        with ask(client, headers={"Idempotency-Key": KEY}) as refused:
            assert refused.status_code >= 500
        record = llm.record(app)
        assert record.registry.live == []
        assert len(record.open) == 0
        no_threads()
        assert text(ask(client, headers={"Idempotency-Key": KEY})) == "Hello"


def fail(*_, **__):
    raise ConnectionError("gone")


def fail_from_now_on(monkeypatch, record, what):
    """Have a part of what follows an end fail."""
    if what == "thread":
        monkeypatch.setattr(threads, "start_thread", fail)
    else:
        name, method = what.split(".")
        monkeypatch.setattr(getattr(record.registry, f"_{name}"), method, fail)


@pytest.mark.parametrize("what", ["store.finish", "journal.end", "thread"])
def test_its_readers_hear_of_an_end_whatever_fails_behind_it(what, monkeypatch, caplog):
    """They would wait for ever: what has been decided can be neither decided again nor stopped."""
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"])) as (app, llm), ask(app) as answer:
        assert pause.reached.wait(PATIENCE)
        fail_from_now_on(monkeypatch, llm.record(app), what)
        (run,) = llm.record(app).registry.live
        pause.go_on()
        eventually(lambda: run.ended)
        assert text(answer) == "Hello"
        monkeypatch.undo()
        assert llm.record(app).registry.live == []
        eventually(lambda: "has ended, but not all that follows could be done" in caplog.text)
        assert app.test_client().get(answer.headers["Location"]).json["status"] == "completed"


@pytest.mark.parametrize("what", ["store.finish", "journal.end"])
def test_the_application_hears_of_an_end_that_could_not_be_written_down(what, monkeypatch):
    """Then above all: what it saves is the only trace of the answer."""
    heard = []

    def save(sender, text, **_):
        heard.append(text)

    with stage() as (app, llm), run_ended.connected_to(save, sender=app):
        fail_from_now_on(monkeypatch, llm.record(app), what)
        assert text(ask(app)) == "Hello"
        monkeypatch.undo()
    assert heard == ["Hello"]


def test_a_store_that_fails_does_not_keep_the_end_from_the_journal(monkeypatch):
    kept = []
    with stage() as (app, llm):
        registry = llm.record(app).registry
        fail_from_now_on(monkeypatch, llm.record(app), "store.finish")
        monkeypatch.setattr(registry._journal, "end", lambda run_id, terminal: kept.append(terminal))
        answer = ask(app)
        assert text(answer) == "Hello"
        monkeypatch.undo()
    assert len(kept) == 1 and kept[0].startswith(b'{"done":true')


def test_an_end_that_nobody_can_be_told_of_keeps_nothing_of_the_function(monkeypatch):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"])) as (app, llm), ask(app) as answer:
        assert pause.reached.wait(PATIENCE)
        (run,) = llm.record(app).registry.live
        fail_from_now_on(monkeypatch, llm.record(app), "thread")
        pause.go_on()
        eventually(lambda: run.ended)
        assert text(answer) == "Hello"
        monkeypatch.undo()
        assert run.input is None and run.task is None
