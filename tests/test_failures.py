"""Every failure on the way to an answer, through the whole stack: a named problem, by status before the first byte
and by event after it. Clients see nothing of the upstream's words; the log does, without the key."""

import os
import socket
import ssl
from contextlib import contextmanager

import pytest
import trustme

from flask_llmstream import models, streams
from flask_llmstream.errors import UpstreamError
from flask_llmstream.models import RETRY_AFTER_MOST
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.conversation import ask, events, problem, text
from tests.providers.calls import mute_server, raw_server
from tests.puppet import PATIENCE, stage

KEY = "key-of-this-application"
ANOTHER = "sk-proj-0123456789abcdefghij"
"""What looks like a key must not get into the log either."""
WORDS = "the upstream's own words"
SAID = {"error": {"message": f"{WORDS}, with the keys {KEY} and {ANOTHER} in them", "type": "some_error", "code": None}}
FILTERED = {"error": {**SAID["error"], "code": "content_filter"}}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not make a response begin for want of anything else."""
    monkeypatch.setattr(streams, "HEADERS_WITHIN", 3600)


def model_at(base_url):
    return OpenAI("test-model", api_key=KEY, base_url=base_url)


@contextmanager
def upstream(what):
    """The base URL of a model's server that does this."""
    if isinstance(what, Schedule):
        with ModelServer(what) as server:
            yield server.base_url
    else:
        with what() as base_url:
            yield base_url


@contextmanager
def nobody():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    yield f"http://127.0.0.1:{address[1]}/v1"


@contextmanager
def stranger():
    """Presents a certificate that nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with ModelServer(tls=context) as server:
        yield server.base_url


@contextmanager
def mute():
    with mute_server() as address:
        yield f"http://{address}/v1"


def talker():
    """Answers something else than was asked for."""
    return raw_server(f"HTTP/1.1 200 OK\r\nContent-Type: application/{KEY}\r\n\r\n{WORDS}".encode())


def mumbler():
    """Answers with what is no JSON."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    return raw_server(f"{head}data: {WORDS} {KEY}\n\n".encode())


BEFORE = {
    "401": (Schedule(status=401, body=SAID), 502, "upstream-authentication-failed"),
    "403": (Schedule(status=403, body=SAID), 502, "upstream-forbidden"),
    "404": (Schedule(status=404, body=SAID), 502, "upstream-refused"),
    "429": (Schedule(status=429, body=SAID, retry_after=7), 429, "upstream-rate-limited"),
    "500": (Schedule(status=500, body=SAID), 502, "upstream-unavailable"),
    "503": (Schedule(status=503, body=f"{WORDS} {KEY}".encode(), retry_after=7), 502, "upstream-unavailable"),
    "connection refused": (nobody, 502, "upstream-unreachable"),
    "TLS": (stranger, 502, "upstream-insecure"),
    "no TCP handshake": (mute, 504, "upstream-timeout", {"connect": 0.1}),
    "no headers": (Schedule(gates={"headers": Gate()}), 504, "upstream-timeout", {"first_token": 0.1}),
    "no time left": (Schedule(gates={"headers": Gate()}), 504, "upstream-timeout", {"total": 0.1}),
    "content filter": (Schedule(status=400, body=FILTERED), 422, "content-filtered"),
    "no event stream": (talker, 502, "upstream-malformed"),
}
PHASES = {"no TCP handshake": "connect", "no headers": "first_token", "no time left": "total"}

HELLO = Schedule().tokens[0]
AFTER = {
    "silence": (Schedule(stall_after=0), 504, "upstream-timeout", "", {"first_token": 0.5}),
    "silence after a token": (Schedule(stall_after=1), 504, "upstream-timeout", HELLO, {"idle": 0.1}),
    "no end in time": (Schedule(stall_after=1), 504, "upstream-timeout", HELLO, {"total": 0.5}),
    "no end marker": (Schedule(cut_after=1), 502, "upstream-truncated", HELLO),
    "a lost connection": (Schedule(cut_after=1, cut="close"), 502, "upstream-truncated", HELLO),
    "no JSON": (Schedule(malformed_after=1), 502, "upstream-malformed", HELLO),
    "no JSON, but the key": (mumbler, 502, "upstream-malformed", ""),
    "an error in the stream": (Schedule(error_after=1, error=SAID["error"]), 502, "upstream-unavailable", HELLO),
    "a refusal": (Schedule(tokens=(), refusal=f"{WORDS} {KEY}"), 422, "content-filtered", ""),
    "content filter": (Schedule(tokens=(), finish_reason="content_filter"), 422, "content-filtered", ""),
}


def cases(table, *names):
    """Parameters from a table, where what is left out at the end of a row are the time-outs."""
    names = ("what", "status", "slug", *names, "limits")
    rows = {name: row if len(row) == len(names) else (*row, {}) for name, row in table.items()}
    return pytest.mark.parametrize(names, [pytest.param(*row, id=name) for name, row in rows.items()])


def tells_nothing(response):
    seen = response.get_data(as_text=True) + str(response.headers)
    for secret in (WORDS, KEY, ANOTHER, "Traceback", "openai", "127.0.0.1", "httpx"):
        assert secret not in seen
    return response


def keeps_the_key(caplog):
    assert KEY not in caplog.text and ANOTHER not in caplog.text
    assert "Traceback" not in caplog.text, "whose lines would hold the key"


def check(said, status, slug):
    assert said["type"] == f"urn:problem-type:flask-llmstream:{slug}"
    assert said["status"] == status
    assert said["title"] and said["detail"]


def get(app):
    client = app.test_client()
    return client.get("/api/chat/stream?message=Hello", headers={"Accept": "text/event-stream"})


@cases(BEFORE)
def test_before_the_first_byte_by_status(what, status, slug, limits, caplog):
    with upstream(what) as base_url, stage(model_at(base_url), TIMEOUTS=limits) as (app, _):
        response = tells_nothing(ask(app))
        assert response.status_code == status
        check(problem(response), status, slug)
        state = tells_nothing(app.test_client().get(response.headers["Location"])).json
        assert state["status"] == "failed" and state["error"]["type"].endswith(slug)
    if isinstance(what, Schedule) and what.body is not None:
        assert WORDS in caplog.text
    keeps_the_key(caplog)


@cases(BEFORE)
def test_an_event_source_is_told_by_event(what, status, slug, limits, caplog):
    """It sees neither status nor body of a refusal."""
    with upstream(what) as base_url, stage(model_at(base_url), TIMEOUTS=limits) as (app, _):
        with get(app) as response:
            heard = events(tells_nothing(response))
        check(heard[-1]["problem"], status, slug)
        assert heard[-1]["error"] == heard[-1]["problem"]["detail"]
    keeps_the_key(caplog)


@cases(AFTER, "said")
def test_after_it_by_event(what, status, slug, said, limits, caplog):
    with upstream(what) as base_url, stage(model_at(base_url), TIMEOUTS=limits) as (app, _):
        with ask(app) as response:
            heard = events(tells_nothing(response))
        check(heard[-1]["problem"], status, slug)
        assert "".join(event.get("token", "") for event in heard) == said
        state = tells_nothing(app.test_client().get(response.headers["Location"])).json
        assert (state["status"], state["text"]) == ("failed", said)
    if what is mumbler or what.refusal or what.error_after:
        assert WORDS in caplog.text
    keeps_the_key(caplog)


@pytest.mark.parametrize(("name", "phase"), PHASES.items())
def test_a_time_out_says_which(name, phase):
    what, _, _, limits = BEFORE[name]
    with upstream(what) as base_url, stage(model_at(base_url), TIMEOUTS=limits) as (app, _):
        assert problem(ask(app))["phase"] == phase


def test_the_time_to_come_back_is_passed_on():
    with ModelServer(Schedule(status=429, retry_after=7)) as server, stage(model_at(server.base_url)) as (app, _):
        response = ask(app)
        assert response.headers["Retry-After"] == "7"
        assert problem(response)["retry_after"] == 7


def test_a_filter_that_strikes_in_the_middle_leaves_the_answer_incomplete():
    schedule = Schedule(tokens=["Hel", "lo"], finish_reason="content_filter")
    with ModelServer(schedule) as server, stage(model_at(server.base_url)) as (app, _):
        response = ask(app)
        *_, done = heard = events(response)
        assert (done["done"], done["finish_reason"]) == (True, "content_filter")
        assert "".join(event.get("token", "") for event in heard) == "Hello"
        assert app.test_client().get(response.headers["Location"]).json["status"] == "incomplete"


def test_whoever_is_given_up_on_is_hung_up_on():
    with ModelServer(Schedule(stall_after=1)) as server:
        with stage(model_at(server.base_url), TIMEOUTS={"idle": 0.1}) as (app, _):
            events(ask(app))
        server.wait_for(lambda s: s.cancelled == 1)


# The application's own function


@pytest.mark.parametrize("tokens", [[], ["Hel"]], ids=["before", "after"])
def test_an_exception_in_the_applications_function(tokens, caplog):
    with stage() as (app, llm):

        @llm.stream("/broken")
        def broken(run):
            yield from tokens
            raise LookupError(WORDS)

        response = tells_nothing(ask(app, "/broken"))
        said = events(response)[-1]["problem"] if tokens else problem(response)
        check(said, 500, "feature-failed")
        assert response.status_code == (200 if tokens else 500)
    assert f"LookupError: {WORDS}" in caplog.text and "Traceback" in caplog.text


def test_a_function_may_give_an_answer_of_its_own_to_a_failure():
    with ModelServer(Schedule(status=503)) as server, stage(model_at(server.base_url)) as (app, llm):

        @llm.stream("/careful")
        def careful(run):
            try:
                yield from run.model.stream(run.input.messages)
            except UpstreamError:
                yield "Sorry."

        assert text(ask(app, "/careful")) == "Sorry."


# Retries, as the upstream sees them


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(models, "BACKOFF", 0.001)


@pytest.mark.parametrize(
    ("schedule", "requests"),
    [
        (Schedule(status=429), 3),
        (Schedule(status=500), 3),
        (Schedule(status=503), 3),
        (Schedule(cut_after=0), 3),
        (Schedule(cut_after=0, cut="reset"), 3),
        (Schedule(status=429, retry_after=RETRY_AFTER_MOST + 1), 1),
        (Schedule(status=429, body={"error": {"code": "insufficient_quota"}}), 1),
        (Schedule(status=401), 1),
        (Schedule(status=403), 1),
        (Schedule(status=400, body=FILTERED), 1),
        (Schedule(malformed_after=0), 1),
        (Schedule(cut_after=1), 1),
        (Schedule(error_after=1), 1),
    ],
    ids=[
        "429",
        "500",
        "503",
        "nothing",
        "reset",
        "429 for long",
        "quota",
        "401",
        "403",
        "filter",
        "no JSON",
        "truncated",
        "error in the stream",
    ],
)
def test_one_layer_tries_again(quick, schedule, requests):
    """Two layers would multiply: nine requests in place of three."""
    with ModelServer(schedule) as server, stage(model_at(server.base_url), RETRIES=2) as (app, _):
        with ask(app) as response:
            response.get_data()
        assert len(server.requests) == requests
        assert {request.headers["x-stainless-retry-count"] for request in server.requests} == {"0"}


def test_a_failure_that_passes_is_not_seen(quick):
    with ModelServer() as server, stage(model_at(server.base_url), RETRIES=2) as (app, _):
        server.then(Schedule(status=503), Schedule(cut_after=0, cut="close"))
        heard = events(ask(app))
        assert "".join(event.get("token", "") for event in heard) == "Hello, world!"
        assert heard[-1]["usage"].get("estimated") is None
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_it_comes_back_when_the_server_wants_it(quick, status):
    with ModelServer() as server, stage(model_at(server.base_url), RETRIES=1) as (app, _):
        server.then(Schedule(status=status, retry_after=0.3))
        assert text(ask(app)) == "Hello, world!"
        first, second = server.requests
        assert 0.3 <= second.started_at - first.ended_at < PATIENCE


def test_a_stop_ends_the_wait_for_the_next_attempt():
    with ModelServer(Schedule(status=503, retry_after=20)) as server:
        with stage(model_at(server.base_url), RETRIES=1) as (app, _), get(app) as response:
            server.wait_for(lambda s: s.requests and s.requests[0].state == "refused")
            client = app.test_client()
            assert client.post(response.headers["Location"] + "/cancel").json["status"] == "cancelled"
            assert events(response)[-1]["cancelled"] is True
        assert len(server.requests) == 1


def test_nobody_is_asked_twice_while_the_first_answer_is_coming(quick):
    """A slow first token is no failure."""
    schedule = Schedule(first_token_delay=0.3)
    with ModelServer(schedule) as server, stage(model_at(server.base_url), RETRIES=2) as (app, _):
        assert text(ask(app)) == "Hello, world!"
        assert len(server.requests) == 1
