"""Over TLS, webhooks go to whom the name belongs."""

from __future__ import annotations

import socket

import pytest

from flask_llmstream.errors import WebhookFailed
from flask_llmstream.webhooks import verify
from tests.webhooks.receiver import (
    EVENT_ID,
    SECRET,
    certified,
    receiver,
    send,
)


def test_over_tls_it_is_the_name_that_counts(names, authority, trusted):
    context = certified(authority, "hooks.example")
    asked_for: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    names.has("hooks.example", ["127.0.0.1"])
    with receiver(tls=context) as server:
        send(f"https://hooks.example:{server.port}/")
        [(_, headers, body)] = server.requests
    assert asked_for == ["hooks.example"]
    assert headers["Host"] == f"hooks.example:{server.port}"
    assert verify(body, headers, secrets=[SECRET]) == EVENT_ID


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_has_certificates_too(authority, trusted, host):
    with receiver(host=host, tls=certified(authority, host)) as server:
        send(f"https://{f'[{host}]' if ':' in host else host}:{server.port}")
        assert len(server.requests) == 1


def test_a_certificate_for_another_host(names, authority, trusted):
    names.has("hooks.example", ["127.0.0.1"])
    with receiver(tls=certified(authority, "127.0.0.1")) as server:
        with pytest.raises(WebhookFailed, match="No secure connection"):
            send(f"https://hooks.example:{server.port}")
        assert server.requests == []


def test_a_certificate_that_nobody_vouches_for(authority):
    with receiver(tls=certified(authority, "127.0.0.1")) as server:
        with pytest.raises(WebhookFailed, match="No secure connection"):
            send(f"https://127.0.0.1:{server.port}")
        assert server.requests == []


def test_a_receiver_that_speaks_no_tls():
    def no_tls(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with receiver(no_tls, listens=False) as server, pytest.raises(WebhookFailed, match="No secure connection"):
        send(f"https://127.0.0.1:{server.port}")
