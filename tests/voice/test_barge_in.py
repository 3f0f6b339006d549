"""An answer that is interrupted, or seems to be: what its user has heard of it is what was said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flask_llmstream import Run, run_ended
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import ModelServer, Schedule
from tests.puppet import Pause, Puppet, eventually
from tests.voice.caller import LOUD, QUIET, Phone
from tests.voice.desk import WORD, Desk, Late, Monotone, Script, desk, words

ANSWER = "One two three. Four five six. Seven eight nine."


@pytest.fixture
def upstream() -> Iterator[ModelServer]:
    with ModelServer(Schedule(tokens=ANSWER)) as server:
        yield server


def listening(calls: Desk, samples: int) -> Phone:
    """A call in which so much of an answer has been played, and no more is for now."""
    phone = calls.dial(until=samples)
    phone.say()
    phone.expect("speaking")
    phone.until_true(lambda: phone.samples == samples and phone.got[phone.generation or 0] > samples)
    return phone


HEARD = [
    (0, ""),
    (WORD // 2 - 1, ""),
    (WORD // 2, "One"),
    (WORD, "One"),
    (2 * WORD, "One two"),
    (3 * WORD, "One two three."),
    (3 * WORD + WORD // 4, "One two three."),
    (4 * WORD + WORD // 2, "One two three. Four five"),
    (8 * WORD + WORD // 4, "One two three. Four five six. Seven eight"),
    (8 * WORD + WORD // 2, ANSWER),
]


@pytest.mark.parametrize(("samples", "heard"), HEARD)
def test_conversation_keeps_what_was_heard(upstream, samples, heard):
    model = OpenAI("m", base_url=upstream.base_url, api_key="k")
    with desk("tell me", "no stop", model=model, RETRIES=0) as calls:
        phone = listening(calls, samples)
        [ready] = phone.of("ready")
        upstream.then(Schedule(tokens="Fine."))
        phone.say()
        interrupted = phone.expect("interrupted")
        assert interrupted["heard"].strip() == heard
        assert interrupted["played_ms"] == round(samples / 24)
        phone.play(None)
        assert phone.expect("done", run=interrupted["run"])["cancelled"]
        phone.expect("turn", lambda turn: turn["run"] != interrupted["run"])
        said = calls.said(ready["conversation"])
        assert said == [
            ("user", "tell me"),
            ("assistant", interrupted["heard"]),
            ("user", "no stop"),
            ("assistant", "Fine."),
        ]
        # And so it is told to the model, which does not know of the rest.
        known = [
            message["content"] for message in upstream.requests[-1].body["messages"] if message["role"] == "assistant"
        ]
        assert known == ([interrupted["heard"]] if heard else [])
        assert phone.mistakes == []


def test_flush_goes_out_first_and_what_is_behind_it_is_closed(upstream):
    upstream.schedule = Schedule(tokens=ANSWER, stall_after=8)
    model = OpenAI("m", base_url=upstream.base_url, api_key="k")
    script = Script("tell me", "no stop", partial=True)
    with desk(model=model, voice={"transcriber": script}, RETRIES=0) as calls:
        phone = listening(calls, WORD)
        upstream.wait_for(lambda server: server.requests[0].tokens_sent == 8)
        phone.sound(LOUD, 300)
        flush = phone.expect("flush")
        assert flush["reason"] == "speech"
        phone.expect("interrupted", heard="One")
        upstream.wait_for(lambda server: server.requests[0].state == "cancelled")
        phone.expect("done", cancelled=True)
        kinds = [message["type"] for message in phone.messages]
        assert kinds.index("flush") < kinds.index("interrupted") < kinds.index("done")
        assert phone.stale == 0
        upstream.schedule = Schedule(tokens="Fine.")
        phone.sound(QUIET, 700)
        phone.play(None)
        assert "silence_ms" in phone.expect("turn")["timing"]


@pytest.mark.parametrize("words_of_it", ["mm-hm", ""])
def test_false_alarm_goes_on_where_it_was_heard_at_the_beginning_of_a_word(words_of_it):
    with desk("tell me", words_of_it, model=Puppet(words(ANSWER))) as calls:
        phone = listening(calls, WORD + WORD // 3)
        phone.say()
        phone.expect("flush", reason="speech")
        again = phone.expect("speaking")
        assert (again["continues"], again["offset"]) == (True, WORD)
        phone.play(None)
        turn = phone.expect("turn")
        assert "silence_ms" not in turn["timing"]
        assert not phone.of("interrupted")
        assert [kind["heard"] for kind in phone.of("done") if "heard" in kind] == []
        assert calls.said(phone.of("ready")[0]["conversation"])[-1] == ("assistant", ANSWER)
        # All words, each once, but for the third of the second that was heard before the alarm.
        expected = b"".join(n.to_bytes(2, "little") * WORD for n in range(1, 10))
        assert phone.heard == expected[: 2 * (WORD + WORD // 3)] + expected[2 * WORD :]
        # The captions go along: what was told of is told once, and what follows the alarm from its own beginning.
        assert [(s["generation"], s["offset"], s["text"].strip()) for s in phone.of("sentence")] == [
            (1, 0, "One two three."),
            (2, 0, "two three."),
            (2, 2 * WORD, "Four five six."),
            (2, 5 * WORD, "Seven eight nine."),
        ]
        assert phone.mistakes == []


def test_two_false_alarms():
    with desk("tell me", "mm", "hm", model=Puppet(words(ANSWER))) as calls:
        phone = listening(calls, WORD)
        phone.say()
        phone.expect("speaking", continues=True)
        phone.play(3 * WORD)
        phone.until_true(lambda: phone.samples == 3 * WORD)
        phone.say()
        phone.expect("speaking", continues=True, offset=3 * WORD)
        phone.play(None)
        phone.expect("turn")
        assert len(phone.heard) // 2 == 9 * WORD
        assert len(phone.of("run")) == 1


def test_speech_that_goes_on_is_meant_before_its_words_are_known():
    with desk("tell me", "I want something else", model=Puppet(words(ANSWER), ["Fine."])) as calls:
        phone = listening(calls, WORD)
        phone.sound(LOUD, 300)
        phone.expect("flush")
        phone.expect("interrupted", heard="One")
        assert len(phone.of("transcript")) == 1
        phone.sound(QUIET, 700)
        phone.play(None)
        phone.expect("transcript", text="I want something else")
        phone.expect("token", token="Fine.")
        phone.expect("turn")


def test_answer_does_not_begin_to_speak_into_what_the_user_says():
    """The user goes on after a breath, and the answer to the first half arrives in the midst of it."""
    pause = Pause()
    model = Puppet([pause, *words(ANSWER)], words(ANSWER))
    with desk("tell me", "mm-hm", model=model) as calls:
        phone = calls.dial()
        phone.say()
        assert pause.reached.wait(5)
        phone.sound(LOUD, 200)
        phone.expect("speech_started")
        phone.expect("speech_started")
        pause.go_on()
        phone.expect("token")
        eventually(lambda: calls.record.registry.live[0].text == ANSWER[: len(calls.record.registry.live[0].text)])
        assert not any(phone.got.values())
        phone.sound(QUIET, 700)
        phone.expect("speaking", offset=0)
        phone.expect("turn")
        assert len(phone.heard) // 2 == 9 * WORD


def test_answer_that_was_interrupted_before_its_first_word():
    pause = Pause()
    with desk("tell me", "never mind, something else", model=Puppet([pause, "One"], ["Fine."])) as calls:
        phone = calls.dial()
        phone.say()
        assert pause.reached.wait(5)
        phone.say()
        phone.expect("interrupted", heard="", played_ms=0)
        phone.expect("token", token="Fine.")
        phone.expect("turn", lambda turn: turn["run"] == phone.of("token")[-1]["run"])
        assert calls.said(phone.of("ready")[0]["conversation"]) == [
            ("user", "tell me"),
            ("assistant", ""),
            ("user", "never mind, something else"),
            ("assistant", "Fine."),
        ]


def test_button_ends_the_answer():
    with desk("tell me", model=Puppet(words(ANSWER))) as calls:
        phone = listening(calls, 2 * WORD)
        phone.tell("interrupt")
        phone.expect("flush", reason="interrupt")
        phone.expect("interrupted", heard="One two", played_ms=500)
        assert "silence_ms" in phone.expect("turn")["timing"]
        phone.tell("interrupt")
        phone.tell("message", text="go on")
        phone.play(None)
        phone.expect("turn")
        assert len(phone.of("flush")) == 1


def test_client_that_does_not_say_what_it_has_played_is_taken_at_its_last_report():
    with desk("tell me", model=Puppet(words(ANSWER))) as calls:
        phone = listening(calls, 2 * WORD)
        phone.flushes = False
        phone.tell("interrupt")
        phone.expect("interrupted", heard="One two", played_ms=500)


def test_client_that_claims_to_have_played_more_than_it_got_is_not_believed():
    with desk("tell me", model=Puppet(words(ANSWER))) as calls:
        phone = listening(calls, WORD)
        phone.flushes = False
        phone.tell("interrupt")
        phone.expect("flush")
        phone.tell("flushed", generation=1, samples=10**9)
        assert phone.expect("interrupted")["played_ms"] == round(phone.got[1] / 24)


def test_stop_from_elsewhere_silences_the_call():
    with desk("tell me", model=Puppet(words(ANSWER))) as calls:
        phone = listening(calls, 2 * WORD)
        [run] = phone.of("run")
        answer = calls.app.test_client().post(run["links"]["cancel"], headers={"X-User": "ann"})
        assert answer.status_code < 300
        phone.expect("flush", reason="stop")
        phone.expect("interrupted", heard="One two")
        phone.expect("done", cancelled=True, heard="One two")
        phone.expect("turn")
        phone.tell("message", text="and now?")
        phone.play(None)
        phone.expect("turn")


def test_another_user_cannot_stop_it():
    with desk("tell me", model=Puppet(words(ANSWER))) as calls:
        phone = listening(calls, WORD)
        [run] = phone.of("run")
        answer = calls.app.test_client().post(run["links"]["cancel"], headers={"X-User": "bob"})
        assert answer.status_code == 404
        phone.play(None)
        phone.expect("turn")
        assert not phone.of("flush")


def test_application_hears_what_was_heard():
    endings = []
    with desk("tell me", "no stop", model=Puppet(words(ANSWER), ["Fine."])) as calls:

        @run_ended.connect_via(calls.app)
        def ended(sender: object, run: Run, state: str, **more: object) -> None:
            endings.append((state, run.heard, run.text))

        phone = listening(calls, 2 * WORD)
        phone.say()
        phone.expect("interrupted")
        phone.play(None)
        phone.until_true(lambda: len(phone.of("turn")) == 2)
    (state, heard, text), second = endings
    assert (state, heard) == ("cancelled", "One two")
    assert ANSWER.startswith(text) and len(text) > len(heard), "as far as the model had come"
    assert second == ("completed", None, "Fine.")


def test_late_words_of_a_false_alarm_are_not_lost():
    late = Late("wait a moment")
    with desk("tell me", late, model=Puppet(words(ANSWER), ["Fine."])) as calls:
        phone = listening(calls, WORD)
        phone.say()
        phone.expect("flush")
        late.come.set()
        phone.expect("transcript", text="wait a moment")
        phone.expect("interrupted", heard="One")
        phone.play(None)
        phone.expect("token", token="Fine.")
        phone.expect("turn")


def test_messages_that_are_written_one_after_the_other_are_all_kept():
    """Each ends the answer before it, which takes a moment to say what was heard of it."""
    with desk(model=Puppet(words(ANSWER))) as calls:
        phone = calls.dial(until=WORD)
        for number in range(4):
            phone.tell("message", text=f"message {number}")
        phone.until_true(lambda: len(phone.of("run")) == 4)
        phone.play(None)
        phone.until_true(lambda: len(phone.of("turn")) == 4)
        said = calls.said(phone.of("ready")[0]["conversation"])
        assert [text for role, text in said if role == "user"] == [f"message {number}" for number in range(4)]
        assert said[-1] == ("assistant", ANSWER)
        assert phone.mistakes == []


def test_interruption_reaches_an_answer_that_waits_for_the_one_before_it():
    with desk(model=Puppet(words(ANSWER))) as calls:
        phone = calls.dial(until=WORD)
        phone.flushes = False
        phone.tell("message", text="first")
        phone.until_true(lambda: phone.samples == WORD)
        phone.tell("message", text="second")
        phone.tell("interrupt")
        phone.until_true(lambda: len(phone.of("turn")) == 2)
        phone.play(None)
        phone.tell("ping", t=1)
        phone.expect("pong")
        assert calls.said(phone.of("ready")[0]["conversation"])[2:] == [("user", "second"), ("assistant", "")]
        assert len(phone.heard) // 2 == WORD


def test_synthesis_ends_with_the_answer():
    voice = Monotone()
    with desk("tell me", model=Puppet(words(ANSWER)), voice={"synthesizer": voice}) as calls:
        phone = listening(calls, 0)
        phone.tell("interrupt")
        phone.expect("turn")
        eventually(lambda: voice.closed == len(voice.sentences))
        said = voice.words
        phone.tell("ping", t=1)
        phone.expect("pong")
        assert voice.words == said
