"""Calls with a model that hears and speaks itself, over OpenAI's Realtime API.

This is the provider's side of a call: what the user says goes in, and what the model says comes out, faster than it
can be heard. Playing it, stopping it and telling the model how far it got is the business of whoever has the other
side. Needs the package ``websockets``, 14 or newer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..audio import Format
from ..errors import ConfigurationError
from . import Message
from .openai_audio import Access, Connected, iso_639_1
from .realtime import AudioDelta as AudioDelta
from .realtime import AudioEnded as AudioEnded
from .realtime import InputTranscript as InputTranscript
from .realtime import OutputTranscript as OutputTranscript
from .realtime import RealtimeError as RealtimeError
from .realtime import RealtimeEvent as RealtimeEvent
from .realtime import ResponseDone as ResponseDone
from .realtime import ResponseStarted as ResponseStarted
from .realtime import SpeechStarted as SpeechStarted
from .realtime import SpeechStopped as SpeechStopped
from .realtime import ToolCalled as ToolCalled

if TYPE_CHECKING:
    import openai

    from .openai_realtime_session import RealtimeCall, RealtimeSession

PCM = Format("pcm16", 24000)
SERVER_VAD: Mapping[str, Any] = {"type": "server_vad", "create_response": True, "interrupt_response": True}
"""The server hears when the user speaks, answers what was said, and stops its answer when it is interrupted."""


class RealtimeModel(Connected["RealtimeSession"]):
    """A model of OpenAI's that hears and speaks, or of any server that has ``/v1/realtime``.

    :param voice: for calls that name none; None leaves it to the server.
    :param transcription: the model that writes down what the user says; None has nobody do it.
    :param options: further fields of the session, such as ``max_output_tokens``.
    :param client: as in `OpenAI`.
    """

    def __init__(
        self,
        model: str = "gpt-realtime-2.1",
        *,
        voice: str | None = None,
        transcription: str | None = "gpt-transcribe",
        options: Mapping[str, Any] | None = None,
        client: openai.OpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
    ) -> None:
        super().__init__(Access(client, api_key, base_url))
        self.model = model
        self.voice = voice
        self.transcription = transcription
        self._options = dict(options or {})

    def connect(
        self,
        *,
        instructions: str | None = None,
        voice: str | None = None,
        language: str | None = None,
        turn_detection: Mapping[str, Any] | None = SERVER_VAD,
        input_format: Format = PCM,
        output_format: Format = PCM,
        tools: Sequence[Mapping[str, Any]] = (),
        history: Sequence[Message] = (),
    ) -> RealtimeCall:
        """Begin a call. Blocks until the server has taken its settings. Nobody repeats it: its errors say who may.

        :param language: of what the user says, as in BCP 47.
        :param turn_detection: as OpenAI has it; None leaves it to `RealtimeCall.commit` and `create_response`.
        :param input_format: PCM at 24 kHz, or G.711; the output's likewise.
        :param tools: functions, as OpenAI's Realtime API has them.
        :param history: what was said before.
        :raises ModelNotConfigured: there is neither a key nor a base URL.
        :raises LLMStreamError: the call did not come about.
        """
        hears: dict[str, Any] = {"format": _format(input_format), "turn_detection": turn_detection}
        if self.transcription is not None:
            code = iso_639_1(language)
            hears["transcription"] = {"model": self.transcription} | ({"language": code} if code else {})
        speaks: dict[str, Any] = {"format": _format(output_format)}
        if voice or self.voice:
            speaks["voice"] = voice or self.voice
        session: dict[str, Any] = {
            "type": "realtime",
            "output_modalities": ["audio"],
            "audio": {"input": hears, "output": speaks},
        }
        if instructions is not None:
            session["instructions"] = instructions
        if tools:
            session["tools"] = list(tools)
        return self._open().call(self.model, session | self._options, history, output_format)

    def _make(self, access: Access) -> RealtimeSession:
        try:
            from .openai_realtime_session import RealtimeSession
        except ImportError as error:
            raise ConfigurationError(
                "Realtime calls need the package websockets: pip install flask-llmstream[realtime].",
                diagnosis=repr(error),
            ) from None
        return RealtimeSession("", client=access.client, api_key=access.api_key, base_url=access.base_url)


def _format(audio: Format) -> dict[str, Any]:
    if audio.name != "pcm16":
        return {"type": f"audio/{audio.name}"}
    if audio.rate != PCM.rate:
        raise ValueError(f"The Realtime API takes PCM at {PCM.rate} Hz, not at {audio.rate}.")
    return {"type": "audio/pcm", "rate": audio.rate}
