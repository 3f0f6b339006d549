"""Relayed calls: the model's server is scripted, over real sockets, or the test plays it event by event."""

from __future__ import annotations

import queue
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from flask_llmstream.errors import LLMStreamError
from flask_llmstream.providers.openai_realtime import (
    AudioDelta,
    AudioEnded,
    InputTranscript,
    OutputTranscript,
    RealtimeEvent,
    RealtimeModel,
    ResponseDone,
    ResponseStarted,
    SpeechStarted,
    SpeechStopped,
)
from flask_llmstream.testing import ModelServer
from flask_llmstream.testing.script import Dialled, Script, Turn
from tests.puppet import eventually
from tests.voice.caller import Phone
from tests.voice.desk import Desk, desk

KEY = "sk-very-secret-0123456789"
ANSWER = "One two. Six ten."
WORD = 7200
"""Samples that the model takes for each word: 0.3 s."""
FAST = Turn(heard="Tell me.", says=ANSWER, speed=None)
FINE = Turn(heard="No, stop.", says="Fine.", speed=None)


def relayed(
    upstream: ModelServer, *, model: Mapping[str, Any] | None = None, model_of_chat: Any = None, **config: Any
) -> AbstractContextManager[Desk]:
    """Take calls that are relayed to a server.

    :param model: what the realtime model is given.
    :param model_of_chat: who answers what is not said in a call.
    """
    realtime = RealtimeModel(api_key=KEY, base_url=upstream.base_url, **(model or {}))
    return desk(voice={"realtime": realtime, "instructions": "Be brief."}, model=model_of_chat, **config)


def script(upstream: ModelServer, *turns: Turn) -> None:
    upstream.realtime.schedule = Script(turns=turns)


def only(upstream: ModelServer) -> Dialled:
    [dialled] = upstream.realtime.requests
    return dialled


def kinds(dialled: Dialled) -> list[str]:
    """What the model was told, but for audio."""
    return [event["type"] for event in list(dialled.events) if event["type"] != "input_audio_buffer.append"]


def listening(calls: Desk, samples: int, **fields: Any) -> Phone:
    """A call in which so much of an answer has been played, and no more is for now."""
    phone = calls.dial(until=samples, **fields)
    phone.say()
    phone.expect("speaking")
    phone.until_true(lambda: phone.samples == samples and phone.got[phone.generation or 0] > samples)
    return phone


def second_turn(phone: Phone) -> None:
    phone.expect("turn")
    phone.expect("turn")


class Stage:
    """A model whose server is played by the test.

    :param transcription: as `RealtimeModel` has it.
    """

    model = "stage"

    def __init__(self, transcription: str | None = "scribe") -> None:
        self.transcription = transcription
        self.calls: list[StageCall] = []
        self.refusal: LLMStreamError | None = None

    def connect(self, *, history: Sequence[Mapping[str, Any]] = (), **settings: Any) -> StageCall:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(StageCall(list(history)))
        return self.calls[-1]

    @property
    def call(self) -> StageCall:
        return self.calls[-1]

    def relayed(self, **config: Any) -> AbstractContextManager[Desk]:
        return desk(voice={"realtime": self}, **config)


class StageCall:
    """What the call does, as a list of words: ``told``. What is put into `now` comes."""

    def __init__(self, history: list[Mapping[str, Any]]) -> None:
        self.history = history
        self.told: list[str] = []
        self.heard = 0
        """Bytes."""
        self.closed = False
        self._events: queue.Queue[RealtimeEvent | LLMStreamError | None] = queue.Queue()

    def now(self, *events: RealtimeEvent | LLMStreamError) -> None:
        for event in events:
            self._events.put(event)

    def says(self, item: str, *words: str) -> None:
        """A part of an answer: of each word 0.1 s."""
        for word in words:
            self.now(OutputTranscript(item, word), AudioDelta(item, b"\x01\x10" * 2400))

    def answers(self, response: str = "r", item: str = "a", text: Sequence[str] = ("Hi ", "there. ")) -> None:
        """A whole answer."""
        self.now(ResponseStarted(response))
        self.says(item, *text)
        self.now(AudioEnded(item), ResponseDone(response, "completed"))

    def hears(self, item: str, text: str | None) -> None:
        """The user has said something; None where the words don't come."""
        self.now(SpeechStarted(0, item), SpeechStopped(0, item))
        if text is not None:
            self.now(InputTranscript(item, text, final=True))

    def is_told(self, *told: str) -> None:
        """Wait until the last that it was told is this."""
        eventually(lambda: self.told[-len(told) :] == list(told))

    def events(self) -> Generator[RealtimeEvent]:
        while (event := self._events.get()) is not None:
            if isinstance(event, LLMStreamError):
                raise event
            yield event

    def send(self, message: Mapping[str, Any]) -> None:
        self.told.append(message["type"])

    def send_audio(self, audio: bytes) -> None:
        self.heard += len(audio)

    def commit(self) -> None:
        self.told.append("commit")

    def clear(self) -> None:
        self.told.append("clear")

    def cancel(self) -> None:
        self.told.append("cancel")

    def truncate(self, item: str, heard_ms: float) -> int:
        self.told.append(f"{item} {heard_ms:g}")
        return 0

    def say(self, text: str) -> None:
        self.told.append(f"say {text}")

    def close(self) -> None:
        self.closed = True
        self._events.put(None)
