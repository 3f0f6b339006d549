"""The speech of the model server that ships with the package: what it sends, and what it does not take."""

import base64
import io
import json
import struct
import wave
from contextlib import closing, contextmanager

import openai
import pytest
from websockets.sync.client import ClientConnection

from flask_llmstream.testing import Gate, ModelServer, Schedule, Script, Tones, Turn
from flask_llmstream.testing.voice_activity import Energy, Positions

SPEECH = {"model": "m", "voice": "alloy", "input": "One two", "response_format": "pcm"}


@pytest.fixture(scope="module")
def running():
    with ModelServer(tones=Tones(word=0.1, gap=0.02)) as server:
        yield server


@pytest.fixture
def server(running):
    running.reset()
    running.realtime.schedule = Script()
    return running


@pytest.fixture
def client(server):
    with openai.OpenAI(api_key="k", base_url=server.base_url, max_retries=0) as client:
        yield client


class Socket(ClientConnection):
    def maybe_raise_legacy_warning(self):
        """The official client connects in the way that websockets 17.1 warns of."""


@contextmanager
def dialled(client, **session):
    """The official client's connection, with settings of its own; and what it reads up to an event of a type."""
    with (
        client.realtime.connect(model="m", websocket_connection_options={"create_connection": Socket}) as connection,
        closing(connection),
    ):
        seen = []

        def until(kind):
            while not seen or seen[-1].type != kind:
                seen.append(connection.recv())
            found = seen[:]
            seen.clear()
            return found

        connection.session.update(session={"type": "realtime", **session})
        until("session.updated")
        yield connection, until


def spoken(connection, pcm):
    for start in range(0, len(pcm), 4800):
        connection.input_audio_buffer.append(audio=base64.b64encode(pcm[start : start + 4800]).decode())


def wav(pcm, channels=1):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((channels, 2, 16000, 0, "NONE", ""))
        sound.writeframes(pcm)
    return "a.wav", file.getvalue()


def test_tones_are_as_long_as_their_words():
    tones = Tones(word=0.2, gap=0.1)
    assert tones.seconds("one two three") == pytest.approx(0.9)
    assert tones.pcm("one") != tones.pcm("two")
    assert max(value for (value,) in struct.iter_unpack("<h", tones.pcm("one"))) == pytest.approx(9830, abs=20)
    assert tones.pcm("") == b""


# Transcriptions and speech


def test_the_official_client_is_given_transcriptions(server, client):
    server.transcriptions.then(Schedule(tokens="Turn it on."), Schedule(tokens="Turn it on."))
    whole = client.audio.transcriptions.create(model="m", file=wav(bytes(32000)))
    assert (whole.text, whole.usage.seconds) == ("Turn it on.", 1)
    events = list(client.audio.transcriptions.create(model="m", file=wav(bytes(32000)), stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == "Turn it on."
    assert [request.seconds for request in server.transcriptions.requests] == [1.0, 1.0]
    assert server.transcriptions.completed == server.completed == 2


@pytest.mark.parametrize(
    ("file", "said"),
    [(("a.wav", b"RIFF"), "no WAV"), (wav(bytes(8), channels=2), "mono"), (("a.mp3", b"ID3"), "no WAV")],
    ids=["short", "stereo", "mp3"],
)
def test_what_is_no_speech_is_refused(server, client, file, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.audio.transcriptions.create(model="m", file=file)
    assert server.transcriptions.requests[0].state == "refused"


def test_the_official_client_is_given_speech(server, client):
    assert client.audio.speech.create(**SPEECH).content == server.tones.pcm("One two")
    [request] = server.speech.requests
    assert (request.state, request.bytes_sent) == ("completed", len(server.tones.pcm("One two")))


@pytest.mark.parametrize(
    "wrong", [{"response_format": "mp3"}, {"input": ""}, {"input": "x" * 4097}], ids=["mp3", "nothing", "too long"]
)
def test_speech_that_cannot_be_had(client, wrong):
    with pytest.raises(openai.BadRequestError):
        client.audio.speech.create(**SPEECH | wrong)


def test_a_client_that_has_heard_enough(server, client):
    gate = Gate()
    server.speech.then(Schedule(gates={2: gate}))
    with client.audio.speech.with_streaming_response.create(**SPEECH | {"input": "word " * 20}) as response:
        next(response.iter_bytes(4800))
        gate.wait()
    server.wait_for(lambda s: s.speech.cancelled == 1)
    assert server.speech.requests[0].bytes_sent == 9600
    gate.release()


# Voice activity


def test_speech_at_given_places():
    activity = Positions(100, 200)
    assert [list(activity.feed(bytes(1600), 16000)) for _ in range(5)] == [[], [(True, 100)], [], [(False, 200)], []]


def test_speech_by_its_level():
    activity = Energy(silence=200)
    tone = Tones(word=1.0, gap=0.0).pcm("one")
    sound = bytes(48000) + tone + bytes(48000)
    edges = [edge for start in range(0, len(sound), 1000) for edge in activity.feed(sound[start : start + 1000], 24000)]
    assert edges == [(True, 1000), (False, 2000)]


# Realtime calls


def test_the_official_client_is_given_a_call(server, client):
    server.realtime.schedule = Script(turns=[Turn(heard="Is it on?", says="It is on.")])
    with dialled(client, audio={"input": {"transcription": {"model": "t"}}}) as (connection, until):
        spoken(connection, bytes(9600) + server.tones.pcm("is it on") + bytes(48000))
        events = until("response.done")
    types = [event.type for event in events]
    assert types[:3] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    audio = b"".join(base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta")
    assert audio == server.tones.pcm("It is on.")
    assert events[-1].response.status == "completed"
    server.wait_for(lambda s: s.realtime.completed == 1)
    [call] = server.realtime.requests
    assert call.generated == {events[types.index("response.output_item.added")].item.id: len(audio) // 48}
    assert (call.body["model"], call.closed, call.errors) == ("m", 1000, [])


def test_answers_are_cut_where_there_is_audio(server, client):
    with dialled(client, audio={"input": {"turn_detection": None}}) as (connection, until):
        connection.response.create()
        item = next(event.item.id for event in until("response.done") if event.type == "response.output_item.added")
        length = server.realtime.requests[0].generated[item]
        connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=length + 1)
        assert f"already shorter than {length + 1}ms" in until("error")[-1].error.message
        connection.conversation.item.truncate(item_id=item, content_index=0, audio_end_ms=length)
        until("conversation.item.truncated")
        connection.conversation.item.delete(item_id=item)
        until("conversation.item.deleted")
        for act in (connection.conversation.item.delete, connection.conversation.item.retrieve):
            act(item_id=item)
            until("error")
    [call] = server.realtime.requests
    assert (call.truncated, call.deleted) == ({item: length}, [item])
    assert [error["code"] for error in call.errors] == ["invalid_value", "item_delete_invalid_item_id", "invalid_value"]


def test_one_answer_at_a_time(server, client):
    gate = Gate()
    server.realtime.schedule = Script(turns=[Turn(gates={1: gate})])
    with dialled(client, audio={"input": {"turn_detection": None}}) as (connection, until):
        connection.response.create()
        until("response.output_audio.delta")
        gate.wait()
        connection.response.create()
        assert until("error")[-1].error.code == "conversation_already_has_active_response"
        connection.response.cancel()
        done = until("response.done")[-1].response
        assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
        connection.response.cancel()
        assert until("error")[-1].error.code == "response_cancel_not_active"
        connection.input_audio_buffer.commit()
        assert until("error")[-1].error.code == "input_audio_buffer_commit_empty"
        connection.input_audio_buffer.clear()
        until("input_audio_buffer.cleared")
        gate.release()


def test_settings_that_it_does_not_take(server, client):
    with dialled(client) as (connection, until):
        audio = {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}
        connection.session.update(session={"type": "realtime", "audio": audio})
        assert "audio format" in until("error")[-1].error.message


def test_a_client_that_goes_without_a_word(server, client):
    with dialled(client) as (connection, _):
        connection._connection.socket.shutdown(2)
        server.wait_for(lambda s: s.realtime.cancelled == 1)
    assert server.realtime.requests[0].closed is None


def test_what_it_saw_may_be_asked_from_elsewhere(server, client):
    client.audio.speech.create(**SPEECH)
    assert json.loads(client.with_options(base_url=server.base_url.replace("/v1", "")).get("/stats", cast_to=str))[
        "requests"
    ] == len(server.speech.requests)
