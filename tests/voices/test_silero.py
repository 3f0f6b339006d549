from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from flask_llmstream.errors import ConfigurationError
from flask_llmstream.providers import offloaded
from flask_llmstream.providers.silero import Silero
from flask_llmstream.vad import SpeechGate, SpeechStarted, SpeechStopped
from tests.puppet import eventually
from tests.voices.people import RATE, amid, chunks, has_ended, machine, noise

WINDOW = Silero.samples * 2
SPEECH = "What is the weather today, and what will it be tomorrow?"


@pytest.fixture(scope="module", params=[0, 1], ids=["in this process", "in a child process"])
def silero(request):
    silero = Silero(processes=request.param)
    silero.warm()
    yield silero
    silero.close()


@pytest.fixture
def detector(silero):
    detector = silero.detector()
    yield detector
    detector.close()


def events(detector, pcm):
    gate = SpeechGate()
    windows = [window for window in chunks(pcm, WINDOW) if len(window) == WINDOW]
    told = [gate.hear(detector.probability(window), 1000 * Silero.samples / RATE) for window in windows]
    return [event for event in told if event]


@pytest.mark.parametrize("loudness", [0, 300])
def test_speech_is_found_where_it_is(detector, loudness):
    speech = machine(SPEECH)
    started, stopped = events(detector, amid(speech, seconds=1, loudness=loudness))
    assert isinstance(started, SpeechStarted)
    assert isinstance(stopped, SpeechStopped)
    assert 850 < started.at_ms < 1250
    end = 1000 + 1000 * len(speech) / 2 / RATE
    assert end - 700 < stopped.at_ms < end + 250


@pytest.mark.parametrize("loudness", [0, 300, 1500])
def test_noise_is_no_speech(detector, loudness):
    assert events(detector, noise(2, loudness=loudness)) == []


def test_calls_know_nothing_of_each_other(silero):
    speech = chunks(machine(SPEECH), WINDOW)[20:30]
    with closing(silero.detector()) as first, closing(silero.detector()) as second, closing(silero.detector()) as third:
        alone = [first.probability(window) for window in speech]
        for window, expected in zip(speech, alone, strict=True):
            third.probability(bytes(WINDOW))
            assert second.probability(window) == pytest.approx(expected, abs=1e-6)


def test_what_is_no_window_is_refused(detector):
    with pytest.raises(ValueError, match="A window has 1024 bytes, not 640"):
        detector.probability(bytes(640))
    detector.close()
    with pytest.raises(ValueError, match="closed"):
        detector.probability(bytes(WINDOW))


def test_call_goes_on_when_its_child_is_killed(caplog):
    silero = Silero(processes=1)
    with closing(silero), closing(silero.detector()) as detector, closing(silero.detector()) as other:
        assert detector.probability(bytes(WINDOW)) < 0.5
        child = detector._connection.pid
        os.kill(child, signal.SIGKILL)
        assert len(events(detector, amid(machine(SPEECH), seconds=1, loudness=0))) == 2
        assert other.probability(bytes(WINDOW)) < 0.5
        assert detector._connection.pid == other._connection.pid != child
        assert "is replaced" in caplog.text


def test_detector_whose_children_all_die_hears_nothing_and_does_not_raise(monkeypatch):
    monkeypatch.setattr(offloaded.program, "__file__", os.devnull)
    silero = Silero(processes=1)
    with closing(silero), closing(silero.detector()) as detector:
        assert [detector.probability(bytes(WINDOW)) for _ in range(50)] == [0.0] * 50


def test_closing_ends_the_children_and_what_is_asked_later_starts_others():
    silero = Silero(processes=2)
    detectors = [silero.detector() for _ in range(4)]
    children = {detector._connection.pid for detector in detectors}
    assert len(children) == 2
    for detector in detectors:
        detector.close()
    silero.close()
    assert all(has_ended(child) for child in children)
    detector = silero.detector()
    assert detector.probability(bytes(WINDOW)) < 0.5
    detector.close()
    silero.close()


# Twenty greenlets listen at a time. One more is stopped while it waits for its child, whose late answer is nobody's.
# Then the process dies without a word.
GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, os, signal, threading
from flask_llmstream.providers.silero import Silero

silero = Silero(processes=1)
detectors = [silero.detector() for _ in range(20)]
heard = []

def listen(detector):
    heard.append(all(detector.probability(bytes(1024)) < 0.5 for _ in range(5)))

calls = [threading.Thread(target=listen, args=(detector,)) for detector in detectors]
for call in calls:
    call.start()
waiting = sum(call.is_alive() for call in calls)
for call in calls:
    call.join()
assert waiting == 20 and heard == [True] * 20, (waiting, heard)

child = detectors[0]._connection.pid
os.kill(child, signal.SIGSTOP)
stopped = gevent.spawn(detectors[0].probability, bytes(1024))
gevent.sleep(0.01)
stopped.kill()
os.kill(child, signal.SIGCONT)
fresh = silero.detector().probability(bytes(1024))
assert abs(detectors[0].probability(bytes(1024)) - fresh) < 1e-6

print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_children_serve_greenlets_and_die_with_their_parent():
    ran = subprocess.run([sys.executable, "-c", GREENLETS], capture_output=True, text=True, timeout=60)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    eventually(lambda: has_ended(int(ran.stdout)))


@pytest.mark.parametrize("processes", [0, 1])
def test_it_says_what_to_install(monkeypatch, processes):
    monkeypatch.setattr(offloaded, "find_spec", lambda name: None)
    silero = Silero(processes=processes)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-llmstream\[voice\]'"):
        silero.detector()
    silero.warm()
