"""What all processes know of runs: each step, each of its verdicts, and that it may be repeated.

Admission, with its quotas, is in `test_admission.py`; how a run ends is in `test_ledger_ends.py`.
"""

from __future__ import annotations

import time

import pytest

from flask_llmstream.ledger import Ledger
from flask_llmstream.store import EmbeddedStore
from tests.ledgers import (
    ABOUT,
    REAPED,
    contents,
    events,
    everlasting,
    holds,
    key,
    keys,
    lapse,
    leftovers,
    start,
    told,
    usage,
)
from tests.orders import CLICK, KEY, MODEL, OWNER, QUEUED, about_of, admit, claim_of, ending, left_by_its_writer
from tests.puppet import eventually

# Admit


def test_a_start_is_admitted_and_has_a_record_a_log_and_a_lease(ledger):
    start(ledger)
    found = ledger.find("r1")
    assert (found.id, found.about, found.epoch, found.stop) == ("r1", ABOUT, 1, False)
    assert (found.started_at, found.ended_at, found.last, found.terminal) == (None, None, None, None)
    assert events(ledger) == [((1, 1), [QUEUED], False)]
    assert holds(ledger) == (True, True)
    assert ledger.kept(OWNER) == ledger.live(OWNER) == ["r1"]
    assert told(ledger) == [{"started": {"id": "r1", "feature": "chat", "created_at": ABOUT.created_at}}]


def test_the_second_with_a_key_is_told_who_has_it(ledger):
    start(ledger)
    for run_id in ("r2", "r3"):
        verdict = admit(ledger, run_id, about_of(KEY))
        assert (verdict.verdict, verdict.run, verdict.fingerprint) == ("known", "r1", "print")
    assert ledger.find("r2") is None


def test_the_same_key_of_another_owner_is_another_key(ledger):
    start(ledger)
    assert admit(ledger, "r2", about_of(claim_of("r1", owner="user:bob"))).run == "r2"


def test_a_start_that_is_repeated_is_the_same_start(ledger):
    """Its answer was lost: nothing may be counted twice."""
    start(ledger)
    before = contents(ledger)
    start(ledger)
    assert contents(ledger) == before


def test_what_is_kept_names_neither_owner_nor_key_in_its_names(ledger):
    start(ledger)
    ledger.finish("r1", ABOUT, ending())
    assert "ann" not in " ".join(keys(ledger)) and "key:1" not in " ".join(keys(ledger))


# Tell


def test_of_a_run_in_a_conversation_the_feed_tells_when_it_is_told_to(ledger):
    about = about_of(KEY, conversation="c1")
    start(ledger, about=about)
    assert told(ledger) == []
    ledger.tell("r1", about)
    [said] = told(ledger)
    assert said["started"]["id"] == "r1" and said["started"]["conversation"] == "c1"
    assert everlasting(ledger) == []


# Restore


def test_a_run_that_the_store_has_lost_can_be_put_back(ledger):
    about = about_of(KEY, conversation="c1")
    start(ledger, about=about)
    ledger.tell("r1", about)
    before = keys(ledger)
    ledger.store.command("FLUSHALL")
    ledger.restore("r1", about, 1, [QUEUED, b"2", b"3"], began=1234.5)
    assert keys(ledger) == before
    assert ledger.find("r1").started_at == 1234.5
    assert ledger.find("r1").about == about
    assert holds(ledger) == (True, True) and ledger.kept(OWNER) == ["r1"]
    assert events(ledger) == [((1, 3), [QUEUED, b"2", b"3"], False)]
    assert admit(ledger, "r2", about).run == "r1"
    assert ledger.frames.append([("r1", 1, 3, [b"4"], None)]) == [1]
    assert everlasting(ledger) == []


def test_so_can_the_log_alone_or_the_part_of_it_that_is_lost(ledger):
    start(ledger)
    ledger.store.command("DEL", key(ledger, "log", "r1"))
    ledger.restore("r1", ABOUT, 1, [QUEUED, b"2"])
    assert events(ledger) == [((1, 2), [QUEUED, b"2"], False)]
    ledger.restore("r1", ABOUT, 1, [QUEUED, b"2", b"3", b"4"])
    assert events(ledger) == [((1, 4), [QUEUED, b"2", b"3", b"4"], False)]
    assert everlasting(ledger) == []


def test_one_that_has_been_put_back_and_has_gone_on_since_loses_nothing(ledger):
    """The journal and a renewal may both find that it is lost, and one of them be slow."""
    start(ledger)
    ledger.store.command("DEL", key(ledger, "log", "r1"))
    for _ in range(2):
        ledger.restore("r1", ABOUT, 1, [QUEUED, b"2"])
        ledger.frames.append([("r1", 1, 2, [b"3"], None)])
        assert events(ledger) == [((1, 2), [QUEUED, b"2"], False), ((1, 3), [b"3"], False)]


@pytest.mark.parametrize("how", ["ended", "reaped"])
def test_what_has_ended_is_not_brought_back_to_life(ledger, how):
    start(ledger)
    lapse(ledger)
    ledger.finish("r1", ABOUT, ending() if how == "ended" else left_by_its_writer())
    before = events(ledger)
    ledger.restore("r1", ABOUT, 1, [QUEUED, b"2"])
    assert events(ledger) == before and holds(ledger) == (False, False)


def test_a_run_that_is_put_back_takes_no_key_and_no_conversation_from_another(ledger):
    about = about_of(KEY, conversation="c1")
    other = about_of(KEY, conversation="c1")
    start(ledger, "r2", other)
    ledger.restore("r1", about, 1, [QUEUED])
    assert admit(ledger, "r3", about).run == "r2"
    assert ledger.store.command("GET", ledger._slot(about)) == b"r2"


# Stop


def test_a_stop_is_remembered_and_told(ledger):
    heard = []
    subscription = ledger.store.subscribe(key(ledger, "process", ledger.store.process), heard.append)
    start(ledger)
    ledger.stop("r1")
    assert ledger.find("r1").stop is True
    eventually(lambda: heard == [b"stop r1"])
    ledger.finish("r1", ABOUT, ending())
    ledger.stop("r1")
    ledger.stop("nothing")
    assert heard == [b"stop r1"] and keys(ledger).count("run:nothing") == 0
    subscription.close()


# Forget


def test_forgetting_what_has_ended_leaves_nothing(ledger):
    start(ledger)
    ledger.finish("r1", ABOUT, ending(usage=[(MODEL, "runs", 1)]))
    ledger.forget("r1", ABOUT)
    assert leftovers(ledger) == []
    assert ledger.find("r1") is None and not ledger.was_owned_by("r1", OWNER)
    assert told(ledger)[-1] == {"forgotten": {"id": "r1"}}
    assert usage(ledger) == {f"runs {MODEL}": 1}, "what was used was used"


def test_forgetting_what_is_live_stops_it_and_its_end_leaves_nothing(ledger):
    heard = []
    subscription = ledger.store.subscribe(key(ledger, "process", ledger.store.process), heard.append)
    about = about_of(KEY, conversation="c1")
    start(ledger, about=about)
    ledger.tell("r1", about)
    ledger.forget("r1", about)
    eventually(lambda: heard == [b"forget r1"])
    assert ledger.find("r1") is None and ledger.kept(OWNER) == []
    assert ledger.find("r1", forgotten=True).stop is True
    assert ledger.finish("r1", about, ending(state="cancelled"))[0] == "ended"
    assert leftovers(ledger) == []
    assert [next(iter(said)) for said in told(ledger)] == ["started", "forgotten"]
    subscription.close()


def test_what_was_forgotten_and_then_left_by_its_writer_leaves_nothing_either(ledger):
    start(ledger)
    ledger.forget("r1", ABOUT)
    lapse(ledger)
    assert ledger.finish("r1", ABOUT, left_by_its_writer())[0] == "ended"
    assert leftovers(ledger) == []


def test_forgetting_twice_or_what_never_was_is_no_mistake(ledger):
    ledger.forget("r1", ABOUT)
    assert keys(ledger) == []
    start(ledger)
    ledger.finish("r1", ABOUT, ending())
    ledger.forget("r1", ABOUT)
    ledger.forget("r1", ABOUT)
    assert leftovers(ledger) == []


def test_forgetting_leaves_a_key_alone_that_has_passed_on(ledger):
    about = about_of(CLICK)
    start(ledger, about=about)
    ledger.finish("r1", about, ending())
    start(ledger, "r2", about)
    ledger.forget("r1", about)
    assert admit(ledger, "r3", about).run == "r2"


# Withdraw


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_a_start_can_be_taken_back_whenever_it_is_carried_out(ledger, when):
    """Redis may come to it only when its sender has given up."""
    if when == "after":
        start(ledger)
    ledger.withdraw("r1", ABOUT, REAPED)
    if when == "before":
        assert admit(ledger, "r1", ABOUT).verdict == "known"
    assert leftovers(ledger) == ["withdrawn:r1"]
    assert everlasting(ledger) == []
    assert admit(ledger, "r2", ABOUT).verdict == "admitted", "the key is free"


# Read


def test_several_records_at_once_in_the_order_in_which_they_are_asked_for(ledger):
    for run_id in ("r1", "r2", "r3"):
        start(ledger, run_id, about_of(claim_of(run_id)))
    ledger.forget("r2", about_of(claim_of("r2")))
    assert [found.id for found in ledger.found(["r3", "nothing", "r2", "r1"])] == ["r3", "r1"]
    assert ledger.found([]) == []


def test_the_runs_of_an_owner_the_oldest_first(ledger):
    for n in range(3):
        start(ledger, f"r{n}", about_of(claim_of(f"r{n}")))
        eventually(lambda n=n: time.time() * 1000 % 1000 != n)  # another millisecond
    start(ledger, "other", about_of(claim_of("other", owner="user:bob")))
    assert ledger.live(OWNER) == ledger.kept(OWNER) == ["r0", "r1", "r2"]
    assert ledger.kept(OWNER, most=2) == ["r1", "r2"]
    assert ledger.live("user:bob") == ["other"]


def test_a_restart_of_the_process_finds_nothing_in_the_embedded_store():
    """So nobody may take what is in it for lasting."""
    ledger = Ledger(EmbeddedStore(), retention=600, lease=60)
    start(ledger)
    assert Ledger(EmbeddedStore(), retention=600, lease=60).find("r1") is None
    ledger.store.close()
