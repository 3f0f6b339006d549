from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from flask_llmstream.errors import ConfigurationError, InvalidInput, LLMStreamError, Overloaded
from flask_llmstream.providers import offloaded
from flask_llmstream.providers.pocketsphinx import WAITING, PocketSphinx
from tests.puppet import eventually
from tests.voices.people import RATE, chunks, somebody

pytest.importorskip("pocketsphinx", reason="Python 3.14 has no wheel of pocketsphinx")
pytestmark = pytest.mark.needs("flite")

WEATHER = "what is the weather today"
GRAMMAR = """#JSGF V1.0;
grammar weather;
public <question> = what is the weather (today | tomorrow) | turn on the light;
"""


@pytest.fixture(scope="module")
def sphinx():
    sphinx = PocketSphinx(processes=1)
    sphinx.warm()
    yield sphinx
    sphinx.close()


def understood(sphinx: PocketSphinx, pcm: bytes) -> str:
    utterance = sphinx.begin()
    for chunk in chunks(pcm):
        utterance.feed(chunk)
    return utterance.finish()


def test_words_are_understood_while_they_are_said_and_at_the_end(sphinx):
    utterance = sphinx.begin(language="en-GB")
    partials = []
    for chunk in chunks(somebody(WEATHER)):
        if (words := utterance.feed(chunk)) is not None:
            partials.append(words)

    def last_partial() -> str:
        if (words := utterance.feed(b"")) is not None:
            partials.append(words)
        return partials[-1] if partials else ""

    eventually(lambda: last_partial().startswith("what is the weather"), timeout=20)
    assert all(before != after for before, after in pairwise(partials))
    assert utterance.finish() == WEATHER
    assert utterance.finish() == WEATHER
    assert utterance.feed(bytes(640)) is None


def test_speech_that_comes_all_at_once_is_understood_too(sphinx):
    question = somebody(WEATHER)
    words = understood(sphinx, question + bytes(RATE) + question + bytes(RATE) + question)
    assert words.count("weather") == 3


def test_silence_has_no_words(sphinx):
    assert understood(sphinx, bytes(RATE)) == ""
    assert sphinx.begin().finish() == ""


def test_utterance_that_nobody_wants_gives_its_place_back(sphinx):
    utterance = sphinx.begin()
    utterance.feed(somebody(WEATHER))
    utterance.abort()
    utterance.abort()
    assert utterance.feed(bytes(640)) is None
    assert utterance.finish() == ""
    assert understood(sphinx, somebody(WEATHER)) == WEATHER


def test_no_more_utterances_than_processes(sphinx):
    utterance = sphinx.begin()
    with pytest.raises(Overloaded) as raised:
        sphinx.begin()
    assert raised.value.retry_after == 1
    utterance.abort()
    sphinx.begin().abort()


def test_half_a_sample_is_refused(sphinx):
    utterance = sphinx.begin()
    with pytest.raises(ValueError, match="middle of one"):
        utterance.feed(b"abc")
    utterance.abort()


def test_other_language_is_refused(sphinx):
    with pytest.raises(InvalidInput, match="'de-DE' is not understood here"):
        sphinx.begin(language="de-DE")


def test_child_that_stalls_is_killed_or_goes_on(caplog):
    sphinx = PocketSphinx(processes=1)
    try:
        utterance = sphinx.begin()
        child = utterance._connection.pid
        os.kill(child, signal.SIGSTOP)
        started = time.monotonic()
        for _ in range(800):  # sixteen seconds of it
            utterance.feed(bytes(640))
        assert time.monotonic() - started < 4
        assert utterance._waiting_size <= WAITING
        assert "does not keep up" in caplog.text
        woken = threading.Timer(0.1, utterance.abort)
        woken.start()
        assert utterance.finish() == ""  # which waited for the child
        woken.join()

        utterance = sphinx.begin()
        utterance.feed(somebody(WEATHER))
        os.kill(child, signal.SIGKILL)
        with pytest.raises(LLMStreamError, match="could not be recognized"):
            utterance.finish()
        assert utterance.feed(bytes(640)) is None
        assert understood(sphinx, somebody(WEATHER)) == WEATHER
    finally:
        sphinx.close()


def test_grammar():
    sphinx = PocketSphinx(processes=1, grammar=GRAMMAR)
    try:
        assert understood(sphinx, somebody("turn on the light")) == "turn on the light"
        assert understood(sphinx, somebody(WEATHER, voice="slt")) == WEATHER
    finally:
        sphinx.close()


@pytest.mark.parametrize("wrong", [{"grammar": "no grammar"}, {"options": {"lm": "/nowhere"}}])
def test_what_it_cannot_work_with_is_told(wrong):
    sphinx = PocketSphinx(processes=1, **wrong)
    try:
        utterance = sphinx.begin()
        utterance.feed(bytes(640))
        with pytest.raises(ConfigurationError) as raised:
            utterance.finish()
        assert "pocketsphinx" in raised.value.diagnosis
    finally:
        sphinx.close()


# How often the hub turned while an utterance came to its end, and how much of that time this process worked itself:
# unlike the longest turn, neither tells of what else the machine has to do.
GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, threading, time
from flask_llmstream.providers.pocketsphinx import WAITING, PocketSphinx

pcm = sys.stdin.buffer.read()
sphinx = PocketSphinx(processes=1)
turns, going = 0, True

def turn():
    global turns
    while going:
        turns += 1
        time.sleep(0.001)

threading.Thread(target=turn, daemon=True).start()
utterance = sphinx.begin()
for start in range(0, len(pcm), 640):
    utterance.feed(pcm[start : start + 640])
before, cpu, started = turns, time.process_time(), time.monotonic()
words = utterance.finish()
took, worked, turned = time.monotonic() - started, time.process_time() - cpu, turns - before
going = False
sphinx.close()
print(words)
print(turned, round(took, 3), round(worked, 3), sep="\\n")
"""


def test_hub_turns_while_an_utterance_comes_to_its_end():
    ran = subprocess.run([sys.executable, "-c", GREENLETS], input=somebody(WEATHER), capture_output=True, timeout=60)
    assert ran.returncode == 0, ran.stderr.decode()
    words, turned, took, worked = ran.stdout.decode().splitlines()
    assert words == WEATHER
    assert float(took) > 0.1  # the model is loaded, and all the audio is listened to
    assert int(turned) > 20
    assert float(worked) < float(took) / 2


def test_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(offloaded, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-llmstream\[voice\]'"):
        PocketSphinx().begin()
    PocketSphinx().warm()
