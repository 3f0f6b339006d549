"""What ends an answer of a relayed call, or the call."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from flask_llmstream import relay, rendition
from flask_llmstream.errors import UpstreamRefused, UpstreamUnavailable
from flask_llmstream.providers.openai_realtime import (
    AudioDelta,
    AudioEnded,
    OutputTranscript,
    RealtimeError,
    ResponseDone,
    ResponseStarted,
    SpeechStarted,
)
from flask_llmstream.testing import Gate, ModelServer
from flask_llmstream.testing.script import Script, Turn
from tests.puppet import Pause, Puppet, eventually
from tests.voice.caller import LOUD, Phone
from tests.voice.relays import ANSWER, FAST, FINE, KEY, WORD, Stage, kinds, listening, only, relayed, script


@pytest.fixture(scope="module")
def model_server() -> Iterator[ModelServer]:
    with ModelServer(key=KEY) as server:
        yield server


@pytest.fixture
def upstream(model_server: ModelServer) -> ModelServer:
    model_server.reset()
    model_server.realtime.schedule = Script(turns=[FAST])
    return model_server


class TestLimits:
    def test_who_may_ask_no_more_gets_no_answer(self, upstream):
        with relayed(upstream, STARTS_PER_USER="1 per hour") as calls:
            phone = calls.dial()
            phone.say()
            phone.expect("turn")
            phone.say()
            problem = phone.expect("problem")["problem"]
            assert (problem["status"], problem["limit"]) == (429, "starts")
            assert phone.hung_up()[0] == 4429
            assert kinds(only(upstream)).count("response.create") == 1

    def test_who_has_too_many_at_a_time_can_try_again(self, upstream):
        pause = Pause()
        with relayed(upstream, model_of_chat=Puppet([pause, "Done."]), MAX_RUNS_PER_USER=1) as calls:
            phone = calls.dial()
            chat = {"messages": [{"role": "user", "content": "Hello"}]}
            typed = calls.app.test_client().post("/api/chat/stream", json=chat, headers={"X-User": "ann"})
            assert pause.reached.wait(5)
            phone.say()
            assert phone.expect("problem")["problem"]["limit"] == "runs"
            assert "response.create" not in kinds(only(upstream))
            pause.go_on()
            assert "Done." in typed.text
            phone.say()
            phone.expect("turn")

    def test_budget_bounds_the_answer(self, upstream):
        with relayed(upstream, TOKEN_BUDGET="400 per day", MAX_TOKENS=1000) as calls:
            phone = calls.dial()
            phone.say()
            phone.expect("turn")
            [create] = only(upstream).sent("response.create")
            assert 300 < create["response"]["max_output_tokens"] <= 400

    def test_api_has_a_limit_too(self, upstream):
        with relayed(upstream, MAX_TOKENS=100_000) as calls:
            phone = calls.dial()
            phone.say()
            phone.expect("turn")
            [create] = only(upstream).sent("response.create")
            assert create["response"]["max_output_tokens"] == 4096

    def test_answer_that_is_cut_there(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.hears("u", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseStarted("r"))
            model.call.says("a", "Hi ", "the")
            model.call.now(AudioEnded("a"), ResponseDone("r", "incomplete", "max_output_tokens"))
            assert phone.expect("done")["finish_reason"] == "length"

    def test_nobody_hears_an_answer_for_ever(self, monkeypatch):
        monkeypatch.setattr(rendition, "MOST_AHEAD", 1)
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial(until=0)
            model.call.hears("u", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseStarted("r"))
            model.call.says("a", *["blah "] * 20)
            assert phone.expect("error")["problem"]["type"].endswith("upstream-malformed")
            assert "cancel" in model.call.told


class TestStops:
    def test_by_another_request(self, upstream):
        gate = Gate()
        script(upstream, Turn(heard="Tell me.", says=ANSWER, speed=None, gates={6: gate}), FAST)
        with relayed(upstream) as calls:
            phone = listening(calls, WORD)
            [run] = phone.of("run")
            calls.app.test_client().post(run["links"]["cancel"], headers={"X-User": "ann"})
            phone.expect("flush", reason="stop")
            assert phone.expect("done", run=run["id"])["cancelled"]
            told = only(upstream)
            assert kinds(told)[2:] == ["response.cancel", "conversation.item.truncate"]
            phone.play(None)
            phone.expect("turn")
            phone.say()
            phone.expect("turn")
            gate.release()

    def test_end_of_the_call(self, upstream):
        gate = Gate()
        script(upstream, Turn(heard="Tell me.", says=ANSWER, speed=None, gates={6: gate}))
        with relayed(upstream) as calls:
            phone = listening(calls, WORD)
            phone.tell("end")
            assert phone.hung_up()[0] == 1000
            eventually(lambda: upstream.realtime.active == 0)
            gate.release()


class TestLosses:
    @pytest.mark.parametrize("cut", ["reset", 1011], ids=str)
    def test_in_the_middle_of_an_answer(self, upstream, caplog, cut):
        turn = Turn(heard="Tell me.", says=ANSWER, speed=None, cut_after=9, cut=cut, reason="the secret is swordfish")
        script(upstream, turn)
        caplog.set_level(logging.DEBUG)
        with relayed(upstream) as calls:
            phone = calls.dial(until=WORD)
            [ready] = phone.of("ready")
            phone.say()
            run = phone.expect("run")["id"]
            code, reason = phone.hung_up()
            assert code == 1011 and "swordfish" not in reason + repr(phone.messages)
            state = calls.app.test_client().get(f"/api/runs/{run}", headers={"X-User": "ann"}).json
            assert state["status"] == "failed"
            # The client comes back: the new connection gets what was said before.
            script(upstream, FINE)
            phone.until = None
            phone.resume(calls.connect(phone), ready["token"])
            again = phone.expect("ready")
            assert (again["restored"], again["conversation"]) == ("history", ready["conversation"])
            phone.say()
            phone.expect("turn")
            known = [(item["role"], item["content"][0]["text"]) for item in upstream.realtime.requests[1].items]
            assert known[0] == ("user", "Tell me.")
            assert KEY not in caplog.text
        eventually(lambda: upstream.realtime.active == 0)

    def test_refused_call(self, upstream):
        upstream.realtime.schedule = Script(status=429, retry_after=3)
        with relayed(upstream) as calls:
            phone = Phone()
            phone.line = calls.connect(phone)
            phone.tell("start")
            assert phone.expect("problem")["problem"]["type"].endswith("upstream-rate-limited")
            assert phone.hung_up()[0] == 4429
        assert only(upstream).state == "refused"

    def test_connection_is_made_anew_while_nobody_answers(self, monkeypatch):
        monkeypatch.setattr(relay, "RENEWED_AFTER", 0.0)
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial(until=4800)
            model.call.hears("u1", "Tell me.")
            model.call.is_told("response.create")
            model.call.answers()
            phone.expect("done")
            model.call.now(UpstreamUnavailable(diagnosis="the session has lasted for 60 minutes"))
            eventually(lambda: len(model.calls) == 2)
            old, new = model.calls
            assert old.closed
            assert new.history == [
                {"role": "user", "content": "Tell me."},
                {"role": "assistant", "content": "Hi there."},
            ]
            new.hears("u2", "And then?")
            new.is_told("response.create")
            new.answers()
            phone.expect("done")
            assert phone.of("problem") == [] and phone.closed is None

    def test_answer_that_is_still_heard_then(self, monkeypatch):
        monkeypatch.setattr(relay, "RENEWED_AFTER", 0.0)
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial(until=2400)
            model.call.hears("u1", "Tell me.")
            model.call.is_told("response.create")
            model.call.answers(text=("One", " two.", " Six", " ten."))
            phone.until_true(lambda: phone.samples == 2400)
            model.call.now(UpstreamUnavailable(diagnosis="gone"))
            eventually(lambda: len(model.calls) == 2)
            assert model.call.history == [{"role": "user", "content": "Tell me."}]
            phone.play(None)
            phone.expect("done")
            model.call.is_told("conversation.item.create")
            phone.expect("turn")

    def test_somebody_was_speaking_then(self, monkeypatch):
        monkeypatch.setattr(relay, "RENEWED_AFTER", 0.0)
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            phone.sound(LOUD, 500)
            model.call.now(SpeechStarted(0, "u"))
            phone.expect("speech_started")
            model.call.now(UpstreamUnavailable(diagnosis="gone"))
            phone.expect("speech_stopped")
            eventually(lambda: len(model.calls) == 2)
            model.call.hears("u", "Once more.")
            model.call.is_told("response.create")
            model.call.answers()
            phone.expect("turn")
            assert len(phone.of("run")) == 1

    def test_nor_does_that_help(self, monkeypatch):
        monkeypatch.setattr(relay, "RENEWED_AFTER", 0.0)
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.refusal = UpstreamRefused(diagnosis="no")
            model.call.now(UpstreamUnavailable(diagnosis="the secret is swordfish"))
            assert phone.expect("problem")["problem"]["type"].endswith("upstream-unavailable")
            assert phone.hung_up() == (1011, UpstreamUnavailable.title)

    def test_one_that_was_lost_at_once_is_not_made_anew(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.now(UpstreamUnavailable(diagnosis="gone"))
            assert phone.hung_up()[0] == 1011
            assert len(model.calls) == 1


class TestOddServers:
    def test_answer_that_nobody_has_asked_for(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.now(ResponseStarted("odd"))
            model.call.says("odd", "Buy this!")
            model.call.hears("u", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseDone("odd", "completed"))
            model.call.answers()
            phone.expect("done")
            assert [token["token"] for token in phone.of("token")] == ["Hi", " there."]
            assert len(phone.heard) == 2 * 4800

    def test_parts_of_an_answer_are_heard_apart(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial(until=3 * 2400 + 1200)
            model.call.hears("u", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseStarted("r"))
            model.call.says("a", "One ", "two.")
            model.call.now(AudioEnded("a"))
            model.call.says("b", "Three ", "four.")
            model.call.now(AudioEnded("b"))
            model.call.says("c", "Five.")
            model.call.now(AudioEnded("c"), ResponseDone("r", "completed"))
            phone.until_true(lambda: phone.samples == 8400 and len(phone.of("token")) >= 5)
            phone.tell("interrupt")
            assert phone.expect("interrupted")["heard"] == "One two. Three"
            model.call.is_told("b 150", "c 0")
            phone.expect("turn")

    def test_what_was_under_way_when_it_was_cut_is_unheard(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.hears("u1", "Tell me.")
            model.call.is_told("response.create")
            phone.tell("interrupt")
            phone.expect("interrupted", heard="")
            phone.expect("turn")
            model.call.is_told("response.create", "cancel")
            model.call.now(ResponseStarted("r1"))
            model.call.says("late", "Well, ")
            model.call.is_told("late 0")
            model.call.now(ResponseDone("r1", "cancelled", "client_cancelled"))
            model.call.hears("u2", "No.")
            model.call.is_told("late 0", "response.create")
            model.call.answers("r2", "b")
            phone.expect("done")
            assert len(phone.heard) == 2 * 4800, "nothing of the first answer is in the second"

    def test_cancelled_before_it_was_begun(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.hears("u1", "Tell me.")
            model.call.is_told("response.create")
            phone.tell("interrupt")
            model.call.is_told("cancel")
            model.call.now(ResponseDone("r1", "cancelled", "client_cancelled"))
            phone.expect("turn")
            model.call.hears("u2", "No.")
            model.call.is_told("response.create")
            model.call.answers("r2", "b")
            phone.expect("token")
            phone.expect("done")

    def test_it_was_done_when_it_was_cancelled(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial(until=1200)
            model.call.hears("u1", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseStarted("r1"))
            model.call.says("a", "One ", "two. ")
            phone.until_true(lambda: phone.samples == 1200)
            phone.flushes = False
            phone.tell("interrupt")
            model.call.is_told("cancel")
            model.call.now(AudioEnded("a"), ResponseDone("r1", "completed"))
            phone.tell("flushed", generation=1, samples=2400)
            model.call.is_told("cancel", "a 100")
            phone.expect("turn")

    def test_words_all_at_once_and_behind_the_audio(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.hears("u", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseStarted("r"), AudioDelta("a", bytes(48000)), AudioEnded("a"))
            model.call.now(OutputTranscript("a", "All of it.", final=True), ResponseDone("r", "completed"))
            phone.expect("done")
            assert [token["token"] for token in phone.of("token")] == ["All of it."]

    def test_last_words_of_a_second_part(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.hears("u", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseStarted("r"))
            model.call.says("a", "One ", "two.")
            model.call.now(AudioEnded("a"), OutputTranscript("a", "One two.", final=True))
            model.call.says("b", "Three")
            model.call.now(AudioEnded("b"), OutputTranscript("b", "Three four.", final=True))
            model.call.now(ResponseDone("r", "completed"))
            phone.expect("done")
            assert [token["token"] for token in phone.of("token")] == ["One", " two.", " Three", " four."]
            assert [caption["text"] for caption in phone.of("sentence")] == ["One two.", " Three four."]

    def test_words_that_do_not_come_hold_nobody_up(self, monkeypatch):
        monkeypatch.setattr(relay, "WORDS_WITHIN", 0.05)
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.hears("u1", None)
            model.call.now(RealtimeError(UpstreamUnavailable(diagnosis="transcription failed")))
            phone.expect("problem")
            phone.expect("transcript", text="(spoken)")
            model.call.is_told("response.create")
            model.call.answers("r1", "a")
            phone.expect("done")
            model.call.hears("u2", "And now?")
            phone.expect("transcript", text="And now?", final=True)
            model.call.is_told("response.create", "response.create")
            model.call.answers("r2", "b")
            phone.expect("done")

    def test_answer_that_is_refused(self, monkeypatch):
        monkeypatch.setattr(rendition, "REFUSED_WITHIN", 0.05)
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial()
            model.call.hears("u1", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(RealtimeError(UpstreamRefused(diagnosis="the secret is swordfish")))
            assert phone.expect("error")["problem"]["type"].endswith("upstream-refused")
            assert "swordfish" not in repr(phone.messages)

    @pytest.mark.parametrize("begins", [False, True], ids=["nothing", "nothing more"])
    def test_silence(self, begins):
        model = Stage()
        with model.relayed(TIMEOUTS={"first_token": 0.2, "idle": 0.2}) as calls:
            phone = calls.dial()
            model.call.hears("u1", "Tell me.")
            model.call.is_told("response.create")
            if begins:
                model.call.now(ResponseStarted("r"))
                model.call.says("a", "Well, ")
            problem = phone.expect("error")["problem"]
            assert problem["type"].endswith("upstream-timeout")
            eventually(lambda: "cancel" in model.call.told)

    def test_all_that_was_heard_stays_whatever_the_rates(self):
        model = Stage()
        with model.relayed() as calls:
            phone = calls.dial(until=None, output={"format": "pcm16", "rate": 16000})
            model.call.hears("u", "Tell me.")
            model.call.is_told("response.create")
            model.call.now(ResponseStarted("r"))
            for _ in range(7):
                model.call.now(AudioDelta("a", bytes(2 * 1001)))
            model.call.now(OutputTranscript("a", "One."), AudioEnded("a"))
            phone.until_true(lambda: phone.samples == 4671)
            phone.tell("interrupt")
            assert phone.expect("interrupted")["heard"] == "One."
            phone.expect("turn")
            assert model.call.told == ["response.create", "cancel"], (
                "it is the model's own length, and has a transcript"
            )
