"""The same calls under the other servers; and one with nothing scripted but the model."""

from __future__ import annotations

import math
import subprocess
import wave
from array import array

import pytest

from flask_llmstream.audio import resampled
from flask_llmstream.packets import Upload
from flask_llmstream.testing import Schedule
from tests.components import require
from tests.voice.caller import FRAME_MS, QUIET, Phone
from tests.voice.conftest import ANSWER
from tests.voice.desk import WORD
from tests.voice.sockets import Socket, call

QUESTION = "what is the weather today"


@pytest.mark.parametrize("kind", ["gthread", "flask"])
def test_call(serve, model, kind):
    model.reset()
    with serve(kind) as server:
        with call(server, until=4 * WORD) as phone:
            phone.say()
            phone.until_true(lambda: phone.samples == 4 * WORD)
            model.then(Schedule(tokens="Fine."))
            phone.say()
            phone.expect("interrupted", heard="One two three. Four")
            phone.play(None)
            phone.expect("token", token="Fine.")
            phone.expect("turn")
            phone.line.cut()
            phone.resume(Socket(server, phone), phone.of("ready")[0]["token"])
            phone.expect("resumed")
            phone.say()
            phone.expect("turn")
            assert "".join(message["token"] for message in phone.of("token")[-9:]) == ANSWER
            assert phone.mistakes == []
        server.await_state(sessions=0, open=0, live=0)


@pytest.mark.needs("flite")
def test_real_speech(serve, model, tmp_path):
    """flite speaks, silero and pocketsphinx hear, espeak-ng answers."""
    model.reset()
    model.schedule = Schedule(tokens="It will rain all day. Take a coat with you.")
    with serve("gevent", VOICE="real") as server, call(server, until=24000) as phone:
        say(phone, spoken(tmp_path))
        phone.expect("transcript", text=QUESTION, final=True)
        phone.until_true(lambda: phone.samples == 24000)
        assert loudness(phone.heard) > 500
        model.then(Schedule(tokens="Fine."))
        say(phone, spoken(tmp_path))
        interrupted = phone.expect("interrupted")
        assert interrupted["played_ms"] == 1000
        assert "It will rain all day.".startswith(interrupted["heard"])
        assert interrupted["heard"]
        phone.play(None)
        phone.expect("turn", lambda turn: turn["run"] != interrupted["run"])
        assert [m["content"] for m in model.requests[-1].body["messages"]] == [QUESTION, interrupted["heard"], QUESTION]
        assert phone.mistakes == []


def spoken(directory) -> bytes:
    """The question, as a person would say it: PCM at 16 kHz."""
    path = directory / "question.wav"
    if not path.exists():
        subprocess.run([require("flite"), "-voice", "awb", "-t", QUESTION, "-o", str(path)], check=True)
    with wave.open(str(path)) as sound:
        return resampled(sound.readframes(sound.getnframes()), sound.getframerate(), 16000)


def say(phone: Phone, pcm: bytes) -> None:
    size = 2 * 16 * FRAME_MS
    phone.sound(QUIET, 300)
    for at in range(0, len(pcm) // size * size, size):
        phone.line.send(Upload(phone._frames, phone._frames * FRAME_MS, pcm[at : at + size]).encode())
        phone._frames += 1
    phone.sound(QUIET, 800)


def loudness(pcm: bytes) -> float:
    samples = array("h", pcm)
    return math.sqrt(sum(sample * sample for sample in samples) / len(samples))
