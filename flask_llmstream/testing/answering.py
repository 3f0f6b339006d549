"""An answer in a realtime call: its events, and its audio faster than it can be heard."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from ..audio import Format, resampled
from .audio import RATE, Tones
from .schedule import Gate
from .script import Dialled, Turn

DELTA = 100
"""ms of audio in one event."""


class Stop(Exception):
    """The answer goes no further."""


class Call(Protocol):
    """What an answer needs of its call."""

    def send(self, type: str, /, **fields: Any) -> None: ...
    async def drain(self) -> None: ...
    def hang_up(self, how: int | str, reason: str = "") -> None: ...


class Answering:
    """Plays the answer of a turn.

    :param identify: makes ids.
    """

    def __init__(
        self,
        turn: Turn,
        tones: Tones,
        output: Format,
        dialled: Dialled,
        call: Call,
        identify: Callable[[str], str],
    ) -> None:
        self._turn = turn
        self._tones = tones
        self._output = output
        self._dialled = dialled
        self._call = call
        self._response = identify("resp")
        self._item = identify("item")
        self._call_id = identify("call")
        self._sent = 0
        self._audio = 0

    async def play(self) -> None:
        await asyncio.sleep(self._turn.delay)
        self._call.send("response.created", response=self._described("in_progress"))
        if self._turn.tool is not None:
            self._call_tool(self._turn.tool["name"], self._turn.tool["arguments"])
            self.end("completed")
            return
        item = {"id": self._item, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        self._dialled.generated[self._item] = 0
        self._tell("response.output_item.added", item=item)
        self._call.send("conversation.item.added", item=item, previous_item_id=None)
        self._part("response.content_part.added", part={"type": "audio", "transcript": ""})
        await self._speak()
        self._part("response.output_audio.done")
        self._part("response.output_audio_transcript.done", transcript=self._turn.says)
        self._part("response.content_part.done", part={"type": "audio", "transcript": self._turn.says})
        self._tell("response.output_item.done", item=item | {"status": "completed"})
        self._call.send("conversation.item.done", item=item | {"status": "completed"}, previous_item_id=None)
        self.end("completed")

    def end(self, status: str, reason: str | None = None, error: Any = None) -> None:
        """Tell that it is over."""
        response = self._described(status)
        if status != "completed":
            response["status_details"] = {"type": status, "reason": reason, "error": error}
        response["usage"] = {
            "total_tokens": 40 + self._sent,
            "input_tokens": 40,
            "output_tokens": self._sent,
            "input_token_details": {"cached_tokens": 8, "text_tokens": 30, "audio_tokens": 10},
        }
        self._call.send("response.done", response=response)

    def _described(self, status: str) -> dict[str, Any]:
        return {"object": "realtime.response", "id": self._response, "status": status, "status_details": None}

    async def _speak(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for word in self._turn.says.split():
            self._part("response.output_audio_transcript.delta", delta=f"{word} " if word else word)
            audio = self._output.encode(resampled(self._tones.pcm(word), RATE, self._output.rate))
            size = self._output.size(DELTA)
            for start in range(0, len(audio), size):
                piece = audio[start : start + size]
                await self._trouble()
                if (pause := due - loop.time()) > 0:
                    await asyncio.sleep(pause)
                if self._turn.speed:
                    due += self._output.milliseconds(len(piece)) / 1000 / self._turn.speed
                self._give(piece)
                await self._call.drain()
        await self._trouble()

    def _give(self, piece: bytes) -> None:
        self._audio += len(piece)
        # First the books, then the bytes.
        self._dialled.generated[self._item] = int(self._output.milliseconds(self._audio))
        self._part("response.output_audio.delta", delta=base64.b64encode(piece).decode("ascii"))
        self._sent += 1
        self._dialled.tokens_sent += 1

    async def _trouble(self) -> None:
        turn = self._turn
        if (gate := turn.gates.get(self._sent)) is not None:
            await _passed(gate)
        if turn.fails_after == self._sent:
            self.end("failed", error=turn.error)
            raise Stop
        if turn.cut_after == self._sent:
            self._call.hang_up(turn.cut, turn.reason)
            raise Stop

    def _call_tool(self, name: str, arguments: str) -> None:
        item = {"id": self._item, "type": "function_call", "call_id": self._call_id, "name": name}
        self._tell("response.output_item.added", item=item | {"status": "in_progress", "arguments": ""})
        what: dict[str, Any] = {"item_id": self._item, "call_id": self._call_id}
        self._tell("response.function_call_arguments.delta", delta=arguments, **what)
        self._tell("response.function_call_arguments.done", arguments=arguments, name=name, **what)
        self._tell("response.output_item.done", item=item | {"status": "completed", "arguments": arguments})

    def _tell(self, type: str, /, **fields: Any) -> None:
        self._call.send(type, response_id=self._response, output_index=0, **fields)

    def _part(self, type: str, /, **fields: Any) -> None:
        self._tell(type, item_id=self._item, content_index=0, **fields)


async def _passed(gate: Gate) -> None:
    loop = asyncio.get_running_loop()
    opened = asyncio.Event()

    def go_on() -> None:
        with contextlib.suppress(RuntimeError):  # the server may have stopped meanwhile
            loop.call_soon_threadsafe(opened.set)

    gate.arrive(go_on)
    await opened.wait()
