"""Calls that are relayed to a model which hears and speaks by itself: its server is scripted, over real sockets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from flask_llmstream import run_ended
from flask_llmstream.audio import Format, level
from flask_llmstream.events import Usage
from flask_llmstream.packets import Download, Upload
from flask_llmstream.testing import Gate, ModelServer
from flask_llmstream.testing.script import Script, Turn
from tests.puppet import eventually
from tests.voice.caller import LOUD, Phone
from tests.voice.relays import ANSWER, FAST, FINE, KEY, WORD, kinds, listening, only, relayed, script, second_turn


@pytest.fixture(scope="module")
def model_server() -> Iterator[ModelServer]:
    with ModelServer(key=KEY) as server:
        yield server


@pytest.fixture
def upstream(model_server: ModelServer) -> ModelServer:
    model_server.reset()
    model_server.realtime.schedule = Script(turns=[FAST])
    return model_server


class Telephone(Phone):
    """One that has audio of a certain format.

    :param format: that of both directions.
    """

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format

    def speak(self) -> None:
        sound = self.format.encode(LOUD * (self.format.rate // 2) + bytes(2 * 7 * self.format.rate // 10))
        size = self.format.size(20)
        for number, at in enumerate(range(0, len(sound), size)):
            assert self.line is not None
            self.line.send(Upload(number, number * 20, sound[at : at + size]).encode())

    def meet(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            packet = Download.read(data)
            data = replace(packet, payload=self.format.decode(packet.payload)).encode()
        super().meet(data)


class TestTurns:
    def test_both_transcripts_are_a_run(self, upstream, caplog):
        caplog.set_level(logging.DEBUG)
        ended = []
        with relayed(upstream) as calls, run_ended.connected_to(lambda app, **about: ended.append(about), calls.app):
            phone = calls.dial()
            [ready] = phone.of("ready")
            phone.say()
            assert phone.expect("speech_started")["at_ms"] <= phone.expect("speech_stopped")["at_ms"]
            assert phone.expect("transcript", final=True)["text"] == "Tell me."
            run = phone.expect("run")["id"]
            done = phone.expect("done", run=run)
            timing = phone.expect("turn", run=run)["timing"]
            assert timing.keys() >= {"transcript_ms", "first_token_ms", "first_audio_ms", "played_ms"}
            assert calls.said(ready["conversation"]) == [("user", "Tell me."), ("assistant", ANSWER)]
            assert "".join(token["token"] for token in phone.of("token")) == ANSWER
            assert done["finish_reason"] == "stop" and not done.get("cancelled")
            # What it cost is of the model that has spoken.
            [(model, usage)] = done["usage"]["models"].items()
            assert (model, usage["prompt_tokens"], usage["completion_tokens"]) == ("gpt-realtime-2.1", 40, 12)
            assert [(about["text"], about["usage"].models[model]) for about in ended] == [
                (ANSWER, Usage(40, 12, cached_tokens=8))
            ]
            assert phone.mistakes == []
        # All of the audio is there, and what the model has said of it.
        assert len(phone.heard) == 2 * 4 * WORD
        assert level(phone.heard[: WORD // 2]) > -20
        assert KEY not in caplog.text + repr(phone.messages)

    def test_server_speaks_only_when_it_is_told_to(self, upstream):
        with relayed(upstream, MAX_TOKENS=500) as calls:
            phone = calls.dial(language="en-GB", voice="marin")
            phone.say()
            phone.expect("done")
            told = only(upstream)
            assert told.headers["authorization"] == f"Bearer {KEY}"
            detection = told.session["audio"]["input"]["turn_detection"]
            assert (detection["create_response"], detection["interrupt_response"]) == (False, False)
            assert told.session["instructions"] == "Be brief."
            assert told.session["audio"]["output"]["voice"] == "marin"
            assert told.session["audio"]["input"]["transcription"]["language"] == "en"
            assert kinds(told) == ["session.update", "response.create"]
            assert told.sent("response.create")[0]["response"] == {"max_output_tokens": 500}
        assert told.closed == 1000

    def test_sentences_are_shown_when_they_are_said(self, upstream):
        with relayed(upstream) as calls:
            phone = calls.dial()
            phone.say()
            phone.expect("done")
            first, second = phone.of("sentence")
            assert (first["offset"], first["text"]) == (0, "One two.")
            assert second["text"] == " Six ten." and abs(second["offset"] - 2 * WORD) < WORD / 2

    def test_next_turn_goes_on(self, upstream):
        script(upstream, FAST, Turn(heard="And then?", says="That was all.", speed=None))
        with relayed(upstream) as calls:
            phone = calls.dial()
            for _ in range(2):
                phone.say()
                phone.expect("turn")
            said = calls.said(phone.of("ready")[0]["conversation"])
            assert [text.strip() for _, text in said] == ["Tell me.", ANSWER, "And then?", "That was all."]
            assert len(upstream.realtime.requests) == 1

    def test_answer_may_fail_and_the_call_goes_on(self, upstream):
        error = {"type": "server_error", "code": None, "message": "the secret is swordfish"}
        script(upstream, Turn(heard="Tell me.", says=ANSWER, speed=None, fails_after=6, error=error))
        with relayed(upstream) as calls:
            phone = calls.dial()
            phone.say()
            failed = phone.expect("error")
            assert failed["problem"]["type"].endswith("upstream-unavailable")
            assert "swordfish" not in repr(phone.messages)
            phone.say()  # the call goes on
            phone.expect("run")
            phone.expect("error")

    def test_what_is_written_is_answered_as_well(self, upstream):
        with relayed(upstream) as calls:
            phone = calls.dial()
            phone.tell("message", text="What of this?")
            phone.expect("turn")
            phone.tell("message", text="  ")
            told = only(upstream)
            assert [item["content"][0]["text"] for item in told.items] == ["What of this?"]
            assert kinds(told) == ["session.update", "conversation.item.create", "response.create"]
            said = calls.said(phone.of("ready")[0]["conversation"])
            assert said == [("user", "What of this?"), ("assistant", ANSWER)]


class TestHearing:
    @pytest.mark.parametrize(
        ("name", "rate"), [("pcm16", 16000), ("pcm16", 24000), ("pcmu", 8000), ("pcma", 8000)], ids=str
    )
    def test_formats(self, upstream, name, rate):
        wire = Format(name, rate)
        with relayed(upstream) as calls:
            phone = Telephone(wire)
            phone.line = calls.connect(phone)
            phone.tell("start", input={"format": name, "rate": rate}, output={"format": name, "rate": rate})
            phone.speak()
            phone.expect("transcript", final=True)
            assert phone.expect("done")["finish_reason"] == "stop"
            assert phone.mistakes == [] and len(phone.heard) == pytest.approx(2 * 1.2 * rate, abs=4)
            assert level(phone.heard[: rate // 4]) > -20
            told = only(upstream)
            assert told.session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
            assert len(told.audio) == pytest.approx(2 * 1.2 * 24000, abs=8)
            assert level(bytes(told.audio[:24000])) > -10

    def test_button_alone_tells(self, upstream):
        with relayed(upstream) as calls:
            phone = calls.dial(mode="push")
            phone.sound(LOUD, 600)  # nobody is to hear this
            phone.talk()
            phone.expect("transcript", final=True)
            phone.expect("turn")
            told = only(upstream)
            assert kinds(told) == [
                "session.update",
                "session.update",
                "input_audio_buffer.clear",
                "input_audio_buffer.commit",
                "response.create",
            ]
            assert told.session["audio"]["input"]["turn_detection"] is None
            assert len(told.audio) < 2 * 24000 * 0.35

    def test_button_that_is_pressed_in_vain(self, upstream):
        with relayed(upstream) as calls:
            phone = calls.dial(mode="push")
            phone.talk(ms=40)
            phone.talk()
            phone.expect("turn")
            assert kinds(only(upstream)).count("input_audio_buffer.commit") == 1
            assert phone.of("problem") == []

    def test_button_in_a_call_that_finds_speech_by_itself(self, upstream):
        with relayed(upstream) as calls:
            phone = calls.dial()
            phone.talk()
            phone.expect("turn")
            phone.say()
            phone.expect("speech_started")
            phone.expect("turn")
            assert phone.mistakes == []

    def test_mode_can_be_changed(self, upstream):
        with relayed(upstream) as calls:
            phone = calls.dial(mode="push")
            phone.tell("mode", mode="auto")
            phone.say()
            phone.expect("turn")
            phone.tell("mode", mode="push")
            phone.say()
            phone.talk()
            phone.expect("turn")
            assert len(phone.of("speech_started")) == 1

    def test_nobody_writes_down_what_is_said(self, upstream):
        with relayed(upstream, model={"transcription": None}) as calls:
            phone = calls.dial()
            phone.say()
            phone.expect("turn")
            assert calls.said(phone.of("ready")[0]["conversation"]) == [
                ("user", "(spoken)"),
                ("assistant", ANSWER),
            ]

    def test_nothing_was_said(self, upstream):
        script(upstream, Turn(heard=""), FAST)
        with relayed(upstream) as calls:
            phone = calls.dial()
            phone.say()
            phone.expect("speech_stopped")
            phone.say()
            phone.expect("turn")
            assert len(phone.of("run")) == 1


class TestBargeIn:
    @pytest.mark.parametrize(
        ("samples", "heard", "kept"),
        [(0, "", None), (WORD // 4, "", 75), (WORD, "One", 300), (2 * WORD, "One two.", 600), (3 * WORD, None, 900)],
    )
    def test_model_knows_what_was_heard(self, upstream, samples, heard, kept):
        script(upstream, FAST, FINE)
        with relayed(upstream) as calls:
            phone = listening(calls, samples)
            told = only(upstream)
            [item] = told.generated
            phone.say()
            interrupted = phone.expect("interrupted")
            phone.play(None)
            if heard is not None:
                assert interrupted["heard"].strip() == heard
            assert interrupted["played_ms"] == samples * 1000 // 24000
            second_turn(phone)
            # It has long been through with its answer, so there is nothing to cancel.
            last = "conversation.item.delete" if kept is None else "conversation.item.truncate"
            assert kinds(told) == ["session.update", "response.create", last, "response.create"]
            assert (told.deleted, told.truncated) == (([item], {}) if kept is None else ([], {item: kept}))
            assert told.errors == []
            said = calls.said(phone.of("ready")[0]["conversation"])
            assert said[1:] == [("assistant", interrupted["heard"]), ("user", "No, stop."), ("assistant", "Fine.")]
            assert phone.mistakes == []

    def test_flush_then_cancel_then_truncate(self, upstream):
        gate = Gate()
        script(upstream, Turn(heard="Tell me.", says=ANSWER, speed=None, gates={8: gate}), FAST)
        with relayed(upstream) as calls:
            phone = listening(calls, WORD)
            phone.flushes = False
            phone.say()
            phone.expect("flush", reason="speech")
            told = only(upstream)
            eventually(lambda: "response.cancel" in kinds(told))
            assert "conversation.item.truncate" not in kinds(told), "the client has not said yet what it has played"
            phone.tell("flushed", generation=1, samples=WORD + 240)
            phone.expect("interrupted")
            phone.play(None)
            second_turn(phone)
            assert kinds(told) == [
                "session.update",
                "response.create",
                "response.cancel",
                "conversation.item.truncate",
                "response.create",
            ]
            [kept] = told.truncated.values()
            assert kept == 310
            cancelled = phone.of("done")[0]
            assert cancelled["cancelled"] and cancelled["usage"]["models"]["gpt-realtime-2.1"]["completion_tokens"] == 8
            gate.release()

    def test_client_that_does_not_say_what_it_has_played(self, upstream):
        with relayed(upstream) as calls:
            phone = listening(calls, WORD)
            phone.flushes = False
            phone.say()
            phone.expect("interrupted", played_ms=300)
            eventually(lambda: 300 in only(upstream).truncated.values())
            phone.play(None)
            second_turn(phone)

    def test_all_was_heard_that_there_is(self, upstream):
        gate = Gate()
        script(upstream, Turn(heard="Tell me.", says=ANSWER, speed=None, gates={6: gate}), FAST)
        with relayed(upstream) as calls:
            phone = calls.dial()
            phone.say()
            phone.until_true(lambda: phone.samples == 2 * WORD)
            phone.say()
            assert phone.expect("interrupted")["heard"].strip() == "One two."
            second_turn(phone)
            told = only(upstream)
            assert list(told.truncated.values()) == [600]
            assert told.errors == [] and len(phone.heard) == 2 * 6 * WORD
            gate.release()

    def test_before_anything_is_said(self, upstream):
        gate = Gate()
        script(upstream, Turn(heard="Tell me.", says=ANSWER, speed=None, gates={0: gate}), FAST)
        with relayed(upstream) as calls:
            phone = calls.dial()
            phone.say()
            phone.expect("run")
            told = only(upstream)
            eventually(lambda: told.generated)
            phone.say()
            assert phone.expect("interrupted")["heard"] == ""
            second_turn(phone)
            assert kinds(told)[2:4] == ["response.cancel", "conversation.item.delete"]
            assert told.deleted == list(told.generated)[:1]
            assert len(phone.heard) == 2 * 4 * WORD, "nothing but the second answer"
            gate.release()

    def test_false_alarm(self, upstream):
        script(upstream, FAST, Turn(heard="Mm-hm."), FAST)
        with relayed(upstream) as calls:
            phone = listening(calls, WORD)
            phone.say(ms=100)
            phone.expect("flush")
            phone.expect("speaking", continues=True, offset=WORD)
            phone.play(None)
            phone.expect("turn")
            assert kinds(only(upstream)) == ["session.update", "response.create"]
            assert len(phone.heard) == 2 * 4 * WORD
            assert phone.mistakes == []

    def test_button_of_the_client(self, upstream):
        with relayed(upstream) as calls:
            phone = listening(calls, WORD)
            phone.tell("interrupt")
            phone.expect("flush", reason="interrupt")
            assert phone.expect("interrupted")["heard"] == "One"
            phone.expect("turn")
            assert list(only(upstream).truncated.values()) == [300]

    def test_what_is_written_interrupts_too(self, upstream):
        script(upstream, FAST, Turn(says="Fine.", speed=None))
        with relayed(upstream) as calls:
            phone = listening(calls, WORD)
            phone.tell("message", text="Something else.")
            assert phone.expect("interrupted")["heard"] == "One"
            phone.play(None)
            second_turn(phone)
            said = calls.said(phone.of("ready")[0]["conversation"])
            assert said[1:] == [("assistant", "One"), ("user", "Something else."), ("assistant", "Fine.")]
