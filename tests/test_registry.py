"""The runs of a process: started or joined, found, read, stopped, forgotten; and what follows an end."""

import json
import threading
from contextlib import contextmanager, nullcontext

import pytest

from flask_llmstream import registry as registry_module
from flask_llmstream.cursor import Cursor
from flask_llmstream.errors import InvalidCursor, KeyReused, RunExpired, RunNotFound, UpstreamForbidden
from flask_llmstream.journal import NullJournal
from flask_llmstream.models import ModelSettings
from flask_llmstream.registry import Registry, Work
from flask_llmstream.run import Order
from flask_llmstream.store import Claim, EmbeddedStore
from tests.puppet import PATIENCE, Pause, Puppet, eventually

ORDER = Order(feature="chat", owner="user:ann", user="ann", input=[{"role": "user", "content": "Hello"}])
KEY = Claim("user:ann", "key:1", "print", lasting=True)


def answer(run):
    return run.model.stream(run.input)


def work(*lines, function=answer, grace=None):
    return Work(
        function=function,
        provider=Puppet(lines or ["Hel", "lo"]),
        settings=ModelSettings(max_tokens=10, retries=0),
        grace=grace,
    )


@pytest.fixture
def make():
    made = []

    def make(*, ended=lambda run: None, retention=600.0, store=None, enter=nullcontext, log_limit=10**6):
        store = store or EmbeddedStore()
        made.append(Registry(store, NullJournal(), enter=enter, ended=ended, retention=retention, log_limit=log_limit))
        made.append(store)
        return made[-2]

    yield make
    for thing in made:
        thing.close()


@pytest.fixture
def registry(make):
    return make()


def start(registry, work, claim=KEY):
    run, new = registry.start(ORDER, claim, work)
    assert new
    return run


def read_to_the_end(registry, run, cursor=None):
    """What a reader gets, which leaves then."""
    reader = registry.read(run, cursor)
    events = []

    def finished():
        events.extend(json.loads(payload) for payload in reader.take())
        return reader.finished

    try:
        eventually(finished)
    finally:
        registry.leave(run, reader)
    return events


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
    eventually(lambda: run.ended)
    assert registry.start(ORDER, KEY, work()) == (run, False)


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
    run = start(registry, work())
    other = Claim(KEY.owner, KEY.key, "another print", lasting=True)
    with pytest.raises(KeyReused):
        registry.start(ORDER, other, work())
    assert list(registry._runs) == [run.id]
    eventually(lambda: run.ended)


def test_a_run_that_was_not_admitted_leaves_nothing(make):
    class Broken(EmbeddedStore):
        def admit(self, run_id, claim, *, seconds):
            raise ConnectionError

    registry = make(store=Broken())
    with pytest.raises(ConnectionError):
        registry.start(ORDER, KEY, work())
    assert registry._runs == {}


def test_ids_cannot_be_guessed(registry):
    ids = {start(registry, work(), Claim("user:ann", f"key:{n}", "f", lasting=True)).id for n in range(20)}
    assert len(ids) == 20 and all(len(run_id) >= 22 for run_id in ids)
    eventually(lambda: not registry.live)


# Find


@pytest.mark.parametrize("asker", ["user:ann", None])
def test_a_run_that_never_was_is_not_found(registry, asker):
    with pytest.raises(RunNotFound):
        registry.find("nothing", asker)


def test_a_run_is_found_while_it_lives_and_while_it_is_kept(registry):
    pause = Pause()
    run = start(registry, work(pause))
    assert registry.find(run.id, None) is run
    pause.go_on()
    eventually(lambda: run.ended)
    assert registry.find(run.id, None) is run


def test_a_run_that_has_expired_is_so_for_its_owner_and_never_was_for_others(make):
    registry = make(retention=60)
    run = start(registry, work())
    eventually(lambda: registry._expiry)
    registry._expiry[run.id][0].action()
    with pytest.raises(RunExpired):
        registry.find(run.id, "user:ann")
    for asker in ("user:bob", None):
        with pytest.raises(RunNotFound):
            registry.find(run.id, asker)


def test_a_key_does_not_outlive_the_log(make):
    registry = make(retention=0.05)
    run = start(registry, work())
    eventually(lambda: not registry._runs)
    other, new = registry.start(ORDER, KEY, work())
    assert new and other is not run
    eventually(lambda: other.ended)


# Read


def test_each_reader_gets_everything_in_order(registry):
    run = start(registry, work("a", "b", "c"))
    for _ in range(3):
        events = read_to_the_end(registry, run)
        assert "".join(event.get("token", "") for event in events) == "abc"
        assert events[-1]["done"] is True
    assert run.log.readers == 0


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
    with pytest.raises(InvalidCursor):
        registry.read(run, Cursor(run.id, epoch, n))
    assert run.log.readers == run.audience._present == 0
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
        (["Hel", Pause()], answer, stop_at_the_end, {"cancelled"}),
        ([Pause()], answer, Registry.stop, {"cancelled"}),
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
    run = start(registry, work(*lines, function=function))
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
    registry = make(ended=lambda run: seen.append((run.ended, run.outcome.state, run.text, len(run.log))))
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
    monkeypatch.setattr(registry_module, "END_WAITS", 0.02)
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


def test_what_is_forgotten_is_stopped_and_never_was(registry):
    run = start(registry, work("Hel", Pause()))
    registry.forget(run)
    eventually(lambda: run.ended)
    assert run.state == "cancelled"
    with pytest.raises(RunNotFound):
        registry.find(run.id, "user:ann")
    again = start(registry, work())
    eventually(lambda: again.ended)


def test_an_ended_run_can_be_forgotten(registry):
    run = start(registry, work())
    eventually(lambda: registry._expiry)
    registry.forget(run)
    with pytest.raises(RunNotFound):
        registry.find(run.id, "user:ann")
    assert registry._expiry == {} and registry._store._redis.keys("*") == []


def test_what_is_forgotten_while_the_application_is_told_of_its_end_stays_forgotten(make):
    """A receiver of `run_ended` that deletes the run, having saved it."""
    forgotten = threading.Event()

    def ended(run):
        registry.forget(run)
        forgotten.set()

    registry = make(ended=ended)
    run = start(registry, work())
    assert forgotten.wait(PATIENCE)
    eventually(lambda: not any(thread.name == "llmstream-run" for thread in threading.enumerate()))
    assert run.ended
    with pytest.raises(RunNotFound):
        registry.find(run.id, "user:ann")
    assert registry._expiry == {}, "its log is still in memory"


def test_close_stops_all_and_keeps_none(make):
    registry = make()
    ended = start(registry, work())
    live = start(registry, work("Hel", Pause()), Claim("user:ann", "key:2", "f", lasting=True))
    eventually(lambda: ended.ended)
    registry.close()
    eventually(lambda: live.ended)
    assert live.state == "cancelled"
    assert registry._runs == {}
