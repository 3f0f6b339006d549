"""Realtime calls that fail, and how they are ended."""

import socket
import ssl
import threading
import time
from contextlib import closing

import pytest
import trustme

from flask_llmstream import errors
from flask_llmstream.providers.openai_realtime import RealtimeError, RealtimeModel, ResponseDone
from flask_llmstream.testing import ModelServer, Script, Turn
from tests.voices.realtime_calls import FRAME, KEY, SECOND, audio, calling, of, until


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Script(status=401), errors.UpstreamAuthenticationFailed),
        (Script(status=403, body={"error": {"message": KEY}}), errors.UpstreamForbidden),
        (Script(status=429, retry_after=7), errors.UpstreamRateLimited),
        (Script(status=429, body={"error": {"code": "insufficient_quota"}}), errors.UpstreamForbidden),
        (Script(status=503, body=b"<html>"), errors.UpstreamUnavailable),
        (Script(error={"type": "invalid_request_error", "message": f"no {KEY}"}), errors.UpstreamRefused),
        (Script(error={"type": "tokens", "code": "rate_limit_exceeded"}), errors.UpstreamRateLimited),
    ],
    ids=["401", "403", "429", "quota", "503", "settings", "limit"],
)
def test_a_call_that_does_not_come_about(server, model, caplog, script, kind):
    caplog.set_level("DEBUG")
    server.realtime.then(script)
    with pytest.raises(kind) as caught:
        model.connect()
    assert caught.value.retry_after == script.retry_after
    assert KEY not in f"{caught.value} {caught.value.problem()} {caught.value.diagnosis} {caplog.text}"
    server.wait_for(lambda s: s.open_connections == 0)


def test_the_key_is_in_no_log(server, model, caplog):
    caplog.set_level("DEBUG")
    with calling(model) as call:
        call.send_audio(FRAME)
    assert KEY not in caplog.text


def test_nobody_is_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    model = RealtimeModel(base_url=f"http://127.0.0.1:{port}/v1")
    with closing(model), pytest.raises(errors.UpstreamUnreachable):
        model.connect()


def test_a_server_that_says_nothing(model, server, monkeypatch):
    monkeypatch.setattr("flask_llmstream.providers.openai_realtime_session.SETTLE", 0.1)
    monkeypatch.setattr("flask_llmstream.testing.realtime.RealtimeCall._update", lambda self, message: None)
    with pytest.raises(errors.UpstreamTimeout):
        model.connect()
    server.wait_for(lambda s: s.open_connections == 0)


@pytest.mark.parametrize(
    ("cut", "kind"),
    [
        ("reset", errors.UpstreamTruncated),
        (1000, errors.UpstreamTruncated),
        (1001, errors.UpstreamUnavailable),
        (1008, errors.UpstreamForbidden),
        (1011, errors.UpstreamUnavailable),
    ],
)
def test_a_call_that_the_server_ends(server, model, cut, kind):
    server.realtime.schedule = Script(turns=[Turn(cut_after=2, cut=cut, reason=f"it was {KEY}")])
    with calling(model, turn_detection=None) as call:
        call.create_response()
        seen = []
        with pytest.raises(kind) as caught:
            seen.extend(call.events())
        assert KEY not in f"{caught.value} {caught.value.problem()} {caught.value.diagnosis}"
        with pytest.raises(kind):
            for _ in range(1000):
                call.send_audio(SECOND)


def test_an_answer_that_fails_is_not_the_end_of_the_call(server, model):
    error = {"type": "server_error", "code": "rate_limit_exceeded", "message": KEY}
    server.realtime.schedule = Script(turns=[Turn(fails_after=1, error=error), Turn(says="Better.")])
    with calling(model, turn_detection=None) as call:
        events = call.events()
        call.create_response()
        done = until(events, ResponseDone)[-1]
        assert done.status == "failed"
        assert isinstance(done.error, errors.UpstreamRateLimited)
        assert KEY not in done.error.diagnosis
        call.commit()
        [told] = of(RealtimeError, until(events, RealtimeError))
        assert isinstance(told.error, errors.UpstreamRefused)
        call.create_response()
        assert audio(until(events, ResponseDone)) == server.tones.pcm("Better.")


def test_stopping_what_is_over_is_no_error(server, model):
    with calling(model, turn_detection=None) as call:
        events = call.events()
        call.create_response()
        until(events, ResponseDone)
        call.cancel()
        call.create_response()
        assert of(RealtimeError, until(events, ResponseDone)) == []
    assert [error["code"] for error in server.realtime.requests[0].errors] == ["response_cancel_not_active"]


def test_what_is_not_known_is_passed_over(server, model):
    extra = [{"type": "conversation.created", "conversation": {}}, {"type": "of.the.future", "item_id": 7}]
    server.realtime.schedule = Script(extra=extra)
    with calling(model, turn_detection=None) as call:
        call.create_response()
        assert until(call.events(), ResponseDone)[-1].status == "completed"


@pytest.mark.parametrize(
    "message",
    [
        {"type": "response.output_audio.delta", "item_id": "i", "delta": "***"},
        {"type": "response.output_audio.delta", "delta": "AAAA"},
        {"type": "input_audio_buffer.speech_started", "audio_start_ms": "soon", "item_id": "i"},
        {"type": "response.output_audio_transcript.delta", "item_id": "i", "delta": 7},
        {"type": "response.done", "response": None},
        {"type": "unknown", "filler": "x" * 5_000_000},
    ],
    ids=["no base64", "no item", "no number", "no text", "no object", "far too large"],
)
def test_a_server_that_breaks_the_rules(server, model, message):
    server.realtime.schedule = Script(extra=[message])
    with pytest.raises(errors.UpstreamMalformed):
        model.connect()
    server.wait_for(lambda s: s.open_connections == 0)


def test_without_a_key_nothing_is_asked(server):
    with pytest.raises(errors.ModelNotConfigured):
        RealtimeModel().connect()
    RealtimeModel().warm()


def test_closing_from_another_thread_ends_the_events(server, model):
    call = model.connect()
    closer = threading.Timer(0.05, call.close)
    closer.start()
    assert list(call.events()) == []
    closer.join()
    call.close()
    call.send_audio(FRAME)
    call.truncate("item", 5)
    server.wait_for(lambda s: s.realtime.completed == 1)


def test_closing_while_another_thread_is_stuck_in_sending(server, model, monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr("flask_llmstream.testing.realtime.RealtimeCall._hear", lambda self, audio: stop.wait(5))
    call = model.connect(turn_detection=None)
    sender = threading.Thread(target=lambda: [call.send_audio(SECOND * 20) for _ in range(20)])
    sender.start()
    time.sleep(0.1)
    started = time.monotonic()
    call.close()
    sender.join(5)
    assert not sender.is_alive()
    assert time.monotonic() - started < 2
    stop.set()
    server.wait_for(lambda s: s.realtime.active == 0)


def test_over_tls(monkeypatch, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ModelServer(tls=context) as server, closing(RealtimeModel(base_url=server.base_url)) as model:
        with pytest.raises(errors.UpstreamInsecure):
            model.connect()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        call = model.connect(turn_detection=None)
        call.create_response()
        events = call.events()
        assert audio(until(events, ResponseDone)) == server.tones.pcm(Turn().says)
        closer = threading.Timer(0.05, call.close)
        closer.start()
        assert list(events) == []
        closer.join()
        server.wait_for(lambda s: s.realtime.completed == 1)
