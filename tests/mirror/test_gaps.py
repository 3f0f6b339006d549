"""Copies of other processes' logs: nothing missing and nothing twice, whatever becomes of what is published."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_llmstream.ledger import Ledger
from flask_llmstream.mirror import Mirror, Mirrors
from flask_llmstream.store import Subscription
from tests.elsewhere import Reading, Writer, has
from tests.ledgers import REAPED, lapse
from tests.orders import DONE, QUEUED
from tests.puppet import eventually

SOON = 0.02


# Publications that are lost, doubled or late


def test_a_gap_is_read_from_the_log(ledger, mirrors, writer, deaf):
    mirror = mirrors.find("r1")
    with Reading(mirror):
        writer.say(b"1")
        writer.say(b"2")
        deaf[ledger.frames.channel("r1")](b"1-3 " + writer.log[2])
        eventually(lambda: has(mirror, writer))


def test_what_is_there_already_is_dropped(ledger, mirrors, writer, deaf):
    mirror = mirrors.find("r1")
    writer.say(b"1", b"2", b"3")
    with Reading(mirror):
        for message in (b"1-2 " + writer.log[1], b"1-1 " + QUEUED, b"1-4 " + b"\n".join(writer.log[1:])):
            deaf[ledger.frames.channel("r1")](message)
        assert has(mirror, writer)


def test_of_what_overlaps_the_rest_is_taken(ledger, mirrors, writer, deaf):
    mirror = mirrors.find("r1")
    writer.say(b"1", b"2")
    with Reading(mirror):
        writer.say(b"3")
        deaf[ledger.frames.channel("r1")](b"1-4 " + b"\n".join(writer.log[2:]))
        assert has(mirror, writer)


def test_what_a_writer_says_that_was_given_up_is_dropped(ledger, mirrors, writer, deaf):
    """Its last words may still be on their way."""
    mirror = mirrors.find("r1")
    with Reading(mirror):
        writer.goes()
        mirror.catch_up()
        deaf[ledger.frames.channel("r1")](b'1-2 {"token":"too late"}')
        deaf[ledger.frames.channel("r1")](b"1-3 " + DONE)
        assert mirror.log.entries == [QUEUED, REAPED]


def test_the_end_of_a_run_that_was_left_is_read_from_the_log(ledger, mirrors, writer, deaf):
    mirror = mirrors.find("r1")
    with Reading(mirror) as reader:
        writer.say(b"1")
        writer.goes()
        deaf[ledger.frames.channel("r1")](b"2-1 " + REAPED)
        eventually(lambda: mirror.ended)
        assert reader.take() == writer.log
        assert (reader.take(), reader.epoch, reader.n) == ([REAPED], 2, 1)


@pytest.mark.parametrize("last", ["a token", "the end"])
def test_a_last_word_that_was_lost_is_found_at_the_next_refresh(ledger, writer, deaf, last):
    mirrors = Mirrors(ledger, lambda about: None, refresh=SOON)
    mirror = mirrors.find("r1")
    with Reading(mirror):
        writer.say(b"1") if last == "a token" else writer.end()
        eventually(lambda: has(mirror, writer))
    assert mirrors._timer is None


def test_those_who_come_at_the_same_time_share_a_copy_and_it_is_refreshed(ledger, writer, deaf):
    mirrors = Mirrors(ledger, lambda about: None, refresh=SOON)
    mirror = mirrors.find("r1")
    assert mirrors.find("r1") is mirror, "though nobody reads it yet"
    with Reading(mirror), Reading(mirrors.find("r1")):
        assert len(mirrors) == len(deaf) == 1
        writer.end()
        eventually(lambda: has(mirror, writer))
    assert len(mirrors) == 0 and deaf == {}


def test_a_copy_that_was_given_up_is_nobody_elses(ledger, mirrors, writer):
    """Those who had it are sent away, and must not get it again while the last of them is still leaving."""
    given_up = mirrors.find("r1")
    with Reading(given_up):
        given_up.log.lose()
        fresh = mirrors.find("r1")
        assert fresh is not given_up
        with Reading(fresh):
            assert mirrors.find("r1") is fresh
            writer.say(b"1")
            eventually(lambda: has(fresh, writer))


def test_what_comes_while_the_log_is_read_is_not_lost(ledger, mirrors, writer, deaf, monkeypatch):
    """Between the reading and the moment in which messages are taken again."""
    mirror = mirrors.find("r1")
    entries = ledger.frames.entries

    def slowly(*given):
        found = entries(*given)
        if len(writer.log) == 1:
            writer.end()
            deaf[ledger.frames.channel("r1")](b"1-2 " + DONE)
        return found

    monkeypatch.setattr(ledger.frames, "entries", slowly)
    with Reading(mirror):
        assert mirror.ended and has(mirror, writer)


def test_when_messages_may_have_been_missed_the_log_is_read(ledger, mirrors, writer, monkeypatch, store):
    told = []

    def subscribe(channel, receive, *, lost):
        told.append(lost)
        return Subscription(lambda: None)

    monkeypatch.setattr(store, "subscribe", subscribe)
    mirror = mirrors.find("r1")
    with Reading(mirror):
        writer.say(b"1")
        told[0]()
        eventually(lambda: has(mirror, writer))


def test_an_end_that_this_process_has_written_itself_is_there_once(mirrors, writer):
    """Whoever closes a run that was left may have readers of it, who hear of the end by publication as well."""
    for _ in range(20):
        mirror = mirrors.find("r1")
        with Reading(mirror):
            lapse(writer.ledger)
            writer.goes()
            mirror.end(2, REAPED)
            eventually(lambda mirror=mirror: not mirror._catching_up)
            assert mirror.log.entries == [QUEUED, REAPED]
        writer.ledger.store.command("FLUSHALL")
        writer.__init__(writer.ledger)


# A cursor ahead


@pytest.mark.parametrize("after", [1, 2, 3, 50])
def test_a_reader_that_has_heard_more_than_was_journalled_hears_the_end(mirrors, writer, after):
    """The writer was killed: what it had told its own readers last never came into the journal."""
    writer.say(b"1")
    with Reading(mirrors.find("r1"), epoch=1, after=after) as reader:
        assert reader.take() == writer.log[after:]
        writer.goes()
        eventually(lambda: reader.log.ended)
        assert (reader.take(), reader.epoch, reader.n) == ([REAPED], 2, 1)
        assert reader.finished
    with Reading(mirrors.find("r1"), epoch=1, after=after) as reader:
        heard = reader.take()
        while not reader.finished:
            heard += reader.take()
        assert heard == [*writer.log[after:], REAPED]


# Any publications


class Wire:
    """Publications on their way: each may be lost, come twice, or late."""

    def __init__(self, ledger):
        self.messages = []
        self.subscription = ledger.store.subscribe(ledger.frames.channel("r1"), self.messages.append)

    def wait_for(self, count):
        eventually(lambda: len(self.messages) == count)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(1, 3)),
        st.tuples(st.just("deliver"), st.integers(0, 30)),
        st.tuples(st.just("deliver"), st.just(-1)),
        st.tuples(st.just("refresh"), st.none()),
    ),
    max_size=30,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40, deadline=None
)
@given(steps=STEPS, ends=st.sampled_from(["ends", "is left"]), data=st.data())
def test_whatever_becomes_of_publications_the_copy_is_exact(store, steps, ends, data):
    store.command("FLUSHALL")
    ledger = Ledger(store, retention=600, lease=60)
    writer, wire, published = Writer(ledger), Wire(ledger), 0
    mirror = Mirror(ledger.find("r1"), ledger, lambda about: None)
    mirror.catch_up_soon = mirror.catch_up  # at once, so that the order is the one that is drawn
    mirror.catch_up()
    for step, number in steps:
        if step == "say":
            writer.say(*(b"%d" % (len(writer.log) + n) for n in range(number)))
            published += 1
            wire.wait_for(published)
        elif step == "refresh":
            mirror.catch_up()
        elif wire.messages:
            mirror._hear(wire.messages[number % len(wire.messages)])
        assert mirror.log.entries == writer.log[: len(mirror.log)]
    if ends == "ends":
        writer.end()
    else:
        writer.goes()
        writer.log.append(REAPED)
    wire.wait_for(published + 1)
    if data.draw(st.booleans()):
        mirror._hear(wire.messages[-1])
        assert mirror.ended, "an end that is heard is there, with all that comes before it"
    mirror.catch_up()
    for message in wire.messages:
        mirror._hear(message)
    assert mirror.log.entries == writer.log and mirror.ended
    wire.subscription.close()
