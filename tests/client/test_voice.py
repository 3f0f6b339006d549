"""A call from its first word to its end."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest

from tests.client.voice_server import tone

pytestmark = pytest.mark.needs("chromium")


def begun(phone, voice, options="{}", **ready):
    """A call that is up, and the page's end of it in `made`."""
    phone.evaluate(f"void (window.made = call({options}))")
    call = voice.call().ready(**ready)
    until(phone, "made.state === 'listening'")
    return call


def until(phone, condition):
    phone.evaluate(f"until(() => {condition})")


def speak(call, samples, *, generation=1, **more):
    """An answer of so many samples, whole."""
    call.say("speaking", generation=generation, run="r1", **{"continues": False, "offset": 0} | more)
    call.audio(tone(samples), generation=generation, last=True)


def test_first_message_says_what_the_call_is(phone, voice):
    phone.evaluate("""void (window.made = call({
        conversation: 'c7', parent: 'm3', mode: 'push', language: 'en', voice: 'f3', data: {topic: 1},
    }))""")
    start = voice.call().wait_for("start")
    assert start == {
        "type": "start",
        "conversation": "c7",
        "parent": "m3",
        "mode": "push",
        "language": "en",
        "voice": "f3",
        "data": {"topic": 1},
        "input": {"format": "pcm16", "rate": 16_000},
        "output": {"format": "pcm16", "rate": 24_000},
    }


def test_microphone_goes_up_in_numbered_frames_of_20_ms(phone, voice):
    call = begun(phone, voice)
    frames = call.wait_for_frames(75)
    assert [sequence for sequence, _, _ in frames] == list(range(75))
    assert {len(payload) for _, _, payload in frames} == {640}
    elapsed = frames[-1][1] - frames[0][1]
    assert 1430 <= elapsed <= 1600, "the microphone's own clock, whatever the machine is busy with"
    loud = [sum(1 for a, b in pairwise(said) if a < 0 <= b) for said in map(samples_of, frames)]
    assert 20 <= sum(count in (19, 20, 21) for count in loud) <= 55, "1 kHz rises through 0 twenty times a frame"
    assert 7000 < max(max(samples_of(frame)) for frame in frames) < 9000
    assert phone.evaluate("Math.max(...made.levels.map(([input]) => input))") == pytest.approx(0.75, abs=0.1)


def samples_of(frame):
    return array("h", frame[2])


def test_played_is_counted_to_the_last_sample(phone, voice):
    call = begun(phone, voice)
    speak(call, 9600)
    call.wait_for("played", lambda said: said["samples"] == 9600)
    counts = [said["samples"] for said in call.of("played") if said["generation"] == 1]
    assert counts == sorted(counts)
    assert 3 <= len(set(counts)) <= 8, "of 400 ms, about every 100 ms"
    assert call.of("played")[-1] == {"type": "played", "generation": 1, "samples": 9600, "seq": 2}


def test_answers_follow_each_other_and_each_is_counted(phone, voice):
    call = begun(phone, voice)
    for generation in (1, 2):
        speak(call, 1920, generation=generation)
    call.wait_for("played", lambda said: said["generation"] == 2 and said["samples"] == 1920)
    assert any(said["generation"] == 1 and said["samples"] == 1920 for said in call.of("played"))


def test_flush_silences_at_once_and_says_what_was_played(phone, voice):
    call = begun(phone, voice)
    speak(call, 24_000)
    call.wait_for("played", lambda said: said["samples"] > 2000)
    call.say("flush", generation=2, reason="speech")
    flushed = call.wait_for("flushed")
    assert flushed["generation"] == 1
    assert 2000 < flushed["samples"] < 20_000
    call.audio(tone(4800), generation=1, offset=24_000)  # a stale tail
    speak(call, 1920, generation=2)
    call.wait_for("played", lambda said: said["generation"] == 2 and said["samples"] == 1920)
    assert max(said["samples"] for said in call.of("played") if said["generation"] == 1) <= flushed["samples"]
    assert phone.evaluate("made.stats.packetsDropped") == 5


def test_flush_before_anything_was_heard(phone, voice):
    call = begun(phone, voice)
    call.say("flush", generation=1, reason="speech")
    assert call.wait_for("flushed") == {"type": "flushed", "generation": 0, "samples": 0}


def test_control_messages_are_acknowledged_while_nothing_plays(phone, voice):
    call = begun(phone, voice)
    for n in range(5):
        call.say("token", run="r1", token=f"{n} ")
    call.wait_for("played", lambda said: said["seq"] == 6)


def test_many_control_messages_are_acknowledged_at_once(phone, voice):
    """Each acknowledgement covers some hundreds at most, so that the server needs to keep no more."""
    call = begun(phone, voice)
    for _ in range(2000):
        call.say("token", run="r1", token="x")
    call.wait_for("played", lambda said: said["seq"] == 2001)
    seen = [0, *(said["seq"] for said in call.of("played"))]
    assert max(b - a for a, b in pairwise(seen)) <= 201


def test_sentences_are_told_when_they_are_heard(phone, voice):
    call = begun(phone, voice)
    call.say("sentence", generation=1, offset=0, text="One.")
    call.say("sentence", generation=1, offset=9600, text="Two.")
    call.say("sentence", generation=1, offset=21_600, text="Never.")
    speak(call, 24_000)
    until(phone, "made.all('sentence').length === 2")
    call.say("flush", generation=2, reason="speech")
    call.wait_for("flushed")
    speak(call, 1920, generation=2)
    call.wait_for("played", lambda said: said["generation"] == 2)
    first, second = phone.evaluate("made.record.filter(([kind]) => kind === 'sentence')")
    assert (first[1]["text"], second[1]["text"]) == ("One.", "Two.")
    assert 350 < second[2] - first[2] < 600, "400 ms lie between them"


def test_states_of_a_turn(phone, voice):
    call = begun(phone, voice)
    call.say("speech_started", at_ms=100)
    call.say("transcript", text="Good", final=False)
    call.say("speech_stopped", at_ms=900)
    call.say("transcript", text="Good day.", final=True)
    call.say("run", id="r1", links={"self": "/api/runs/r1"})
    call.say("status", run="r1", status="thinking")
    call.say("token", run="r1", token="Hel")
    call.say("token", run="r1", token="lo.")
    call.say("done", run="r1", done=True, tokens=2, finish_reason="stop")
    speak(call, 2400)
    call.say("turn", run="r1", timing={"first_audio_ms": 60})
    until(phone, "made.all('state').at(-1) === 'listening' && made.all('runend').length")
    states = ["connecting", "listening", "hearing", "thinking", "speaking", "listening"]
    assert phone.evaluate("made.all('state')") == states
    assert phone.evaluate("made.all('transcript')") == [
        {"text": "Good", "final": False},
        {"text": "Good day.", "final": True},
    ]
    assert phone.evaluate("made.all('run')") == [{"id": "r1", "location": f"{voice.url}/api/runs/r1"}]
    assert phone.evaluate("made.all('token')") == ["Hel", "lo."]
    assert phone.evaluate("made.all('status')") == ["thinking"]
    assert phone.evaluate("made.all('turn')") == [{"run": "r1", "first_audio_ms": 60}]
    (end,) = phone.evaluate("made.all('runend')")
    assert (end["run"], end["text"], end["finishReason"]) == ("r1", "Hello.", "stop")


def test_words_that_nobody_understood_are_followed_by_listening(phone, voice):
    call = begun(phone, voice)
    call.say("speech_started", at_ms=100)
    call.say("speech_stopped", at_ms=300)
    call.say("transcript", text="", final=True)
    until(phone, "made.all('state').length === 5")
    assert phone.evaluate("made.all('state')") == ["connecting", "listening", "hearing", "thinking", "listening"]


def test_interruption_tells_what_was_heard(phone, voice):
    call = begun(phone, voice)
    call.say("interrupted", run="r1", heard="Here is", played_ms=700)
    until(phone, "made.all('interrupted').length")
    assert phone.evaluate("made.all('interrupted')") == [{"run": "r1", "heard": "Here is", "played_ms": 700}]


def test_interrupt_silences_without_waiting_for_the_server(phone, voice):
    call = begun(phone, voice)
    speak(call, 48_000)
    until(phone, "made.state === 'speaking'")
    phone.evaluate("made.interrupt()")
    assert phone.evaluate("made.state") == "listening"
    call.wait_for("interrupt")
    call.audio(tone(4800), generation=1, offset=48_000)
    call.say("flush", generation=2, reason="interrupt")
    flushed = call.wait_for("flushed")
    assert flushed["samples"] < 24_000
    assert phone.evaluate("made.stats.packetsDropped") >= 5, "what came after the button is heard no more"


def test_button_silences_without_waiting_for_the_server(phone, voice):
    call = begun(phone, voice, "{mode: 'push'}", mode="push")
    speak(call, 48_000)
    until(phone, "made.state === 'speaking'")
    phone.evaluate("made.talk(true)")
    call.wait_for("talk")
    call.say("flush", generation=2, reason="speech")
    assert call.wait_for("flushed")["samples"] < 24_000


def test_push_to_talk_sends_nothing_but_what_is_said_meanwhile(phone, voice):
    call = begun(phone, voice, "{mode: 'push'}", mode="push")
    phone.evaluate("moment(150)")
    assert call.frames == []
    phone.evaluate("made.talk(true)")
    assert phone.evaluate("made.state") == "hearing"
    call.wait_for_frames(5)
    phone.evaluate("made.talk(false)")
    call.wait_for("talk", lambda said: not said["on"])
    assert [said["on"] for said in call.of("talk")] == [True, False]
    assert phone.evaluate("made.state") == "thinking"
    count = phone.evaluate("made.stats.frames")
    phone.evaluate("moment(100)")
    assert phone.evaluate("made.stats.frames") == len(call.frames) == count


def test_mode_changes_in_the_midst_of_it(phone, voice):
    call = begun(phone, voice)
    phone.evaluate("void (made.mode = 'push')")
    assert call.wait_for("mode") == {"type": "mode", "mode": "push"}
    phone.evaluate("void (made.mode = 'push')")
    assert len(call.of("mode")) == 1


def test_mute_sends_silence(phone, voice):
    call = begun(phone, voice)
    since = phone.evaluate("{ made.mute(true); made.stats.frames; }")
    frames = call.wait_for_frames(since + 60)[since:]  # a second of it would be a tone
    assert {payload for _, _, payload in frames} == {bytes(640)}


def test_typed_message(phone, voice):
    call = begun(phone, voice)
    phone.evaluate("made.say('And tomorrow?')")
    assert call.wait_for("message") == {"type": "message", "text": "And tomorrow?"}
    assert phone.evaluate("made.state") == "thinking"


def test_failed_run_and_problem_leave_the_call_going(phone, voice):
    call = begun(phone, voice)
    said = {"type": "urn:x", "title": "T", "status": 502, "detail": "No voice today."}
    call.say("problem", problem=said)
    call.say("run", id="r1", links={})
    call.say("error", run="r1", error="The model is down.", problem=said | {"detail": "The model is down."})
    until(phone, "made.all('problem').length === 2")
    assert [problem["message"] for problem in phone.evaluate("made.all('problem')")] == [
        "No voice today.",
        "The model is down.",
    ]
    assert phone.evaluate("made.state") == "listening"


def test_end_is_said_and_gives_the_microphone_back(phone, voice):
    phone.evaluate("""() => {
        const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (wanted) => (window.stream = await ask(wanted));
    }""")
    call = begun(phone, voice)
    call.wait_for_frames(1)
    phone.evaluate("void made.end()")
    call.wait_for("end")
    call.close(1000, "Good-bye.")
    until(phone, "made.state === 'ended'")
    assert phone.evaluate("stream.getTracks().map((track) => track.readyState)") == ["ended"]
    assert phone.evaluate("made.all('end')") == [{"code": 1000, "reason": "Good-bye."}]


def test_signal_ends_the_call(phone, voice):
    phone.evaluate("void (window.off = new AbortController())")
    call = begun(phone, voice, "{signal: off.signal}")
    phone.evaluate("off.abort()")
    call.wait_for("end")
    until(phone, "made.state === 'ended'")


def test_page_that_is_left_says_good_bye(phone, voice):
    call = begun(phone, voice)
    phone.goto("about:blank")
    call.wait_for("end")


def test_frames_are_dropped_while_the_line_is_slow(phone, voice):
    """What the browser can't get rid of does not pile up, and the gap shows in the numbers."""
    phone.evaluate("""Object.defineProperty(WebSocket.prototype, "bufferedAmount", {
        get: () => (window.slow ? 100_000 : 0),
    })""")
    call = begun(phone, voice)
    call.wait_for_frames(3)
    phone.evaluate("void (window.slow = true)")
    until(phone, "made.stats.framesDropped >= 10")
    phone.evaluate("void (window.slow = false)")
    until(phone, "made.stats.frames >= 30")
    numbers = [sequence for sequence, _, _ in call.frames]
    gaps = [b - a for a, b in pairwise(numbers) if b != a + 1]
    assert gaps == [phone.evaluate("made.stats.framesDropped") + 1]


def test_speech_from_before_the_page_was_stuck_is_dropped(phone, voice):
    call = begun(phone, voice)
    call.wait_for_frames(3)
    phone.evaluate("{ const end = Date.now() + 3000; while (Date.now() < end); }")
    count = len(call.frames)
    late = call.wait_for_frames(count + 30)
    first = next(after for before, after in pairwise(late) if after[0] != before[0] + 1)
    assert late[-1][1] - first[1] < 3000, "the rest of two seconds came at once, and then what is said now"


@pytest.mark.parametrize("output", ["context", "element"])
def test_both_ways_to_the_loudspeaker(phone, voice, output):
    call = begun(phone, voice, f"{{output: '{output}'}}")
    speak(call, 4800)
    call.wait_for("played", lambda said: said["samples"] == 4800)


def test_context_of_another_rate_is_resampled_both_ways(phone, voice):
    """As where a browser does not do what it is asked to."""
    phone.evaluate("""() => {
        const Native = AudioContext;
        window.AudioContext = class extends Native {
            constructor() { super({ sampleRate: 44_100 }); }
        };
    }""")
    call = begun(phone, voice)
    frames = call.wait_for_frames(55)
    assert frames[-1][1] - frames[0][1] == pytest.approx(54 * 20, abs=60)
    speak(call, 9600)
    call.wait_for("played", lambda said: said["samples"] == 9600)


def test_context_that_a_microphone_can_not_be_connected_to(phone, voice):
    """As in Firefox, where the rates differ."""
    phone.evaluate("""() => {
        const connect = AudioContext.prototype.createMediaStreamSource;
        AudioContext.prototype.createMediaStreamSource = function (stream) {
            if (this.sampleRate === 24_000) throw new DOMException("Rates differ.", "NotSupportedError");
            return connect.call(this, stream);
        };
    }""")
    call = begun(phone, voice)
    call.wait_for_frames(10)
    speak(call, 4800)
    call.wait_for("played", lambda said: said["samples"] == 4800)
