"""A beat that nothing holds up, in a thread of the system's own; and how what it finds gets back to everybody else."""

from __future__ import annotations

import os
import threading
import time

import pytest

from flask_llmstream.runtime import current
from tests.puppet import PATIENCE, eventually

EVERY = 0.01


@pytest.fixture
def make():
    made = []

    def make(beat, end=lambda: None, seconds=EVERY):
        made.append(current().pacemaker(seconds, beat, end))
        return made[-1]

    yield make
    for pacemaker in made:
        pacemaker.stop()


def test_it_beats_at_once_and_then_again_and_again(make):
    beats = []
    make(lambda: beats.append(time.monotonic()))
    eventually(lambda: len(beats) > 3)
    assert beats[1] - beats[0] >= EVERY


def test_a_slow_pace_is_no_slow_start(make):
    beats = []
    make(lambda: beats.append(1), seconds=3600)
    eventually(lambda: beats)


def test_it_has_a_thread_of_the_systems_own(make):
    threads = set()
    make(lambda: threads.add(threading.get_native_id()), lambda: threads.add(threading.get_native_id())).stop()
    eventually(lambda: threads)
    assert len(threads) == 1 and threading.get_native_id() not in threads


def test_it_goes_on_while_everybody_else_waits_for_a_busy_loop(make):
    beats = []
    make(lambda: beats.append(1))
    eventually(lambda: beats)
    before, end = len(beats), time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    assert len(beats) - before > 5


def test_what_it_waits_for_holds_nobody_up(make):
    waits, goes_on = [], []

    def beat():
        waits.append(1)
        until = time.monotonic() + PATIENCE
        while not goes_on and time.monotonic() < until:
            time.sleep(0.001)

    make(beat)
    eventually(lambda: waits)
    for _ in range(10):
        time.sleep(0)
    assert len(waits) == 1
    goes_on.append(1)


def test_when_it_is_stopped_it_ends_after_the_last_beat(make):
    story = []
    pacemaker = make(lambda: story.append("beat"), lambda: story.append("end"))
    eventually(lambda: story)
    pacemaker.stop()
    pacemaker.stop()
    eventually(lambda: story[-1] == "end")
    told = list(story)
    time.sleep(5 * EVERY)
    assert story == told and story.count("end") == 1


def test_a_stop_does_not_wait_for_the_next_beat(make):
    ended = []
    make(lambda: None, lambda: ended.append(1), seconds=3600).stop()
    eventually(lambda: ended)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted by Linux")
def test_it_leaves_nothing_open(make):
    def run():
        ended = []
        make(lambda: time.sleep(0.001), lambda: ended.append(1)).stop()
        eventually(lambda: ended)

    run()
    eventually(lambda: descriptors() == descriptors())
    before = descriptors()
    for _ in range(5):
        run()
    eventually(lambda: descriptors() <= before)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


# Handing over


def test_what_it_hands_over_is_done_elsewhere(make):
    beat_in, done_in = [], []

    def beat():
        beat_in.append(threading.get_native_id())
        current().hand_over(lambda: done_in.append(threading.get_native_id()))

    make(beat, seconds=3600)
    eventually(lambda: done_in)
    assert done_in != beat_in
    if current().cooperative:
        assert done_in == [threading.get_native_id()], "that is where the greenlets are"


def test_what_is_handed_over_may_wait_and_holds_no_other_up(make):
    goes_on, story = threading.Event(), []

    def waits():
        assert goes_on.wait(PATIENCE)
        story.append("waited")

    def beat():
        current().hand_over(waits)
        current().hand_over(lambda: story.append("went on"))

    make(beat, seconds=3600)
    eventually(lambda: story == ["went on"])
    goes_on.set()
    eventually(lambda: story == ["went on", "waited"])


def test_it_wakes_those_who_sleep(make):
    """A loop that has nothing to do must hear of it at once."""
    bell, begun = current().bell(), time.monotonic()
    make(lambda: current().hand_over(bell.ring), seconds=3600)
    bell.wait(PATIENCE)
    assert time.monotonic() - begun < PATIENCE / 2


def test_whoever_is_no_pacemaker_may_hand_over_too():
    done = threading.Event()
    current().hand_over(done.set)
    assert done.wait(PATIENCE)
