"""The binary frames of ``llmstream.voice.v1``, and the meter of those that come up, without I/O.

    up:    u32 sequence | u32 captured_ms | payload                                  20 ms of audio each
    down:  u32 sequence | u16 generation | u16 flags | u32 offset | payload          40 ms of audio each

All integers are little-endian and wrap; bit 0 of the flags marks the last packet of its answer. Which of two numbers
is the newer one follows RFC 1982, serial number arithmetic.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_UP = struct.Struct("<II")
_DOWN = struct.Struct("<IHHI")
_LAST = 1
GENERATION_BITS = 16
SEQUENCE_BITS = 32
LONGEST = 0.1
"""Seconds of audio that a frame may hold: all of it is listened to at once, while everybody else waits."""
LEAST = 0.005
"""Seconds of audio that a frame counts for at least: one that carries less is no cheaper to receive."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A piece of what the user's microphone hears.

    :param sequence: counts the client's frames, from 0.
    :param captured_ms: when it was captured, by the client's clock, in milliseconds.
    :param payload: audio in the format that the call has agreed on.
    """

    sequence: int
    captured_ms: int
    payload: bytes

    @classmethod
    def read(cls, frame: bytes) -> Upload:
        """Read a frame.

        :raises ValueError: it is too short to be one.
        """
        if len(frame) <= _UP.size:
            raise ValueError(f"A frame of audio has more than {_UP.size} bytes; this one has {len(frame)}.")
        sequence, captured_ms = _UP.unpack_from(frame)
        return cls(sequence, captured_ms, bytes(frame[_UP.size :]))

    def encode(self) -> bytes:
        """The frame, as a client sends it."""
        return (
            _UP.pack(_wrapped(self.sequence, SEQUENCE_BITS), _wrapped(self.captured_ms, SEQUENCE_BITS)) + self.payload
        )


@dataclass(frozen=True, slots=True)
class Download:
    """A piece of what the server says.

    :param sequence: counts the frames of the call, from 0.
    :param generation: which stretch of speech it belongs to; each flush ends one.
    :param last: whether its answer ends with it. Its payload may then be empty: the end was not known before.
    :param offset: samples of its generation that come before it.
    :param payload: audio in the format that the call has agreed on.
    """

    sequence: int
    generation: int
    last: bool
    offset: int
    payload: bytes

    @classmethod
    def read(cls, frame: bytes) -> Download:
        """Read a frame.

        :raises ValueError: it is too short to be one.
        """
        if len(frame) < _DOWN.size:
            raise ValueError(f"A frame of speech has {_DOWN.size} bytes or more; this one has {len(frame)}.")
        sequence, generation, flags, offset = _DOWN.unpack_from(frame)
        return cls(sequence, generation, bool(flags & _LAST), offset, bytes(frame[_DOWN.size :]))

    def encode(self) -> bytes:
        """The frame, as it is sent."""
        sequence, generation = _wrapped(self.sequence, SEQUENCE_BITS), _wrapped(self.generation, GENERATION_BITS)
        return (
            _DOWN.pack(sequence, generation, _LAST if self.last else 0, _wrapped(self.offset, SEQUENCE_BITS))
            + self.payload
        )


def newer(a: int, b: int, *, bits: int = GENERATION_BITS) -> bool:
    """Whether `a` comes after `b`, where both wrap. Half the range apart, neither does (RFC 1982, section 3.2)."""
    return 0 < _wrapped(a - b, bits) < 1 << (bits - 1)


def after(generation: int) -> int:
    """The generation that follows this one."""
    return _wrapped(generation + 1, GENERATION_BITS)


class Intake:
    """What may come up, and what has: refuses audio that comes faster than it can have been spoken.

    An allowance fills at `factor` times real time and holds `window` seconds of audio. So a client in real time is
    never refused, nor one whose line hung for as long as `window` and delivers everything at once; one at three times
    real time is refused after five seconds, one that floods at once.

    `lost` counts the frames that never came, `repeated` those that came twice or late.

    :param bytes_per_second: of the agreed format, in real time.
    :param factor: times real time that go on for ever.
    :param window: seconds of audio that may come at once.
    """

    def __init__(self, bytes_per_second: float, *, factor: float = 2.0, window: float = 5.0) -> None:
        self.lost = 0
        self.repeated = 0
        self._pace = bytes_per_second * factor
        self._full = bytes_per_second * window
        self._least = bytes_per_second * LEAST
        self._left = self._full
        self._at: float | None = None
        self._sequence: int | None = None

    def take(self, n_bytes: int, now: float) -> bool:
        """Count a frame's payload; False if it comes too soon.

        :param now: seconds, by a clock that never goes back.
        """
        if self._at is not None:
            self._left = min(self._full, self._left + (now - self._at) * self._pace)
        self._at = now
        cost = max(n_bytes, self._least)
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def anew(self) -> None:
        """The frames are numbered anew; what may come at once is what it was."""
        self._sequence = None

    def follows(self, sequence: int) -> bool:
        """Count a frame's number; False for one that has been there, or was given up: it is to be passed over."""
        before, bits = self._sequence, SEQUENCE_BITS
        if before is not None and not newer(sequence, before, bits=bits):
            self.repeated += 1
            return False
        if before is not None:
            self.lost += _wrapped(sequence - before - 1, bits)
        self._sequence = sequence
        return True


def _wrapped(number: int, bits: int) -> int:
    return number & ((1 << bits) - 1)
