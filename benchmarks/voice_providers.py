"""Providers whose time is known: scripted ones keep to a timetable, others are watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from time import monotonic
from typing import Any

from benchmarks.voice_sound import QUESTION
from flask_llmstream.errors import RunCancelled
from flask_llmstream.events import Event, Token, Usage
from flask_llmstream.providers import Call, Reply
from flask_llmstream.providers.spoken import Sound, Synthesizer, Transcriber, Transcription
from flask_llmstream.sentences import Sentences

ANSWER = "It will be sunny today. A light wind comes from the west, and it stays dry all night."
TOKENS: Sequence[str] = [word if number == 0 else f" {word}" for number, word in enumerate(ANSWER.split())]

TRANSCRIBED_AFTER = 0.06
"""Seconds from the end of an utterance to its words, where that is scripted."""
FIRST_TOKEN = 0.15
"""Seconds that the model takes for its first token."""
TOKENS_A_SECOND = 50
SPOKEN_AFTER = 0.08
"""Seconds from a sentence to its first audio, where that is scripted."""
PIECE = 0.1
"""Seconds of audio in a piece of it; they come five times as fast as they are heard."""
FASTER = 5
LETTER = 0.03
"""Seconds that a letter is spoken for."""


def first_sentence_after() -> float:
    """Seconds from the request to the token with which the answer's first piece that can be spoken is known."""
    sentences = Sentences()
    token = next(number for number, text in enumerate(TOKENS) if sentences.feed(text))
    return FIRST_TOKEN + token / TOKENS_A_SECOND


class ScriptedModel:
    """Answers by a timetable, which no delay of the reader's moves."""

    name = "scripted"

    def stream(self, call: Call) -> Generator[Event]:
        begun, left = monotonic(), threading.Event()
        call.abort = left.set
        call.accepted()
        try:
            for number, token in enumerate(TOKENS):
                due = begun + FIRST_TOKEN + number / TOKENS_A_SECOND
                if call.cancelled or left.wait(max(0.0, due - monotonic())):
                    raise RunCancelled
                yield Token(token)
            call.usage, call.finish_reason = Usage(0, len(TOKENS)), "stop"
        finally:
            call.abort = None

    def reply(self, call: Call) -> Reply:
        return Reply(text=ANSWER)

    def warm(self) -> None: ...

    def close(self) -> None: ...


class ScriptedTranscriber:
    """Hears the question, whatever is said."""

    rate = 16_000

    def begin(self, *, language: str | None = None) -> Transcription:
        return _Scripted()

    def warm(self) -> None: ...

    def close(self) -> None: ...


class _Scripted:
    def __init__(self) -> None:
        self._left = threading.Event()

    def feed(self, pcm: bytes) -> None:
        return None

    def finish(self) -> str:
        if self._left.wait(TRANSCRIBED_AFTER):
            raise RunCancelled
        return QUESTION

    def abort(self) -> None:
        self._left.set()


class ScriptedSynthesizer:
    """Says a text as noise of its length, by a timetable."""

    rate = 24_000

    def speak(self, text: str, *, voice: str | None = None, language: str | None = None) -> Generator[Sound]:
        begun, pieces = monotonic(), max(1, round(len(text) * LETTER / PIECE))
        piece = b"\x10\x00\xf0\xff" * round(PIECE * self.rate / 2)
        for number in range(pieces):
            time.sleep(max(0.0, begun + SPOKEN_AFTER + number * PIECE / FASTER - monotonic()))
            yield Sound(pcm=piece)

    def warm(self) -> None: ...

    def close(self) -> None: ...


class Watched:
    """What other providers take, by whose call it was for: callers give their number as the language.

    :param language: what the providers are told instead.
    """

    def __init__(self, language: str | None = "en") -> None:
        self.language = language
        self.times: list[tuple[str, str | None, float, float]] = []
        """What, for whom, from when, and until when, on the machine's monotonic clock."""

    def note(self, what: str, caller: str | None, begun: float) -> None:
        self.times.append((what, caller, begun, monotonic()))


class WatchedTranscriber:
    def __init__(self, transcriber: Transcriber, watched: Watched) -> None:
        self._transcriber = transcriber
        self._watched = watched
        self.rate = transcriber.rate
        self.warm, self.close = transcriber.warm, transcriber.close

    def begin(self, *, language: str | None = None) -> Transcription:
        return _Watched(self._transcriber.begin(language=self._watched.language), self._watched, language)


class _Watched:
    def __init__(self, transcription: Transcription, watched: Watched, caller: str | None) -> None:
        self._transcription = transcription
        self._watched = watched
        self._caller = caller
        self.feed, self.abort = transcription.feed, transcription.abort

    def finish(self) -> str:
        begun = monotonic()
        words = self._transcription.finish()
        self._watched.note("transcription", self._caller, begun)
        return words


class WatchedSynthesizer:
    def __init__(self, synthesizer: Synthesizer, watched: Watched) -> None:
        self._synthesizer = synthesizer
        self._watched = watched
        self.rate = synthesizer.rate
        self.warm, self.close = synthesizer.warm, synthesizer.close

    def speak(self, text: str, *, voice: str | None = None, language: str | None = None) -> Generator[Sound, Any]:
        begun = monotonic()
        for number, sound in enumerate(self._synthesizer.speak(text, voice=voice, language=self._watched.language)):
            if number == 0:
                self._watched.note("speech", language, begun)
            yield sound
