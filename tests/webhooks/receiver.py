"""A server that webhooks are sent to, and what the tests send there."""

from __future__ import annotations

import http.client
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any

import trustme

from flask_llmstream.webhooks import deliver, event_body

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8
EVENT_ID = "run_Kq3-x_9"
NOW = 1_700_000_000
BODY = event_body("run.completed", {"id": "Kq3-x_9", "status": "completed"}, NOW)
LOOPBACK = ["127.0.0.0/8", "::1"]
SOON = 0.3
"""Seconds."""

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiver(socketserver.ThreadingTCPServer):
    """A server that answers each request with some bytes, or by what a function does with its socket."""

    allow_reuse_address = True
    listens = True
    requests: list[tuple[str, Message, bytes]]

    def __init__(self, answer: bytes | Callable[[socket.socket], None], address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Exchange)
        self.answer = answer
        self.requests = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that has enough hangs up."""


class Exchange(socketserver.StreamRequestHandler):
    server: Receiver

    def handle(self) -> None:
        if not self.server.listens:
            self.server.answer(self.connection)
            return
        line = self.rfile.readline().decode().strip()
        headers = http.client.parse_headers(self.rfile)
        self.server.requests.append((line, headers, self.rfile.read(int(headers["Content-Length"]))))
        if callable(self.server.answer):
            self.server.answer(self.connection)
        else:
            self.connection.sendall(self.server.answer)


@contextmanager
def receiver(
    answer: bytes | Callable[[socket.socket], None] = OK,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    listens: bool = True,
) -> Iterator[Receiver]:
    """
    :param listens: whether it reads requests before it answers.
    """
    with Receiver(answer, (host, port)) as server:
        server.listens = listens
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def status(line: str, *headers: str, body: bytes = b"") -> bytes:
    head = [f"HTTP/1.1 {line}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


def send(url: str, **more: Any) -> None:
    deliver(url, EVENT_ID, BODY, **({"secrets": [SECRET], "allowed_hosts": LOOPBACK} | more))


def certified(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context
