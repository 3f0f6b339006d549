"""A realtime call at the model server: ``/v1/realtime``, OpenAI's protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import wsproto
import wsproto.events as ws

from ..audio import Format, milliseconds
from .answering import Answering, Stop
from .audio import Tones
from .endpoint import State
from .script import Dialled, Script, Turn
from .voice_activity import Energy, Positions, VoiceActivity

READ = 65536
WRITE_AHEAD = 65536
FORMATS = {"audio/pcm": Format("pcm16", 24000), "audio/pcmu": Format("pcmu", 8000), "audio/pcma": Format("pcma", 8000)}
TRANSCRIPTION = "conversation.item.input_audio_transcription"


class HungUp(Exception):
    """The call is over."""


class RealtimeCall:
    """Plays a script to a client."""

    def __init__(
        self,
        script: Script,
        dialled: Dialled,
        tones: Tones,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        changed: Callable[[], None],
    ) -> None:
        self._script = script
        self._dialled = dialled
        self._tones = tones
        self._reader = reader
        self._writer = writer
        self._changed = changed
        self._wire = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self._partial = ""
        self._number = 0
        self._turns = list(script.turns) or [Turn()]
        self._over = False
        self._turn: Turn | None = None
        self._input = self._output = FORMATS["audio/pcm"]
        self._committed = 0
        self._spoken: str | None = None
        self._activity: VoiceActivity | None = None
        self._answer: asyncio.Task[None] | None = None
        self._answering: Answering | None = None

    async def serve(self, head: bytes) -> None:
        """
        :param head: the client's request up to its empty line, with which the WebSocket begins.
        """
        self._wire.receive_data(head)
        next(self._wire.events())
        self._writer.write(self._wire.send(ws.AcceptConnection()))
        self._dialled.session = {"type": "realtime", "id": self._id("sess"), "audio": {"input": {}, "output": {}}}
        self.send("session.created", session=self._dialled.session)
        for extra in self._script.extra:
            self.send(extra["type"], **{name: value for name, value in extra.items() if name != "type"})
        try:
            while True:
                data = await self._reader.read(READ)
                self._wire.receive_data(data or None)
                for event in self._wire.events():
                    self._take(event)
                self._changed()
        except (HungUp, OSError, wsproto.utilities.RemoteProtocolError):
            pass
        finally:
            if self._answer is not None:
                self._answer.cancel()
            self._settle("cancelled")

    def send(self, type: str, /, **fields: Any) -> None:
        """Send an event."""
        if self._dialled.state == "active":
            event = {"type": type, "event_id": self._id("event"), **fields}
            self._writer.write(self._wire.send(ws.TextMessage(json.dumps(event))))

    async def drain(self) -> None:
        if self._writer.transport.get_write_buffer_size() > WRITE_AHEAD:
            await self._writer.drain()

    def hang_up(self, how: int | str, reason: str = "") -> None:
        """End the call as the script says."""
        self._settle("cut")
        if isinstance(how, int):
            self._writer.write(self._wire.send(ws.CloseConnection(how, reason)))
            return
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def _settle(self, state: State) -> None:
        if self._dialled.state == "active":
            self._dialled.state = state
            self._dialled.ended_at = time.monotonic()
        self._changed()

    def _take(self, event: ws.Event) -> None:
        if isinstance(event, ws.TextMessage):
            self._text(event)
        elif isinstance(event, ws.Ping):
            self._writer.write(self._wire.send(event.response()))
        elif isinstance(event, ws.CloseConnection):
            if event.code != 1006:
                self._dialled.closed = event.code
                with contextlib.suppress(wsproto.utilities.LocalProtocolError):
                    self._writer.write(self._wire.send(event.response()))
                self._settle("completed")
            raise HungUp

    def _text(self, event: ws.TextMessage) -> None:
        self._partial += event.data
        if not event.message_finished:
            return
        message, self._partial = json.loads(self._partial), ""
        kind = str(message.get("type"))
        audio = message.pop("audio", None)
        self._dialled.events.append(message)
        if kind == "input_audio_buffer.append":
            self._hear(str(audio))
        elif (act := self._acts().get(kind)) is not None:
            act(message)
        else:
            self._wrong(message, f"Invalid value: {kind!r}.", "invalid_value")

    def _acts(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        return {
            "session.update": self._update,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.truncate": self._truncate_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    def _update(self, message: dict[str, Any]) -> None:
        if self._script.error is not None:
            self._tell_error(self._script.error)
            return
        session = message["session"]
        hears, speaks = (session.get("audio", {}).get(side, {}) for side in ("input", "output"))
        formats = [side.get("format", {"type": "audio/pcm", "rate": 24000}) for side in (hears, speaks)]
        for wanted in formats:
            if wanted.get("type") not in FORMATS or wanted.get("rate", 24000) != 24000:
                self._wrong(message, f"Invalid value for the audio format: {wanted}.", "invalid_value")
                return
        self._input, self._output = (FORMATS[wanted["type"]] for wanted in formats)
        self._dialled.session |= session
        self._listen()
        self.send("session.updated", session=self._dialled.session)

    @property
    def _hearing(self) -> Mapping[str, Any]:
        hearing: Mapping[str, Any] = self._dialled.session["audio"]["input"]
        return hearing

    def _listen(self) -> None:
        """Look for the next turn of the user's, where looking is the server's business."""
        detection = self._hearing.get("turn_detection", {"type": "server_vad"})
        speech = self._turns[0].speech
        if detection is None or self._over:
            self._activity = None
        elif speech is not None:
            self._activity = Positions(*speech, self._input.samples(len(self._dialled.audio)))
        elif not isinstance(self._activity, Energy):
            self._activity = Energy(detection.get("silence_duration_ms", self._script.silence))

    def _next(self) -> Turn:
        """The turn that comes now. The last one comes again and again, but is not found in the audio again."""
        turn = self._turns[0]
        if len(self._turns) > 1:
            self._turns.pop(0)
        else:
            self._over = turn.speech is not None
        self._listen()
        return turn

    def _hear(self, audio: str) -> None:
        try:
            data = base64.b64decode(audio, validate=True)
        except binascii.Error:
            self._wrong({}, "Invalid base64.", "invalid_value")
            return
        self._dialled.audio += data
        if self._activity is None:
            return
        for started, at_ms in self._activity.feed(self._input.decode(data), self._input.rate):
            (self._speech_started if started else self._speech_stopped)(at_ms)

    def _speech_started(self, at_ms: int) -> None:
        self._spoken = self._id("item")
        self.send("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=self._spoken)
        if (self._hearing.get("turn_detection") or {}).get("interrupt_response", True):
            self._stop("turn_detected")

    def _speech_stopped(self, at_ms: int) -> None:
        self.send("input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=self._spoken)
        self._understand(self._spoken or self._id("item"))
        if (self._hearing.get("turn_detection") or {}).get("create_response", True):
            self._respond()

    def _understand(self, item: str) -> None:
        """The user's turn is over."""
        self._committed = len(self._dialled.audio)
        self._turn = self._next()
        self.send("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        if self._hearing.get("transcription") is None:
            return
        for word in self._turn.heard.split():
            self.send(f"{TRANSCRIPTION}.delta", item_id=item, content_index=0, delta=f"{word} ")
        usage = {"type": "duration", "seconds": milliseconds(bytes(self._dialled.audio), self._input.rate) / 1000}
        self.send(f"{TRANSCRIPTION}.completed", item_id=item, content_index=0, transcript=self._turn.heard, usage=usage)

    def _commit(self, message: dict[str, Any]) -> None:
        if self._input.milliseconds(len(self._dialled.audio) - self._committed) < 100:
            self._wrong(
                message, "Error committing input audio buffer: buffer too small.", "input_audio_buffer_commit_empty"
            )
            return
        self._understand(self._id("item"))

    def _clear(self, message: dict[str, Any]) -> None:
        self._committed = len(self._dialled.audio)
        self.send("input_audio_buffer.cleared")

    def _create_item(self, message: dict[str, Any]) -> None:
        item = {"id": self._id("item"), **message["item"]}
        self._dialled.items.append(item)
        self.send("conversation.item.added", item=item, previous_item_id=None)
        self.send("conversation.item.done", item=item, previous_item_id=None)

    def _delete_item(self, message: dict[str, Any]) -> None:
        item = message["item_id"]
        known = item in self._dialled.generated or any(item == other["id"] for other in self._dialled.items)
        if not known or item in self._dialled.deleted:
            self._wrong(message, f"Item {item} does not exist.", "item_delete_invalid_item_id")
            return
        self._dialled.deleted.append(item)
        self.send("conversation.item.deleted", item_id=item)

    def _truncate_item(self, message: dict[str, Any]) -> None:
        item, end = message["item_id"], message["audio_end_ms"]
        if item not in self._dialled.generated or item in self._dialled.deleted:
            self._wrong(message, f"Item {item} does not exist.", "item_truncate_invalid_item_id")
            return
        if end > self._dialled.generated[item]:
            there = self._dialled.generated[item]
            self._wrong(message, f"Audio content of {there}ms is already shorter than {end}ms", "invalid_value")
            return
        self._dialled.truncated[item] = end
        self.send("conversation.item.truncated", item_id=item, content_index=0, audio_end_ms=end)

    def _create_response(self, message: dict[str, Any]) -> None:
        if self._answering is not None:
            self._wrong(
                message, "Conversation already has an active response.", "conversation_already_has_active_response"
            )
            return
        self._respond()

    def _respond(self) -> None:
        if self._answering is not None:
            return
        turn, self._turn = self._turn or self._next(), None
        self._answering = Answering(turn, self._tones, self._output, self._dialled, self, self._id)
        self._answer = asyncio.ensure_future(self._play(self._answering))

    async def _play(self, answering: Answering) -> None:
        try:
            await answering.play()
        except Stop:
            pass
        except OSError:
            self._settle("cancelled")
        finally:
            if self._answering is answering:
                self._answering = None
            self._changed()

    def _cancel_response(self, message: dict[str, Any]) -> None:
        if self._answering is None:
            self._wrong(message, "Cancellation failed: no active response found", "response_cancel_not_active")
            return
        self._stop("client_cancelled")

    def _stop(self, reason: str) -> None:
        if self._answering is not None and self._answer is not None:
            self._answer.cancel()
            self._answering.end("cancelled", reason)
            self._answering = None

    def _wrong(self, message: Mapping[str, Any], text: str, code: str) -> None:
        self._tell_error(
            {
                "type": "invalid_request_error",
                "code": code,
                "message": text,
                "param": None,
                "event_id": message.get("event_id"),
            }
        )

    def _tell_error(self, error: Mapping[str, Any]) -> None:
        self._dialled.errors.append(error)
        self.send("error", error=error)

    def _id(self, kind: str) -> str:
        self._number += 1
        return f"{kind}_{self._number}"
