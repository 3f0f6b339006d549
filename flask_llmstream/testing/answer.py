"""How the model server plays the schedule of one answer, whatever its endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from . import wire
from .schedule import BEFORE_HEADERS, Schedule

JSON = "application/json"


class Form(Protocol):
    """How the pieces of an answer look on the wire.

    :param streams: they are sent one by one; otherwise `whole` is the answer.
    :param content_type: of an answer that streams.
    :param comments: what streams may have comments between its pieces.
    :param count: how many pieces there are.
    """

    streams: bool
    content_type: str
    comments: bool
    count: int

    def piece(self, number: int) -> bytes: ...
    def last(self) -> bytes:
        """What comes after the last piece."""

    def whole(self) -> bytes: ...


class Answered(Protocol):
    """What an answer reports of itself."""

    tokens_sent: int


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
        received: Answered,
        form: Form,
        write: Callable[[bytes], Awaitable[None]],
        settle: Callable[..., None],
    ) -> None:
        self._schedule = schedule
        self._received = received
        self._raw_write = write
        self._settle = settle
        self._form = form
        self._streams = form.streams
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
            await self._raw_write(wire.head(schedule.status, self._form.content_type, schedule.headers, None))
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
        for number in range(self._form.count):
            await self._trouble(number)
            await self._gate(number)
            await self._sleep(due - loop.time())
            due = max(due + 1 / rate, loop.time() - 1) if rate else due
            await self._write(self._form.piece(number))
            self._received.tokens_sent += 1
            self._settle(self._received, None)
        await self._trouble(self._form.count)
        await self._gate(self._form.count)

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
            body = self._form.whole()
            half = body[: len(body) // 2]
            length = len(half) if self._schedule.cut == "end" else len(body)
            await self._raw_write(wire.head(200, JSON, {}, length) + half)

    async def _end_stream(self) -> None:
        last = self._form.last()
        # First the books, then the bytes: whoever has seen the end finds it recorded.
        self._settle(self._received, "completed")
        await self._raw_write((wire.chunked(last) if last else b"") + wire.chunked(b""))

    async def _whole(self) -> None:
        body = self._form.whole()
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
        if keep_alive is None or not self._began or not self._form.comments:
            await until
            return
        waiting = asyncio.ensure_future(until)
        try:
            while not (await asyncio.wait({waiting}, timeout=keep_alive))[0]:
                await self._write(wire.KEEP_ALIVE)
        finally:
            waiting.cancel()
