"""Sound as numbers, without I/O: the formats of the wire, G.711, resampling, and how long it all lasts.

Everything but the wire has one form, PCM: signed 16-bit samples, little-endian, one channel.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

with warnings.catch_warnings():
    # Python 3.13 has left it out, and audioop-lts, which is the same code, takes its place there.
    warnings.filterwarnings("ignore", "'audioop' is deprecated", DeprecationWarning)
    import audioop

WIDTH = 2
"""Bytes of a sample of PCM."""

RATES = {"pcm16": (16_000, 24_000), "pcmu": (8_000,), "pcma": (8_000,)}
"""The sample rates that each format has on the wire, in Hz."""

QUIETEST = -96.0
"""What `level` says of silence, in dBFS: below the smallest sample that 16 bits can hold."""


@dataclass(frozen=True, slots=True)
class Format:
    """How audio is written on the wire.

    :param name: ``pcm16`` (little-endian), or G.711 as ``pcmu`` (mu-law) or ``pcma`` (A-law).
    :param rate: samples a second; one of `RATES`.
    :raises ValueError: there is no such format, or not at this rate; in a sentence for a person.
    """

    name: str
    rate: int

    def __post_init__(self) -> None:
        given: object = self.name  # as a client sent it, which may be anything
        if not isinstance(given, str) or given not in RATES:
            raise ValueError(f"The audio format must be one of {', '.join(RATES)}; it is {given!r}.")
        if type(self.rate) is not int or self.rate not in RATES[given]:
            rates = " or ".join(map(str, RATES[self.name]))
            raise ValueError(f"The sample rate of {self.name} must be {rates}; it is {self.rate!r}.")

    @property
    def width(self) -> int:
        """Bytes of a sample."""
        return WIDTH if self.name == "pcm16" else 1

    @property
    def bytes_per_second(self) -> int:
        return self.rate * self.width

    def samples(self, size: int) -> int:
        """How many whole samples there are in `size` bytes."""
        return size // self.width

    def milliseconds(self, size: int) -> float:
        """How long `size` bytes last."""
        return size * 1000 / self.bytes_per_second

    def size(self, milliseconds: float) -> int:
        """How many bytes last `milliseconds`: as many whole samples as fit."""
        return int(self.rate * milliseconds / 1000) * self.width

    def decode(self, payload: bytes) -> bytes:
        """PCM at the same rate.

        :raises ValueError: for half a sample: a frame holds whole ones.
        """
        if self.name == "pcm16":
            return whole(payload)
        linear = audioop.ulaw2lin if self.name == "pcmu" else audioop.alaw2lin
        return bytes(linear(payload, WIDTH))

    def encode(self, pcm: bytes) -> bytes:
        """What is sent for PCM of the same rate.

        :raises ValueError: for half a sample.
        """
        pcm = whole(pcm)
        if self.name == "pcm16":
            return pcm
        companded = audioop.lin2ulaw if self.name == "pcmu" else audioop.lin2alaw
        return bytes(companded(pcm, WIDTH))


class Resampler:
    """Turns a stream of PCM into one of another rate, by linear interpolation, however it is cut into chunks.

    A chunk may end in the middle of a sample. n samples (n > 0) become floor((n - 1) * target / source) + 1.

    :param source: Hz.
    :param target: Hz.
    """

    def __init__(self, source: int, target: int) -> None:
        if source <= 0 or target <= 0:
            raise ValueError(f"A sample rate is a positive number of Hz; these are {source!r} and {target!r}.")
        self.source = source
        self.target = target
        self._half = b""
        self._state: Any = None

    def feed(self, pcm: bytes) -> bytes:
        """What becomes of the next chunk."""
        if self._half:
            pcm, self._half = self._half + pcm, b""
        if len(pcm) % WIDTH:
            pcm, self._half = pcm[:-1], pcm[-1:]
        if self.source == self.target or not pcm:
            return pcm
        made, self._state = audioop.ratecv(pcm, WIDTH, 1, self.source, self.target, self._state)
        return bytes(made)


def resampled(pcm: bytes, source: int, target: int) -> bytes:
    """The whole of some PCM at another rate.

    :raises ValueError: for half a sample.
    """
    return Resampler(source, target).feed(whole(pcm))


def at_rate(samples: int, source: int, target: int) -> int:
    """Where a position in audio of one rate lies in the same audio at another."""
    return samples * target // source


def milliseconds(pcm: bytes | int, rate: int) -> float:
    """How long PCM lasts.

    :param pcm: it, or how many samples it has.
    """
    samples = pcm if isinstance(pcm, int) else len(pcm) // WIDTH
    return samples * 1000 / rate


def silence(ms: float, rate: int) -> bytes:
    """PCM in which nothing is heard."""
    return bytes(int(rate * ms / 1000) * WIDTH)


def level(pcm: bytes) -> float:
    """How loud PCM is, as the root mean square in dBFS: 0 for the loudest there is, `QUIETEST` for silence.

    :raises ValueError: for half a sample.
    """
    loudness = audioop.rms(whole(pcm), WIDTH)
    return 20 * math.log10(loudness / 32768) if loudness else QUIETEST


def whole(pcm: bytes) -> bytes:
    """PCM as it is.

    :raises ValueError: for half a sample.
    """
    if len(pcm) % WIDTH:
        raise ValueError(f"A sample of pcm16 has {WIDTH} bytes, and {len(pcm)} bytes end in the middle of one.")
    return pcm
