"""What a receiver may answer."""

from __future__ import annotations

import email.utils
import json
import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream import webhooks
from flask_llmstream.errors import WebhookFailed, WebhookRefused
from tests.webhooks.receiver import (
    NOW,
    OK,
    receiver,
    send,
    status,
)


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        status("200 OK", body=b"thanks"),
        status("202 Accepted"),
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbroken off",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
    ],
)
def test_any_status_from_200_is_success_whatever_comes_after_it(answer):
    with receiver(answer) as server:
        send(f"http://127.0.0.1:{server.port}")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "line",
    [
        "304 Not Modified",
        "400 Bad Request",
        "401 Unauthorized",
        "404 Not Found",
        "408 Request Timeout",
        "425 Too Early",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ],
)
def test_all_else_may_pass(line):
    answer = status(line, body=b"a secret\r\nof the receiver's")
    with receiver(answer) as server, pytest.raises(WebhookFailed, match=line[:3]) as failed:
        send(f"http://127.0.0.1:{server.port}/?token=of-ann")
    error = failed.value
    assert (error.retryable, error.retry_after) == (True, None)
    assert "secret" not in json.dumps(error.problem())
    assert "\n" not in error.diagnosis
    assert "of-ann" not in error.diagnosis
    assert error.__suppress_context__ or error.__context__ is None


def test_gone_is_for_good():
    with receiver(status("410 Gone", "Retry-After: 5")) as server, pytest.raises(WebhookRefused) as refused:
        send(f"http://127.0.0.1:{server.port}")
    assert refused.value.reason == refused.value.problem()["reason"] == "gone"
    assert not refused.value.retryable


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0),
        (email.utils.formatdate(NOW + 90), 90),
        ("999999999999", webhooks.RETRY_AFTER_MOST),
        (email.utils.formatdate(NOW + 10**9, usegmt=True), webhooks.RETRY_AFTER_MOST),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("line", ["429 Too Many Requests", "503 Service Unavailable"])
def test_when_the_receiver_wants_to_be_asked_again(line, value, seconds):
    with receiver(status(line, f"Retry-After: {value}")) as server, pytest.raises(WebhookFailed) as failed:
        send(f"http://127.0.0.1:{server.port}", now=lambda: NOW)
    assert failed.value.retry_after == seconds


PIECES = [
    b"HTTP/1.1 429 Too Many\r\nRetry-After: ",
    b"HTTP/1.1 200 OK\r\n",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n\r\n",
    b"Sun, 06 Nov 1994 08:49:37 GMT",
    b"\r\n",
    b"\r\n\r\n",
    b"9",
    b"-",
    b":",
]


def test_a_receiver_that_is_not_there(names):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(WebhookFailed, match="cannot be reached"):
        send(f"http://127.0.0.1:{port}")


def test_a_name_that_nobody_has():
    with pytest.raises(WebhookFailed, match="cannot be reached"):
        send("https://hooks.invalid")


def test_of_several_addresses_the_first_that_answers(names):
    names.has("billing.internal", ["127.0.0.2", "::1", "127.0.0.1"])
    with receiver() as server:
        send(f"http://billing.internal:{server.port}")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000],
    ids=["nothing", "ssh", "no status", "endless line"],
)
def test_what_is_not_http(answer):
    with receiver(answer) as server, pytest.raises(WebhookFailed):
        send(f"http://127.0.0.1:{server.port}")


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=9), max_size=12).map(b"".join))
def test_whatever_is_answered_is_a_failure_or_a_success(answer):
    with suppress(WebhookFailed, WebhookRefused), receiver(answer) as server:
        send(f"http://127.0.0.1:{server.port}")
