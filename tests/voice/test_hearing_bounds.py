"""What a call hears has an end, costs no more than it is worth, and is not waited for where nothing comes."""

from __future__ import annotations

from typing import Any

from flask_llmstream.packets import Upload
from tests.puppet import Puppet, eventually
from tests.voice.caller import LOUD, QUIET
from tests.voice.desk import Desk, Late, Loudness, Script, desk, words


def dialogue(calls: Desk) -> Any:
    """Of the only call."""
    [session] = calls.record.sessions._sessions.values()
    return session.dialogue


def test_press_of_the_button_that_is_too_short_for_a_word_costs_nothing():
    script = Script("never", "hello")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial(mode="push")
        phone.talk(ms=280)
        phone.expect("transcript", text="", final=True)
        phone.talk(ms=300)
        phone.expect("transcript", text="hello", final=True)
        phone.expect("turn")
    assert [utterance.finished for utterance in script.heard] == [False, True]
    assert script.heard[0].aborted


def test_two_utterances_of_a_call_are_transcribed_at_a_time():
    first, second = Late("one"), Late("two")
    script = Script(first, second, "three")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial(mode="push")
        for _ in range(3):
            phone.talk()
        eventually(lambda: len(script.heard) == 3 and script.heard[1].finished)
        eventually(lambda: len(dialogue(calls)._hearing._waiting) == 1)
        assert not script.heard[2].finished
        first.come.set()
        phone.expect("transcript", text="three")
        second.come.set()
        phone.expect("turn")
        assert calls.said(phone.of("ready")[0]["conversation"])[0] == ("user", "one two three")


def test_utterances_that_do_not_even_find_room_to_wait_are_none(monkeypatch):
    monkeypatch.setattr("flask_llmstream.hearing.WAITING", 1)
    gates = [Late("one"), Late("two"), Late("three")]
    script = Script(*gates, "four")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial(mode="push")
        for _ in range(4):
            phone.talk()
        assert phone.expect("problem")["problem"]["status"] == 503
        for gate in gates:
            gate.come.set()
        phone.expect("turn")
        assert calls.said(phone.of("ready")[0]["conversation"])[0] == ("user", "one two three")
    assert script.heard[3].aborted


def test_utterance_without_an_end_becomes_several_and_stays_one_message(monkeypatch):
    monkeypatch.setattr("flask_llmstream.hearing.LONGEST", 0.5)
    script = Script("one", "two", "three")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial()
        phone.sound(LOUD, 1200)
        phone.sound(QUIET, 700)
        phone.expect("turn")
        assert len(phone.of("speech_started")) == len(phone.of("speech_stopped")) == 1
        assert calls.said(phone.of("ready")[0]["conversation"])[0] == ("user", "one two three")
    assert max(len(utterance.pcm) for utterance in script.heard) <= 2 * 16 * 540
    assert b"".join(utterance.pcm for utterance in script.heard).count(LOUD) == 1200 * 16


def test_button_that_is_held_for_long(monkeypatch):
    monkeypatch.setattr("flask_llmstream.hearing.LONGEST", 0.5)
    script = Script("one", "two", "three")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial(mode="push")
        phone.talk(ms=1200)
        phone.expect("turn")
        assert calls.said(phone.of("ready")[0]["conversation"])[0] == ("user", "one two three")
    assert not phone.of("speech_started")


def test_sound_of_which_nothing_more_comes_has_ended(monkeypatch):
    """A client that sends no silence: it was muted, its page sleeps, its gateway leaves silence out."""
    monkeypatch.setattr("flask_llmstream.sessions.LOOKED_AT", 0.02)
    monkeypatch.setattr("flask_llmstream.dialogue.STALLED", 0.1)
    with desk("hello", "again") as calls:
        phone = calls.dial()
        for text in ("hello", "again"):
            phone.sound(LOUD, 400)
            phone.expect("speech_started")
            phone.expect("speech_stopped")
            phone.expect("transcript", text=text)
            phone.expect("turn")


def test_user_who_speaks_is_not_idle():
    with desk("hello") as calls:
        phone = calls.dial()
        phone.sound(LOUD, 400)
        phone.expect("speech_started")
        call = dialogue(calls)
        call.busy_at = long_ago = call.busy_at - 100
        phone.sound(LOUD, 20)
        eventually(lambda: call.busy_at > long_ago + 50)
        phone.sound(QUIET, 700)
        phone.expect("turn")
        call.busy_at = long_ago
        phone.sound(QUIET, 100)
        phone.tell("ping", t=1)
        phone.expect("pong")
        assert call.busy_at == long_ago, "somebody who is silent is"


def test_detector_lasts_as_long_as_the_call():
    class Counted(Loudness):
        made = 0

        def detector(self) -> Loudness:
            self.made += 1
            return self

    activity = Counted()
    with desk("hello", voice={"activity": activity}) as calls:
        phone = calls.dial()
        made = activity.made
        for mode in ("push", "auto") * 5:
            phone.tell("mode", mode=mode)
            phone.sound(QUIET, 20)
        phone.say()
        phone.expect("transcript", text="hello")
        phone.expect("turn")
        assert activity.made == made


def test_frame_that_would_be_listened_to_for_too_long():
    with desk() as calls:
        phone = calls.dial()
        phone._send(Upload(0, 0, bytes(2 * 16 * 100)).encode())
        phone.tell("ping", t=1)
        phone.expect("pong")
        phone._send(Upload(1, 0, bytes(2 * 16 * 100 + 2)).encode())
        assert phone.hung_up() == (1009, "A frame holds at most 100 ms of audio.")


def test_words_that_come_very_late_are_answered(monkeypatch):
    monkeypatch.setattr("flask_llmstream.turns.WORDS_WITHIN", 0.05)
    late = Late("what is the weather")
    with desk(late, model=Puppet(words("Sunny."))) as calls:
        phone = calls.dial()
        phone.say()
        phone.expect("speech_stopped")
        turns = dialogue(calls)._turns
        eventually(lambda: turns._late)
        late.come.set()
        phone.expect("turn")
        assert calls.said(phone.of("ready")[0]["conversation"])[0] == ("user", "what is the weather")
