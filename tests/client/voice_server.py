"""A scripted voice server on real sockets: the test says what the server says, and sees what the page sends.

    page.evaluate("window.made = call()")
    call = server.call()
    call.ready()
    call.audio(tone(960), generation=1)
    call.wait_for("played", lambda said: said["samples"] == 960)

It serves the page and the modules too, so that all is one origin.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from tests.client.server import STATIC

PAGE = STATIC.parents[1] / "tests" / "client" / "voice.html"
PATIENCE = 15.0
RATE = 24_000
"""Samples a second of what the server says."""

# Workers and worklets of a blob, `eval` and foreign hosts are forbidden.
POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline'; require-trusted-types-for 'script'"


def tone(samples: int, *, hertz: float = 440, rate: int = RATE, amplitude: int = 10_000) -> bytes:
    """PCM16 of a sine."""
    step = 2 * math.pi * hertz / rate
    return array("h", [round(amplitude * math.sin(step * n)) for n in range(samples)]).tobytes()


class Call:
    """One WebSocket, from its handshake on."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.messages: list[dict[str, Any]] = []
        self.frames: list[tuple[int, int, bytes]] = []
        self.closed = threading.Event()
        self.seq = 0
        self.mute = False
        self._sequence = 0
        self._came = threading.Condition()

    def read(self) -> None:
        """Take what comes, until the connection is closed."""
        with suppress(ConnectionClosed):
            for message in self.connection:
                with self._came:
                    if isinstance(message, str):
                        self._hear(json.loads(message))
                    else:
                        self.frames.append((*struct.unpack_from("<II", message), message[8:]))
                    self._came.notify_all()
        self.closed.set()

    def _hear(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if message["type"] == "ping" and not self.mute:
            self.connection.send(json.dumps({"type": "pong", "t": message["t"], "at": 0}))

    def of(self, type: str) -> list[dict[str, Any]]:
        """The messages of a type so far."""
        return [message for message in self.messages if message["type"] == type]

    def wait_for(self, type: str, condition: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Wait for a message, and return the first that meets the condition."""
        self.wait_until(lambda: any(map(condition, self.of(type))), f"{type} among {self.messages[-5:]}")
        return next(filter(condition, self.of(type)))

    def wait_until(self, condition: Callable[[], object], what: str = "it") -> None:
        """Wait for what becomes true by something that comes."""
        with self._came:
            assert self._came.wait_for(condition, PATIENCE), f"waited in vain for {what}"

    def wait_for_frames(self, count: int) -> list[tuple[int, int, bytes]]:
        """Wait until so many frames of speech have come."""
        self.wait_until(lambda: len(self.frames) >= count, f"{count} frames")
        return self.frames[:count]

    def say(self, type: str, **more: Any) -> None:
        """Send a control message, with the next number."""
        self.seq += 1
        self.connection.send(json.dumps({"type": type, "seq": self.seq} | more))

    def ready(self, **more: Any) -> Call:
        """Let the session begin."""
        self.wait_for("start" if "restored" not in more else "resume")
        pcm = {"format": "pcm16"}
        usual = {"session": "s1", "token": "t1", "restored": "none", "conversation": "c1", "mode": "auto"}
        usual |= {"input": pcm | {"rate": 16_000}, "output": pcm | {"rate": RATE}, "ahead_ms": 400, "resume_within": 30}
        self.say("ready", **usual | {"idle": 60, "length": 600} | more)
        return self

    def resumed(self, *, seq: int = 1, generation: int = 0) -> Call:
        """Let it go on.

        :param seq: the last message of the socket before.
        """
        self.wait_for("resume")
        self.seq = seq
        self.say("resumed", restored="full", generation=generation)
        return self

    def audio(self, samples: bytes, *, generation: int, offset: int = 0, last: bool = False) -> None:
        """Send speech, in packets of 40 ms; the last of its answer carries the flag."""
        for start in range(0, len(samples), 1920):
            piece = samples[start : start + 1920]
            flags = int(last and start + 1920 >= len(samples))
            place = offset + start // 2
            self.connection.send(struct.pack("<IHHI", self._sequence, generation, flags, place) + piece)
            self._sequence += 1

    def drop(self) -> None:
        """Cut the connection, without a word."""
        self.connection.socket.shutdown(socket.SHUT_RDWR)
        assert self.closed.wait(PATIENCE)

    def close(self, code: int, reason: str = "") -> None:
        """Close it properly."""
        self.connection.close(code, reason)


class VoiceServer:
    """Pages, modules, and calls on the path ``/voice``.

    :ivar refusals: what the next handshakes get instead of an upgrade, each with the question after it.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.refusals: deque[Response] = deque()
        self.asked: list[Request] = []
        self._refused: Response | None = None
        self._taken = 0
        self._came = threading.Condition()
        self._server = serve(
            self._handle,
            "127.0.0.1",
            0,
            subprotocols=["llmstream.voice.v1"],  # type: ignore[list-item]
            compression=None,
            process_request=self._process,
            close_timeout=1,
            ping_interval=None,
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is reached, without a slash at the end."""
        host, port = self._server.socket.getsockname()[:2]
        return f"http://{host}:{port}"

    def call(self, *, within: float = PATIENCE) -> Call:
        """Wait for the next WebSocket.

        :param within: seconds.
        """
        with self._came:
            assert self._came.wait_for(lambda: len(self.calls) > self._taken, within), "nobody called"
            self._taken += 1
            return self.calls[self._taken - 1]

    def reset(self) -> None:
        """Hang up, and forget everything: a test ends."""
        for call in self.calls:
            with suppress(OSError):
                call.connection.socket.shutdown(socket.SHUT_RDWR)
        for call in self.calls:
            assert call.closed.wait(PATIENCE)
        self.__dict__.update(calls=[], refusals=deque(), asked=[], _taken=0, _refused=None)

    def close(self) -> None:
        """End it."""
        self.reset()
        self._server.shutdown()
        self._thread.join()

    def _handle(self, connection: ServerConnection) -> None:
        call = Call(connection)
        with self._came:
            self.calls.append(call)
            self._came.notify_all()
        call.read()

    def _process(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/voice":
            return self._answer(request)
        if path == "/":
            return response(200, PAGE.read_bytes(), "text/html; charset=utf-8", {"Content-Security-Policy": POLICY})
        if path.startswith("/api/") and path.endswith(".js"):
            return response(200, (STATIC / path.removeprefix("/api/")).read_bytes(), "text/javascript")
        return response(404)

    def _answer(self, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            self._refused = self.refusals.popleft() if self.refusals else None
            return self._refused
        self.asked.append(request)
        return self._refused or response(426)


def response(
    status: int, body: bytes = b"", type: str = "text/plain", headers: dict[str, str] | None = None
) -> Response:
    """An HTTP response."""
    head = Headers({"Content-Type": type, "Content-Length": str(len(body)), "Connection": "close"} | (headers or {}))
    return Response(status, HTTPStatus(status).phrase, head, body)


def problem(status: int, detail: str, **more: Any) -> Response:
    """A problem document."""
    said = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail} | more
    return response(status, json.dumps(said).encode(), "application/problem+json")
