"""A scripted client of ``llmstream.voice.v1``. It hears at once all that comes, or as far as a test says.

    phone = Phone(line)
    phone.tell("start")
    phone.expect("ready")
    phone.say()                                # half a second that is loud, and silence
    phone.expect("transcript", final=True)

What it is sent it checks as it comes: numbers without gaps, audio that hangs together, nothing of what was flushed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from flask_llmstream.audio import Format
from flask_llmstream.packets import Download, Upload, newer

PATIENCE = 10.0
"""Seconds that a test waits for what is about to come."""
FRAME_MS = 20
REPORTED = 2400
"""Samples that are played between two reports: a few packets."""
LOUD, QUIET = b"\x00\x40", b"\x00\x00"
"""Samples of a user who speaks, and of one who does not."""


class Line(Protocol):
    """A way to the server."""

    def send(self, data: str | bytes) -> None: ...


class Phone:
    """A client, over one line after the other.

    :param until: samples of an answer after which nothing more is played for now; None plays all.
    """

    def __init__(self, line: Line | None = None, *, until: int | None = None) -> None:
        self.line = line
        self.encoding = Format("pcm16", 16000)
        """Of what it sends, and of what it gets where that is not PCM16."""
        self.until = until
        self.acknowledges = True
        self.flushes = True
        """Whether it answers to `flush`."""
        self.messages: list[dict[str, Any]] = []
        self.seq = 0
        """The last number that it has."""
        self.generation: int | None = None
        """What it plays, or has played last."""
        self.oldest = 0
        """What is older is not played."""
        self.got: dict[int, int] = {}
        self.played: dict[int, int] = {}
        """Samples, by generation."""
        self.heard = b""
        """The audio that was played, of all answers."""
        self.stale = 0
        """Packets of what was flushed, which were on their way."""
        self.finished: list[int] = []
        """Generations of which the last packet has come."""
        self.closed: tuple[int, str] | None = None
        self.mistakes: list[str] = []
        self._base = self._reported = 0
        self._waiting = b""
        self._read = 0
        self._frames = 0
        self._news = threading.Condition()

    # What the user does

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a message."""
        self._send(json.dumps({"type": kind, **fields}))

    def say(self, *, ms: int = 300, silence: int = 700) -> None:
        """Speak, and be silent until it is noticed; as fast as the line takes it."""
        self.sound(LOUD, ms)
        self.sound(QUIET, silence)

    def sound(self, sample: bytes, ms: int) -> None:
        for _ in range(ms // FRAME_MS):
            payload = self.encoding.encode(sample * (self.encoding.rate * FRAME_MS // 1000))
            self._send(Upload(self._frames, self._frames * FRAME_MS, payload).encode())
            self._frames += 1

    def talk(self, *, ms: int = 300) -> None:
        """Hold the button and speak."""
        self.tell("talk", on=True)
        self.sound(LOUD, ms)
        self.tell("talk", on=False)

    def play(self, until: int | None) -> None:
        """Go on listening, until so many samples of the answer."""
        with self._news:
            self.until = until
            self._play()

    def resume(self, line: Line, token: str, **fields: Any) -> None:
        """Come back by another line."""
        with self._news:
            self.line, self.closed = line, None
            generation = self.generation or 0
            played = self.played.get(generation, 0)
        self.tell("resume", **{"token": token, "seq": self.seq, "generation": generation, "played": played} | fields)

    # What the test asks

    def expect(self, kind: str, condition: Callable[[dict[str, Any]], object] = bool, **fields: Any) -> dict[str, Any]:
        """Wait for a message behind the one that was expected last.

        :param condition: of it; `fields` are others.
        """
        with self._news:
            found = self._news.wait_for(lambda: self._find(kind, condition, fields), PATIENCE)
            assert found, f"no {kind} {fields}: {self.messages[self._read :]} {self.closed} {self.mistakes}"
            return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The messages of a kind so far."""
        return [message for message in self.messages if message["type"] == kind]

    def until_true(self, condition: Callable[[], object]) -> None:
        """Wait for what becomes true by something that comes."""
        with self._news:
            assert self._news.wait_for(condition, PATIENCE), f"{self.messages[-5:]} {self.closed} {self.mistakes}"

    def hung_up(self) -> tuple[int, str]:
        """Wait for the end; its code and its reason."""
        self.until_true(lambda: self.closed)
        assert self.closed is not None
        return self.closed

    @property
    def samples(self) -> int:
        """How much of the answer has been played."""
        return self._base + (0 if self.generation is None else self.played.get(self.generation, 0))

    # What comes

    def meet(self, data: str | bytes) -> None:
        """Take what the server has sent."""
        with self._news:
            if isinstance(data, str):
                self._meet_message(json.loads(data))
            else:
                self._meet_packet(Download.read(data))
            self._news.notify_all()

    def end(self, code: int, reason: str) -> None:
        """The line is no more."""
        with self._news:
            self.closed = code, reason
            self._news.notify_all()

    def _meet_message(self, message: dict[str, Any]) -> None:
        seq = message.get("seq")
        if seq:
            if message["type"] == "ready":
                self.seq, self.oldest = 0, 0
                self.got.clear()
                self.played.clear()
            if seq != self.seq + 1:
                self.mistakes.append(f"{seq} follows {self.seq}")
            self.seq = seq
        self.messages.append(message)
        if message["type"] == "flush":
            self._flush(message["generation"])
        elif message["type"] == "speaking":
            self.generation, self._base, self._waiting = message["generation"], message["offset"], b""
            self._reported = 0
            self.got.setdefault(message["generation"], 0)

    def _flush(self, generation: int) -> None:
        self.oldest, self._waiting = generation, b""
        if self.flushes:
            self._report("flushed")

    def _meet_packet(self, packet: Download) -> None:
        if newer(self.oldest, packet.generation):
            self.stale += 1
            return
        if packet.generation != self.generation:
            self.mistakes.append(f"audio of {packet.generation} while {self.generation} is played")
        elif packet.offset != self.got[packet.generation]:
            self.mistakes.append(f"audio at {packet.offset} after {self.got[packet.generation]}")
        pcm = self.encoding.decode(packet.payload)
        samples = len(pcm) // 2
        self.got[packet.generation] = packet.offset + samples
        self._waiting += pcm
        if packet.last:
            self.finished.append(packet.generation)
        self._play(report=packet.last)

    def _play(self, *, report: bool = False) -> None:
        if self.generation is None or newer(self.oldest, self.generation):
            return
        before = self.played.get(self.generation, 0)
        now = self.got[self.generation]
        if self.until is not None:
            now = max(before, min(now, self.until - self._base))
        self.played[self.generation] = now
        self.heard += self._waiting[: 2 * (now - before)]
        self._waiting = self._waiting[2 * (now - before) :]
        due = now - self._reported >= REPORTED or now == (self.until or 0) - self._base
        if report or (now > before and due):
            self._reported = now
            self._report("played")

    def _report(self, kind: str) -> None:
        generation = self.generation or 0
        seq = {"seq": self.seq} if self.acknowledges else {}
        self.tell(kind, generation=generation, samples=self.played.get(generation, 0), **seq)

    def _send(self, data: str | bytes) -> None:
        if self.line is not None:
            with suppress(OSError):
                self.line.send(data)

    def _find(self, kind: str, condition: Callable[[dict[str, Any]], object], fields: dict[str, Any]) -> Any:
        for at in range(self._read, len(self.messages)):
            message = self.messages[at]
            if message["type"] == kind and message | fields == message and condition(message):
                self._read = at + 1
                return message
        return None
