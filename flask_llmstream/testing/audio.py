"""Speech at the model server: ``/v1/audio/transcriptions`` and ``/v1/audio/speech`` in OpenAI's wire format."""

from __future__ import annotations

import io
import json
import math
import wave
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from .endpoint import Received
from .schedule import Schedule

RATE = 24000
"""Hz, of all that the model server says."""
NO_STREAMS = "whisper-1"
"""The model that takes no notice of `stream`."""


@dataclass(eq=False, slots=True, kw_only=True)
class Heard(Received):
    """A request for a transcription. Its `body` has the fields of the form.

    :param pcm: the audio, 16 bits, little-endian, mono.
    :param rate: Hz.
    """

    pcm: bytes = field(default=b"", repr=False)
    rate: int = 0

    @property
    def seconds(self) -> float:
        """How long the audio is."""
        return len(self.pcm) / 2 / self.rate if self.rate else 0.0


@dataclass(eq=False, slots=True, kw_only=True)
class Spoken(Received):
    """A request for speech. Its pieces are of a tenth of a second.

    :param bytes_sent: of audio, so far.
    """

    bytes_sent: int = 0


@dataclass(frozen=True, kw_only=True)
class Tones:
    """What the model server's speech sounds like: for each word a tone, whose pitch depends on the word.

    :param word: seconds that the tone of a word lasts.
    :param gap: seconds of silence after it.
    :param level: amplitude, 1.0 is full scale.
    """

    word: float = 0.25
    gap: float = 0.05
    level: float = 0.3

    def pcm(self, text: str) -> bytes:
        """The speech, at `RATE`."""
        silence = bytes(2 * round(self.gap * RATE))
        return b"".join(self._tone(word) + silence for word in text.split())

    def seconds(self, text: str) -> float:
        return len(self.pcm(text)) / 2 / RATE

    def _tone(self, word: str) -> bytes:
        samples = round(self.word * RATE)
        period = RATE // (200 + 25 * (zlib.crc32(word.encode()) % 16))
        peak = 32767 * self.level
        wave_form = array("h", (round(peak * math.sin(2 * math.pi * n / period)) for n in range(period)))
        return (wave_form.tobytes() * (samples // period + 1))[: 2 * samples]


def heard(number: int, connection: int, headers: Mapping[str, str], body: bytes) -> Heard:
    """What a request for a transcription brings.

    :raises ValueError: its form or its file is none.
    """
    mimetype, options = parse_options_header(headers.get("content-type"))
    form = FormDataParser(stream_factory=lambda *_, **__: io.BytesIO(), silent=False)
    _, fields, files = form.parse(io.BytesIO(body), mimetype, len(body), options)
    if "file" not in files:
        raise ValueError("there is no file in the form")
    try:
        with wave.open(files["file"].stream, "rb") as sound:
            if (sound.getnchannels(), sound.getsampwidth()) != (1, 2):
                raise ValueError("the model server understands 16 bits mono only")
            pcm, rate = sound.readframes(sound.getnframes()), sound.getframerate()
    except (wave.Error, EOFError) as error:
        raise ValueError(f"the file is no WAV: {error}") from None
    return Heard(number, connection, headers, fields.to_dict(), pcm=pcm, rate=rate)


class Transcript:
    """The form of a transcription. Its pieces are the schedule's tokens."""

    content_type = "text/event-stream; charset=utf-8"
    comments = True

    def __init__(self, schedule: Schedule, request: Heard) -> None:
        self._tokens = schedule.text_tokens()
        self._text = schedule.text
        self._done = schedule.done
        self._seconds = request.seconds
        self.streams = request.body.get("stream") == "true" and request.body.get("model") != NO_STREAMS
        self.count = len(self._tokens)

    def piece(self, number: int) -> bytes:
        return _event({"type": "transcript.text.delta", "delta": self._tokens[number]})

    def last(self) -> bytes:
        if not self._done:
            return b""
        tokens = {"input_tokens": round(10 * self._seconds), "output_tokens": self.count}
        usage = {"type": "tokens", **tokens, "total_tokens": sum(tokens.values())}
        return _event({"type": "transcript.text.done", "text": self._text, "usage": usage})

    def whole(self) -> bytes:
        usage = {"type": "duration", "seconds": math.ceil(self._seconds)}
        return json.dumps({"text": self._text, "usage": usage}).encode()


class Speech:
    """The form of speech: PCM at `RATE`, in pieces of a tenth of a second."""

    streams = True
    comments = False
    content_type = "audio/pcm"
    size = 2 * RATE // 10

    def __init__(self, pcm: bytes, request: Spoken) -> None:
        self._pcm = pcm
        self._request = request
        self.count = math.ceil(len(pcm) / self.size)

    def piece(self, number: int) -> bytes:
        piece = self._pcm[number * self.size : (number + 1) * self.size]
        self._request.bytes_sent += len(piece)
        return piece

    def last(self) -> bytes:
        return b""

    def whole(self) -> bytes:
        return self._pcm


def objection(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The error for a request for speech that is not understood."""
    for name in ("model", "input", "voice"):
        if not request.get(name):
            return missing(name)
    if len(request["input"]) > 4096:
        return _error("string_above_max_length: at most 4096 characters.", "input")
    if request.get("response_format", "mp3") != "pcm":
        return _error("This server speaks pcm alone.", "response_format")
    return None


def missing(name: str) -> dict[str, Any]:
    """The error for a request that lacks something."""
    return _error(f"Missing required parameter: '{name}'.", name)


def unreadable(error: ValueError) -> dict[str, Any]:
    """The error for a request for a transcription that is not understood."""
    return _error(str(error), "file")


def _error(message: str, parameter: str) -> dict[str, Any]:
    return {"message": message, "type": "invalid_request_error", "param": parameter, "code": None}


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
