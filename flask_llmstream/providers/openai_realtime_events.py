"""What is said in a call over OpenAI's Realtime API, without I/O: the server's messages in, our events out.

The model makes audio faster than anyone can hear it, and takes all of it for heard until it is told otherwise. What
it is told must be true: a cut beyond the audio that it has sent is an error to it, and an item of which nothing was
heard has to go altogether. So all audio is counted here, by item, in decoded bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ..audio import Format
from ..errors import LLMStreamError, UpstreamMalformed
from ..events import Usage
from .failures import STATUS_OF_CODE, redact, reported
from .realtime import (
    AudioDelta,
    AudioEnded,
    InputTranscript,
    OutputTranscript,
    RealtimeError,
    RealtimeEvent,
    ResponseDone,
    ResponseStarted,
    SpeechStarted,
    SpeechStopped,
    ToolCalled,
)

HARMLESS = {"response_cancel_not_active"}
"""Errors that say no more than that two things happened at the same time."""
MESSAGE_TYPES = {"system": "input_text", "user": "input_text", "assistant": "output_text"}


class Conversation:
    """Reads the server's messages, and knows how much of each item it has sent.

    Servers differ in what they tell: one without turns sends neither speech nor transcripts of the user, and nothing
    here waits for any of it. What is not known is passed over.

    :param output: the format of the model's audio.
    :param key: what no error may repeat.
    """

    def __init__(self, output: Format, key: str | None = None) -> None:
        self.settled = False
        self._output = output
        self._key = key
        self._received: dict[str, int] = {}
        self._ended: set[str] = set()
        self._cut: set[str] = set()

    def take(self, data: bytes) -> Iterator[RealtimeEvent]:
        """The events of a message.

        :raises UpstreamMalformed: it is not the protocol.
        """
        try:
            yield from self._events(msgspec.json.decode(data))
        except (msgspec.DecodeError, binascii.Error, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UpstreamMalformed(diagnosis=redact(repr(error), self._key)) from None

    def received_ms(self, item: str) -> int:
        """How much audio of an item there is."""
        return int(self._output.milliseconds(self._received.get(item, 0)))

    def cut(self, item: str, heard_ms: float) -> tuple[dict[str, Any] | None, int]:
        """What to tell the server of an answer that was heard in part; None where there is nothing to tell.

        :returns: with it, how much of it stays, ms.
        """
        if item not in self._received or item in self._cut:
            return None, 0
        received = self.received_ms(item)
        kept = max(0, min(int(heard_ms), received))
        if kept == received and item in self._ended:
            return None, kept  # telling would cost its transcript
        self._cut.add(item)
        if kept == 0:
            return {"type": "conversation.item.delete", "item_id": item}, 0
        return {
            "type": "conversation.item.truncate",
            "item_id": item,
            "content_index": 0,
            "audio_end_ms": kept,
        }, kept

    def failure(self, error: Any) -> LLMStreamError:
        """An error that the server reports, in this package's words."""
        if isinstance(error, Mapping) and error.get("type") == "invalid_request_error":
            code = error.get("code")
            if code not in STATUS_OF_CODE:
                error = {**error, "code": "400", "reason": code}
        return reported(error, self._key)

    def _events(self, message: Any) -> Iterator[RealtimeEvent]:
        match message["type"]:
            case "response.output_audio.delta":
                yield from self._audio(message["item_id"], base64.b64decode(message["delta"], validate=True))
            case "response.output_item.added":
                if message["item"]["type"] == "message":
                    self._received.setdefault(message["item"]["id"], 0)
            case "response.output_audio_transcript.delta":
                if message["item_id"] not in self._cut:
                    yield OutputTranscript(message["item_id"], _text(message["delta"]))
            case "response.output_audio_transcript.done":
                if message["item_id"] not in self._cut:
                    yield OutputTranscript(message["item_id"], _text(message["transcript"]), final=True)
            case "response.output_audio.done":
                self._ended.add(message["item_id"])
                if message["item_id"] not in self._cut:
                    yield AudioEnded(message["item_id"])
            case "input_audio_buffer.speech_started":
                yield SpeechStarted(int(message["audio_start_ms"]), message["item_id"])
            case "input_audio_buffer.speech_stopped":
                yield SpeechStopped(int(message["audio_end_ms"]), message["item_id"])
            case "conversation.item.input_audio_transcription.delta":
                if delta := message.get("delta"):
                    yield InputTranscript(message["item_id"], _text(delta))
            case "conversation.item.input_audio_transcription.completed":
                yield InputTranscript(message["item_id"], _text(message["transcript"]).strip(), final=True)
            case "conversation.item.input_audio_transcription.failed":
                yield RealtimeError(self.failure(message["error"]))
            case "response.function_call_arguments.done":
                yield ToolCalled(
                    message["item_id"], message["call_id"], _text(message["name"]), _text(message["arguments"])
                )
            case "response.created":
                yield ResponseStarted(message["response"]["id"])
            case "response.done":
                yield self._done(message["response"])
            case "session.updated":
                self.settled = True
            case "error":
                if message["error"].get("code") not in HARMLESS:
                    yield RealtimeError(self.failure(message["error"]))

    def _audio(self, item: str, pcm: bytes) -> Iterator[AudioDelta]:
        self._received[item] = self._received.get(item, 0) + len(pcm)
        if pcm and item not in self._cut:  # what was under way when the answer was cut
            yield AudioDelta(item, pcm)

    def _done(self, response: Mapping[str, Any]) -> ResponseDone:
        details = response.get("status_details") or {}
        error = self.failure(details.get("error") or details) if response["status"] == "failed" else None
        usage = response.get("usage")
        return ResponseDone(
            response["id"], response["status"], details.get("reason"), _usage(usage) if usage else None, error
        )


def items(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Messages of a chat as items of a conversation. What is no text stays behind."""
    for message in messages:
        role = message.get("role")
        if role == "developer":
            role = "system"
        text = _plain(message.get("content"))
        if role in MESSAGE_TYPES and text:
            content = [{"type": MESSAGE_TYPES[role], "text": text}]
            yield {"type": "conversation.item.create", "item": {"type": "message", "role": role, "content": content}}


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    return "\n".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("input_token_details") or {}
    return Usage(
        int(usage.get("input_tokens") or 0),
        int(usage.get("output_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )
