"""Nothing grows where a client is slow, is not there, or sends more than it can have to say."""

from __future__ import annotations

import json

import pytest

from flask_llmstream.delivery import AHEAD_MS
from flask_llmstream.events import Data
from flask_llmstream.outbox import AHEAD, MOST
from flask_llmstream.packets import Upload
from flask_llmstream.speech import AUDIO_AHEAD, SENTENCES_AHEAD
from tests.puppet import Puppet, eventually
from tests.voice.desk import RATE, WORD, Monotone, desk

SENTENCES = 200
LONG = [f"Sentence number {n} has six words. " for n in range(SENTENCES)]


def test_slow_client_slows_the_speech_and_the_model():
    """What the model says is taken as it is needed; its tokens are counted here, and its sentences, and its words."""
    voice = Monotone()
    with desk(model=Puppet(LONG), voice={"synthesizer": voice}) as calls:
        phone = calls.dial(until=0)
        phone.tell("message", text="tell me")
        phone.until_true(lambda: phone.got.get(1))
        ahead = AHEAD_MS * RATE // 1000
        phone.until_true(lambda: phone.got[1] == ahead)
        most = ahead + int(AUDIO_AHEAD * RATE) + 2 * WORD
        eventually(lambda: voice.words * WORD >= AUDIO_AHEAD * RATE)
        for played in range(0, 60 * WORD, WORD):
            phone.play(played)
            phone.until_true(lambda played=played: phone.samples == played)
            assert voice.words * WORD <= played + most
            assert len(phone.of("token")) <= len(voice.sentences) + SENTENCES_AHEAD + 2
            assert phone.got[1] <= played + ahead
        assert len(voice.sentences) < 20
        phone.tell("interrupt")
        phone.expect("turn")


def test_at_most_so_much_is_sent_ahead_of_what_was_played():
    with desk(model=Puppet(LONG)) as calls:
        phone = calls.dial(until=0)
        assert phone.of("ready")[0]["ahead_ms"] == AHEAD_MS
        phone.tell("message", text="tell me")
        for played in range(0, 20000, 997):
            phone.play(played)
            phone.until_true(lambda played=played: phone.got.get(1, 0) > played + (AHEAD_MS - 41) * RATE // 1000)
            assert phone.got[1] <= played + AHEAD_MS * RATE // 1000
        phone.tell("interrupt")
        phone.expect("turn")


def test_answer_waits_for_a_client_that_has_gone():
    voice = Monotone()
    with desk(model=Puppet(LONG), voice={"synthesizer": voice}) as calls:
        phone = calls.dial(until=WORD)
        phone.tell("message", text="tell me")
        phone.until_true(lambda: phone.samples == WORD)
        phone.line.cut()
        eventually(lambda: voice.words * WORD >= AUDIO_AHEAD * RATE)
        assert voice.words < 40
        assert len(calls.record.sessions) == 1


def test_client_that_does_not_come_back_ends_the_call(monkeypatch):
    monkeypatch.setattr("flask_llmstream.sessions.RESUME_WITHIN", 0.05)
    with desk(model=Puppet(LONG)) as calls:
        phone = calls.dial(until=3 * WORD)
        phone.tell("message", text="tell me")
        phone.until_true(lambda: phone.samples == 3 * WORD)
        phone.tell("ping", t=1)
        phone.expect("pong")  # what was reported before has come
        phone.line.cut()
        eventually(lambda: len(calls.record.sessions) == 0)
        eventually(lambda: not calls.record.registry.live)
        assert calls.said(phone.of("ready")[0]["conversation"])[-1] == ("assistant", "Sentence number 0")


def test_client_that_comes_back_in_time_keeps_the_call(monkeypatch):
    monkeypatch.setattr("flask_llmstream.sessions.RESUME_WITHIN", 0.3)
    with desk(model=Puppet(["One two."])) as calls:
        phone = calls.dial(until=WORD)
        phone.tell("message", text="tell me")
        phone.until_true(lambda: phone.samples == WORD)
        phone.line.cut()
        phone.resume(calls.connect(phone), phone.of("ready")[0]["token"])
        phone.expect("resumed")
        [session] = calls.record.sessions._sessions.values()
        assert session._waiting is None
        phone.play(None)
        phone.expect("turn")


def test_client_that_acknowledges_nothing_is_not_listening(monkeypatch):
    monkeypatch.setattr("flask_llmstream.sessions.LOOKED_AT", 0.05)
    monkeypatch.setattr("flask_llmstream.dialogue.STUCK", 0.2)
    with desk(model=Puppet([Data(n) for n in range(MOST)])) as calls:
        phone = calls.dial()
        phone.acknowledges = False
        phone.tell("message", text="tell me")
        phone.expect("interrupted", heard="")
        phone.expect("turn")
        assert AHEAD <= phone.seq < AHEAD + 100
        phone.tell("played", generation=0, samples=0, seq=phone.seq)
        phone.tell("message", text="and now")
        phone.expect("data")
        [session] = calls.record.sessions._sessions.values()
        for _ in range(MOST):
            session.dialogue.delivery.tell("draining", within=1)
        assert phone.hung_up()[0] == 1008


def test_audio_faster_than_it_can_be_spoken_is_refused():
    with desk() as calls:
        phone = calls.dial()
        phone.sound(b"\x00\x00", 12_000)
        code, reason = phone.hung_up()
        assert code == 1008
        assert "twice as fast" in reason


def test_hitch_of_the_line_is_no_flood_and_loses_no_word():
    with desk("hello") as calls:
        phone = calls.dial()
        phone.sound(b"\x00\x00", 2000)
        phone.say(ms=2000)
        phone.expect("transcript", text="hello")
        phone.expect("turn")
        assert phone.closed is None


def test_too_many_messages_are_refused():
    with desk() as calls:
        phone = calls.dial()
        for n in range(2000):
            phone.tell("ping", t=n)
        code, reason = phone.hung_up()
        assert code == 1008
        assert "messages" in reason


def test_audio_that_comes_twice_is_heard_once():
    with desk("hello") as calls:
        phone = calls.dial()
        for _ in range(20):
            phone.line.send(Upload(0, 0, b"\x00\x40" * 320).encode())
        phone._frames = 1
        phone.sound(b"\x00\x00", 500)
        phone.tell("ping", t=1)
        phone.expect("pong")
        assert not phone.of("speech_started")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("hello", "not of the protocol"),
        (json.dumps({"type": "dance"}), "dance"),
        (json.dumps({"type": "start"}), "once"),
        (json.dumps({"type": "resume", "token": "t", "seq": 0}), "once"),
        (json.dumps({"type": "played", "generation": 1, "samples": 1, "seq": 99}), "message 99 is acknowledged"),
        (b"", "8 bytes"),
        (bytes(8), "8 bytes"),
        (bytes(11), "sample"),
    ],
)
def test_what_is_not_of_the_protocol_ends_the_call_in_a_sentence(data, said):
    with desk() as calls:
        phone = calls.dial()
        phone.line.send(data)
        code, reason = phone.hung_up()
        assert code == 4400
        assert said in reason
