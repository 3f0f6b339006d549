"""One timer for everything that a process does later."""

import threading

import pytest

from flask_llmstream import runtime
from tests.puppet import PATIENCE, eventually


@pytest.fixture
def timers():
    """Ones whose loop nobody else keeps going."""
    return runtime._make().timers


def test_actions_come_in_the_order_of_their_times(timers):
    done = []
    for seconds in (0.15, 0.05, 0.1):
        timers.after(seconds, lambda seconds=seconds: done.append(seconds))
    eventually(lambda: len(done) == 3)
    assert done == [0.05, 0.1, 0.15]


def test_one_that_is_due_earlier_does_not_wait_for_those_before_it(timers):
    late = timers.after(3600, lambda: None)
    done = threading.Event()
    timers.after(0, done.set)
    assert done.wait(PATIENCE)
    late.cancel()


def test_it_is_done_once(timers):
    done = []
    timers.after(0, lambda: done.append(1))
    over = threading.Event()
    timers.after(0.02, over.set)
    assert over.wait(PATIENCE)
    assert done == [1]


def test_it_is_done_again_and_again_until_it_is_cancelled(timers):
    done = []
    timer = timers.every(0.002, lambda: done.append(1))
    eventually(lambda: len(done) >= 3)
    timers.after(0, timer.cancel)  # on the loop, where no action can be under way
    eventually(lambda: not timers._running)
    seen = len(done)
    over = threading.Event()
    timers.after(0.02, over.set)
    assert over.wait(PATIENCE)
    assert len(done) == seen


def test_what_is_cancelled_is_not_done(timers):
    done = []
    timer = timers.after(0.1, lambda: done.append("cancelled"))
    timers.after(0.11, lambda: done.append("kept"))
    timer.cancel()
    timer.cancel()
    eventually(lambda: done)
    assert done == ["kept"]


def test_an_action_may_set_a_timer(timers):
    done = threading.Event()
    timers.after(0, lambda: timers.after(0, done.set))
    assert done.wait(PATIENCE)


def test_one_that_fails_stops_neither_the_others_nor_itself(timers, caplog):
    failing = timers.every(0.001, lambda: 1 / 0)
    done = threading.Event()
    timers.after(0.01, done.set)
    assert done.wait(PATIENCE)
    eventually(lambda: caplog.text.count("ZeroDivisionError") > 1)
    failing.cancel()


def test_a_loop_that_could_not_be_started_is_started_for_the_next(timers, monkeypatch):
    """A process that had no thread left for a moment has heartbeats and time-outs again after it."""

    def refuse(loop):
        raise RuntimeError("can't start new thread")

    lost = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(timers, "_start", refuse)
        with pytest.raises(RuntimeError):
            timers.after(0, lost.set)
    done = threading.Event()
    timers.after(0, done.set)
    assert done.wait(PATIENCE)
    assert not lost.is_set(), "whoever was refused has no timer, and could not cancel it"


def test_the_loop_ends_when_nothing_is_due_and_begins_anew(timers):
    for _ in range(2):
        done = threading.Event()
        timers.after(0, done.set)
        assert done.wait(PATIENCE)
        eventually(lambda: not timers._running)
        assert timers._due == []
