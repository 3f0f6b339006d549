"""The `openai` provider of realtime calls, over real WebSockets."""

import subprocess
import sys

import pytest

from flask_llmstream.audio import Format
from flask_llmstream.providers.openai_realtime import (
    SERVER_VAD,
    AudioDelta,
    AudioEnded,
    InputTranscript,
    OutputTranscript,
    ResponseDone,
    ResponseStarted,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
)
from flask_llmstream.testing import Gate, Schedule, Script, Turn
from tests.voices.realtime_calls import FRAME, KEY, SECOND, audio, calling, of, until


def test_a_whole_conversation(server, model):
    first = Turn(heard="What time is it?", speech=(200, 700), says="It is noon.")
    second = Turn(heard="Thank you.", speech=(1500, 1800), says="You are welcome.")
    server.realtime.schedule = Script(turns=[first, second])
    with calling(model, instructions="Be brief.", language="en-GB", voice="marin") as call:
        events = call.events()
        for _ in range(50):
            call.send_audio(FRAME)
        started, stopped, *heard = until(events, ResponseStarted)
        begun = heard.pop()
        assert started == SpeechStarted(200, started.item)
        assert stopped == SpeechStopped(700, started.item)
        assert "".join(piece.text for piece in heard[:-1]) == "What time is it? "
        assert heard[-1] == InputTranscript(started.item, "What time is it?", final=True)
        *answer, done = until(events, ResponseDone)
        assert audio(answer) == server.tones.pcm("It is noon.")
        assert len(of(AudioEnded, answer)) == 1
        assert (done.response, done.status, done.reason, done.error) == (begun.response, "completed", None, None)
        assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.cached_tokens) == (40, 9, 8)
        for _ in range(50):
            call.send_audio(FRAME)
        answer = until(events, ResponseDone)
        assert audio(answer) == server.tones.pcm("You are welcome.")
        assert of(OutputTranscript, answer)[-1].text == "You are welcome."
        assert of(OutputTranscript, answer)[-1].final
    [dialled] = server.realtime.requests
    server.wait_for(lambda s: s.realtime.completed == 1)
    assert (dialled.body, dialled.closed) == ({"model": "gpt-realtime-2.1"}, 1000)
    assert bytes(dialled.audio) == FRAME * 100
    assert dialled.session["instructions"] == "Be brief."
    assert dialled.session["audio"] == {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "turn_detection": SERVER_VAD,
            "transcription": {"model": "gpt-transcribe", "language": "en"},
        },
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin"},
    }
    assert dialled.errors == []


def test_push_to_talk_history_and_typed_messages(server, model):
    server.realtime.schedule = Script(turns=[Turn(says="One."), Turn(says="Two.")])
    history = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "tool", "content": "42"},
    ]
    with calling(model, turn_detection=None, history=history) as call:
        events = call.events()
        call.send_audio(SECOND)
        call.commit()
        call.create_response()
        assert of(OutputTranscript, until(events, ResponseDone))[-1].text == "One."
        call.say("And then?")
        call.create_response()
        seen = until(events, ResponseDone)
        assert of(OutputTranscript, seen)[-1].text == "Two."
        assert of(InputTranscript, seen) == []
    items = [(item["role"], item["content"]) for item in server.realtime.requests[0].items]
    assert items == [
        ("system", [{"type": "input_text", "text": "Be kind."}]),
        ("user", [{"type": "input_text", "text": "Hi"}]),
        ("assistant", [{"type": "output_text", "text": "Hello."}]),
        ("user", [{"type": "input_text", "text": "And then?"}]),
    ]


@pytest.mark.parametrize(
    ("heard_ms", "kept", "truncated", "deleted"),
    [(250, 250, True, False), (999_999, 300, True, False), (0, 0, False, True), (0.4, 0, False, True)],
    ids=["in part", "more than there is", "nothing", "next to nothing"],
)
def test_an_interruption_says_how_much_was_heard(server, model, heard_ms, kept, truncated, deleted):
    gate = Gate()
    server.realtime.schedule = Script(turns=[Turn(says="one two three four", gates={3: gate}), Turn(says="Yes?")])
    with calling(model, turn_detection=None) as call:
        events = call.events()
        call.say("Count.")
        call.create_response()
        item = until(events, AudioDelta, 3)[-1].item
        call.cancel()
        assert call.truncate(item, heard_ms) == kept
        assert call.truncate(item, 100) == 0  # it is told once
        [done] = of(ResponseDone, until(events, ResponseDone))
        assert (done.status, done.reason) == ("cancelled", "client_cancelled")
        call.create_response()
        assert audio(until(events, ResponseDone)) == server.tones.pcm("Yes?")
        gate.release()
    [dialled] = server.realtime.requests
    assert dialled.truncated == ({item: kept} if truncated else {})
    assert dialled.deleted == ([item] if deleted else [])
    assert dialled.errors == []


def test_what_comes_after_the_cut_is_not_heard(server, model):
    server.realtime.schedule = Script(turns=[Turn(says="one two three four five", speed=None)])
    with calling(model, turn_detection=None) as call:
        events = call.events()
        call.create_response()
        item = until(events, AudioDelta)[-1].item
        assert call.truncate(item, 50) == 50
        assert audio(until(events, ResponseDone)) == b""


def test_an_answer_that_was_heard_to_its_end_stays_as_it_is(server, model):
    with calling(model, turn_detection=None) as call:
        events = call.events()
        call.create_response()
        seen = until(events, ResponseDone)
        assert call.truncate(of(AudioDelta, seen)[0].item, 60_000) == len(audio(seen)) / 48
        assert call.truncate("item_of_another_call", 100) == 0
    assert server.realtime.requests[0].sent("conversation.item.truncate") == []


def test_the_user_interrupts_and_the_server_hears_it(server, model):
    gate = Gate()
    first = Turn(speech=(100, 300), says="one two three four", gates={2: gate})
    server.realtime.schedule = Script(turns=[first, Turn(heard="Stop!", speech=(600, 900), says="I stop.")])
    with calling(model) as call:
        events = call.events()
        call.send_audio(SECOND[:19200])
        item = until(events, AudioDelta, 2)[-1].item
        call.send_audio(SECOND)
        seen = until(events, ResponseDone)
        assert len(of(SpeechStarted, seen)) == 1
        assert (seen[-1].status, seen[-1].reason) == ("cancelled", "turn_detected")
        assert call.truncate(item, 120) == 120
        assert audio(until(events, ResponseDone)) == server.tones.pcm("I stop.")
        gate.release()
    assert server.realtime.requests[0].truncated == {item: 120}


def test_g711_both_ways(server, model):
    pcmu, pcma = Format("pcmu", 8000), Format("pcma", 8000)
    with calling(model, turn_detection=None, input_format=pcmu, output_format=pcma) as call:
        events = call.events()
        call.send_audio(b"\xff" * 8000)
        call.commit()
        call.create_response()
        seen = until(events, ResponseDone)
        seconds = server.tones.seconds(Turn().says)
        assert len(audio(seen)) == pytest.approx(8000 * seconds, abs=100)
        assert call.truncate(of(AudioDelta, seen)[0].item, 100) == 100
    session = server.realtime.requests[0].session
    assert session["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    with pytest.raises(ValueError, match="16000"):
        model.connect(input_format=Format("pcm16", 16000))


def test_functions(server, model):
    tool = {"name": "clock", "arguments": '{"zone": "UTC"}'}
    server.realtime.schedule = Script(turns=[Turn(tool=tool), Turn(says="Noon.")])
    offered = [{"type": "function", "name": "clock", "parameters": {"type": "object"}}]
    with calling(model, turn_detection=None, tools=offered) as call:
        events = call.events()
        call.create_response()
        [wanted] = of(ToolCalled, until(events, ResponseDone))
        assert (wanted.name, wanted.arguments) == ("clock", '{"zone": "UTC"}')
        call.answer_tool(wanted.call_id, "12:00")
        call.create_response()
        assert of(OutputTranscript, until(events, ResponseDone))[-1].text == "Noon."
    [dialled] = server.realtime.requests
    assert dialled.items[0]["output"] == "12:00"
    assert dialled.session["tools"] == offered


def test_large_audio_goes_in_pieces(server, model):
    with calling(model, turn_detection=None) as call:
        call.send_audio(bytes(2_500_000))
        server.wait_for(lambda s: len(s.realtime.requests[0].audio) == 2_500_000)
    assert len(server.realtime.requests[0].sent("input_audio_buffer.append")) == 3


# Under gevent

SIDE_BY_SIDE = """
from gevent import monkey; monkey.patch_all()
import sys, time
from contextlib import suppress
import gevent
from flask_llmstream.errors import RunCancelled
from flask_llmstream.providers.openai_audio import OpenAISynthesizer, OpenAITranscriber
from flask_llmstream.providers.openai_realtime import AudioDelta, RealtimeModel, ResponseDone

model = RealtimeModel(base_url=sys.argv[1], api_key=sys.argv[2])
model.warm()

def speak():
    call = model.connect(turn_detection=None)
    try:
        call.create_response()
        total = 0
        for event in call.events():
            if isinstance(event, AudioDelta):
                total += len(event.pcm)
            if isinstance(event, ResponseDone):
                return total
    finally:
        call.close()

def timed(number):
    started = time.monotonic()
    calls = [gevent.spawn(speak) for _ in range(number)]
    gevent.joinall(calls, raise_error=True)
    assert {call.value for call in calls} == {int(sys.argv[3])}
    return time.monotonic() - started

one = timed(1)
twenty = timed(20)
assert twenty < 8 * one, (one, twenty)

def speak_until_killed():
    with suppress(RunCancelled):
        speak()

killed = [gevent.spawn(speak_until_killed) for _ in range(20)]
gevent.sleep(0.01)
gevent.killall(killed[:10], RunCancelled)
gevent.sleep(0.3)
gevent.killall(killed[10:], RunCancelled)
model.close()

hears = OpenAITranscriber(base_url=sys.argv[1], api_key=sys.argv[2])
speaks = OpenAISynthesizer(base_url=sys.argv[1], api_key=sys.argv[2])

def listen():
    utterance = hears.begin()
    utterance.feed(bytes(32000))
    with suppress(RunCancelled):
        utterance.finish()

def say():
    with suppress(RunCancelled):
        list(speaks.speak("word " * 100))

half_way = [gevent.spawn(work) for work in (listen, say) for _ in range(5)]
gevent.sleep(0.3)
gevent.killall(half_way, RunCancelled)
hears.close()
speaks.close()
"""


def test_under_gevent_calls_run_side_by_side(server):
    server.realtime.schedule = Script(turns=[Turn(says="one two three four five six seven", speed=4.0)])
    server.transcriptions.schedule = server.speech.schedule = Schedule(stall_after=1)
    size = len(server.tones.pcm("one two three four five six seven"))
    command = [sys.executable, "-c", SIDE_BY_SIDE, server.base_url, KEY, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    server.wait_for(lambda s: s.open_connections == 0 and s.active == 0)
    assert server.transcriptions.cancelled == server.speech.cancelled == 5
