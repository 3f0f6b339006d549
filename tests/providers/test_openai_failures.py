"""What the `openai` provider makes of each failure of its server: a kind of its own, and no secrets told."""

import ssl
import time
from collections.abc import Iterator
from contextlib import closing

import openai
import pytest
import trustme

from flask_llmstream import errors
from flask_llmstream.events import Token
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.providers.calls import answer, ask, cancelled_soon, label, raw_server, text_of

KEY = "local-key-that-no-pattern-knows"


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (Schedule(status=400), errors.UpstreamRefused),
        (Schedule(status=401), errors.UpstreamAuthenticationFailed),
        (Schedule(status=402), errors.UpstreamForbidden),
        (Schedule(status=403), errors.UpstreamForbidden),
        (Schedule(status=404), errors.UpstreamRefused),
        (Schedule(status=408), errors.UpstreamUnavailable),
        (Schedule(status=409), errors.UpstreamUnavailable),
        (Schedule(status=422), errors.UpstreamRefused),
        (Schedule(status=429), errors.UpstreamRateLimited),
        (Schedule(status=429, body={"error": {"code": "insufficient_quota"}}), errors.UpstreamForbidden),
        (Schedule(status=500), errors.UpstreamUnavailable),
        (Schedule(status=502, body=b"<html>Bad gateway"), errors.UpstreamUnavailable),
        (Schedule(status=503), errors.UpstreamUnavailable),
        (Schedule(status=529), errors.UpstreamUnavailable),
        (Schedule(status=400, body={"error": {"code": "content_filter"}}), errors.ContentFiltered),
        (Schedule(tokens=(), finish_reason="content_filter"), errors.ContentFiltered),
        (Schedule(tokens=(), refusal="I'm sorry, I can't"), errors.ContentFiltered),
        (Schedule(cut_after=0, cut="close"), errors.UpstreamTruncated),
        (Schedule(cut_after=0, cut="reset"), errors.UpstreamTruncated),
        (Schedule(malformed_after=0), errors.UpstreamMalformed),
        (Schedule(error_after=0), errors.UpstreamUnavailable),
    ],
    ids=label,
)
@pytest.mark.parametrize("way", ["stream", "reply"])
def test_failures_before_the_first_token(server, either, schedule, kind, way):
    server.schedule = schedule
    accepted = []
    call = ask(on_accepted=lambda: accepted.append(True))
    with pytest.raises(errors.LLMStreamError) as caught:
        answer(either, call, way)
    assert type(caught.value) is kind
    assert bool(accepted) == (schedule.status == 200 and not (way == "reply" and schedule.error_after == 0))
    assert len(server.requests) == 1  # trying again is not the provider's business


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [
        (Schedule(cut_after=2), errors.UpstreamTruncated),
        (Schedule(cut_after=2, cut="close"), errors.UpstreamTruncated),
        (Schedule(finish_reason=None, done=False), errors.UpstreamTruncated),
        (Schedule(malformed_after=2), errors.UpstreamMalformed),
        (Schedule(error_after=2), errors.UpstreamUnavailable),
        (Schedule(error_after=2, error={"code": 429, "message": "slow down"}), errors.UpstreamRateLimited),
        (Schedule(error_after=2, error={"code": "rate_limit_exceeded"}), errors.UpstreamRateLimited),
        (Schedule(finish_reason="error"), errors.UpstreamUnavailable),
    ],
    ids=label,
)
def test_failures_after_it(server, either, schedule, kind):
    server.schedule = schedule
    events = []
    with pytest.raises(errors.LLMStreamError) as caught:
        for event in either.stream(ask()):
            events.append(event)
    assert type(caught.value) is kind
    assert events[:2] == [Token("Hello"), Token(",")]


def test_a_reset_after_some_tokens(server, either):
    """What has been read stays; what was on the way is lost with the connection."""
    gate = Gate()
    server.schedule = Schedule(gates={2: gate}, cut_after=2, cut="reset")
    events = either.stream(ask())
    assert [next(events), next(events)] == [Token("Hello"), Token(",")]
    gate.release()
    with pytest.raises(errors.UpstreamTruncated):
        next(events)


@pytest.mark.parametrize("way", ["stream", "reply"])
def test_no_key_and_no_text_of_the_servers_gets_into_what_clients_see(way):
    with ModelServer(key="right") as server, closing(OpenAI("m", api_key=KEY, base_url=server.base_url)) as model:
        with pytest.raises(errors.UpstreamAuthenticationFailed) as caught:
            answer(model, ask(), way)
        assert "Incorrect API key" in caught.value.diagnosis
        server.key = None
        server.schedule = Schedule(error_after=1, error={"message": f"Bearer {KEY} sk-abcdef123456 is wrong"})
        with pytest.raises(errors.UpstreamUnavailable) as in_the_stream:
            answer(model, ask(), way)
        assert "is wrong" in in_the_stream.value.diagnosis
    for error in (caught.value, in_the_stream.value):
        assert KEY not in error.diagnosis and "abcdef" not in error.diagnosis
        assert "Incorrect" not in str(error.problem()) and "wrong" not in str(error.problem())
        assert error.__suppress_context__  # whose message has the text, and would be logged with it


def test_the_time_to_wait_is_passed_on(server, model):
    def refusal(**more: object) -> errors.LLMStreamError:
        server.then(Schedule(**more))
        with pytest.raises(errors.LLMStreamError) as caught:
            list(model.stream(ask()))
        return caught.value

    assert refusal(status=429, retry_after=7).retry_after == 7
    assert refusal(status=503, retry_after=1.5).retry_after == 1.5
    assert refusal(status=429).retry_after is None
    assert refusal(status=429, headers={"Retry-After": "soon"}).retry_after is None
    assert refusal(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}).retry_after == 0
    in_a_day = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 86400))
    assert 86000 < refusal(status=503, headers={"Retry-After": in_a_day}).retry_after <= 86400
    limits = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0.5s",
        "x-ratelimit-remaining-tokens": "12",
        "x-ratelimit-reset-tokens": "6h",
    }
    assert refusal(status=429, headers=limits).retry_after == 60.5


def test_nobody_there(unused_port):
    for url in (f"http://127.0.0.1:{unused_port}/v1", "http://host.invalid/v1"):
        with closing(OpenAI("m", base_url=url)) as model, pytest.raises(errors.UpstreamUnreachable):
            list(model.stream(ask()))


def test_answers_that_are_none():
    answers = (b"", b"not HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}")
    with raw_server(*answers) as base_url, closing(OpenAI("m", base_url=base_url)) as model:
        for kind in (errors.UpstreamUnreachable, errors.UpstreamMalformed, errors.UpstreamMalformed):
            with pytest.raises(kind):
                list(model.stream(ask()))


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure_server(authority: trustme.CA) -> Iterator[ModelServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ModelServer(tls=context) as server:
        yield server


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch, tmp_path) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.mark.parametrize("own", [False, True], ids=["our transport", "the client's own"])
def test_a_certificate_that_nobody_vouches_for(secure_server, own):
    client = openai.OpenAI(api_key="k", base_url=secure_server.base_url) if own else None
    model = OpenAI("m", client=client, base_url=secure_server.base_url)
    with closing(client or model), pytest.raises(errors.UpstreamInsecure):
        list(model.stream(ask()))
    assert secure_server.requests == []


def test_one_for_another_host(authority, trusted):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(context)
    with ModelServer(tls=context) as server, closing(OpenAI("m", base_url=server.base_url)) as model:
        with pytest.raises(errors.UpstreamInsecure):
            list(model.stream(ask()))
        assert server.requests == []


def test_a_server_that_speaks_no_tls():
    with raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as base_url:
        model = OpenAI("m", base_url=base_url.replace("http", "https"))
        with closing(model), pytest.raises(errors.UpstreamInsecure):
            list(model.stream(ask()))


def test_over_tls_all_is_the_same(secure_server, trusted):
    server = secure_server
    with closing(OpenAI("m", base_url=server.base_url)) as model:
        for _ in range(3):
            assert text_of(model.stream(ask())) == server.schedule.text
        assert server.connections == 1
        gate = Gate()
        for schedule in (Schedule(stall_after=2), Schedule(gates={"headers": gate})):
            server.then(schedule)
            call = ask()
            with cancelled_soon(call):
                list(model.stream(call))
        server.wait_for(lambda s: s.cancelled == 2)
    server.wait_for(lambda s: s.open_connections == 0)
