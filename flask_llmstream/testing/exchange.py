"""One client's connection to the model server: reads its requests and plays the schedule of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol
from urllib.parse import parse_qsl, urlsplit

from . import audio, strict, wire
from .answer import JSON, Answer, Cut, Form
from .endpoint import Endpoint, Received
from .realtime import RealtimeCall
from .schedule import Schedule
from .script import Dialled, Script

WRITE_AHEAD = 65536


class Desk(Protocol):
    """What a connection needs of its server."""

    key: str | None
    tones: audio.Tones
    chat: Endpoint[Received, Schedule]
    transcriptions: Endpoint[audio.Heard, Schedule]
    speech: Endpoint[audio.Spoken, Schedule]
    realtime: Endpoint[Dialled, Script]

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
        elif method == "POST" and path.endswith("/audio/transcriptions"):
            await self._transcription(headers, body)
        elif method == "POST" and path.endswith("/audio/speech"):
            await self._speech(headers, json.loads(body))
        elif method == "GET" and path.endswith("/realtime") and headers.get("upgrade", "").lower() == "websocket":
            await self._realtime(head, headers, target)
        elif method == "GET" and path.endswith("/models"):
            models = [{"id": "test-model", "object": "model", "created": 0, "owned_by": "flask_llmstream"}]
            self._whole(200, json.dumps({"object": "list", "data": models}).encode())
        elif method == "GET" and path == "/stats":
            self._whole(200, json.dumps(self._desk.statistics()).encode())
        else:
            self._whole(404, wire.refusal_body(Schedule(status=404)))

    async def _chat(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
        received = Received(len(self._desk.chat.requests) + 1, self._number, headers, body)
        schedule = self._allowed(self._desk.chat.receive(received), headers, strict.objection(body))
        await self._play(schedule, received, wire.Chat(schedule, received.number, body))

    async def _transcription(self, headers: Mapping[str, str], body: bytes) -> None:
        number = len(self._desk.transcriptions.requests) + 1
        objection = None
        try:
            received = audio.heard(number, self._number, headers, body)
        except ValueError as error:
            received = audio.Heard(number, self._number, headers, {})
            objection = audio.unreadable(error)
        schedule = self._allowed(self._desk.transcriptions.receive(received), headers, objection)
        await self._play(schedule, received, audio.Transcript(schedule, received))

    async def _speech(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
        received = audio.Spoken(len(self._desk.speech.requests) + 1, self._number, headers, body)
        schedule = self._allowed(self._desk.speech.receive(received), headers, audio.objection(body))
        pcm = self._desk.tones.pcm(str(body.get("input", "")))
        await self._play(schedule, received, audio.Speech(pcm, received))

    async def _realtime(self, head: bytes, headers: Mapping[str, str], target: str) -> None:
        query = dict(parse_qsl(urlsplit(target).query))
        desk = self._desk
        dialled = Dialled(len(desk.realtime.requests) + 1, self._number, headers, query)
        script = desk.realtime.receive(dialled)
        refusal = Schedule(
            status=script.status, headers=script.headers, retry_after=script.retry_after, body=script.body
        )
        refusal = self._allowed(refusal, headers, None if query.get("model") else audio.missing("model"))
        if refusal.status >= 300:
            await self._play(refusal, dialled, audio.Speech(b"", audio.Spoken(0, 0, {}, {})))
            raise HangUp
        await RealtimeCall(script, dialled, desk.tones, self._reader, self._writer, desk.changed).serve(head)
        raise HangUp

    def _allowed(self, schedule: Schedule, headers: Mapping[str, str], objection: Mapping[str, Any] | None) -> Schedule:
        """What the request gets, unless there is something wrong with it."""
        self._desk.changed()
        if self._desk.key is not None and headers.get("authorization") != f"Bearer {self._desk.key}":
            # Servers exist that repeat the key they were given, so this one does: it must not get any further.
            message = f"Incorrect API key provided: {headers.get('authorization')}"
            error = {"message": message, "type": "invalid_request_error", "code": "invalid_api_key"}
            return Schedule(status=401, body={"error": error})
        if schedule.status < 300 and objection:
            return Schedule(status=400, body={"error": objection})
        return schedule

    async def _play(self, schedule: Schedule, received: Received, form: Form) -> None:
        answer = asyncio.ensure_future(Answer(schedule, received, form, self._write, self._settle).play())
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
        except OSError:  # it closed while more was being sent than the connection took
            self._settle(received, "cancelled")
            raise
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
