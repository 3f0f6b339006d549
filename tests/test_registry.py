"""The runs of a process: started or joined, found, read, stopped, forgotten; and what follows an end."""

import json
import threading
from contextlib import contextmanager

import pytest

from flask_llmstream import ending as ending_module
from flask_llmstream.admission import Allowance
from flask_llmstream.cursor import Cursor
from flask_llmstream.errors import (
    InvalidCursor,
    KeyReused,
    LimitReached,
    RunExpired,
    RunNotFound,
    StoreUnavailable,
    UpstreamForbidden,
)
from flask_llmstream.order import Claim
from flask_llmstream.registry import Registry
from flask_llmstream.store import digest
from tests.ledgers import leftovers
from tests.orders import KEY, OWNER, answer, claim_of, work
from tests.puppet import PATIENCE, Pause, eventually
from tests.registries import ORDER, follow, over, registries


@pytest.fixture
def make(store):
    with registries(lambda: store) as make:
        yield make


@pytest.fixture
def registry(make):
    return make()


def start(registry, work, claim=KEY):
    run, new = registry.start(ORDER, claim, work)
    assert new
    return run


def read_to_the_end(registry, run, cursor=None):
    """What a reader gets, which leaves then."""
    return [json.loads(payload) for payload in follow(registry, run, cursor)]


# Start


def test_a_run_goes_on_without_anybody_waiting_for_it(registry):
    run = start(registry, work())
    eventually(lambda: run.ended)
    assert (run.state, run.text) == ("completed", "Hello")


def test_the_same_key_joins_the_run(registry):
    pause = Pause()
    run = start(registry, work("Hel", pause))
    assert registry.start(ORDER, KEY, work()) == (run, False)
    assert registry.live == [run]
    pause.go_on()
    eventually(lambda: over(registry, run))
    joined, new = registry.start(ORDER, KEY, work())
    assert (joined.id, joined.text, new) == (run.id, "Hel", False)


def test_of_many_at_once_one_starts(registry):
    pause = Pause()
    model = work(pause)
    together = threading.Barrier(8)
    got = []

    def click():
        together.wait()
        got.append(registry.start(ORDER, KEY, model))

    threads = [threading.Thread(target=click) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pause.go_on()
    assert len({run.id for run, _ in got}) == 1
    assert [new for _, new in got].count(True) == 1
    eventually(lambda: got[0][0].ended)
    assert len(model.provider.calls) == 1


def test_another_request_under_the_same_key_is_refused(registry):
    pause = Pause()
    run = start(registry, work(pause))
    other = Claim(KEY.owner, KEY.key, "another print", lasting=True)
    with pytest.raises(KeyReused):
        registry.start(ORDER, other, work())
    assert list(registry._runs) == [run.id]
    pause.go_on()
    eventually(lambda: run.ended)


def test_a_run_that_was_not_admitted_leaves_nothing(registry, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(registry.ledger, "admit", broken)
    with pytest.raises(ZeroDivisionError):
        registry.start(ORDER, KEY, work())
    assert registry._runs == {}


def test_a_start_whose_answer_was_lost_is_taken_back(registry, store, monkeypatch):
    """Whether it was admitted or not: nobody waits for it, and a repeat must not join it."""
    admit = registry.ledger.admit

    def admitted_in_vain(*given, **more):
        admit(*given, **more)
        raise StoreUnavailable

    monkeypatch.setattr(registry.ledger, "admit", admitted_in_vain)
    with pytest.raises(StoreUnavailable):
        registry.start(ORDER, KEY, work())
    monkeypatch.undo()
    eventually(lambda: registry.ledger.kept(OWNER) == [] and store.command("ZCARD", store.key("leases")) == 0)
    run = start(registry, work())
    eventually(lambda: over(registry, run))


def test_what_is_too_much_is_refused_with_what_is_in_the_way(make):
    registry = make(allowance=Allowance(runs=1))
    pause = Pause()
    run = start(registry, work(pause))
    with pytest.raises(LimitReached) as refused:
        registry.start(ORDER, claim_of("r2"), work())
    assert (refused.value.limit, list(refused.value.live)) == ("runs", [run.id])
    assert list(registry._runs) == [run.id]
    pause.go_on()
    eventually(lambda: over(registry, run))
    third = start(registry, work(), claim_of("r3"))
    eventually(lambda: over(registry, third))


def test_a_feature_may_treat_a_busy_user_in_a_way_of_its_own(make):
    registry = make(allowance=Allowance(runs=1, busy="reject"))
    first = start(registry, work(Pause()))
    second = start(registry, work(when_busy="replace"), claim_of("r2"))
    eventually(lambda: over(registry, first) and over(registry, second))
    assert (first.state, second.state) == ("cancelled", "completed")


def test_a_run_that_cannot_be_opened_is_ended_and_forgotten(make, store):
    """What is called with an admitted run may fail: no writer would end it."""

    def opened(run):
        raise ZeroDivisionError

    registry = make(opened=opened)
    with pytest.raises(ZeroDivisionError):
        registry.start(ORDER, KEY, work())
    assert registry.live == [] and registry.ledger.kept(OWNER) == []
    assert store.command("ZCARD", store.key("leases")) == 0


def test_one_that_cannot_be_opened_as_redis_goes_away_is_taken_back(make, store, monkeypatch):
    """Its conversation is not to begin with it either, and the client hears of what came first."""
    saved = []

    def opened(run):
        raise StoreUnavailable(diagnosis="opened")

    def away(*given):
        monkeypatch.undo()
        raise StoreUnavailable(diagnosis="forget")

    registry = make(opened=opened, save=lambda run, state, usage: saved.append(run.forgotten))
    monkeypatch.setattr(registry.ledger, "forget", away)
    with pytest.raises(StoreUnavailable) as refused:
        registry.start(ORDER, KEY, work())
    assert refused.value.diagnosis == "opened" and saved == [True]
    eventually(lambda: registry.ledger.kept(OWNER) == [] and store.command("ZCARD", store.key("leases")) == 0)
    eventually(lambda: not store.command("EXISTS", store.key("key", digest(OWNER, KEY.key))))


def test_ids_cannot_be_guessed(registry):
    ids = {start(registry, work(), claim_of(f"r{n}")).id for n in range(20)}
    assert len(ids) == 20 and all(len(run_id) >= 22 for run_id in ids)
    eventually(lambda: not registry.live)


# Find


@pytest.mark.parametrize("asker", ["user:ann", None])
def test_a_run_that_never_was_is_not_found(registry, asker):
    with pytest.raises(RunNotFound):
        registry.find("nothing", asker)


def test_a_run_is_found_while_it_lives_and_while_it_is_kept(registry):
    pause = Pause()
    run = start(registry, work("Hello", pause))
    assert registry.find(run.id, None) is run
    pause.go_on()
    eventually(lambda: over(registry, run))
    found = registry.find(run.id, None)
    assert (found.id, found.text, found.state, found.ending) == (run.id, "Hello", "completed", run.ending)


def test_a_run_that_has_expired_is_so_for_its_owner_and_never_was_for_others(registry, store):
    run = start(registry, work())
    eventually(lambda: over(registry, run))
    for timer, _ in list(registry._kept._expiry.values()):
        timer.action()
    store.command("DEL", store.key("run", run.id), store.key("log", run.id))
    with pytest.raises(RunExpired):
        registry.find(run.id, "user:ann")
    for asker in ("user:bob", None):
        with pytest.raises(RunNotFound):
            registry.find(run.id, asker)


def test_a_key_does_not_outlive_the_log(make):
    registry = make(retention=0.05)
    run = start(registry, work())
    eventually(lambda: run.ended and not registry._runs and registry.ledger.find(run.id) is None)
    other = start(registry, work())
    eventually(lambda: other.ended)


# Read


def test_each_reader_gets_everything_in_order(registry):
    run = start(registry, work("a", "b", "c"))
    for _ in range(3):
        events = read_to_the_end(registry, run)
        assert "".join(event.get("token", "") for event in events) == "abc"
        assert events[-1]["done"] is True
    eventually(lambda: run.log.readers == 0)  # the journal may have been one


def test_from_a_cursor_it_gets_the_rest(registry):
    run = start(registry, work("a", "b", "c"))
    whole = read_to_the_end(registry, run)
    for n in range(len(whole)):
        assert read_to_the_end(registry, run, Cursor(run.id, 1, n)) == whole[n:]


def test_the_cursor_of_an_older_writer_begins_anew(registry):
    run = start(registry, work())
    whole = read_to_the_end(registry, run)
    assert read_to_the_end(registry, run, Cursor(run.id, 0, 3)) == whole


@pytest.mark.parametrize(("epoch", "n"), [(2, 0), (1, 1000)])
def test_a_cursor_that_never_was_is_refused_and_counts_as_no_reader(registry, epoch, n):
    run = start(registry, work(Pause(), grace=0))
    readers = run.log.readers  # the journal may be one
    with pytest.raises(InvalidCursor):
        registry.read(run, Cursor(run.id, epoch, n))
    assert (run.log.readers, run.audience._present) == (readers, 0)
    registry.stop(run)


def test_the_run_is_stopped_when_its_last_reader_has_left(registry):
    run = start(registry, work("Hel", Pause(), grace=0))
    one, other = registry.read(run), registry.read(run)
    registry.leave(run, one)
    assert not run.cancelled
    registry.leave(run, other)
    eventually(lambda: run.ended)
    assert run.state == "cancelled"


# Stop


def test_a_stop_ends_a_silent_model(registry):
    pause = Pause()
    run = start(registry, work("Hel", pause))
    assert pause.reached.wait(PATIENCE)
    registry.stop(run)
    registry.stop(run)
    eventually(lambda: run.ended)
    assert (run.state, run.text) == ("cancelled", "Hel")


def test_one_that_ends_while_it_is_stopped_is_no_matter(registry, monkeypatch):
    """A stop closes its model's socket first, and by then there may be nothing more to interrupt."""
    pause = Pause()
    run = start(registry, work(pause))
    assert pause.reached.wait(PATIENCE)
    cancel = run.meter.cancel

    def overtaken():
        cancel()
        eventually(lambda: run.task is None)

    monkeypatch.setattr(run.meter, "cancel", overtaken)
    registry.stop(run)
    eventually(lambda: over(registry, run))
    assert run.state == "cancelled"


def test_one_that_has_ended_stays_as_it_is(registry):
    run = start(registry, work())
    eventually(lambda: run.ended)
    registry.stop(run)
    assert (run.state, run.cancelled) == ("completed", False)


def stop_at_the_end(registry, run):
    eventually(lambda: run.text)
    registry.stop(run)


@pytest.mark.parametrize(
    ("lines", "function", "stop", "state"),
    [
        (["Hel", "lo"], answer, None, {"completed"}),
        (["Hel", UpstreamForbidden()], answer, None, {"failed"}),
        ([UpstreamForbidden()], answer, None, {"failed"}),
        ([], lambda run: 1 / 0, None, {"failed"}),
        ([], lambda run: object(), None, {"failed"}),
        ([], lambda run: iter(["x" * 10**6]), None, {"incomplete"}),
        (["Hel", Pause], answer, stop_at_the_end, {"cancelled"}),
        ([Pause], answer, Registry.stop, {"cancelled"}),
        (["Hel", "lo"], answer, Registry.stop, {"cancelled", "completed"}),
        (["Hel"], answer, stop_at_the_end, {"cancelled", "completed"}),
    ],
    ids=[
        "completes",
        "fails late",
        "fails early",
        "raises",
        "returns nonsense",
        "fills its log",
        "is stopped while it waits",
        "is stopped before it says anything",
        "is stopped at its start",
        "is stopped at its end",
    ],
)
def test_every_run_ends_once(registry, lines, function, stop, state):
    run = start(registry, work(*(Pause() if line is Pause else line for line in lines), function=function))
    if stop is not None:
        stop(registry, run)
    events = read_to_the_end(registry, run)
    terminals = [event for event in events if "done" in event or "error" in event]
    assert terminals == events[-1:]
    assert run.state in state
    assert bool(terminals[0].get("cancelled")) is (run.state == "cancelled")


# What follows an end


def test_the_application_is_told_before_the_readers(make):
    seen = []
    registry = make(ended=lambda run: seen.append((run.ended, run.decided, run.text, len(run.log))))
    run = start(registry, work())
    events = read_to_the_end(registry, run)
    assert seen == [(False, "completed", "Hello", len(events) - 1)]


def test_a_receiver_that_fails_does_not_hold_the_end_up(make, caplog):
    def ended(run):
        raise ZeroDivisionError

    registry = make(ended=ended)
    assert read_to_the_end(registry, start(registry, work()))[-1]["done"] is True
    assert "ZeroDivisionError" in caplog.text


def test_one_that_takes_its_time_holds_it_up_for_a_moment_only(make, monkeypatch):
    monkeypatch.setattr(ending_module, "END_WAITS", 0.02)
    goes_on, told = threading.Event(), threading.Event()

    def ended(run):
        assert goes_on.wait(PATIENCE)
        told.set()

    registry = make(ended=ended)
    assert read_to_the_end(registry, start(registry, work()))[-1]["done"] is True
    assert not told.is_set()
    goes_on.set()
    assert told.wait(PATIENCE)


def test_the_function_runs_in_the_context_that_it_is_given(make):
    story = []

    @contextmanager
    def enter():
        story.append("enter")
        yield
        story.append("leave")

    registry = make(enter=enter)
    read_to_the_end(registry, start(registry, work()))
    assert story == ["enter", "leave"]


# Forget


def test_what_is_forgotten_is_stopped_and_never_was(registry, store):
    run = start(registry, work("Hel", Pause()))
    registry.forget(run)
    eventually(lambda: run.ended)
    assert run.state == "cancelled"
    with pytest.raises(RunNotFound):
        registry.find(run.id, OWNER)
    eventually(lambda: leftovers(registry.ledger) == [])
    again = start(registry, work())
    eventually(lambda: over(registry, again))


def test_an_ended_run_can_be_forgotten(registry, store):
    run = start(registry, work())
    eventually(lambda: over(registry, run))
    registry.forget(registry.find(run.id, OWNER))
    with pytest.raises(RunNotFound):
        registry.find(run.id, OWNER)
    assert registry._kept._expiry == {} and leftovers(registry.ledger) == []


def test_what_is_forgotten_while_the_application_is_told_of_its_end_stays_forgotten(make, store):
    """A receiver of `run_ended` that deletes the run, having saved it."""
    forgotten = threading.Event()

    def ended(run):
        registry.forget(run)
        forgotten.set()

    registry = make(ended=ended)
    run = start(registry, work())
    assert forgotten.wait(PATIENCE)
    eventually(lambda: run.ended and leftovers(registry.ledger) == [])
    with pytest.raises(RunNotFound):
        registry.find(run.id, OWNER)
    assert registry._kept._expiry == {}, "its log is still in memory"


def test_close_stops_all_and_keeps_none(make):
    registry = make()
    ended = start(registry, work())
    live = start(registry, work("Hel", Pause()), claim_of("r2"))
    eventually(lambda: ended.ended)
    registry.close()
    eventually(lambda: live.ended)
    assert live.state == "cancelled"
    assert registry._runs == {}
