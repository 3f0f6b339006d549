"""No receiver keeps a sender for longer than it wants, or makes it read more."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from typing import Any

import pytest

from flask_llmstream import webhooks
from flask_llmstream.errors import WebhookFailed
from flask_llmstream.webhooks import deliver
from tests.puppet import PATIENCE
from tests.webhooks.receiver import (
    EVENT_ID,
    LOOPBACK,
    SECRET,
    SOON,
    certified,
    receiver,
    send,
)


def silent(sock: socket.socket) -> None:
    sock.recv(1)


def dribbling_headers(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    dribble(sock)


def deaf(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ended.wait(PATIENCE)


def dribble(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"x")
        time.sleep(0.01)


ended = threading.Event()


@pytest.mark.parametrize("answer", [silent, dribbling_headers])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_nobody_keeps_us_for_longer_than_we_want(authority, trusted, answer, secure):
    tls = certified(authority, "127.0.0.1") if secure else None
    with receiver(answer, tls=tls) as server:
        begin = time.monotonic()
        with pytest.raises(WebhookFailed, match=r"within 0\.3 s") as failed:
            send(f"http{'s' * secure}://127.0.0.1:{server.port}", timeout=SOON)
        assert SOON <= time.monotonic() - begin < SOON + PATIENCE / 2
    assert failed.value.retryable


def test_nor_does_who_takes_no_request():
    ended.clear()
    with receiver(deaf, listens=False) as server:
        try:
            with pytest.raises(WebhookFailed, match=r"within 0\.3 s"):
                deliver(
                    f"http://127.0.0.1:{server.port}",
                    EVENT_ID,
                    bytes(50_000_000),
                    secrets=[SECRET],
                    allowed_hosts=LOOPBACK,
                    timeout=SOON,
                )
        finally:
            ended.set()


def test_nor_does_who_takes_no_part_in_the_handshake():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(WebhookFailed, match=r"within 0\.3 s"):
        send(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=SOON)


def test_nor_does_who_lets_nobody_in():
    """A full backlog: the system answers no request for a connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        queue = [socket.socket() for _ in range(3)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        begin = time.monotonic()
        with pytest.raises(WebhookFailed, match=r"within 0\.3 s"):
            send(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=SOON)
        assert time.monotonic() - begin < SOON + PATIENCE / 2
        for waiting in queue:
            waiting.close()


def test_a_slow_look_up_is_within_the_time_too(names, monkeypatch):
    look_up = socket.getaddrinfo

    def slow(*args: Any, **more: Any) -> list[Any]:
        time.sleep(SOON)
        return look_up(*args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with receiver() as server:
        with pytest.raises(WebhookFailed, match=r"within 0\.2 s"):
            send(f"http://127.0.0.1:{server.port}", timeout=0.2)
        assert server.requests == []


def test_a_success_stays_one_though_the_rest_of_it_takes_too_long():
    def dribbling_body(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        dribble(sock)

    with receiver(dribbling_body) as server:
        send(f"http://127.0.0.1:{server.port}", timeout=SOON)


def interim_responses(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def headers_without_end(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        sock.sendall(b"X-Long: " + b"x" * 1000 + b"\r\n")


@pytest.mark.parametrize("answer", [interim_responses, headers_without_end])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_nobody_talks_on_and_on(authority, trusted, answer, secure):
    tls = certified(authority, "127.0.0.1") if secure else None
    begin = time.monotonic()
    with receiver(answer, tls=tls) as server, pytest.raises(WebhookFailed, match="as HTTP has it"):
        send(f"http{'s' * secure}://127.0.0.1:{server.port}", timeout=60)
    assert time.monotonic() - begin < PATIENCE


@pytest.mark.parametrize(
    "head",
    ["Content-Length: 1000000000000\r\n\r\n", "\r\n", "Transfer-Encoding: chunked\r\n\r\n-1\r\n"],
    ids=["long", "endless", "chunk of negative size"],
)
@pytest.mark.parametrize("line", ["200 OK", "500 Internal Server Error"])
def test_a_huge_response_is_left_unread(line, head):
    sent = itertools.count()
    written = 0

    def flood(sock: socket.socket) -> None:
        nonlocal written
        sock.sendall(f"HTTP/1.1 {line}\r\n{head}".encode())
        for written in sent:  # noqa: B007
            sock.sendall(bytes(65536))

    with receiver(flood) as server:
        if line.startswith("2"):
            send(f"http://127.0.0.1:{server.port}", timeout=60)
        else:
            with pytest.raises(WebhookFailed) as failed:
                send(f"http://127.0.0.1:{server.port}", timeout=60)
            assert len(failed.value.diagnosis) < 5 * webhooks.SHOWN
    assert written * 65536 < 100_000_000  # what the buffers of the system take
