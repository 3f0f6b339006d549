"""A client that reads exactly what it is told to, and leaves in all the ways in which clients do.

    with ask(address, "POST", "/api/chat/stream", json=QUESTION) as answer:
        assert answer.status == 200
        assert answer.token() == "Hello"
        answer.leave_by_reset()

It speaks HTTP/1.1 over a plain socket, since what counts here is what a library hides: whether a response ended
as HTTP says (``end``), was torn off by an orderly close (``torn``), or by a reset (``reset``).
"""

from __future__ import annotations

import json as codec
import socket
import struct
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, Self

from flask_llmstream.sse import Decoder, ServerEvent

PATIENCE = 20.0
"""Seconds that a read waits: longer than anything takes, shorter than a job."""
PIECE = 65536
QUESTION = {"messages": [{"role": "user", "content": "Hi"}]}
TERMINALS = ("done", "error")

Ending = Literal["end", "torn", "reset"]


class Gone(Exception):
    """The connection has ended before the response has."""


class Answer:
    """One request on a connection of its own, and the response to it, read on demand.

    :param window: bytes of the receive buffer; a small one makes a client that does not read felt soon.
    """

    def __init__(self, address: tuple[str, int], request: bytes, *, window: int | None = None) -> None:
        self.ending: Ending | None = None
        self.body = b""
        self._decoder = Decoder(max_event_size=16 * 1024 * 1024)
        self._buffer = b""
        self._headless = request.startswith(b"HEAD ")
        self._socket = socket.socket()
        if window is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(address)
        self._socket.sendall(request)
        self._pieces = self._read_body()
        self._events = self._read_events()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    @cached_property
    def _head(self) -> tuple[int, dict[str, str]]:
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value.strip() for name, value in pairs}

    @property
    def status(self) -> int:
        return self._head[0]

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""
        return self._head[1]

    @property
    def location(self) -> str:
        """The path of the run."""
        return self.headers["location"]

    def json(self) -> Any:
        """The body, read to its end."""
        return codec.loads(self.read())

    def read(self) -> bytes:
        """The rest of the response; all that came of the body is in `body`."""
        for _ in self._pieces:
            pass
        return self.body

    def read_until(self, found: bytes, count: int = 1) -> None:
        """Read on until the body has `found` so many times."""
        while self.body.count(found) < count:
            if not next(self._pieces, b""):
                raise AssertionError(f"{found!r} did not come before the response's {self.ending}: {self.body!r}")

    def events(self) -> Iterator[dict[str, Any]]:
        """Those that follow, up to the end of the response."""
        return (codec.loads(event.data) for event in self._events)

    def server_events(self) -> list[ServerEvent]:
        """Those that follow, as they came, with their ids."""
        return list(self._events)

    def event(self, kind: str | None = None) -> dict[str, Any]:
        """The next one of a kind (one of its keys).

        :raises Gone: the response ended before it.
        """
        return codec.loads(self.server_event(kind).data)

    def server_event(self, kind: str | None = None) -> ServerEvent:
        """The next one of a kind, as it came, with its id."""
        for event in self._events:
            if kind is None or kind in codec.loads(event.data):
                return event
        raise Gone(f"no {kind} before the response's {self.ending}")

    def token(self) -> str:
        """The next token."""
        return self.event("token")["token"]

    def text(self) -> str:
        """The text that follows, up to the end of the response, which is a clean one after one `done`."""
        *events, last = list(self.events())
        assert "done" in last, last
        assert not [event for event in events if any(terminal in event for terminal in TERMINALS)]
        assert self.ending == "end"
        return "".join(event.get("token", "") for event in events)

    def terminal(self) -> dict[str, Any]:
        """The event that ends the run: there is one, the last, and the response ends cleanly behind it."""
        events = list(self.events())
        terminals = [event for event in events if any(terminal in event for terminal in TERMINALS)]
        assert terminals == events[-1:], f"not one terminal at the end of {events}"
        assert self.ending == "end"
        return terminals[0]

    def leave(self) -> None:
        """Close, as a program does that is done with it: a FIN, or a reset where something is still unread."""
        self._socket.close()

    def leave_by_fin(self) -> None:
        """An orderly end of both directions, with nothing unread."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def leave_by_reset(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def leave_by_half_close(self) -> None:
        """Say that nothing more will be sent, and stay."""
        self._socket.shutdown(socket.SHUT_WR)

    def _read_events(self) -> Iterator[ServerEvent]:
        for piece in self._pieces:
            yield from self._decoder.feed(piece)

    def _read_body(self) -> Iterator[bytes]:
        try:
            for piece in self._framed():
                self.body += piece
                yield piece
            self.ending = "end"
        except ConnectionResetError:
            self.ending = "reset"
        except Gone:
            self.ending = "torn"

    def _framed(self) -> Iterator[bytes]:
        if self._headless or self.status in (204, 304):
            return
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                yield self._exactly(size)
                self._exactly(2)
            self._exactly(2)
        elif "content-length" in self.headers:
            yield self._exactly(int(self.headers["content-length"]))
        else:
            if self._buffer:
                yield self._buffer
            while piece := self._socket.recv(PIECE):
                yield piece

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._receive()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _receive(self) -> None:
        piece = self._socket.recv(PIECE)
        if not piece:
            raise Gone
        self._buffer += piece


def ask(
    address: tuple[str, int],
    method: str,
    path: str,
    *,
    json: Any = None,
    headers: Mapping[str, str] | None = None,
    window: int | None = None,
    version: str = "1.1",
) -> Answer:
    """Send a request. Returns at once; what is read from the answer waits for it.

    :param version: of HTTP. In 1.0, which nginx speaks to us, an orderly close is how a response ends (``end``).
    """
    lines = {"Host": "{}:{}".format(*address), "Accept": "text/event-stream", **(headers or {})}
    body = b""
    if method == "POST":
        body = b"" if json is None else codec.dumps(json).encode()
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return Answer(address, f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + body, window=window)
