"""A process at its limits: no thread is to be had for a run, or what follows its end cannot be done."""

from __future__ import annotations

from contextlib import closing, contextmanager

import pytest

from flask_llmstream import leases, run_ended
from flask_llmstream.following import Following
from flask_llmstream.journal import SharedJournal
from flask_llmstream.leases import SharedLeases
from flask_llmstream.ledger import Ledger
from flask_llmstream.mirror import Mirrors
from flask_llmstream.runtime import threads
from flask_llmstream.store import RedisStore
from tests.conversation import KEY, ask, events, text
from tests.elsewhere import Reading, Writer, has
from tests.orders import OWNER, admit, make_run
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
    parts = {
        "journal": (record.registry._journal, "release"),
        "ledger": (record.registry.ledger, "finish"),
        "thread": (threads, "start_thread"),
    }
    monkeypatch.setattr(*parts[what], fail)


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("ledger", "the end of run {id} of chat could not be kept"),
        ("journal", "run {id} of chat has ended, but not all that follows could be done"),
        ("thread", "run {id} of chat has ended, but not all that follows could be done"),
    ],
    ids=["ledger", "journal", "thread"],
)
def test_its_readers_hear_of_an_end_whatever_fails_behind_it(what, complaint, monkeypatch, caplog):
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
        eventually(lambda: complaint.format(id=run.id) in caplog.text)
        assert app.test_client().get(answer.headers["Location"]).json["status"] == "completed"


@pytest.mark.parametrize("what", ["ledger", "journal"])
def test_an_end_that_others_do_not_find_says_so(what, monkeypatch):
    with stage(JOIN_IDENTICAL=False) as (app, llm):
        fail_from_now_on(monkeypatch, llm.record(app), what)
        assert events(ask(app))[-1]["durable"] is False
        monkeypatch.undo()
        assert "durable" not in events(ask(app))[-1]


@pytest.mark.parametrize("what", ["ledger", "journal"])
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


# What goes on for as long as a process lives is begun with the next one who needs it


@pytest.fixture
def ledger(redis_server):
    with closing(RedisStore(redis_server.url, "llmstream:")) as store:
        yield Ledger(store, retention=600, lease=60)


@contextmanager
def exhausted(monkeypatch):
    def refuse(work, name):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threads, "start_thread", refuse)
        yield


@pytest.mark.needs("redis-server")
def test_leases_are_renewed_though_what_is_told_cannot_be_handed_on(ledger, monkeypatch):
    """Without the beat, all runs of the process would be taken for left."""
    monkeypatch.setattr(leases, "RENEWED_EVERY", 0.02)
    run, news = make_run(), []
    admit(ledger, run.id, run.about)
    held = SharedLeases(ledger.store, lambda *said: news.append(said), lambda run_id: None)
    held.hold(run)
    with exhausted(monkeypatch):
        ledger.store.command("HSET", ledger.store.key("run", run.id), "stop", 1)
        beat = held._in_touch
        eventually(lambda: held._in_touch > beat + 0.1)
        assert news == []
    eventually(lambda: news)
    held.close()


@pytest.mark.needs("redis-server")
def test_a_run_that_is_left_is_looked_after_later(ledger, monkeypatch):
    lapsed = []
    held = SharedLeases(ledger.store, lambda *_: None, lapsed.append)
    with exhausted(monkeypatch), pytest.raises(RuntimeError):
        held._tell([], [b"r1"])
    held._tell([], [b"r1"])
    eventually(lambda: lapsed == ["r1"])


@pytest.mark.needs("redis-server")
def test_the_journal_begins_with_the_next_run(ledger, monkeypatch):
    journal = SharedJournal(ledger.frames, lambda run: None)
    for run_id in ("r1", "r2"):
        admit(ledger, run_id, make_run(run_id).about)
    with exhausted(monkeypatch), pytest.raises(RuntimeError):
        journal.follow(make_run("r1"))
    journal.release("r1")
    run = make_run("r2")
    journal.follow(run)
    run.begin()
    eventually(lambda: ledger.find("r2").started_at)
    journal.release("r2")
    journal.close()


@pytest.mark.needs("redis-server")
def test_who_subscribes_next_is_heard_and_who_could_not_is_gone(ledger, redis_server, monkeypatch):
    heard = []
    with exhausted(monkeypatch), pytest.raises(RuntimeError):
        ledger.store.subscribe("a", heard.append)
    ledger.store.subscribe("a", heard.append)
    redis_server.client().publish("a", "hello")
    eventually(lambda: heard == [b"hello"])


def test_a_copy_that_could_not_be_read_again_is_so_the_next_time(store, monkeypatch):
    ledger = Ledger(store, retention=600, lease=60)
    writer, mirrors = Writer(ledger), Mirrors(ledger, lambda about: None, refresh=3600)
    mirror = mirrors.find("r1")
    with Reading(mirror):
        with exhausted(monkeypatch), pytest.raises(RuntimeError):
            mirror.catch_up_soon()
        mirror._subscription.close()
        writer.say(b"Hel")
        mirror.catch_up_soon()
        eventually(lambda: has(mirror, writer))


def test_so_is_a_feed(store, monkeypatch):
    feeds = Following(store, refresh=3600)
    reader = feeds.read(OWNER)
    with exhausted(monkeypatch), pytest.raises(RuntimeError):
        feeds._read_again()
    feeds._lost(reader._feed)
    eventually(lambda: reader._feed.sure)
    reader.close()
