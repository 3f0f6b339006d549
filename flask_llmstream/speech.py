"""What a call says: the text of an answer becomes speech, sentence by sentence, no faster than it is heard.

    the run's function ──text──> sentences ──(a few wait)──> synthesis ──audio──> playout ──> client
          blocks while enough of them wait          blocks while enough audio waits

So a client that does not listen slows the synthesis, that the function, and that the model: nothing grows. Nor does
it where there is nothing to hear: the function waits as well for the client to acknowledge messages.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .audio import Resampler, at_rate
from .delivery import Delivery
from .errors import LLMStreamError, RunCancelled
from .events import Token, Tool
from .playout import Playout
from .providers.spoken import Sound, Synthesizer
from .run import Run
from .runtime import current
from .sentences import Sentence, Sentences, Spoken
from .writer import Function

log = logging.getLogger("flask_llmstream")

SENTENCES_AHEAD = 2
"""Sentences that wait to be synthesized."""
AUDIO_AHEAD = 2.0
"""Seconds of audio that wait to be sent."""
LOOKED_AGAIN = 0.25
"""Seconds after which it is looked whether the run has been stopped, where nothing tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mouth:
    """What a call speaks with.

    :param voice: the provider's name for it; None for its own choice.
    :param language: as in BCP 47.
    """

    synthesizer: Synthesizer
    voice: str | None = None
    language: str | None = None


class Speaking:
    """The answer of a run, as its text is spoken.

    :param delivery: by which its audio is sent.
    :param playout: where its audio goes.
    """

    def __init__(self, mouth: Mouth, run: Run, delivery: Delivery, playout: Playout) -> None:
        self._mouth = mouth
        self._run = run
        self._playout = playout
        self._rate = delivery.output.rate
        self._lock = delivery.lock
        self._delivery = delivery
        self._news = delivery.news
        self._sentences = Sentences()
        self._waiting: deque[Sentence] = deque()
        self._resampler = Resampler(mouth.synthesizer.rate, self._rate)
        self._error: LLMStreamError | None = None
        self._sounds: Generator[Sound] | None = None
        self._ended = self._closed = False
        self._for_text, self._for_audio = current().bell(), current().bell()
        self._task = current().task(self._synthesize, self._over)
        self._begun = False

    def perform(self, function: Function) -> Generator[Any, None, Any]:
        """What a function produces, each piece of text after it has been handed over to be spoken.

        :returns: its result, where it has one.
        """
        output = function(self._run)
        if isinstance(output, str):
            output = iter((output,))
        result = (yield from self._say_all(output)) if isinstance(output, Iterator) else output
        self.finish()
        return result

    def say(self, text: str) -> None:
        """Say some more; returns when there is room for what follows.

        :raises RunCancelled: the answer is not wanted any more.
        :raises LLMStreamError: it cannot be spoken.
        """
        self._put(self._sentences.feed(text))
        self._await(lambda: len(self._waiting) < SENTENCES_AHEAD)

    def finish(self) -> None:
        """Wait until all has been heard.

        :raises RunCancelled: the answer is not wanted any more.
        :raises LLMStreamError: it cannot be spoken.
        """
        self._put(self._sentences.end())
        self._ended = True
        self._for_audio.ring()
        if not self._begun:
            self._over()
        self._await(self._is_heard)

    def moved(self) -> None:
        """Something has been heard, or is to be sent again."""
        self._for_text.ring()
        self._for_audio.ring()

    def close(self) -> None:
        """Say no more. Idempotent; callable from anywhere."""
        self._closed = True
        self.moved()
        if self._begun:
            self._task.interrupt()
        if self._sounds is not None:
            with suppress(ValueError):  # a generator of Python's own that is being read: it ends by itself
                self._sounds.close()

    def cut(self, samples: int) -> None:
        """Nobody else has to know."""

    def _say_all(self, output: Iterator[Any]) -> Generator[Any, None, Any]:
        try:
            while True:
                try:
                    item = next(output)
                except StopIteration as stop:
                    return stop.value
                try:
                    yield item
                except RunCancelled as stop:
                    _throw(output, stop)
                    raise
                self._take(item)
        finally:
            close = getattr(output, "close", None)
            if close is not None:
                close()

    def _take(self, item: Any) -> None:
        """Have a piece of text be spoken. What comes before a tool's call is all that there is for a while."""
        if isinstance(item, Tool):
            self._put(self._sentences.end())
        text = item.token if isinstance(item, Token) else item
        if isinstance(text, str) and text:
            self.say(text)
        self._await(self._is_followed)  # what is silent, such as code, is slowed by nothing else

    def _put(self, sentences: list[Sentence]) -> None:
        if not sentences:
            return
        self._waiting.extend(sentences)
        if not self._begun:
            self._begun = True
            self._task.start()
        self._for_audio.ring()

    def _await(self, true: Callable[[], bool]) -> None:
        while not true():
            self._for_text.wait(LOOKED_AGAIN)
            if self._error is not None:
                raise self._error
            if self._run.cancelled or self._closed:
                raise RunCancelled

    def _is_followed(self) -> bool:
        """Whether the client keeps up with what comes in words."""
        delivery, run = self._delivery, self._run
        return delivery.outbox.has_room(len(run.log) - delivery.passed(run.id))

    def _is_heard(self) -> bool:
        with self._lock:
            return self._playout.done

    def _synthesize(self) -> None:
        try:
            while not self._closed:
                if self._waiting:
                    self._speak(self._waiting[0])
                    self._waiting.popleft()
                    self._for_text.ring()
                elif self._ended:
                    return
                else:
                    self._for_audio.wait()
        except LLMStreamError as error:
            self._error = error
        except Exception:
            log.exception("an answer could not be spoken")
            self._error = LLMStreamError("The answer could not be spoken.")

    def _over(self) -> None:
        if self._ended and not self._closed and self._error is None:  # else a sentence may have been broken off
            with self._lock:
                self._playout.finish()
        self._news()
        self._for_text.ring()

    def _speak(self, sentence: Sentence) -> None:
        spoken = sentence.spoken()
        with self._lock:
            began = self._playout.sentence(sentence.text, sentence.start)
        if not spoken.text:
            return
        sounds = self._mouth.synthesizer.speak(spoken.text, voice=self._mouth.voice, language=self._mouth.language)
        self._sounds = sounds
        try:
            for sound in sounds:
                if self._is_closed():
                    return
                self._add(sound, began, sentence, spoken)
                self._news()
                while self._is_ahead() and not self._is_closed():
                    self._for_audio.wait()
        finally:
            sounds.close()
        with self._lock:
            self._playout.pause()
        self._news()

    def _add(self, sound: Sound, began: int, sentence: Sentence, spoken: Spoken) -> None:
        rate, last = self._mouth.synthesizer.rate, len(spoken.places) - 1
        marks = [
            (began + at_rate(mark.sample, rate, self._rate), sentence.start + spoken.places[min(mark.character, last)])
            for mark in sound.marks
        ]
        with self._lock:
            self._playout.add(self._resampler.feed(sound.pcm), marks)

    def _is_closed(self) -> bool:
        return self._closed

    def _is_ahead(self) -> bool:
        with self._lock:
            return self._playout.backlog > AUDIO_AHEAD * self._rate


def _throw(output: Iterator[Any], stop: RunCancelled) -> None:
    """Let the function see the stop at its yield, where its own `finally` clauses are."""
    throw = getattr(output, "throw", None)
    if throw is not None:
        with suppress(StopIteration, RunCancelled):
            throw(stop)
