"""Calls without sockets, in the test's own process: what they hear and speak with is scripted. ::

with desk("hello") as calls:  # which is what the user says
    phone = calls.dial()
    phone.say()
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flask import Flask
from flask_sock import ConnectionClosed

from flask_llmstream import LLMStream
from flask_llmstream.audio import level
from flask_llmstream.callers import Caller
from flask_llmstream.errors import UpstreamUnavailable
from flask_llmstream.features import VoiceFeature
from flask_llmstream.providers.spoken import Mark, Sound
from flask_llmstream.record import Record
from flask_llmstream.voice import _talk
from flask_llmstream.voices import Voice
from tests.puppet import Puppet, stage
from tests.voice.caller import Phone

WORD = 6000
"""Samples of each word that `Monotone` says, at `RATE`: a quarter of a second."""
RATE = 24000


class Script:
    """A transcriber to whom each utterance is the next line. A line may be an error, or a gate before the words.

    :param lines: those of the utterances; none are left: nothing was said.
    :param partial: whether the words are known from the first frame on.
    """

    rate = 16000

    def __init__(self, *lines: str | Exception | Late, partial: bool = False) -> None:
        self.lines = list(lines)
        self.partial = partial
        self.heard: list[Utterance] = []

    def begin(self, *, language: str | None = None) -> Utterance:
        utterance = Utterance(self.lines.pop(0) if self.lines else "", self.partial)
        self.heard.append(utterance)
        return utterance

    def warm(self) -> None:
        pass

    def close(self) -> None:
        pass


class Late:
    """Words that come when the test lets them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.come = threading.Event()


class Utterance:
    """One utterance, and what became of it."""

    def __init__(self, line: str | Exception | Late, partial: bool) -> None:
        self.pcm = b""
        self.aborted = self.finished = False
        self._line = line
        self._partial = partial

    def feed(self, pcm: bytes) -> str | None:
        assert not self.finished, "nothing is fed any more"
        self.pcm += pcm
        return self._line if self._partial and isinstance(self._line, str) and level(pcm) > -40 else None

    def finish(self) -> str:
        self.finished = True
        if isinstance(self._line, Exception):
            raise self._line
        if isinstance(self._line, Late):
            assert self._line.come.wait(10)
            return self._line.text
        return self._line

    def abort(self) -> None:
        self.aborted = True
        if isinstance(self._line, Late):
            self._line.come.set()


class Loudness:
    """Voice activity: what is loud is speech."""

    rate = 16000
    samples = 512

    def detector(self) -> Loudness:
        return self

    def probability(self, pcm: bytes) -> float:
        return 1.0 if level(pcm) > -40 else 0.0

    def warm(self) -> None:
        pass

    def close(self) -> None:
        pass


class Monotone:
    """A synthesizer: each word takes `WORD` samples, all of which have the word's number in the text.

    :param fails_at: the word at which it can't go on.
    """

    rate = RATE

    def __init__(self, *, fails_at: str | None = None) -> None:
        self.fails_at = fails_at
        self.sentences: list[str] = []
        self.words = 0
        self.closed = 0

    def speak(self, text: str, *, voice: str | None = None, language: str | None = None) -> Generator[Sound]:
        self.sentences.append(text)
        at = character = 0
        try:
            for word in text.split():
                if word == self.fails_at:
                    raise UpstreamUnavailable(diagnosis="the synthesizer is hoarse")
                character = text.index(word, character)
                self.words += 1
                yield Sound(pcm=self.words.to_bytes(2, "little") * WORD, marks=(Mark(at, character),))
                at += WORD
                character += len(word)
        finally:
            self.closed += 1

    def warm(self) -> None:
        pass

    def close(self) -> None:
        pass


class Wire:
    """What `voice` takes for a connection, and a phone for its line."""

    subprotocol = "llmstream.voice.v1"

    def __init__(self, phone: Phone) -> None:
        self.phone = phone
        self.on_leaving: Callable[[float], None] | None = None
        self.over: tuple[int, str] | None = None
        self._up: queue.Queue[str | bytes | tuple[()] | None] = queue.Queue()
        self.side = Side(self)

    # The server's end

    @property
    def code(self) -> int:
        return self.over[0] if self.over else 1005

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        try:
            data = self._up.get(timeout=timeout)
        except queue.Empty:
            return None
        if self.over is not None:
            raise ConnectionClosed(*self.over)
        assert data != ()
        return data  # type: ignore[return-value]

    def send(self, data: str | bytes) -> None:
        if self.over is not None:
            raise ConnectionClosed(*self.over)
        self.phone.meet(data)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.over is None:
            self.over = code, reason
            self._up.put(())
            if self.phone.line is self.side:
                self.phone.end(code, reason)

    def wake(self) -> None:
        self._up.put(None)


class Side:
    """The client's end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def send(self, data: str | bytes) -> None:
        self._wire._up.put(data)

    def cut(self) -> None:
        """Break the connection."""
        self._wire.close(1006, "")


class Desk:
    """Where calls come in."""

    def __init__(self, app: Flask, llm: LLMStream, model: Any) -> None:
        self.app = app
        self.model = model
        self.llm = llm
        self.record: Record = llm.record(app)
        self._threads: list[threading.Thread] = []

    def dial(
        self,
        *,
        owner: str = "ann",
        rule: str = "/api/voice",
        until: int | None = None,
        ready: bool = True,
        **fields: Any,
    ) -> Phone:
        """Begin a call.

        :param ready: wait until it has begun.
        :param fields: of the message that starts it.
        """
        phone = Phone(until=until)
        phone.line = self.connect(phone, owner=owner, rule=rule)
        phone.tell("start", **fields)
        if ready:
            phone.expect("ready")
        return phone

    def connect(self, phone: Phone, *, owner: str = "ann", rule: str = "/api/voice") -> Side:
        """A new line, of which the server knows only whose it is."""
        feature = self.record.features[rule]
        assert isinstance(feature, VoiceFeature)
        wire: Any = Wire(phone)
        with self.app.test_request_context(headers={"X-User": owner}):
            caller = Caller.of(self.record, feature, {})
        thread = threading.Thread(target=_talk, args=(caller, wire))
        thread.start()
        self._threads.append(thread)
        side: Side = wire.side
        return side

    def said(self, conversation: str, owner: str = "ann") -> list[tuple[str, str]]:
        """What a conversation keeps: who, and what."""
        url = f"/api/conversations/{conversation}"
        messages = self.app.test_client().get(url, headers={"X-User": owner}).json["messages"]
        return [(message["role"], message["content"]) for message in messages]

    def close(self) -> None:
        """End all calls; nothing of them is left."""
        self.record.sessions.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive(), "a connection is still served"
        assert len(self.record.sessions) == 0


@contextmanager
def desk(
    *lines: str | Exception | Late,
    model: Any = None,
    voice: dict[str, Any] | None = None,
    hooks: dict[str, Any] | None = None,
    declare: Callable[[LLMStream], None] | None = None,
    **config: Any,
) -> Iterator[Desk]:
    """Take calls in which the user says these lines."""
    parts: dict[str, Any] = {"transcriber": Script(*lines), "synthesizer": Monotone(), "activity": Loudness()}
    voices = Voice(**parts | (voice or {}))
    model = model or Puppet()
    with stage(model, hooks={"voice": voices, **(hooks or {})}, **config) as (app, llm):
        if declare is not None:
            declare(llm)
        open_desk = Desk(app, llm, model)
        try:
            yield open_desk
        finally:
            open_desk.close()


def words(text: str) -> Sequence[str]:
    """A text as a model's tokens: cut before each space."""
    first, *others = text.split(" ")
    return [first, *(f" {word}" for word in others)]
