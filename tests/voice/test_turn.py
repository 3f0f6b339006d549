"""What happens in a call, in order."""

from __future__ import annotations

from typing import Any

import pytest
from marshmallow import fields

from flask_llmstream import LLMStream, Run
from flask_llmstream.audio import Format
from flask_llmstream.schemas import ChatInput
from flask_llmstream.voices import Voice
from tests.puppet import Pause, Puppet, eventually
from tests.voice.caller import LOUD, QUIET
from tests.voice.desk import WORD, Late, Loudness, Monotone, Script, desk, words

ANSWER = "It will rain all day. Take a coat."


def test_whole_turn():
    with desk("what is the weather", model=Puppet(words(ANSWER))) as calls:
        phone = calls.dial()
        [ready] = phone.of("ready")
        phone.say()
        turn = phone.expect("turn")
        kinds = [message["type"] for message in phone.messages]
        assert [kind for kind in kinds if kind not in ("token", "status", "sentence")] == [
            "ready",
            "speech_started",
            "speech_stopped",
            "transcript",
            "run",
            "speaking",
            "done",
            "turn",
        ]
        assert kinds.index("run") < kinds.index("status")
        assert phone.of("transcript")[0]["text"] == "what is the weather"
        assert "".join(message["token"] for message in phone.of("token")) == ANSWER
        assert [caption["text"].strip() for caption in phone.of("sentence")] == [
            "It will rain all day.",
            "Take a coat.",
        ]
        assert len(phone.heard) // 2 == 8 * WORD
        assert {message["run"] for message in phone.messages if "run" in message} == {turn["run"]}
        assert calls.said(ready["conversation"]) == [("user", "what is the weather"), ("assistant", ANSWER)]
        timing = turn["timing"]
        assert list(timing) == ["transcript_ms", "first_token_ms", "first_audio_ms", "played_ms"]
        assert 0 <= timing["transcript_ms"] <= timing["first_token_ms"] <= timing["first_audio_ms"]
        assert timing["first_audio_ms"] <= timing["played_ms"]
        assert phone.mistakes == []


def test_first_sentence_is_heard_while_the_model_still_writes():
    pause = Pause()
    with desk(model=Puppet(["It will rain all day. Take", pause, " a coat."])) as calls:
        phone = calls.dial()
        phone.tell("message", text="what is the weather")
        phone.until_true(lambda: phone.samples == 5 * WORD)
        pause.go_on()
        phone.expect("turn")
        assert phone.samples == 8 * WORD


def test_speech_is_placed_in_the_audio():
    with desk("hello") as calls:
        phone = calls.dial()
        phone.sound(QUIET, 1000)
        phone.say(ms=400)
        assert abs(phone.expect("speech_started")["at_ms"] - 1000) <= 32
        assert abs(phone.expect("speech_stopped")["at_ms"] - 1400) <= 32
        phone.expect("turn")


def test_utterance_has_its_beginning_which_came_before_it_was_noticed():
    script = Script("hello")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial()
        phone.sound(QUIET, 2000)
        phone.say(ms=400)
        phone.expect("turn")
    [utterance] = script.heard
    loud = utterance.pcm.count(LOUD)
    assert loud == 400 * 16
    assert 0 < len(utterance.pcm) // 2 // 16 - 400 - 500 < 400


@pytest.mark.parametrize("format", ["pcm16/16000", "pcm16/24000", "pcmu/8000", "pcma/8000"])
def test_format(format):
    """What goes up is understood in each, and what comes down is so long in each."""
    name, rate = format.split("/")
    kind = Format(name, int(rate))
    script = Script("hello")
    with desk(model=Puppet(words(ANSWER)), voice={"transcriber": script}) as calls:
        asked = {"format": name, "rate": int(rate)}
        phone = calls.dial(input=asked, output=asked)
        phone.encoding = kind
        phone.say(ms=400)
        phone.expect("turn")
        assert phone.of("speech_started")
        assert abs(len(phone.heard) // 2 - 8 * WORD * kind.rate // 24000) <= 8 * kind.rate // 1000
        assert abs(phone.of("sentence")[1]["offset"] - 5 * WORD * kind.rate // 24000) <= 5
        assert phone.mistakes == []


def test_push_to_talk():
    script = Script("hello", "good bye")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial(mode="push")
        phone.say()  # nobody holds the button
        phone.talk()
        phone.expect("transcript", text="hello")
        phone.expect("turn")
        phone.talk()
        phone.expect("transcript", text="good bye")
        phone.expect("turn")
        assert not phone.of("speech_started")
        assert [utterance.pcm.count(LOUD) for utterance in script.heard] == [300 * 16, 300 * 16]


def test_button_that_is_held_during_the_answer_ends_it():
    with desk("stop it", model=Puppet(words(ANSWER), ["Fine."])) as calls:
        phone = calls.dial(mode="push", until=WORD)
        phone.tell("message", text="the weather?")
        phone.until_true(lambda: phone.samples == WORD)
        phone.talk()
        phone.expect("flush", reason="speech")
        phone.expect("interrupted", heard="It")
        phone.play(None)
        phone.expect("token", token="Fine.")
        phone.expect("turn")


def test_button_in_automatic_mode_tells_alone_when_the_user_speaks():
    script = Script("hello there", "and now by itself")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial()
        phone.tell("talk", on=True)
        phone.say()
        phone.sound(QUIET, 1000)
        phone.say()
        phone.tell("talk", on=False)
        phone.expect("transcript", text="hello there")
        phone.expect("turn")
        assert not phone.of("speech_started")
        assert script.heard[0].pcm.count(LOUD) == 600 * 16
        phone.say()
        phone.expect("speech_started")
        phone.expect("transcript", text="and now by itself")
        phone.expect("turn")


def test_button_that_is_pressed_in_mid_sentence_goes_on_with_it():
    script = Script("hello there")
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial()
        phone.sound(LOUD, 300)
        phone.expect("speech_started")
        phone.tell("talk", on=True)
        phone.tell("talk", on=True)
        phone.sound(QUIET, 1000)
        phone.sound(LOUD, 300)
        phone.tell("talk", on=False)
        phone.tell("talk", on=False)
        phone.expect("transcript", text="hello there")
        phone.expect("turn")
        assert [utterance.pcm.count(LOUD) for utterance in script.heard] == [600 * 16]


def test_mode_that_is_switched_in_mid_sentence_ends_it():
    with desk("hello", "by hand", "by itself") as calls:
        phone = calls.dial()
        phone.sound(LOUD, 300)
        phone.expect("speech_started")
        phone.tell("mode", mode="push")
        phone.expect("speech_stopped")
        phone.expect("transcript", text="hello")
        phone.expect("turn")
        phone.say()
        phone.talk()
        phone.expect("transcript", text="by hand")
        phone.expect("turn")
        phone.tell("mode", mode="auto")
        phone.say()
        phone.expect("transcript", text="by itself")
        phone.expect("turn")
        assert len(phone.of("speech_started")) == 2


def test_call_without_voice_activity_of_its_own_can_be_switched_to_it():
    with desk("hello", voice={"activity": None}) as calls:
        phone = calls.dial(mode="push")
        phone.tell("mode", mode="auto")
        phone.sound(QUIET, 400)
        phone.tell("ping", t=7)
        assert phone.expect("pong")["t"] == 7
        assert phone.closed is None


def test_several_breaths_are_one_message():
    late = Late("the weather")
    with desk(late, "in Paris") as calls:
        phone = calls.dial()
        phone.say()
        phone.say()
        phone.expect("transcript", text="in Paris")
        late.come.set()
        phone.expect("turn")
        assert calls.said(phone.of("ready")[0]["conversation"])[0] == ("user", "the weather in Paris")


def test_silence_asks_nothing():
    with desk("") as calls:
        phone = calls.dial()
        phone.say()
        phone.expect("transcript", text="", final=True)
        phone.tell("ping", t=1)
        phone.expect("pong")
        assert not phone.of("run")


def test_partial_words_are_told_as_they_come():
    with desk(voice={"transcriber": Script("hello", partial=True)}) as calls:
        phone = calls.dial()
        phone.say()
        phone.expect("transcript", text="hello", final=False)
        phone.expect("transcript", text="hello", final=True)
        phone.expect("turn")
        assert len(phone.of("transcript")) == 2


def test_typed_and_spoken_messages_are_one_conversation():
    with desk("and tomorrow", model=Puppet(["Sun."], ["Rain."], ["Snow."])) as calls:
        typed = calls.app.test_client().post(
            "/api/chat/stream", json={"message": "today?", "conversation": "c" * 20}, headers={"X-User": "ann"}
        )
        assert b"Sun." in typed.data
        phone = calls.dial(conversation="c" * 20)
        phone.say()
        phone.expect("turn")
        phone.tell("message", text="and then?")
        phone.expect("turn")
        assert calls.said("c" * 20) == [
            ("user", "today?"),
            ("assistant", "Sun."),
            ("user", "and tomorrow"),
            ("assistant", "Rain."),
            ("user", "and then?"),
            ("assistant", "Snow."),
        ]
        assert [message["content"] for message in calls.model.calls[-1].messages] == [
            "today?",
            "Sun.",
            "and tomorrow",
            "Rain.",
            "and then?",
        ]


def test_call_that_follows_an_earlier_message():
    with desk(model=Puppet(["One."], ["Two."], ["Other."])) as calls:
        phone = calls.dial()
        for text in ("first", "second"):
            phone.tell("message", text=text)
            phone.expect("turn")
        conversation = phone.of("ready")[0]["conversation"]
        first_run = phone.of("run")[0]["id"]
        branch = calls.dial(conversation=conversation, parent=first_run)
        branch.tell("message", text="otherwise")
        branch.expect("turn")
        branch.tell("message", text="and on")
        branch.expect("turn")
        assert [m["content"] for m in calls.model.calls[-1].messages] == [
            "first",
            "One.",
            "otherwise",
            "Other.",
            "and on",
        ]


class Places(ChatInput):
    place = fields.String(required=True)


def weather(llm: LLMStream) -> None:
    @llm.voice(
        "/weather", input=Places, voice=Voice(transcriber=Script("hi"), synthesizer=Monotone(), activity=Loudness())
    )
    def weather(run: Run) -> Any:
        yield f"In {run.input.more['place']} it "
        yield "rains."
        return {"place": run.input.more["place"]}


def test_feature_of_its_own_with_fields_of_its_own():
    with desk(declare=weather) as calls:
        phone = calls.dial(rule="/weather", data={"place": "Paris"})
        phone.say()
        assert phone.expect("done")["result"] == {"place": "Paris"}
        phone.expect("turn")
        assert len(phone.heard) // 2 == 4 * WORD
        assert not calls.model.calls


def test_fields_are_checked_before_the_call_begins():
    with desk(declare=weather) as calls:
        phone = calls.dial(rule="/weather", data={}, ready=False)
        assert phone.hung_up()[0] == 4400
        problem = phone.expect("problem")["problem"]
        assert problem["status"] == 422
        assert list(problem["errors"]) == ["place"]


def test_two_features_share_a_conversation():
    with desk("hello", declare=weather, model=Puppet(["Hi."])) as calls:
        phone = calls.dial()
        phone.say()
        phone.expect("turn")
        conversation = phone.of("ready")[0]["conversation"]
        other = calls.dial(rule="/weather", conversation=conversation, data={"place": "Rome"})
        other.say()
        other.expect("turn")
        assert calls.said(conversation)[-1] == ("assistant", "In Rome it rains.")


def test_answer_is_begun_early_and_heard_when_the_user_has_finished():
    script = Script("hello", partial=True)
    with desk(model=Puppet(words(ANSWER)), voice={"transcriber": script, "anticipates": True}) as calls:
        phone = calls.dial()
        phone.sound(LOUD, 300)
        phone.expect("speech_started")
        phone.until_true(lambda: phone.of("transcript"))
        phone.sound(QUIET, 300)
        eventually(lambda: calls.model.calls)
        assert not phone.of("run")
        phone.sound(QUIET, 400)
        phone.expect("turn")
        assert len(calls.model.calls) == 1
        assert len(phone.heard) // 2 == 8 * WORD
        assert calls.said(phone.of("ready")[0]["conversation"]) == [("user", "hello"), ("assistant", ANSWER)]


def test_answer_that_was_begun_early_never_was_when_the_call_ends():
    script = Script("hello", partial=True)
    with desk(model=Puppet(words(ANSWER)), voice={"transcriber": script, "anticipates": True}) as calls:
        phone = calls.dial(conversation="c" * 20)
        phone.sound(LOUD, 300)
        phone.until_true(lambda: phone.of("transcript"))
        phone.sound(QUIET, 300)
        eventually(lambda: calls.model.calls)
        phone.tell("end")
        assert phone.hung_up()[0] == 1000
        eventually(lambda: not calls.record.registry.live)
        assert not phone.of("run")
        url = f"/api/conversations/{'c' * 20}"
        found = calls.app.test_client().get(url, headers={"X-User": "ann"})
        assert found.status_code == 404 or found.json["messages"] == []


def test_answer_that_was_begun_early_to_something_else_never_was():
    script = Script("hello", partial=True)
    with desk(model=Puppet(words(ANSWER)), voice={"transcriber": script, "anticipates": True}) as calls:
        phone = calls.dial()
        phone.sound(LOUD, 300)
        phone.until_true(lambda: phone.of("transcript"))
        phone.sound(QUIET, 300)
        eventually(lambda: calls.model.calls)
        phone.sound(LOUD, 300)
        phone.sound(QUIET, 250)
        phone.sound(QUIET, 450)
        phone.expect("turn")
        assert len(phone.of("run")) == 1
        assert calls.said(phone.of("ready")[0]["conversation"]) == [("user", "hello"), ("assistant", ANSWER)]
        assert len(phone.heard) // 2 == 8 * WORD
