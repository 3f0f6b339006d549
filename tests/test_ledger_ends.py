"""How runs end for all processes: once, whoever says so and however often; and what outlives them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flask_llmstream.frames import read_frame
from flask_llmstream.ledger import LONGEST_RUN, USAGE_KEPT, Ledger
from flask_llmstream.store import digest
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
    lifetime,
    start,
    told,
    usage,
)
from tests.orders import CLICK, DONE, KEY, MODEL, OWNER, QUEUED, about_of, admit, claim_of, ending, left_by_its_writer
from tests.puppet import eventually

# Finish


def test_an_end_is_in_the_record_and_in_the_log(ledger):
    start(ledger)
    assert ledger.finish("r1", ABOUT, ending()) == ("ended", 1, DONE)
    found = ledger.find("r1")
    assert (found.terminal, found.last, found.epoch) == (DONE, (1, 2), 1)
    assert abs(found.ended_at - time.time()) < 5
    assert events(ledger) == [((1, 1), [QUEUED], False), ((1, 2), [DONE], True)]


def test_an_end_gives_back_what_the_run_held(ledger):
    about = about_of(KEY, conversation="c1")
    start(ledger, about=about)
    assert any(name.startswith("talk:") for name in keys(ledger))
    ledger.finish("r1", about, ending())
    assert holds(ledger) == (False, False)
    assert not any(name.startswith("talk:") for name in keys(ledger))
    assert ledger.live(OWNER) == [] and ledger.kept(OWNER) == ["r1"]


def test_an_end_leaves_the_conversation_to_whom_it_has_passed_on(ledger):
    about = about_of(claim_of("r1"), conversation="c1")
    other = about_of(claim_of("r2"), conversation="c1")
    start(ledger, about=about)
    lapse(ledger)
    start(ledger, "r2", other)
    ledger.finish("r1", about, ending())
    assert ledger.store.command("GET", ledger._slot(about)) == b"r2"


def test_the_events_that_the_log_does_not_have_come_before_the_end(ledger):
    start(ledger)
    ledger.frames.append([("r1", 1, 1, [b"2", b"3"], None)])
    ledger.finish("r1", ABOUT, ending(b"4", b"5", kept=3))
    assert events(ledger)[1:] == [((1, 3), [b"2", b"3"], False), ((1, 5), [b"4", b"5"], False), ((1, 6), [DONE], True)]


def test_those_that_came_meanwhile_are_not_lost(ledger):
    """The journal was writing while the run ended, so the end knows of fewer than are there."""
    start(ledger)
    ledger.frames.append([("r1", 1, 1, [b"2", b"3"], None)])
    ledger.finish("r1", ABOUT, ending(b"2", b"3", kept=1))
    assert events(ledger)[1:] == [((1, 3), [b"2", b"3"], False), ((1, 4), [DONE], True)]


def test_an_end_is_published_to_readers_with_what_comes_before_it(ledger):
    start(ledger)
    heard = []
    subscription = ledger.store.subscribe(
        ledger.frames.channel("r1"), lambda message: heard.append(read_frame(message))
    )
    ledger.finish("r1", ABOUT, ending(b"2", kept=1))
    eventually(lambda: len(heard) == 2)
    assert heard == [(1, 2, [b"2"]), (1, 3, [DONE])]
    subscription.close()


def test_a_run_ends_once_and_who_comes_second_is_told_how(ledger):
    start(ledger)
    ledger.finish("r1", ABOUT, ending())
    other = ending(b"2", terminal=b'{"error":"no"}', state="failed", usage=[(MODEL, "runs", 1)])
    assert ledger.finish("r1", ABOUT, other) == ("already", 1, DONE)
    lapse(ledger)
    assert ledger.finish("r1", ABOUT, left_by_its_writer(terminal=REAPED, state="failed")) == ("already", 1, DONE)
    assert len(events(ledger)) == 2 and usage(ledger) == {}


def test_an_end_that_is_repeated_changes_nothing_and_says_so(ledger):
    start(ledger)
    end = ending(b"2", usage=[(MODEL, "runs", 1)])
    ledger.finish("r1", ABOUT, end)
    before = contents(ledger)
    assert ledger.finish("r1", ABOUT, end) == ("already", 1, DONE)
    assert contents(ledger) == before


def test_a_run_whose_lease_goes_on_is_nobody_elses_to_close(ledger):
    start(ledger)
    assert ledger.finish("r1", ABOUT, left_by_its_writer()) == ("leased", 0, b"")
    assert ledger.find("r1").terminal is None


def test_a_run_that_was_left_can_be_closed_and_its_writer_finds_that(ledger):
    start(ledger)
    ledger.frames.append([("r1", 1, 1, [b"2"], None)])
    lapse(ledger)
    left = left_by_its_writer(terminal=REAPED, state="failed")
    assert ledger.finish("r1", ABOUT, left) == ("ended", 2, REAPED)
    assert ledger.finish("r1", ABOUT, ending(b"3", kept=2)) == ("already", 2, REAPED)
    assert events(ledger)[-2:] == [((1, 2), [b"2"], False), ((2, 1), [REAPED], True)]
    assert (ledger.find("r1").epoch, ledger.find("r1").last) == (2, (2, 1))


def test_a_run_without_any_lease_was_left_too(ledger):
    start(ledger)
    ledger.let_go("r1")
    assert ledger.finish("r1", ABOUT, left_by_its_writer())[0] == "ended"


def test_a_writer_that_was_fenced_out_cannot_end_its_successors_run(ledger):
    start(ledger)
    ledger.store.command("HSET", key(ledger, "run", "r1"), "epoch", 2)
    assert ledger.finish("r1", ABOUT, ending()) == ("fenced", 0, b"")
    assert events(ledger) == [((1, 1), [QUEUED], False)]


def test_a_run_that_the_store_has_lost_is_missing(ledger):
    assert ledger.finish("r1", ABOUT, ending()) == ("missing", 0, b"")
    assert keys(ledger) == []


def test_so_is_one_of_whose_log_it_has_lost_a_part(ledger):
    """Or the end would follow upon a gap."""
    start(ledger)
    assert ledger.finish("r1", ABOUT, ending(b"6", kept=5)) == ("missing", 0, b"")
    assert ledger.find("r1").terminal is None


def test_the_lease_of_one_that_is_missing_is_cleared_away_by_who_finds_it(ledger):
    lapse(ledger)
    assert ledger.finish("r1", ABOUT, left_by_its_writer())[0] == "missing"
    assert holds(ledger) == (False, False)


def test_the_accounts_are_kept_by_day_owner_and_model(ledger):
    for run_id in ("r1", "r2"):
        about = about_of(claim_of(run_id))
        start(ledger, run_id, about)
        counted = [(MODEL, "runs", 1), (MODEL, "prompt", 30), ("other model", "completion", 4)]
        ledger.finish(run_id, about, ending(usage=counted))
    assert usage(ledger) == {f"runs {MODEL}": 2, f"prompt {MODEL}": 60, "completion other model": 8}
    day = datetime.now(UTC).date().isoformat()
    assert ledger.store.command("SMEMBERS", key(ledger, "users", day)) == {OWNER.encode()}
    assert lifetime(ledger, "users", day) == pytest.approx(USAGE_KEPT, abs=60)
    assert lifetime(ledger, "usage", day, digest(OWNER)) == pytest.approx(USAGE_KEPT, abs=60)


def test_the_feed_tells_of_the_end(ledger):
    about = about_of(KEY, conversation="c1")
    start(ledger, about=about)
    ledger.finish("r1", about, ending(state="cancelled"))
    said = told(ledger)[-1]["ended"]
    assert said.pop("ended_at") == pytest.approx(time.time(), abs=5)
    assert said == {"id": "r1", "feature": "chat", "status": "cancelled", "conversation": "c1"}


# What outlives a run


def test_the_end_keeps_a_lasting_key_for_as_long_as_the_log(ledger):
    start(ledger)
    ledger.finish("r1", ABOUT, ending())
    assert 590 < lifetime(ledger, "key", digest(OWNER, KEY.key)) <= 600
    assert 590 < lifetime(ledger, "log", "r1") <= 600
    assert admit(ledger, "r2", ABOUT).run == "r1"


def test_the_end_drops_the_key_of_a_click(ledger):
    about = about_of(CLICK)
    start(ledger, about=about)
    ledger.finish("r1", about, ending())
    assert admit(ledger, "r2", about).run == "r2"


def test_the_end_leaves_a_key_alone_that_has_passed_on(ledger):
    about = about_of(CLICK)
    start(ledger, about=about)
    ledger.forget("r1", about)
    start(ledger, "r2", about)
    ledger.finish("r1", about, ending())
    assert admit(ledger, "r3", about).run == "r2"


def test_the_end_leaves_a_tombstone_that_only_its_owner_sees(ledger):
    start(ledger)
    assert not ledger.was_owned_by("r1", OWNER)
    ledger.finish("r1", ABOUT, ending())
    assert ledger.was_owned_by("r1", OWNER)
    assert not ledger.was_owned_by("r1", "user:bob")
    assert not ledger.was_owned_by("r2", OWNER)
    assert 1190 < lifetime(ledger, "ended", "r1") <= 1200, "it stands longer than the log"


def test_what_nobody_ends_expires(ledger):
    about = about_of(KEY, conversation="c1")
    start(ledger, about=about)
    ledger.tell("r1", about)
    lives = [lifetime(ledger, name) for name in keys(ledger) if name != "leases"]
    assert len(lives) == 7 and all(LONGEST_RUN - 60 < life <= LONGEST_RUN for life in lives)


def test_who_is_turned_away_prolongs_nothing(ledger):
    start(ledger)
    for name in keys(ledger):
        ledger.store.command("PEXPIRE", key(ledger, name), 5000)
    admit(ledger, "r2", ABOUT)
    assert all(lifetime(ledger, name) <= 5 for name in keys(ledger))


def test_a_run_is_listed_for_as_long_as_it_is_kept_also_where_that_is_long(store):
    ledger = Ledger(store, retention=30 * LONGEST_RUN, lease=60)
    start(ledger)
    ledger.finish("r1", ABOUT, ending())
    assert lifetime(ledger, "kept", digest(OWNER)) >= lifetime(ledger, "run", "r1") > 29 * LONGEST_RUN
    start(ledger, "r2", about_of(claim_of("r2")))
    assert lifetime(ledger, "kept", digest(OWNER)) >= lifetime(ledger, "run", "r1")


def test_a_time_too_short_for_redis_is_a_short_time(store):
    """PEXPIRE with 0 deletes, and SET with PX 0 is an error."""
    ledger = Ledger(store, retention=0.0001, lease=0.0001)
    start(ledger)
    ledger.finish("r1", ABOUT, ending())
    eventually(lambda: ledger.find("r1") is None and not ledger.was_owned_by("r1", OWNER))
    eventually(lambda: ledger.kept(OWNER) == [])


# Any order of steps


class Story:
    """What two writers that do not know of each other, and whoever finds their run left, do to it."""

    def __init__(self, store):
        self.ledger = Ledger(store, retention=600, lease=60)
        self.terminals = []
        self.log = [QUEUED, *(b'{"token":"%d"}' % n for n in range(2, 9))]
        self.kept = {"one": 1, "other": 1}

    def begin(self):
        start(self.ledger, about=ABOUT)

    def append(self, writer, count):
        kept = self.kept[writer]
        said = self.log[kept : kept + count]
        if said and self.ledger.frames.append([("r1", 1, kept, said, None)])[0] != 0:
            self.kept[writer] = kept + len(said)

    def finish(self, writer):
        kept = self.kept[writer]
        end = ending(*self.log[kept:], kept=kept, terminal=b'{"done":true,"by":"%b"}' % writer.encode())
        return self.ledger.finish("r1", ABOUT, end)

    def reap(self):
        return self.ledger.finish("r1", ABOUT, left_by_its_writer(terminal=REAPED, state="failed"))

    def lapse(self):
        if holds(self.ledger)[0]:
            lapse(self.ledger)

    def lose(self):
        for name in ("run", "log"):
            self.ledger.store.command("DEL", key(self.ledger, name, "r1"))

    def restore(self, writer):
        self.ledger.restore("r1", ABOUT, 1, self.log[: self.kept[writer]])

    def check(self):
        assert everlasting(self.ledger) == []
        found = self.ledger.find("r1", forgotten=True)
        ends = [((epoch, n), payloads) for (epoch, n), payloads, end in events(self.ledger) if end]
        if found is None or found.terminal is None:
            assert ends == []
            return
        assert ends == [(found.last, [found.terminal])]
        assert events(self.ledger)[-1][0] == found.last, "something follows the end"
        assert holds(self.ledger) == (False, False)
        self.terminals.append(found.terminal)

    def ended_once(self):
        """Whoever looked at its end saw the same one."""
        return len(set(self.terminals)) <= 1


WRITERS = st.sampled_from(["one", "other"])
STEPS = st.one_of(
    st.tuples(st.just("append"), WRITERS, st.integers(1, 4)),
    st.tuples(st.just("finish"), WRITERS),
    st.tuples(st.just("reap")),
    st.tuples(st.just("lapse")),
)
CALAMITIES = st.one_of(STEPS, st.tuples(st.just("lose")), st.tuples(st.just("restore"), WRITERS))


def tell(store, steps):
    store.command("FLUSHALL")
    story = Story(store)
    story.begin()
    for name, *given_to in steps:
        getattr(story, name)(*given_to)
        story.check()
    return story


over_both_stores = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40, deadline=None
)


@over_both_stores
@given(st.lists(STEPS, max_size=12))
@example([("append", "one", 3), ("lapse",), ("reap",), ("append", "one", 2), ("finish", "one"), ("finish", "other")])
@example([("finish", "other"), ("append", "one", 4), ("finish", "one"), ("lapse",), ("reap",)])
def test_any_interleaving_of_two_writers_and_a_reaper_gives_one_end(store, steps):
    story = tell(store, steps)
    verdicts = [story.finish("one")[0], story.finish("other")[0], story.reap()[0]]
    story.check()
    assert verdicts in (["ended", "already", "already"], ["already"] * 3)
    assert story.ended_once() and len(story.terminals) >= 1


@over_both_stores
@given(st.lists(CALAMITIES, max_size=12))
def test_nor_does_a_store_that_forgets_leave_two_ends_or_anything_for_ever(store, steps):
    """What it has forgotten may end again; what it has not may not."""
    tell(store, steps)


@over_both_stores
@given(st.lists(st.tuples(st.sampled_from(["start", "finish", "forget"]), st.integers(1, 4)), max_size=12))
def test_any_order_of_steps_leaves_the_key_with_the_run_that_took_it_last(store, steps):
    """Against a model of it: a lasting key goes with forgetting and with nothing else."""
    store.command("FLUSHALL")
    ledger, holder, before = Ledger(store, retention=600, lease=60), None, set()
    for step, number in steps:
        run_id = f"r{number}"
        if step == "start" and run_id not in before:  # no two have the same id
            holder = holder or run_id
            assert admit(ledger, run_id, ABOUT).run == holder
            before.add(run_id)
        elif step == "finish":
            ledger.finish(run_id, ABOUT, ending())
        elif step == "forget":
            ledger.forget(run_id, ABOUT)
            holder = None if holder == run_id else holder
    assert admit(ledger, "last", ABOUT).run == (holder or "last")
    assert everlasting(ledger) == []
