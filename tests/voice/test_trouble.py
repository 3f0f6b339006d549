"""What fails in a call is told, and the call goes on; what a user may not have, a call does not give."""

from __future__ import annotations

from typing import Any

import pytest

from flask_llmstream import LLMStream, Run
from flask_llmstream.errors import UpstreamUnavailable
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.providers.openai_audio import OpenAISynthesizer, OpenAITranscriber
from flask_llmstream.testing import ModelServer, Schedule, Tones
from tests.puppet import Pause, Puppet, eventually
from tests.servers.client import QUESTION
from tests.voice.desk import WORD, Loudness, Monotone, Script, desk, words

ANSWER = "One two three. Four five six."


class Deaf(Script):
    """A transcriber that cannot even begin."""

    def begin(self, *, language: str | None = None) -> Any:
        raise UpstreamUnavailable(diagnosis="nobody listens")


class Breaking(Script):
    """A transcriber that fails in mid-sentence."""

    def begin(self, *, language: str | None = None) -> Any:
        utterance = super().begin(language=language)
        utterance.feed = lambda pcm: (_ for _ in ()).throw(UpstreamUnavailable(diagnosis="it broke"))  # type: ignore[method-assign]
        return utterance


@pytest.mark.parametrize(
    "script",
    [
        Script(UpstreamUnavailable(diagnosis="no")),
        Script(RuntimeError("swordfish")),
        Deaf("x"),
        Breaking("x"),
    ],
    ids=["at the end", "by a mistake", "at the beginning", "in between"],
)
def test_transcriber_fails(script, caplog):
    with desk(voice={"transcriber": script}) as calls:
        phone = calls.dial()
        phone.say()
        problem = phone.expect("problem")["problem"]
        assert problem["status"] >= 500
        assert "swordfish" not in str(problem)
        phone.tell("message", text="so I write")
        phone.expect("turn")
        assert calls.said(phone.of("ready")[0]["conversation"])[0] == ("user", "so I write")
        assert phone.closed is None
    caplog.clear()


def test_transcriber_fails_during_an_answer_which_goes_on():
    with desk(UpstreamUnavailable(diagnosis="no"), model=Puppet(words(ANSWER))) as calls:
        phone = calls.dial(until=WORD)
        phone.tell("message", text="tell me")
        phone.until_true(lambda: phone.samples == WORD)
        phone.say()
        phone.expect("problem")
        phone.expect("speaking", continues=True)
        phone.play(None)
        phone.expect("turn")
        assert len(phone.heard) // 2 == 6 * WORD


def test_synthesizer_fails():
    with desk(model=Puppet(words(ANSWER)), voice={"synthesizer": Monotone(fails_at="five")}) as calls:
        phone = calls.dial()
        phone.tell("message", text="tell me")
        error = phone.expect("error")
        assert error["problem"]["status"] == 502 or error["problem"]["status"] == 503
        phone.expect("turn")
        conversation = phone.of("ready")[0]["conversation"]
        question, (role, kept) = calls.said(conversation)
        assert question == ("user", "tell me")
        assert role == "assistant"
        assert ANSWER.startswith(kept)
        assert "five" not in kept
        assert phone.of("interrupted")[0]["heard"] == kept


def test_function_fails_in_mid_answer(caplog):
    def declare(llm: LLMStream) -> None:
        @llm.voice("/failing")
        def failing(run: Run) -> Any:
            yield "One two three. "
            raise RuntimeError("the secret is swordfish")

    with desk("again", declare=declare) as calls:
        phone = calls.dial(rule="/failing")
        phone.tell("message", text="tell me")
        error = phone.expect("error")
        assert "swordfish" not in str(error)
        phone.expect("turn")
        phone.say()
        phone.expect("error")
        phone.expect("turn")
        assert [role for role, _ in calls.said(phone.of("ready")[0]["conversation"])] == ["user", "assistant"] * 2
    caplog.clear()


def test_conversation_that_is_busy_elsewhere():
    pause = Pause()
    with desk("hello", model=Puppet([pause, "Done."])) as calls:
        first = calls.dial()
        first.tell("message", text="tell me")
        assert pause.reached.wait(5)
        second = calls.dial(conversation=first.of("ready")[0]["conversation"])
        second.say()
        problem = second.expect("problem")["problem"]
        assert (problem["status"], problem["limit"]) == (429, "conversation")
        pause.go_on()
        first.expect("turn")
        second.tell("message", text="and now")
        second.expect("turn")


def test_limits_of_runs_and_of_calls_hold():
    pause = Pause()
    with desk(model=Puppet([pause, "Done."], ["Fine."]), MAX_RUNS_PER_USER=1) as calls:
        written = calls.app.test_client().post("/api/chat/stream", json=QUESTION, headers={"X-User": "ann"})
        assert pause.reached.wait(5)
        phone, other = calls.dial(), calls.dial(owner="bob")
        phone.tell("message", text="tell me, too")
        problem = phone.expect("problem")["problem"]
        assert (problem["status"], problem["limit"]) == (429, "runs")
        other.tell("message", text="and me")
        other.expect("turn")
        pause.go_on()
        assert b"Done." in written.data
        phone.tell("message", text="and now")
        phone.expect("turn")
        second = calls.dial(ready=False)
        assert second.hung_up()[0] == 4429
        assert second.of("problem")[0]["problem"]["status"] == 429


def test_message_that_is_too_long_is_refused_and_the_call_goes_on():
    with desk(MAX_MESSAGE=20) as calls:
        phone = calls.dial()
        phone.tell("message", text="x" * 21)
        assert phone.expect("problem")["problem"]["status"] == 422
        phone.tell("message", text="short")
        phone.expect("turn")


def test_anonymous_strangers_share_nothing():
    with desk() as calls:
        phone = calls.dial()
        phone.tell("message", text="my secret")
        phone.expect("turn")
        conversation = phone.of("ready")[0]["conversation"]
        stranger = calls.dial(owner="bob", conversation=conversation)
        stranger.tell("message", text="what did I say?")
        stranger.expect("turn")
        assert [message["content"] for message in calls.model.calls[-1].messages] == ["what did I say?"]
        assert len(calls.said(conversation)) == 2
        assert len(calls.said(conversation, owner="bob")) == 2


def test_call_to_a_message_that_is_not_there():
    with desk() as calls:
        phone = calls.dial(conversation="c" * 20, parent="nothing", ready=False)
        code, reason = phone.hung_up()
        assert code == 4404
        assert reason


def test_call_leaves_nothing_behind():
    script = Script("hello", "stop")
    voice = Monotone()
    with desk(model=Puppet(words(ANSWER)), voice={"transcriber": script, "synthesizer": voice}) as calls:
        phone = calls.dial(until=WORD)
        phone.say()
        phone.until_true(lambda: phone.samples == WORD)
        phone.sound(b"\x00\x40", 200)
        phone.tell("end")
        assert phone.hung_up() == (1000, "The call was ended.")
        eventually(lambda: not calls.record.registry.live)
        eventually(lambda: voice.closed == len(voice.sentences))
        assert len(calls.record.sessions) == 0
        assert [utterance.aborted or utterance.finished for utterance in script.heard] == [True] * len(script.heard)
        assert calls.said(phone.of("ready")[0]["conversation"])[-1] == ("assistant", "One")


def test_all_by_way_of_openai():
    """Transcription, model and speech over HTTP; each of them is closed when the user speaks."""
    with ModelServer(Schedule(tokens=ANSWER), tones=Tones(word=0.2, gap=0.05)) as upstream:
        address = {"base_url": upstream.base_url, "api_key": "k"}
        voice = {
            "transcriber": OpenAITranscriber(**address),
            "synthesizer": OpenAISynthesizer(**address),
            "activity": Loudness(),
        }
        upstream.transcriptions.then(Schedule(tokens="tell me"), Schedule(tokens="stop it"))
        with desk(model=OpenAI("m", **address), voice=voice, RETRIES=0) as calls:
            phone = calls.dial(until=6000)
            phone.say()
            phone.expect("transcript", text="tell me")
            phone.until_true(lambda: phone.samples == 6000)
            upstream.schedule = Schedule(tokens="Fine.")
            phone.say()
            phone.expect("interrupted", heard="One")
            phone.play(None)
            phone.expect("token", token="Fine.")
            phone.expect("turn")
            assert upstream.tones.pcm("Fine.") in phone.heard
            assert upstream.active == 0
        for provider in ("transcriber", "synthesizer"):
            voice[provider].close()


def test_stalled_synthesis_is_closed_when_the_user_speaks():
    with ModelServer(Schedule(tokens=ANSWER)) as upstream:
        address = {"base_url": upstream.base_url, "api_key": "k"}
        synthesizer = OpenAISynthesizer(**address)
        upstream.speech.schedule = Schedule(stall_after=2)
        with desk(model=OpenAI("m", **address), voice={"synthesizer": synthesizer}, RETRIES=0) as calls:
            phone = calls.dial()
            phone.tell("message", text="tell me")
            phone.until_true(lambda: phone.samples)
            phone.tell("interrupt")
            phone.expect("turn")
            upstream.wait_for(lambda server: server.speech.requests[0].state == "cancelled")
        synthesizer.close()
