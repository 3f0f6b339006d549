"""Clients: one that keeps the rules (`connect`), and one that does as the test wishes (`Raw`)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_

from tests.servers.serving import Server

PATIENCE = 10.0
"""Seconds."""
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80
UPGRADE = {
    "Host": "app.test",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""What a handshake says, and RFC 6455's own key."""


@contextmanager
def connect(server: Server, path: str, **options: Any) -> Iterator[ClientConnection]:
    """A client of the `websockets` package, which asks for compression as browsers do."""
    options = {"max_size": None, "open_timeout": PATIENCE, "ping_interval": None, "proxy": None} | options
    with connect_("ws" + server.url.removeprefix("http") + path, **options) as client:
        yield client


def frame(head: int, payload: bytes = b"", *, masked: bool = True) -> bytes:
    """A frame as a client sends it.

    :param head: its first byte.
    """
    size = len(payload)
    if size < 126:
        length = bytes([masked << 7 | size])
    elif size < 65536:
        length = struct.pack("!BH", masked << 7 | 126, size)
    else:
        length = struct.pack("!BQ", masked << 7 | 127, size)
    return bytes([head]) + length + (bytes(4) if masked else b"") + payload  # a mask of zeros changes nothing


def text(said: str) -> bytes:
    return frame(FIN | TEXT, said.encode())


def close(code: int, reason: str = "") -> bytes:
    return frame(FIN | CLOSE, struct.pack("!H", code) + reason.encode())


class Raw:
    """A client that sends what it is told and answers nothing by itself.

    :param headers: besides or instead of `UPGRADE`; None leaves one out.
    """

    def __init__(self, server: Server, path: str, *, receive_buffer: int = 0, **headers: str | None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(server.address)
        told = UPGRADE | {name.replace("_", "-"): value for name, value in headers.items()}
        asked = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value is not None)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\n{asked}\r\n".encode())
        self._stream = self.socket.makefile("rb")
        self.status = int(self._stream.readline().split()[1])
        self.headers = dict(line.decode().strip().split(": ", 1) for line in iter(self._stream.readline, b"\r\n"))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> tuple[int, bytes] | None:
        """The next frame: its opcode and its payload; None at the end of the connection.

        :raises ConnectionResetError: it was cut.
        """
        head = self._stream.read(2)
        if len(head) < 2:
            return None
        assert not head[0] & 0x70, f"reserved bits are set: {head!r}"
        size = head[1]
        if size > 125:
            size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
        payload = self._stream.read(size)
        return (head[0] & 0x0F, payload) if len(payload) == size else None

    def until_close(self) -> tuple[int, str]:
        """The code and the reason by which the server closes, whatever it says before."""
        while (got := self.frame()) is not None:
            opcode, payload = got
            if opcode == CLOSE:
                return (struct.unpack("!H", payload[:2])[0] if payload else 1005), payload[2:].decode()
        return 1006, ""

    def reset(self) -> None:
        """End the connection as a crash does."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.close()
        self.socket.close()
