"""Runs of other processes as this one sees them: what they are, how they are read, and when that is given up.

What becomes of a copy when publications are lost is in `test_gaps.py`.
"""

from __future__ import annotations

import threading
import time

import pytest

from flask_llmstream import mirror as mirror_module
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.events import Usage
from flask_llmstream.mirror import Mirrors
from tests.elsewhere import Reading, Writer, has
from tests.ledgers import start
from tests.orders import DONE, QUEUED, about_of, claim_of
from tests.puppet import PATIENCE, eventually

SOON = 0.02


# What it is


def test_it_is_the_run_that_was_ordered(ledger, mirrors):
    about = about_of(claim_of("r1"), user="ann", data={"q": 1}, view_args={"n": 1}, context={"c": 2}, conversation="t1")
    start(ledger, about=about)
    mirrors = Mirrors(ledger, lambda about: ("input", about.feature, about.data), refresh=3600)
    mirror = mirrors.find("r1")
    assert (mirror.id, mirror.owner, mirror.user, mirror.feature) == ("r1", about.owner, "ann", "chat")
    assert (mirror.view_args, mirror.context, mirror.conversation) == ({"n": 1}, {"c": 2}, "t1")
    assert mirror.input == ("input", "chat", {"q": 1})
    assert mirror.created_at == about.created_at and mirror.claim == about.claim


def test_a_run_that_nobody_has_is_not_found(mirrors):
    assert mirrors.find("nothing") is None
    assert mirrors.left("nothing") is None


def test_its_state_follows_its_writers(mirrors, writer):
    mirror = mirrors.find("r1")
    assert (mirror.state, mirror.decided, mirror.ended) == ("queued", None, False)
    with Reading(mirror):
        writer.say(b"Hel", b"lo")
        eventually(lambda: has(mirror, writer))
        assert (mirror.state, mirror.text, mirror.answering) == ("in_progress", "Hello", True)
        assert str(mirror.cursor) == "r1:1-3"
        writer.end(b'{"done":true,"tokens":2,"usage":{"prompt_tokens":7,"completion_tokens":2}}')
        eventually(lambda: mirror.ended)
    assert (mirror.state, mirror.decided, mirror.usage) == ("completed", "completed", Usage(7, 2))
    assert mirror.started_at and mirror.ended_at


@pytest.mark.parametrize(
    ("terminal", "state"),
    [
        (b'{"done":true,"tokens":0}', "completed"),
        (b'{"done":true,"tokens":0,"cancelled":true}', "cancelled"),
        (b'{"done":true,"tokens":0,"finish_reason":"length"}', "incomplete"),
        (b'{"done":true,"tokens":0,"finish_reason":"stop"}', "completed"),
        (b'{"error":"No.","problem":{"status":429,"detail":"No.","type":"x"}}', "failed"),
    ],
    ids=str,
)
def test_how_it_ended_is_read_from_its_last_event(mirrors, writer, terminal, state):
    writer.end(terminal)
    mirror = mirrors.find("r1")
    assert mirror.ended and mirror.state == state
    if state == "failed":
        assert (mirror.error.status, mirror.error.detail) == (429, "No.")
        assert mirror.error.problem() == mirror.ending["problem"]
    else:
        assert mirror.error is None


def test_one_that_has_ended_is_whole_and_nobody_is_subscribed_for_it(mirrors, writer, deaf):
    writer.say(b"Hel")
    writer.end()
    mirror = mirrors.find("r1")
    assert has(mirror, writer)
    with Reading(mirror) as reader:
        assert reader.take() == writer.log and reader.finished
        assert deaf == {} and len(mirrors) == 0


def test_one_whose_log_expires_this_moment_is_not_found(ledger, mirrors, writer):
    writer.end()
    ledger.store.command("DEL", ledger.frames.channel("r1"))
    assert mirrors.find("r1") is None


def test_outlines_tell_of_runs_without_their_logs(ledger, mirrors, writer, monkeypatch):
    other = Writer(ledger, "r2", about_of(claim_of("r2")))
    other.say(b"Hel")
    other.end()
    monkeypatch.setattr(ledger.frames, "entries", None)
    live, ended = mirrors.outlines(["r1", "nothing", "r2"])
    assert (live.id, live.state) == ("r1", "queued")
    assert (ended.id, ended.state, ended.log.entries) == ("r2", "completed", [DONE])


# Reading along


def test_a_reader_gets_what_is_there_and_then_what_comes(mirrors, writer):
    writer.say(b"1")
    with Reading(mirrors.find("r1")) as reader:
        assert reader.take() == writer.log
        writer.say(b"2", b"3")
        eventually(lambda: reader.take() == writer.log[-2:])
        writer.end()
        eventually(lambda: reader.take() == [DONE])
        assert reader.finished


def test_a_reader_is_woken_by_what_comes(mirrors, writer):
    with Reading(mirrors.find("r1")) as reader:
        reader.take()
        woken = threading.Thread(target=reader.bell.wait, args=(PATIENCE,))
        woken.start()
        writer.say(b"1")
        woken.join(PATIENCE / 2)
        assert not woken.is_alive()


def test_many_readers_share_one_copy_and_one_subscription(ledger, mirrors, writer):
    readings = [Reading(mirrors.find("r1")) for _ in range(5)]
    assert len(mirrors) == 1 and len({id(reading.mirror) for reading in readings}) == 1
    assert ledger.store.command("PUBSUB", "NUMSUB", ledger.frames.channel("r1"))[1] == 1
    writer.say(b"1")
    for reading in readings:
        eventually(lambda reading=reading: len(reading.mirror.log) == 2)
        reading.__exit__()
    eventually(lambda: ledger.store.command("PUBSUB", "NUMSUB", ledger.frames.channel("r1"))[1] == 0)


def test_when_the_last_reader_leaves_the_writer_can_know(ledger, mirrors, writer):
    first, second = Reading(mirrors.find("r1")), Reading(mirrors.find("r1"))
    first.__exit__()
    assert ledger.frames.elsewhere("r1") == 0.0
    second.__exit__()
    eventually(lambda: ledger.frames.elsewhere("r1") not in (None, 0.0))


def test_who_comes_back_reads_on(mirrors, writer):
    mirror = mirrors.find("r1")
    with Reading(mirror):
        pass
    writer.say(b"1")
    with Reading(mirror, epoch=1, after=1) as reader:
        assert reader.take() == writer.log[1:]


# A log that is lost


def lose(ledger, *, record=False):
    ledger.store.command("DEL", ledger.frames.channel("r1"))
    if record:
        ledger.store.command("DEL", ledger.store.key("run", "r1"))


def test_the_readers_of_a_log_that_is_lost_are_let_go_after_a_while(ledger, writer, monkeypatch):
    monkeypatch.setattr(mirror_module, "RESTORED_WITHIN", 0.05)
    mirrors = Mirrors(ledger, lambda about: None, refresh=SOON)
    with Reading(mirrors.find("r1")) as reader:
        lose(ledger, record=True)
        reader.take()
        eventually(lambda: reader.log.lost)
        assert not reader.finished


def test_they_go_on_when_its_writer_puts_it_back_in_time(ledger, writer, monkeypatch):
    monkeypatch.setattr(mirror_module, "RESTORED_WITHIN", 0.2)
    mirrors = Mirrors(ledger, lambda about: None, refresh=SOON)
    mirror = mirrors.find("r1")
    writer.say(b"1")
    with Reading(mirror) as reader:
        reader.take()
        lose(ledger)
        eventually(lambda: mirror._missed is not None)
        ledger.restore("r1", writer.about, 1, [*writer.log, b'{"token":"2"}'])
        eventually(lambda: reader.take() == [b'{"token":"2"}'])
        eventually(lambda: mirror._missed is None)
        assert not mirror.log.lost


def test_a_run_whose_log_is_lost_cannot_be_read_until_it_is_put_back(ledger, mirrors, writer):
    mirror = mirrors.find("r1")
    lose(ledger)
    with pytest.raises(StoreUnavailable):
        mirror.join()
    assert len(mirrors) == 0


@pytest.mark.parametrize("what", ["subscribe", "commands"])
def test_where_the_store_fails_nobody_reads(mirrors, writer, store, monkeypatch, what):
    mirror = mirrors.find("r1")

    def fail(*_, **__):
        raise StoreUnavailable(diagnosis="gone")

    monkeypatch.setattr(store, what, fail)
    with pytest.raises(StoreUnavailable):
        mirror.join()
    monkeypatch.undo()
    assert len(mirrors) == 0 and mirror._subscription is None
    with Reading(mirror) as reader:
        assert reader.take() == [QUEUED]


def test_a_crowd_that_comes_while_the_store_is_away_is_refused_together(mirrors, writer, store, monkeypatch):
    """And not one after the other, each when it has waited for an answer of its own."""
    mirror, came, tried, refused = mirrors.find("r1"), [], [], []

    def clock():
        came.append(time.monotonic())
        return came[-1]

    def fail(*_, **__):
        tried.append(True)
        eventually(lambda: len(came) == 10)
        raise StoreUnavailable(diagnosis="gone")

    def come():
        with pytest.raises(StoreUnavailable):
            mirror.join()
        refused.append(True)

    monkeypatch.setattr(mirror_module, "monotonic", clock)
    monkeypatch.setattr(store, "subscribe", fail)
    crowd = [threading.Thread(target=come) for _ in range(10)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len(refused) == 10 and len(tried) == 1
    monkeypatch.undo()
    with Reading(mirror) as reader:
        assert reader.take() == [QUEUED]


def test_readers_wait_for_a_store_that_is_away_but_not_for_ever(ledger, writer, store, monkeypatch):
    monkeypatch.setattr(mirror_module, "REACHED_WITHIN", 0.1)
    mirrors = Mirrors(ledger, lambda about: None, refresh=SOON)
    mirror = mirrors.find("r1")
    with Reading(mirror):

        def fail(*_):
            raise StoreUnavailable(diagnosis="gone")

        with monkeypatch.context() as away:
            away.setattr(store, "commands", fail)
            eventually(lambda: mirror._unreached is not None)
            assert not mirror.log.lost
        eventually(lambda: mirror._unreached is None)
        with monkeypatch.context() as away:
            away.setattr(store, "commands", fail)
            eventually(lambda: mirror.log.lost)


# A run that was left


def test_a_run_that_was_left_is_as_its_record_has_it_now(ledger, mirrors, writer):
    with Reading(mirrors.find("r1")) as reader:
        ledger.stop("r1")
        left = mirrors.left("r1")
        assert left.log is reader.log and left.stopped


def test_so_is_one_that_was_to_be_forgotten(ledger, mirrors, writer):
    ledger.forget("r1", writer.about)
    assert mirrors.find("r1") is None
    assert mirrors.left("r1").stopped
