"""The cap on open responses, and the pulse that looks after them."""

import threading

import pytest

from flask_llmstream import limits
from flask_llmstream.errors import Overloaded
from flask_llmstream.limits import OpenResponses
from tests.puppet import eventually


class Pulsed:
    def __init__(self):
        self.beats = []

    def pulse(self, beat):
        self.beats.append(beat)


def test_who_comes_when_all_places_are_taken_is_told_when_to_come_back():
    responses = OpenResponses(2, heartbeat=5)
    responses.take_place()
    responses.take_place()
    with pytest.raises(Overloaded) as refusal:
        responses.take_place()
    assert 1 <= refusal.value.retry_after <= 4
    assert len(responses) == 2
    responses.give_back()
    responses.take_place()
    responses.give_back()
    responses.give_back()


def test_those_who_are_refused_together_do_not_come_back_together():
    responses = OpenResponses(1, heartbeat=5)
    responses.take_place()
    times = set()
    for _ in range(50):
        with pytest.raises(Overloaded) as refusal:
            responses.take_place()
        times.add(refusal.value.retry_after)
    assert len(times) > 10
    responses.give_back()


def test_a_place_is_given_back_when_what_it_was_for_fails_and_kept_otherwise():
    responses = OpenResponses(5, heartbeat=5)
    with pytest.raises(KeyboardInterrupt), responses.place():
        raise KeyboardInterrupt
    assert len(responses) == 0
    with responses.place():
        pass
    assert len(responses) == 1
    responses.give_back()


def test_no_two_get_the_last_place():
    responses = OpenResponses(10, heartbeat=5)
    refused = []
    together = threading.Barrier(8)

    def take():
        together.wait()
        for _ in range(50):
            try:
                responses.take_place()
            except Overloaded:
                refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(responses) == 10
    assert len(refused) == 8 * 50 - 10
    for _ in range(10):
        responses.give_back()


def test_one_timer_pulses_all_five_times_a_heartbeat_and_none_runs_without_them():
    responses = OpenResponses(None, heartbeat=0.05)
    one, other = Pulsed(), Pulsed()
    responses.look_after(one)
    timer = responses._timer
    assert timer.period == pytest.approx(0.01)
    responses.look_after(other)
    assert responses._timer is timer
    eventually(lambda: len(one.beats) >= 3 and len(other.beats) >= 3)
    assert one.beats == list(range(one.beats[0], one.beats[0] + len(one.beats)))
    responses.let_go(one)
    responses.let_go(one)
    assert timer.action is not None
    responses.let_go(other)
    assert timer.action is None and responses._timer is None
    responses.look_after(one)
    seen = len(one.beats)
    eventually(lambda: len(one.beats) > seen)
    responses.let_go(one)


def test_a_limit_that_is_not_given_is_the_servers_and_asked_for_when_first_needed(monkeypatch):
    """A worker knows its own limits; the process that loads the application may be none yet."""
    responses = OpenResponses(None, heartbeat=5)
    monkeypatch.setattr(limits, "capacity", lambda: 3)
    assert responses.limit == 3
    monkeypatch.setattr(limits, "capacity", lambda: 4)
    assert responses.limit == 3
    assert OpenResponses(7, heartbeat=5).limit == 7
