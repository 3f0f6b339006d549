"""A call whose line breaks."""

from __future__ import annotations

import time

import pytest
from websockets.exceptions import ConnectionClosed

from tests.client.test_voice import begun, speak, until
from tests.client.voice_server import problem, tone

pytestmark = pytest.mark.needs("chromium")


def test_line_that_broke_is_taken_up_where_it_was(phone, voice):
    """The rest is sent again, from what was played on; what came before is not told twice."""
    call = begun(phone, voice)
    speak(call, 4800)
    call.audio(tone(4800), generation=2)
    call.wait_for("played", lambda said: said["generation"] == 2 and said["samples"] == 4800)
    call.say("transcript", text="One", final=False)
    call.drop()
    again = voice.call()
    resume = again.wait_for("resume")
    assert resume["token"] == "t1"
    assert (resume["seq"], resume["generation"], resume["played"]) == (3, 2, 4800)
    again.seq = 2
    again.say("transcript", text="One", final=False)
    again.say("transcript", text="One two", final=True)
    again.resumed(seq=4, generation=3)
    again.say("speaking", generation=3, run="r1", continues=True, offset=4800)
    again.audio(tone(1920), generation=3, last=True)
    again.wait_for("played", lambda said: said["generation"] == 3 and said["samples"] == 1920 and said["seq"] == 6)
    assert [said["text"] for said in phone.evaluate("made.all('transcript')")] == ["One", "One two"]
    states = phone.evaluate("made.all('state')")
    assert states[states.index("reconnecting") + 1] in ("listening", "thinking", "speaking")
    assert phone.evaluate("made.restored") == "full"
    assert phone.evaluate("made.all('error')") == []


def test_what_is_queued_is_dropped_when_the_rest_is_sent_again(phone, voice):
    call = begun(phone, voice)
    call.say("speaking", generation=1, run="r1", continues=False, offset=0)
    call.audio(tone(96_000), generation=1)
    call.wait_for("played", lambda said: said["samples"] > 2400)
    call.drop()
    again = voice.call()
    played = again.wait_for("resume")["played"]
    assert 2400 < played < 60_000
    again.resumed(seq=2, generation=1)
    again.audio(tone(960), generation=1, offset=played, last=True)
    again.wait_for("played", lambda said: said["samples"] == played + 960)
    assert max(said["samples"] for said in again.of("played")) == played + 960


def test_speech_of_a_short_break_goes_out_with_the_next_line(phone, voice):
    call = begun(phone, voice)
    call.wait_for_frames(5)
    call.drop()
    again = voice.call().resumed()
    again.wait_for_frames(20)
    numbers = [sequence for sequence, _, _ in again.frames]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] <= len(call.frames) + 2


def test_typed_message_waits_for_the_next_line(phone, voice):
    call = begun(phone, voice)
    call.drop()
    until(phone, "made.state === 'reconnecting'")
    phone.evaluate("made.say('Still there?')")
    again = voice.call().resumed()
    assert again.wait_for("message")["text"] == "Still there?"


def test_close_that_is_no_end_is_followed_by_another_line(phone, voice):
    call = begun(phone, voice)
    for seq, code in enumerate([1011, 1001, 1012, 3008], 1):
        call.close(code)
        call = voice.call().resumed(seq=seq)
    until(phone, "made.state === 'listening'")


def test_another_worker_has_the_history_alone(phone, voice):
    """A session of its own begins there: everything is counted anew."""
    call = begun(phone, voice)
    speak(call, 96_000, generation=7)
    call.wait_for("played", lambda said: said["samples"] > 1000)
    call.drop()
    again = voice.call().ready(restored="history", token="t2")
    until(phone, "made.state === 'listening'")
    assert again.wait_for_frames(1)[0][0] == 0
    speak(again, 1920, generation=1)
    again.wait_for("played", lambda said: said["samples"] == 1920)
    assert {said["generation"] for said in again.of("played")} <= {0, 1}
    assert phone.evaluate("made.restored") == "history"
    again.drop()
    assert voice.call().wait_for("resume")["token"] == "t2"


def test_mode_is_as_it_was_last_and_the_rate_as_the_server_wants_it(phone, voice):
    call = begun(phone, voice)
    phone.evaluate("void (made.mode = 'push')")
    call.wait_for("mode")
    call.drop()
    again = voice.call()
    again.ready(restored="history", token="t2", input={"format": "pcm16", "rate": 24_000})
    assert again.wait_for("mode")["mode"] == "push"
    phone.evaluate("made.talk(true)")
    assert len(again.wait_for_frames(3)[-1][2]) == 960


def test_button_that_is_still_held_is_told_of_again(phone, voice):
    """With the line the server has let go of it."""
    call = begun(phone, voice, "{mode: 'push'}", mode="push")
    phone.evaluate("made.talk(true)")
    call.wait_for_frames(2)
    call.drop()
    again = voice.call().resumed(seq=1)
    assert again.wait_for("talk")["on"]
    again.wait_for_frames(5)


def test_error_of_the_server_that_is_there_each_time_ends_the_call(phone, voice):
    call = begun(phone, voice)
    call.close(1011, "No transcriber.")
    voice.call().ready(restored="history").close(1011, "No transcriber.")
    until(phone, "made.state === 'failed'")
    assert "the server had an error" in phone.evaluate("made.all('error')")[0]["message"]


def test_server_that_does_not_come_back_in_time(phone, voice):
    call = begun(phone, voice, resume_within=0.5)
    voice.refusals.extend([problem(503, "Not yet.", retry_after=0.1)] * 20)
    call.drop()
    until(phone, "made.state === 'failed'")
    (error,) = phone.evaluate("made.all('error')")
    assert (error["name"], error["message"]) == ("ProblemError", "Not yet.")
    assert 2 <= len(voice.asked) < 12


def test_refused_resume_ends_the_call_at_once(phone, voice):
    call = begun(phone, voice)
    voice.refusals.append(problem(401, "Sign in again."))
    call.drop()
    until(phone, "made.state === 'failed'")
    assert phone.evaluate("made.all('error')")[0]["message"] == "Sign in again."


def test_line_that_breaks_again_and_again_is_given_up(phone, voice):
    call = begun(phone, voice, resume_within=0.5)
    began = time.monotonic()
    seq = 1
    while phone.evaluate("made.state") != "failed" and time.monotonic() - began < 8:
        call.drop()
        try:
            call = voice.call(within=2).resumed(seq=seq)
        except (AssertionError, ConnectionClosed):
            break
        seq += 1
    until(phone, "made.state === 'failed'")
    assert phone.evaluate("made.all('error')")[0]["name"] == "ConnectionLostError"


def test_message_that_was_left_out(phone, voice):
    call = begun(phone, voice)
    call.seq += 1
    call.say("transcript", text="Hi", final=True)
    until(phone, "made.state === 'failed'")
    assert phone.evaluate("made.all('error')")[0]["message"] == "The server left out its message 2."


def test_line_that_died_without_a_word_is_noticed(phone, voice):
    """By pings that nobody answers. The page's clock is set forward, so that nobody waits here."""
    call = begun(phone, voice)
    phone.evaluate("until(() => made.stats.rtt !== null)")
    call.mute = True
    phone.evaluate("""() => {
        const now = performance.now.bind(performance);
        const since = now();
        performance.now = () => now() + 40 * (now() - since);
    }""")
    assert voice.call().wait_for("resume")["token"] == "t1"
    assert 0 <= phone.evaluate("made.stats.rtt") < 5000
