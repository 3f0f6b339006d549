"""The client's end of a WebSocket, at a fraction of the price of a library: a benchmark's load has to be cheap.

Frames are masked with zeros, which changes nothing; the server's own are short and never fragmented.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HANDSHAKE = """\
GET {path} HTTP/1.1\r
Host: {host}:{port}\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r
Sec-WebSocket-Protocol: llmstream.voice.v1\r
\r
"""
NO_MASK = bytes(4)


class Line:
    """A connection that has been accepted.

    :raises SystemExit: it is refused.
    """

    def __init__(self, host: str, port: int, path: str) -> None:
        self.socket = socket.create_connection((host, port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(HANDSHAKE.format(path=path, host=host, port=port).encode())
        self.ended = ""
        self._inbox = bytearray()
        while b"\r\n\r\n" not in self._inbox:
            data = self.socket.recv(65536)
            self._inbox += data
            if not data:
                break
        head, _, rest = bytes(self._inbox).partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise SystemExit(f"The call is refused: {self._inbox.decode(errors='replace')[:500]}")
        self._inbox = bytearray(rest)

    def say(self, message: dict[str, Any]) -> None:
        self._write(TEXT, json.dumps(message).encode())

    def send(self, data: bytes) -> None:
        self._write(BINARY, data)

    def read(self) -> list[str | bytes]:
        """The messages that have come; blocks for the first bytes."""
        data = self.socket.recv(262_144)
        if not data:
            self.ended = self.ended or "cut"
            return []
        self._inbox += data
        messages: list[str | bytes] = []
        while (frame := self._frame()) is not None:
            kind, payload = frame
            if kind == TEXT:
                messages.append(payload.decode())
            elif kind == BINARY:
                messages.append(payload)
            elif kind == PING:
                self._write(PONG, payload)
            elif kind == CLOSE:
                self.ended = f"{int.from_bytes(payload[:2])} {payload[2:].decode()}"
        return messages

    def close(self) -> None:
        """End the call, and wait for the end of the connection."""
        self.say({"type": "end"})
        while not self.ended:
            self.read()
        self.socket.close()

    def _frame(self) -> tuple[int, bytes] | None:
        inbox = self._inbox
        if len(inbox) < 2:
            return None
        size, start = inbox[1] & 0x7F, 2
        if size == 126:
            start = 4
            if len(inbox) < start:
                return None
            (size,) = struct.unpack_from(">H", inbox, 2)
        elif size == 127:
            start = 10
            if len(inbox) < start:
                return None
            (size,) = struct.unpack_from(">Q", inbox, 2)
        if len(inbox) < start + size:
            return None
        kind, payload = inbox[0] & 0x0F, bytes(inbox[start : start + size])
        del inbox[: start + size]
        return kind, payload

    def _write(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        head = bytes((0x80 | kind, 0x80 | size)) if size < 126 else struct.pack(">BBH", 0x80 | kind, 0xFE, size)
        try:
            self.socket.sendall(head + NO_MASK + payload)
        except OSError as error:
            self.ended = self.ended or str(error)
