"""Where calls come from with models that hear and speak by themselves: the interface, and what happens in a call.

Audio is PCM, 16 bits, little-endian, mono, at 24 kHz in both directions.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import LLMStreamError
from ..events import Usage
from . import Message


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The user begins to speak.

    :param at_ms: where in the audio that was sent, with the padding that the server puts before it.
    """

    at_ms: int
    item: str


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    at_ms: int
    item: str


@dataclass(frozen=True, slots=True)
class InputTranscript:
    """What the user says.

    :param text: what came in addition; once it is final, all of it.
    """

    item: str
    text: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    response: str


@dataclass(frozen=True, slots=True)
class AudioDelta:
    """A piece of the answer.

    :param pcm: the audio, in the call's output format, G.711 too.
    """

    item: str
    pcm: bytes


@dataclass(frozen=True, slots=True)
class AudioEnded:
    """There is no more audio of the item."""

    item: str


@dataclass(frozen=True, slots=True)
class OutputTranscript:
    """What the model says.

    :param text: what came in addition; once it is final, all of it.
    """

    item: str
    text: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model wants a function to be called; `RealtimeCall.answer_tool` gives it the result.

    :param arguments: JSON text.
    """

    item: str
    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ResponseDone:
    """
    :param status: ``completed``, ``cancelled``, ``failed`` or ``incomplete``.
    :param reason: ``turn_detected``, ``client_cancelled``, ``max_output_tokens`` or ``content_filter``.
    :param error: why it failed.
    """

    response: str
    status: str
    reason: str | None = None
    usage: Usage | None = None
    error: LLMStreamError | None = None


@dataclass(frozen=True, slots=True)
class RealtimeError:
    """Something failed, and the call goes on."""

    error: LLMStreamError


RealtimeEvent = (
    SpeechStarted
    | SpeechStopped
    | InputTranscript
    | ResponseStarted
    | AudioDelta
    | AudioEnded
    | OutputTranscript
    | ToolCalled
    | ResponseDone
    | RealtimeError
)


class Call(Protocol):
    """A call with a model: the part of `RealtimeCall` that is used here."""

    def send(self, message: Mapping[str, Any]) -> None: ...

    def send_audio(self, audio: bytes) -> None: ...

    def commit(self) -> None: ...

    def clear(self) -> None: ...

    def cancel(self) -> None: ...

    def truncate(self, item: str, heard_ms: float) -> int: ...

    def say(self, text: str) -> None: ...

    def events(self) -> Generator[RealtimeEvent]: ...

    def close(self) -> None: ...


class RealtimeProvider(Protocol):
    """A model that hears and speaks by itself.

    :param transcription: who writes down what the user says; None where nobody does.
    """

    model: str
    transcription: str | None

    def connect(
        self,
        *,
        instructions: str | None = None,
        voice: str | None = None,
        language: str | None = None,
        turn_detection: Mapping[str, Any] | None = None,
        history: Sequence[Message] = (),
    ) -> Call:
        """Begin a call.

        :raises LLMStreamError: it did not come about.
        """
