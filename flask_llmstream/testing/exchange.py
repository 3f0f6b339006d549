"""One client's connection to the model server: reads its requests and plays the schedule of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from . import strict, wire
from .schedule import BEFORE_HEADERS, Schedule

EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"
WRITE_AHEAD = 65536


@dataclass(eq=False, slots=True)
class Received:
    """A request that the model server got, and how its answer goes.

    :param number: 1 for the server's first.
    :param connection: which TCP connection it came over; 1 is the server's first.
    :param headers: by lower-case name.
    :param body: the request's JSON.
    :param state: ``active``; ``completed``: the answer was sent to its end; ``refused``: it had an error status;
        ``cut``: it broke off as its schedule said; ``cancelled``: the client closed before the end.
    :param tokens_sent: pieces sent so far.
    :param started_at: `time.monotonic` when the request was in.
    :param ended_at: `time.monotonic` at the end: for ``cancelled``, when the client's close was seen.
    """

    number: int
    connection: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    state: Literal["active", "completed", "refused", "cut", "cancelled"] = "active"
    tokens_sent: int = 0
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None

    @property
    def json_schema(self) -> Mapping[str, Any] | None:
        """The schema that the answer is to fit; None where it is to be plain text."""
        return strict.asked_for(self.body)


class Desk(Protocol):
    """What a connection needs of its server."""

    key: str | None

    def receive(self, connection: int, headers: Mapping[str, str], body: Mapping[str, Any]) -> Received: ...
    def choose(self, received: Received) -> Schedule: ...
    def changed(self) -> None: ...
    def statistics(self) -> Mapping[str, int]: ...


class HangUp(Exception):
    """The schedule, or the client, ends the connection here."""


class Exchange:
    """The requests of one connection, one after the other."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, desk: Desk) -> None:
        self._number = number
        self._reader = reader
        self._writer = writer
        self._desk = desk
        self._early = b""

    async def serve(self) -> None:
        with contextlib.suppress(HangUp, OSError, asyncio.IncompleteReadError):
            while True:
                await self._serve_one()

    async def _serve_one(self) -> None:
        head = self._early + await self._reader.readuntil(b"\r\n\r\n")
        self._early = b""
        request_line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = request_line.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        path = target.partition("?")[0]
        if method == "POST" and path.endswith("/chat/completions"):
            await self._chat(headers, json.loads(body))
        elif method == "GET" and path.endswith("/models"):
            models = [{"id": "test-model", "object": "model", "created": 0, "owned_by": "flask_llmstream"}]
            self._whole(200, json.dumps({"object": "list", "data": models}).encode())
        elif method == "GET" and path == "/stats":
            self._whole(200, json.dumps(self._desk.statistics()).encode())
        else:
            self._whole(404, wire.refusal_body(Schedule(status=404)))

    async def _chat(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
        received = self._desk.receive(self._number, headers, body)
        schedule = self._desk.choose(received)
        if self._desk.key is not None and headers.get("authorization") != f"Bearer {self._desk.key}":
            # Servers exist that repeat the key they were given, so this one does: it must not get any further.
            message = f"Incorrect API key provided: {headers.get('authorization')}"
            error = {"message": message, "type": "invalid_request_error", "code": "invalid_api_key"}
            schedule = Schedule(status=401, body={"error": error})
        elif schedule.status < 300 and (objection := strict.objection(body)):
            schedule = Schedule(status=400, body={"error": objection})
        answer = asyncio.ensure_future(Answer(schedule, received, self._write, self._settle).play())
        gone = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and gone.exception() is None and gone.result():
                self._early = gone.result()  # the client's next request: it has not gone
                await answer
            if not answer.done():
                self._settle(received, "cancelled")
                raise HangUp
            answer.result()
        except Cut as cut:
            self._cut(cut.how)
        finally:
            answer.cancel()
            if not self._early:
                await self._stop_looking(gone)

    async def _stop_looking(self, gone: asyncio.Future[bytes]) -> None:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            self._early = await gone
            if not self._early:
                raise HangUp

    def _settle(self, received: Received, state: Literal["completed", "refused", "cut", "cancelled"] | None) -> None:
        if state is not None:
            received.state = state
            received.ended_at = time.monotonic()
        self._desk.changed()

    def _whole(self, status: int, body: bytes) -> None:
        self._writer.write(wire.head(status, JSON, {}, len(body)) + body)

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > WRITE_AHEAD:
            await self._writer.drain()

    def _cut(self, how: str) -> None:
        if how == "end":
            return
        if how == "reset":
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        raise HangUp


class Cut(Exception):
    """The schedule breaks its answer off here.

    :param how: ``end``, ``close`` or ``reset``.
    """

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Answer:
    """Plays one schedule to one request."""

    def __init__(
        self,
        schedule: Schedule,
        received: Received,
        write: Callable[[bytes], Awaitable[None]],
        settle: Callable[..., None],
    ) -> None:
        self._schedule = schedule
        self._received = received
        self._raw_write = write
        self._settle = settle
        self._streams = bool(received.body.get("stream"))
        self._chunks = wire.Chunks(received.number, received.body)
        self._began = False

    async def play(self) -> None:
        schedule = self._schedule
        await self._gate(BEFORE_HEADERS)
        await self._sleep(schedule.headers_delay)
        if schedule.status >= 300:
            await self._refuse()
            return
        if self._streams:
            self._began = True
            await self._raw_write(wire.head(schedule.status, EVENT_STREAM, schedule.headers, None))
        await self._pieces()
        await (self._end_stream() if self._streams else self._whole())

    async def _refuse(self) -> None:
        headers = dict(self._schedule.headers)
        if self._schedule.retry_after is not None:
            headers["Retry-After"] = f"{self._schedule.retry_after:g}"
        body = wire.refusal_body(self._schedule)
        self._settle(self._received, "refused")
        await self._raw_write(wire.head(self._schedule.status, JSON, headers, len(body)) + body)

    async def _pieces(self) -> None:
        loop = asyncio.get_running_loop()
        rate = self._schedule.rate
        due = loop.time() + self._schedule.first_token_delay
        opening = self._chunks.piece(wire.ROLE)
        pieces = wire.deltas(self._schedule)
        for number, delta in enumerate(pieces):
            await self._trouble(number)
            await self._gate(number)
            await self._sleep(due - loop.time())
            due = max(due + 1 / rate, loop.time() - 1) if rate else due
            if self._schedule.stamp:
                delta = {"content": f"t{time.monotonic_ns()} "}
            await self._write(opening + self._chunks.piece(delta))
            opening = b""
            self._received.tokens_sent += 1
            self._settle(self._received, None)
        await self._trouble(len(pieces))
        await self._gate(len(pieces))

    async def _trouble(self, number: int) -> None:
        schedule = self._schedule
        if schedule.malformed_after == number:
            await self._write(wire.MALFORMED)
        if schedule.stall_after == number:
            await self._pause(asyncio.Event().wait())
        if schedule.error_after == number:
            await self._fail()
            raise Cut("end")
        if schedule.cut_after == number:
            await self._break_off()
            raise Cut(schedule.cut)

    async def _fail(self) -> None:
        self._settle(self._received, "cut")
        if self._streams:
            await self._write(wire.error_event(self._schedule.error))
            await self._raw_write(wire.chunked(b""))
        else:
            body = json.dumps({"error": self._schedule.error}).encode()
            await self._raw_write(wire.head(500, JSON, {}, len(body)) + body)

    async def _break_off(self) -> None:
        self._settle(self._received, "cut")
        if self._streams and self._schedule.cut == "end":
            await self._raw_write(wire.chunked(b""))
        elif not self._streams:
            body = wire.completion(self._received.number, self._schedule, self._received.body)
            half = body[: len(body) // 2]
            length = len(half) if self._schedule.cut == "end" else len(body)
            await self._raw_write(wire.head(200, JSON, {}, length) + half)

    async def _end_stream(self) -> None:
        schedule = self._schedule
        last = b""
        if (reason := wire.finish_reason(schedule)) is not None:
            last += self._chunks.finish(reason)
        if self._chunks.with_usage and schedule.usage is not False:
            last += self._chunks.usage(wire.usage(schedule, self._received.body))
        if schedule.done:
            last += wire.DONE
        # First the books, then the bytes: whoever has seen the end finds it recorded.
        self._settle(self._received, "completed")
        await self._raw_write((wire.chunked(last) if last else b"") + wire.chunked(b""))

    async def _whole(self) -> None:
        body = wire.completion(self._received.number, self._schedule, self._received.body)
        if self._schedule.malformed_after is not None:
            body = body[:-1]
        self._settle(self._received, "completed")
        await self._raw_write(wire.head(200, JSON, self._schedule.headers, len(body)) + body)

    async def _write(self, data: bytes) -> None:
        if self._streams:
            await self._raw_write(wire.chunked(data))

    async def _gate(self, position: int | Literal["headers"]) -> None:
        gate = self._schedule.gates.get(position)
        if gate is None:
            return
        loop = asyncio.get_running_loop()
        opened = asyncio.Event()

        def go_on() -> None:
            with contextlib.suppress(RuntimeError):  # the server may have stopped meanwhile
                loop.call_soon_threadsafe(opened.set)

        gate.arrive(go_on)
        await self._pause(opened.wait())

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            await self._pause(asyncio.sleep(seconds))

    async def _pause(self, until: Awaitable[Any]) -> None:
        """Wait, and send the keep-alive comments that fall into the time."""
        keep_alive = self._schedule.keep_alive
        if keep_alive is None or not self._began:
            await until
            return
        waiting = asyncio.ensure_future(until)
        try:
            while not (await asyncio.wait({waiting}, timeout=keep_alive))[0]:
                await self._write(wire.KEEP_ALIVE)
        finally:
            waiting.cancel()
