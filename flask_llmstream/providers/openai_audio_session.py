"""One process's way to a server that has OpenAI's audio endpoints."""

from __future__ import annotations

import contextlib
import io
import json
import wave
from collections.abc import Generator
from math import inf
from time import monotonic
from typing import Any

import httpx2

from ..errors import LLMStreamError, UpstreamMalformed, UpstreamTimeout, UpstreamTruncated
from ..sse import Decoder, EventTooLarge
from . import Call
from .attempt import Attempt
from .failures import redact, reported
from .openai_session import BROKEN_OFF, DONE, DRAIN, HEADERS, Session

SMALLEST = 960
"""Bytes of speech that are worth passing on by themselves: 20 ms."""
LARGEST = 4800
"""Bytes of speech in one piece: 100 ms."""
SPEECH_TYPES = ("audio/pcm", "audio/l16", "audio/raw", "audio/x-raw", "audio/x-pcm", "application/octet-stream")
"""Whatever else a server sends though it was asked for PCM would be noise."""
NO_STREAMS = ("whisper-1",)
LONGEST_ANSWER = 1_000_000
"""Bytes of a transcription."""


class AudioSession(Session):
    """The official client and its connections, for transcriptions and speech."""

    def transcribe(self, call: Call, pcm: bytes, rate: int) -> str:
        """The words of an utterance.

        :param call: its `options` are the fields of the form.
        """
        with self._attempt(call, call.timeouts) as attempt:
            fields: dict[str, Any] = dict(call.options)
            if fields.get("model") not in NO_STREAMS:
                fields["stream"] = True
            response = self._send("/audio/transcriptions", fields, attempt, {"file": _wav(pcm, rate)})
            try:
                call.accepted()
                words = Words()
                pieces = self._read(response, attempt)
                for piece in pieces:
                    words.feed(piece)
                    if words.ended:
                        break
                result = words.result()
                attempt.give_up_after(DRAIN)
                with contextlib.suppress(LLMStreamError):
                    for _ in pieces:
                        pass
                return result
            except Reported as error:
                raise reported(error.error, self._key) from None
            except (ValueError, EventTooLarge) as error:
                raise UpstreamMalformed(diagnosis=redact(repr(error), self._key)) from None
            finally:
                response.close()

    def speak(self, call: Call) -> Generator[bytes]:
        """Speech, in whole samples.

        :param call: its `options` are the body of the request.
        """
        with self._attempt(call, call.timeouts) as attempt:
            response = self._send("/audio/speech", dict(call.options), attempt)
            try:
                call.accepted()
                content_type = response.headers.get("content-type", SPEECH_TYPES[0])
                if not content_type.lower().startswith(SPEECH_TYPES):
                    raise UpstreamMalformed(diagnosis=redact(f"not PCM but {content_type}", self._key))
                waiting = bytearray()
                for piece in self._read(response, attempt):
                    waiting += piece
                    while len(waiting) >= SMALLEST:
                        size = min(len(waiting) & ~1, LARGEST)
                        yield bytes(waiting[:size])
                        del waiting[:size]
                if len(waiting) > 1:
                    yield bytes(waiting[: len(waiting) & ~1])
            finally:
                response.close()

    def _send(
        self, path: str, body: dict[str, Any], attempt: Attempt, files: dict[str, Any] | None = None
    ) -> httpx2.Response:
        headers = HEADERS | {"Accept": "*/*"}
        if files:
            headers["Content-Type"] = "multipart/form-data"
        options = self._options(attempt) | {"headers": headers}
        return self._ask(
            attempt,
            lambda: self._client.post(path, cast_to=httpx2.Response, body=body, files=files, options=options),
        )

    def _read(self, response: httpx2.Response, attempt: Attempt) -> Generator[bytes]:
        """The body as it arrives; the time that its reader takes over a piece does not count as the server's."""
        stream = response.extensions.get("network_stream")
        if stream is not None and response.http_version != "HTTP/2":  # whose socket other answers share
            attempt.blocks_on(stream.get_extra_info("socket"))
        attempt.phase = "idle"
        pieces = response.iter_bytes()
        while True:
            attempt.waiting_since = monotonic()
            try:
                piece = next(pieces, None)
            except httpx2.TimeoutException:  # the client's own transport keeps the time, too
                raise UpstreamTimeout(attempt.phase) from None
            except BROKEN_OFF as error:
                attempt.check()
                raise UpstreamTruncated(diagnosis=redact(repr(error), self._key)) from None
            attempt.waiting_since = inf
            attempt.check()
            if piece is None:
                return
            yield piece


class Reported(Exception):
    """The server tells of an error in its answer.

    :param error: the value of ``error``.
    """

    def __init__(self, error: Any) -> None:
        super().__init__("the answer tells of an error")
        self.error = error


class Words:
    """A transcription as it arrives: events, or a JSON object from servers and models that do not stream."""

    def __init__(self) -> None:
        self.ended = False
        self._decoder = Decoder(LONGEST_ANSWER)
        self._raw = bytearray()
        self._text: str | None = None

    def feed(self, piece: bytes) -> None:
        """
        :raises Reported: it says that it failed.
        :raises ValueError: it is not the protocol.
        """
        self._raw += piece
        if len(self._raw) > LONGEST_ANSWER:
            raise EventTooLarge(f"a transcription of more than {LONGEST_ANSWER} bytes")
        for event in self._decoder.feed(piece):
            if event.data == DONE:
                self.ended = True
                return
            self._take(json.loads(event.data))

    def result(self) -> str:
        """The whole.

        :raises UpstreamTruncated: it is not whole.
        :raises Reported: it says that it failed.
        :raises ValueError: it is not the protocol.
        """
        if self._text is None and self._raw.lstrip()[:1] == b"{":
            self._take(json.loads(self._raw))
        if self._text is None:
            raise UpstreamTruncated(diagnosis="the transcription has no end")
        return self._text.strip()

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise ValueError("not an object")
        if error := message.get("error"):
            raise Reported(error)
        if message.get("type", "transcript.text.done") == "transcript.text.done":
            if not isinstance(text := message.get("text"), str):
                raise ValueError("no text")
            self._text = text
            self.ended = "type" in message


def _wav(pcm: bytes, rate: int) -> tuple[str, bytes, str]:
    """A file for the form."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(pcm)
    return "speech.wav", file.getvalue(), "audio/wav"
