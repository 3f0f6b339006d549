"""The `openai` providers of transcription and speech, over real sockets."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest

from flask_llmstream import errors
from flask_llmstream.errors import RunCancelled
from flask_llmstream.providers import Timeouts, openai_audio
from flask_llmstream.providers.openai_audio import OpenAISynthesizer, OpenAITranscriber
from flask_llmstream.testing import Gate, ModelServer, Schedule

KEY = "sk-very-secret-0123456789"
SECOND = bytes(32000)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def running():
    with ModelServer(key=KEY) as server:
        yield server


@pytest.fixture
def server(running):
    running.reset()
    running.transcriptions.schedule = Schedule(tokens="Turn on the light.")
    running.speech.schedule = Schedule()
    return running


@pytest.fixture
def transcriber(server):
    with closing(OpenAITranscriber(base_url=server.base_url, api_key=KEY)) as transcriber:
        yield transcriber


@pytest.fixture
def synthesizer(server):
    with closing(OpenAISynthesizer(base_url=server.base_url, api_key=KEY)) as synthesizer:
        yield synthesizer


def heard(transcriber, pcm=SECOND, **more):
    utterance = transcriber.begin(**more)
    for start in range(0, len(pcm), 640):
        assert utterance.feed(pcm[start : start + 640]) is None
    return utterance.finish()


def said(speaking):
    return b"".join(sound.pcm for sound in speaking)


# Transcription


def test_an_utterance_goes_as_one_file_and_comes_back_as_words(server, transcriber):
    pcm = bytes(range(256)) * 100
    assert heard(transcriber, pcm, language="en-GB") == "Turn on the light."
    [request] = server.transcriptions.requests
    assert (request.pcm, request.rate, request.seconds) == (pcm, 16000, 0.8)
    assert request.body == {"model": "gpt-transcribe", "language": "en", "stream": "true"}
    assert server.requests == []


def test_further_fields_and_the_other_rate(server):
    options = {"prompt": "Names: Ann."}
    with closing(
        OpenAITranscriber("m", rate=24000, options=options, base_url=server.base_url, api_key=KEY)
    ) as transcriber:
        heard(transcriber, language="yue")
    [request] = server.transcriptions.requests
    assert request.rate == 24000
    assert request.body == {"model": "m", "prompt": "Names: Ann.", "stream": "true"}
    with pytest.raises(ValueError, match="8000"):
        OpenAITranscriber(rate=8000)


def test_a_model_that_does_not_stream(server):
    with closing(OpenAITranscriber("whisper-1", base_url=server.base_url, api_key=KEY)) as transcriber:
        assert heard(transcriber) == "Turn on the light."
    assert "stream" not in server.transcriptions.requests[0].body


def test_next_to_nothing_is_not_sent(server, transcriber):
    assert heard(transcriber, bytes(3198)) == ""
    assert server.transcriptions.requests == []
    assert heard(transcriber, bytes(3200)) != ""


def test_an_utterance_may_last_ten_minutes(server, transcriber):
    utterance = transcriber.begin()
    for _ in range(601):
        utterance.feed(SECOND)
    with pytest.raises(errors.ContentTooLarge, match="600 seconds"):
        utterance.finish()
    assert server.transcriptions.requests == []


def test_one_connection_serves_one_utterance_after_the_other(server, transcriber):
    for _ in range(5):
        heard(transcriber)
    assert len({request.connection for request in server.transcriptions.requests}) == 1


def test_many_utterances_at_once(server, transcriber):
    server.transcriptions.schedule = lambda request: Schedule(tokens=f"{request.seconds:g} s", headers_delay=0.1)
    with ThreadPoolExecutor(20) as pool:
        words = list(pool.map(lambda n: heard(transcriber, SECOND * n), range(1, 21)))
    assert words == [f"{n} s" for n in range(1, 21)]


@pytest.mark.parametrize(
    "schedule",
    [Schedule(headers_delay=60), Schedule(stall_after=2), Schedule(tokens=9999, rate=20)],
    ids=["before its answer", "in the middle of it", "while words come"],
)
def test_an_abort_closes_the_connection_at_once(server, transcriber, schedule):
    server.transcriptions.schedule = schedule
    utterance = transcriber.begin()
    utterance.feed(SECOND)
    with ThreadPoolExecutor(1) as pool:
        words = pool.submit(utterance.finish)
        server.wait_for(lambda s: s.transcriptions.active == 1)
        aborted = time.monotonic()
        utterance.abort()
        utterance.abort()
        with pytest.raises(RunCancelled):
            words.result(5)
    server.wait_for(lambda s: s.transcriptions.cancelled == 1)
    assert server.transcriptions.requests[0].ended_at - aborted < 1


def test_an_abort_before_the_end(server, transcriber):
    utterance = transcriber.begin()
    utterance.feed(SECOND)
    utterance.abort()
    utterance.feed(SECOND)
    with pytest.raises(RunCancelled):
        utterance.finish()
    assert server.transcriptions.requests == []


def test_an_abort_between_two_attempts(server, transcriber):
    server.transcriptions.schedule = Schedule(status=503, retry_after=2)
    utterance = transcriber.begin()
    utterance.feed(SECOND)
    with ThreadPoolExecutor(1) as pool:
        words = pool.submit(utterance.finish)
        server.wait_for(lambda s: s.transcriptions.requests and not s.active)
        aborted = time.monotonic()
        utterance.abort()
        with pytest.raises(RunCancelled):
            words.result(5)
    assert time.monotonic() - aborted < 1


# Speech


def test_speech_comes_in_whole_samples(server, synthesizer):
    sounds = list(synthesizer.speak("How do you do", voice="coral", language="en"))
    assert b"".join(sound.pcm for sound in sounds) == server.tones.pcm("How do you do")
    assert {len(sound.pcm) % 2 for sound in sounds} == {0}
    assert max(len(sound.pcm) for sound in sounds) == 4800
    assert not any(sound.marks for sound in sounds)
    [request] = server.speech.requests
    assert request.body == {
        "model": "gpt-4o-mini-tts",
        "voice": "coral",
        "input": "How do you do",
        "response_format": "pcm",
    }
    assert request.bytes_sent == len(server.tones.pcm("How do you do"))


def test_speech_comes_while_it_is_being_made(server, synthesizer):
    gate = Gate()
    server.speech.then(Schedule(gates={1: gate}))
    with closing(synthesizer.speak("One two three")) as speaking:
        assert len(next(speaking).pcm) == 4800
        gate.wait()
        assert server.speech.active == 1
        gate.release()
        assert len(said(speaking)) == len(server.tones.pcm("One two three")) - 4800


def test_closing_it_closes_the_connection_at_once(server, synthesizer):
    server.speech.then(Schedule(rate=10))
    speaking = synthesizer.speak("word " * 100)
    next(speaking)
    speaking.close()
    server.wait_for(lambda s: s.speech.cancelled == 1)
    assert server.speech.requests[0].bytes_sent < 10 * 4800


@pytest.mark.parametrize("schedule", [Schedule(headers_delay=60), Schedule(stall_after=1)], ids=["headers", "silence"])
def test_another_thread_closes_it(server, synthesizer, schedule):
    server.speech.then(schedule)
    speaking = synthesizer.speak("One two three")
    with ThreadPoolExecutor(1) as pool:
        sounds = pool.submit(list, speaking)
        server.wait_for(lambda s: s.speech.active == 1)
        speaking.close()
        with pytest.raises(RunCancelled):
            sounds.result(5)
    server.wait_for(lambda s: s.speech.cancelled == 1)


def test_a_slow_listener_slows_the_server_down(server, synthesizer):
    text = "word " * 1000  # 300 s, 14 MB: more than sockets take
    text = text[:4096].strip()
    with closing(synthesizer.speak(text)) as speaking:
        next(speaking)
        sent = -1
        while sent != (sent := server.speech.requests[0].bytes_sent):
            time.sleep(0.05)
        assert sent < len(server.tones.pcm(text)) * 0.9
    server.wait_for(lambda s: s.speech.cancelled == 1)


def test_what_is_no_pcm_is_not_played(server, synthesizer):
    server.speech.then(Schedule(headers={"Content-Type": "audio/mpeg"}))
    with pytest.raises(errors.UpstreamMalformed):
        list(synthesizer.speak("Hi"))


# Failures


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (Schedule(status=401), errors.UpstreamAuthenticationFailed),
        (Schedule(status=403), errors.UpstreamForbidden),
        (Schedule(status=400, body={"error": {"message": f"{KEY} is wrong"}}), errors.UpstreamRefused),
        (Schedule(status=429, retry_after=30), errors.UpstreamRateLimited),
        (Schedule(headers_delay=60), errors.UpstreamTimeout),
        (Schedule(cut_after=0, cut="reset", headers_delay=0.01), errors.UpstreamTruncated),
    ],
    ids=["401", "403", "400", "429", "silence", "reset"],
)
def test_failures_have_names_and_tell_no_secrets(server, caplog, monkeypatch, schedule, kind):
    monkeypatch.setattr(openai_audio, "PAUSE", 0.01)
    timeouts = Timeouts(first_token=0.3)
    options = {"base_url": server.base_url, "api_key": KEY, "timeouts": timeouts}
    server.transcriptions.schedule = server.speech.schedule = schedule
    caplog.set_level("DEBUG", "flask_llmstream")
    with closing(OpenAITranscriber(**options)) as transcriber, closing(OpenAISynthesizer(**options)) as synthesizer:
        for act in (lambda: heard(transcriber), lambda: list(synthesizer.speak("Hi"))):
            with pytest.raises(kind) as caught:
                act()
            assert KEY not in f"{caught.value} {caught.value.problem()} {caught.value.diagnosis} {caplog.text}"
            assert caught.value.retry_after == schedule.retry_after


@pytest.mark.parametrize(
    "fault", [Schedule(status=429), Schedule(status=503), Schedule(cut_after=0, cut="reset")], ids=["429", "503", "cut"]
)
def test_passing_faults_are_tried_again(server, transcriber, synthesizer, fault, monkeypatch):
    monkeypatch.setattr(openai_audio, "PAUSE", 0.01)
    server.transcriptions.then(fault, fault)
    server.speech.then(fault, fault)
    assert heard(transcriber) == "Turn on the light."
    assert said(synthesizer.speak("Hi")) == server.tones.pcm("Hi")
    assert len(server.transcriptions.requests) == len(server.speech.requests) == 3


def test_what_has_begun_to_sound_is_not_begun_again(server, synthesizer):
    server.speech.then(Schedule(cut_after=2, cut="close"))
    sounds = []
    with pytest.raises(errors.UpstreamTruncated):
        for sound in synthesizer.speak("One two three"):
            sounds.append(sound)
    assert sounds
    assert len(server.speech.requests) == 1


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (Schedule(done=False), errors.UpstreamTruncated),
        (Schedule(malformed_after=1), errors.UpstreamMalformed),
        (
            Schedule(error_after=1, error={"message": KEY, "code": "invalid_api_key"}),
            errors.UpstreamAuthenticationFailed,
        ),
    ],
    ids=["no end", "no JSON", "an error"],
)
def test_a_transcription_that_goes_wrong_half_way(server, transcriber, schedule, kind, monkeypatch):
    monkeypatch.setattr(openai_audio, "PAUSE", 0.01)
    server.transcriptions.schedule = schedule
    with pytest.raises(kind) as caught:
        heard(transcriber)
    assert KEY not in f"{caught.value.problem()} {caught.value.diagnosis}"


def test_a_wrong_key(server):
    with (
        closing(OpenAISynthesizer(base_url=server.base_url, api_key="sk-another-secret")) as synthesizer,
        pytest.raises(errors.UpstreamAuthenticationFailed) as caught,
    ):
        list(synthesizer.speak("Hi"))
    assert "sk-another-secret" not in f"{caught.value.diagnosis}"


def test_a_client_of_ones_own(server):
    with openai.OpenAI(api_key=KEY, base_url=server.base_url) as client:
        assert heard(OpenAITranscriber(client=client)) == "Turn on the light."
        assert said(OpenAISynthesizer(client=client).speak("Hi")) == server.tones.pcm("Hi")


def test_without_a_key_nothing_is_asked():
    assert not OpenAITranscriber().configured
    with pytest.raises(errors.ModelNotConfigured, match="OPENAI_API_KEY"):
        OpenAITranscriber().begin()
    with pytest.raises(errors.ModelNotConfigured):
        OpenAISynthesizer().speak("Hi")
    OpenAISynthesizer().warm()


def test_the_environment_says_where(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with closing(OpenAITranscriber()) as transcriber:
        transcriber.warm()
        assert heard(transcriber) == "Turn on the light."
