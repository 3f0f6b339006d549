"""The logs of runs in the store, over the embedded and the real Redis: added to, published, read, and by whom."""

from __future__ import annotations

from flask_llmstream.frames import read_frame
from tests.ledgers import ABOUT, REAPED, events, key, keys, lapse, start
from tests.orders import DONE, QUEUED, about_of, claim_of, ending, left_by_its_writer
from tests.puppet import eventually

# Append


def test_frames_are_added_to_several_logs_at_once(ledger):
    for run_id in ("r1", "r2"):
        start(ledger, run_id, about_of(claim_of(run_id)))
    said = ledger.frames.append(
        [("r1", 1, 1, [b"2", b"3"], None), ("r2", 1, 1, [b"2"], None), ("r1", 1, 3, [b"4"], None)]
    )
    assert said == [1, 1, 1]
    assert events(ledger, "r1")[1:] == [((1, 3), [b"2", b"3"], False), ((1, 4), [b"4"], False)]
    assert events(ledger, "r2")[1:] == [((1, 2), [b"2"], False)]


def test_a_frame_is_published_as_it_is_kept(ledger):
    start(ledger)
    heard = []
    subscription = ledger.store.subscribe(
        ledger.frames.channel("r1"), lambda message: heard.append(read_frame(message))
    )
    ledger.frames.append([("r1", 1, 1, [b'{"token":"a b"}', b"3"], None)])
    eventually(lambda: heard)
    assert heard == [(1, 3, [b'{"token":"a b"}', b"3"])]
    subscription.close()


def test_a_frame_that_is_repeated_is_refused_and_not_published_again(ledger):
    start(ledger)
    heard = []
    subscription = ledger.store.subscribe(ledger.frames.channel("r1"), heard.append)
    frame = [("r1", 1, 1, [b"2", b"3"], None)]
    assert [ledger.frames.append(frame), ledger.frames.append(frame)] == [[1], [-1]]
    assert ledger.frames.append([("r1", 1, 3, [b"4"], None)]) == [1]
    eventually(lambda: len(heard) == 2)
    assert [end for end, _, _ in events(ledger)] == [(1, 1), (1, 3), (1, 4)]
    subscription.close()


def test_a_repeat_that_has_more_by_now_adds_it(ledger):
    """Its answer was lost, and the run said more: readers drop what they have."""
    start(ledger)
    ledger.frames.append([("r1", 1, 1, [b"2"], None)])
    assert ledger.frames.append([("r1", 1, 1, [b"2", b"3"], None)]) == [1]
    assert events(ledger)[-1] == ((1, 3), [b"2", b"3"], False)


def test_a_log_that_the_store_has_lost_is_not_begun_in_the_middle(ledger):
    start(ledger)
    assert ledger.frames.append([("r2", 1, 1, [b"2"], None), ("r1", 1, 1, [b"2"], None)]) == [0, 1]
    assert ledger.frames.append([("r1", 1, 7, [b"8"], None)]) == [0], "what lies between is missing"
    assert ledger.frames.entries("r2", 0, 0) == (False, [])


def test_a_writer_that_was_given_up_cannot_add_to_its_successors_log(ledger):
    start(ledger)
    lapse(ledger)
    ledger.finish("r1", ABOUT, left_by_its_writer(terminal=REAPED))
    assert ledger.frames.append([("r1", 1, 1, [b"2"], None)]) == [-1]
    assert events(ledger)[-1] == ((2, 1), [REAPED], True)


def test_nothing_follows_an_end(ledger):
    start(ledger)
    ledger.finish("r1", ABOUT, ending(b"2", b"3"))
    assert ledger.frames.append([("r1", 1, 1, [b"2"], None)]) == [-1]
    assert events(ledger)[-1] == ((1, 4), [DONE], True)


def test_when_it_began_is_told_once(ledger):
    start(ledger)
    ledger.frames.append([("r1", 1, 1, [b"2"], 1234.5)])
    ledger.frames.append([("r1", 1, 2, [b"3"], None)])
    assert ledger.find("r1").started_at == 1234.5


def test_a_record_that_is_lost_is_not_begun_by_what_is_added_to_a_log(ledger):
    """It would be a record of nothing, for ever."""
    start(ledger)
    ledger.store.command("DEL", key(ledger, "run", "r1"))
    ledger.frames.append([("r1", 1, 1, [b"2"], 1234.5)])
    assert ledger.store.command("EXISTS", key(ledger, "run", "r1")) == 0


# Read


def test_the_frames_behind_an_event(ledger):
    start(ledger)
    ledger.frames.append([("r1", 1, 1, [b"2", b"3"], None)])
    ledger.frames.append([("r1", 1, 3, [b"4"], None)])
    assert ledger.frames.entries("r1", 1, 0)[1] == [
        (1, 1, [QUEUED], False),
        (1, 3, [b"2", b"3"], False),
        (1, 4, [b"4"], False),
    ]
    assert ledger.frames.entries("r1", 1, 1)[1] == [(1, 3, [b"2", b"3"], False), (1, 4, [b"4"], False)]
    assert ledger.frames.entries("r1", 1, 2)[1] == [(1, 3, [b"2", b"3"], False), (1, 4, [b"4"], False)], "whole frames"
    assert ledger.frames.entries("r1", 1, 4) == (True, [])
    assert ledger.frames.entries("r1", 1, 50) == (True, [])
    assert ledger.frames.entries("r1", 2, 0) == (True, [])
    assert ledger.frames.entries("r2", 0, 0) == (False, [])


def test_behind_an_event_of_a_writer_that_was_given_up_is_the_next_ones(ledger):
    start(ledger)
    lapse(ledger)
    ledger.finish("r1", ABOUT, left_by_its_writer(terminal=REAPED))
    assert ledger.frames.entries("r1", 1, 50) == (True, [(2, 1, [REAPED], True)])


# Who reads it elsewhere


def test_a_run_that_nobody_has_read_elsewhere(ledger):
    start(ledger)
    assert ledger.frames.elsewhere("r1") is None
    assert ledger.frames.elsewhere("nothing") is None


def test_one_that_somebody_reads_elsewhere_now(ledger):
    start(ledger)
    subscription = ledger.store.subscribe(ledger.frames.channel("r1"), lambda message: None)
    assert ledger.frames.elsewhere("r1") == 0.0
    subscription.close()
    eventually(lambda: ledger.frames.elsewhere("r1") is None)


def test_one_that_somebody_has_just_read(ledger):
    start(ledger)
    ledger.frames.touch("r1")
    assert 0 <= ledger.frames.elsewhere("r1") < 5
    ledger.store.command("HINCRBY", key(ledger, "run", "r1"), "seen", -30_000)
    assert 30 <= ledger.frames.elsewhere("r1") < 35


def test_reading_brings_nothing_back(ledger):
    ledger.frames.touch("nothing")
    start(ledger)
    ledger.finish("r1", ABOUT, ending())
    ledger.frames.touch("r1")
    assert "run:nothing" not in keys(ledger)
    assert ledger.store.command("HGET", key(ledger, "run", "r1"), "seen") is None
