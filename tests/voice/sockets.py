"""Phones on real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.servers.serving import Server
from tests.voice.caller import PATIENCE, Phone

PROTOCOL = "llmstream.voice.v1"


class Socket:
    """A line over a WebSocket, which a thread reads for the phone."""

    def __init__(self, server: Server, phone: Phone, *, path: str = "/api/voice", user: str = "ann") -> None:
        self._phone = phone
        self._open = ExitStack()
        opening = connect(
            "ws" + server.url.removeprefix("http") + path,
            subprotocols=[PROTOCOL],  # type: ignore[list-item]
            additional_headers={"X-User": user},
            open_timeout=PATIENCE,
            close_timeout=1,
            ping_interval=None,
            proxy=None,
        )
        self._socket = self._open.enter_context(opening)
        assert self._socket.response is not None
        self.worker = int(self._socket.response.headers["X-Worker"])
        """The process that has taken the call."""
        self.subprotocol = self._socket.subprotocol
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def send(self, data: str | bytes) -> None:
        with suppress(ConnectionClosed):
            self._socket.send(data)

    def cut(self) -> None:
        """Break the connection, without a word."""
        self._phone.line = None
        with suppress(OSError):
            self._socket.socket.shutdown(socket.SHUT_RDWR)
        self._open.close()
        self._thread.join(PATIENCE)

    def close(self) -> None:
        self._open.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        with suppress(ConnectionClosed):
            for data in self._socket:
                self._phone.meet(data)
        if self._phone.line in (self, None):
            self._phone.end(self._socket.close_code or 1006, self._socket.close_reason or "")


@contextmanager
def call(server: Server, *, until: int | None = None, start: bool = True, **fields: Any) -> Iterator[Phone]:
    """A call, from its start to its end."""
    where = {name: fields.pop(name) for name in ("path", "user") if name in fields}
    phone = Phone(until=until)
    phone.line = first = Socket(server, phone, **where)
    try:
        if start:
            phone.tell("start", **fields)
            phone.expect("ready")
        yield phone
        if phone.line is not None:
            phone.tell("end")
            phone.hung_up()
    finally:
        for line in {first, phone.line} - {None}:
            line.close()
