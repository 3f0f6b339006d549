"""When somebody speaks, as the model server finds it in the audio of a call: at given places, or by its level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..audio import level

CHUNK = 20
"""ms that are looked at together."""
LOUD = -40.0
"""dBFS, from which on somebody speaks."""
ONSET = 60
"""ms that it has to be loud for."""


class VoiceActivity(Protocol):
    def feed(self, pcm: bytes, rate: int) -> Iterator[tuple[bool, int]]:
        """What begins (True) or ends in this audio, each with its place in all of it, ms."""


class Positions:
    """One utterance at a given place.

    :param start: ms; `stop` likewise.
    :param samples: how many there were before.
    """

    def __init__(self, start: int, stop: int, samples: int = 0) -> None:
        self._edges = [(True, start), (False, stop)]
        self._samples = samples

    def feed(self, pcm: bytes, rate: int) -> Iterator[tuple[bool, int]]:
        self._samples += len(pcm) // 2
        while self._edges and self._samples * 1000 >= self._edges[0][1] * rate:
            yield self._edges.pop(0)


class Energy:
    """Whatever is loud.

    :param silence: ms without it that end an utterance.
    """

    def __init__(self, silence: int) -> None:
        self._silence = silence
        self._rest = b""
        self._at = 0
        self._speaking = False
        self._turning = 0

    def feed(self, pcm: bytes, rate: int) -> Iterator[tuple[bool, int]]:
        size = rate * CHUNK // 1000 * 2
        data = self._rest + pcm
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        for start in range(0, whole, size):
            self._at += CHUNK
            loud = level(data[start : start + size]) > LOUD
            self._turning = self._turning + CHUNK if loud is not self._speaking else 0
            if self._turning >= (self._silence if self._speaking else ONSET):
                self._speaking = not self._speaking
                yield self._speaking, self._at - self._turning
                self._turning = 0
