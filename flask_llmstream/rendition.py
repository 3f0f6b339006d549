"""An answer that a model speaks by itself: its words become a run's text, and its audio goes to the call's client.

The words come ahead of their audio, and without times. A sentence is taken to begin not before its first word had
come, and not before the sentence before it is likely to be over. Once all audio of an item is there, its sentences
share it by their lengths.

The model takes all that it has said for heard. So what it is told of an answer that was cut short is part of the
answer's end: the next one begins afterwards.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from time import monotonic
from typing import Any, Protocol

from .audio import Format, Resampler, milliseconds
from .delivery import Delivery
from .errors import LLMStreamError, RunCancelled, UpstreamMalformed, UpstreamTimeout
from .events import FinishReason, Token, Usage
from .playout import LETTERS_A_SECOND, Playout
from .providers.realtime import ResponseDone
from .run import Run
from .runtime import current
from .sentences import Sentence, Sentences
from .writer import Function

PCM = Format("pcm16", 24_000)
"""What the model says."""
LOOKED_AGAIN = 0.25
"""Seconds after which it is looked whether the run has been stopped, where nothing tells."""
ENDED_WITHIN = 0.5
"""Seconds that the model's server has to end an answer that was cut short: till then more of it may come."""
REFUSED_WITHIN = 2.0
"""Seconds after an error without which an answer would have begun."""
MOST_TOKENS = 4096
"""Of one answer, as the Realtime API has it."""
MOST_AHEAD = 600
"""Seconds of audio that wait to be heard. They can't be left in the socket: what the user does comes behind them."""
REASONS: Mapping[str | None, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}


class Speaker(Protocol):
    """The model's side of a call."""

    @property
    def model(self) -> str:
        """Its name."""

    def ask(self, answer: Rendition, max_tokens: int) -> None:
        """Have it answer.

        :raises LLMStreamError: the call is lost.
        """

    def leave(self, answer: Rendition) -> None:
        """An answer is not wanted any more."""

    def keep(self, item: str, heard_ms: float) -> None:
        """Have it know how much of an item was heard."""

    def said(self, answer: Rendition, text: str) -> None:
        """An answer is over, of which this was heard."""


@dataclass(slots=True)
class Item:
    """A part of an answer.

    :param sample: samples of the answer before it.
    :param start: characters of the answer before it.
    """

    sample: int
    start: int
    text: str = ""
    space: str = ""
    """What comes before the next word, if there is one."""
    ended_at: int | None = None
    """Samples of the answer up to its end, as soon as that is known."""
    sentences: list[Sentence] = field(default_factory=list)
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    """How much had been generated, samples, when the characters from one on came."""

    def places(self, rate: int) -> dict[int, int]:
        """Where its sentences are taken to begin: by the characters of the answer before each, the sample."""
        if self.ended_at is not None:
            length, characters = self.ended_at - self.sample, max(1, len(self.text))
            return {
                sentence.start: self.sample + length * (sentence.start - self.start) // characters
                for sentence in self.sentences
            }
        places: dict[int, int] = {}
        earliest = self.sample
        for sentence in self.sentences:
            at = max(earliest, self._came(sentence.start)) if places else earliest
            places[sentence.start] = at
            earliest = at + len(sentence.text) * rate // LETTERS_A_SECOND
        return places

    def _came(self, character: int) -> int:
        number = bisect_right(self.arrivals, character, key=itemgetter(0))
        return self.arrivals[number - 1][1] if number else self.sample


@dataclass(frozen=True, slots=True)
class Piece:
    """What has come of an item: audio, or text."""

    name: str
    pcm: bytes = b""
    text: str | None = None
    last: bool = False
    """Whether there is no more audio; or whether it is all of the text."""


class Rendition:
    """The answer of a run.

    :param speaker: who gives it.
    :param delivery: by which its audio is sent.
    :param playout: where its audio goes.
    """

    def __init__(self, speaker: Speaker, run: Run, delivery: Delivery, playout: Playout) -> None:
        self.closed = False
        self.given_by: object = None
        """The speaker's connection."""
        self._speaker = speaker
        self._run = run
        self._playout = playout
        self._lock = delivery.lock
        self._news = delivery.news
        self._rate = delivery.output.rate
        self._resampler = Resampler(PCM.rate, self._rate)
        self._sentences = Sentences()
        self._names: dict[str, None] = {}
        """The items of which something has come, in their order."""
        self._items: dict[str, Item] = {}
        """Those of which something is in the playout, or in the run's text."""
        self._coming: deque[Piece] = deque()
        self._characters = 0
        self._placed = -1
        """The last sentence that the playout has, by the characters before it."""
        self._asked = self._begun = self._kept = self._accounted = self._abandoned = False
        self._moved_at = monotonic()
        """When something of it came last."""
        self._done: ResponseDone | None = None
        self._error: LLMStreamError | None = None
        self._refusal: tuple[float, LLMStreamError] | None = None
        self._bell = current().bell()

    @property
    def over(self) -> bool:
        """Whether its run has ended."""
        return self._run.ended

    def perform(self, function: Function) -> Generator[Any, None, None]:
        """What the model says. The feature's function has no part in it."""
        if self.closed:
            raise RunCancelled
        self._asked, self._moved_at = True, monotonic()
        self._speaker.ask(self, min(self._run.model.settings.max_tokens, MOST_TOKENS))
        done = yield from self._follow()
        self._account()
        if done.error is not None:
            raise done.error
        with self._lock:
            self._end_item()
            self._playout.finish()
        self._news()
        self._await(self._is_heard)
        self._speaker.said(self, self._run.text)

    def moved(self) -> None:
        """Something has been heard, or is to be sent again."""
        self._bell.ring()

    def close(self) -> None:
        """Have the model say no more. Idempotent; callable from anywhere."""
        if self.closed:
            return
        self.closed = True
        if self._done is None:
            self._speaker.leave(self)
        with self._lock:
            self._place(self._sentences.end())  # its audio may have begun
        self._bell.ring()

    def cut(self, samples: int) -> None:
        """It was cut short when so many samples had been heard: let the model know."""
        self._await_end()
        with self._lock:
            self._kept, names = True, list(self._names)
        for name in names:
            item = self._items.get(name)
            if item is None:
                self._speaker.keep(name, 0)
            elif item.ended_at is None or samples < item.ended_at:
                self._speaker.keep(name, milliseconds(max(0, samples - item.sample), self._rate))
        self._speaker.said(self, self._run.heard or "")
        self._account()

    # What the model says

    def begin(self) -> None:
        """The model's server has begun to answer."""
        self._begun, self._refusal, self._moved_at = True, None, monotonic()

    def add(self, name: str, pcm: bytes) -> None:
        """Take audio.

        :param name: of the item that it belongs to.
        """
        self._come(name, Piece(name, pcm=pcm))

    def end_audio(self, name: str) -> None:
        """There is no more audio of an item."""
        self._come(name, Piece(name, last=True))

    def say(self, name: str, text: str, *, final: bool = False) -> None:
        """Take words.

        :param text: what comes in addition; the final one is all of the item.
        """
        self._come(name, Piece(name, text=text, last=final))

    def done(self, event: ResponseDone) -> None:
        """There is no more."""
        self._done = event
        self._bell.ring()

    def doubt(self, error: LLMStreamError) -> None:
        """Something was refused, which may be this answer."""
        self._refusal = monotonic(), error

    def abandon(self) -> None:
        """There will be no more, since the call is over."""
        self._abandoned = True
        self._bell.ring()

    def fail(self, error: LLMStreamError) -> None:
        """There will be no more, though there should."""
        self._error = error
        self._run.broken = error  # whoever stops it now
        self._bell.ring()

    def _come(self, name: str, piece: Piece) -> None:
        self._moved_at = monotonic()
        with self._lock:
            late = self._kept and name not in self._names
            self._names[name] = None
        if late:
            self._speaker.keep(name, 0)
        if not self.closed:
            self._coming.append(piece)
            self._bell.ring()

    def _follow(self) -> Generator[Token, None, ResponseDone]:
        """All that comes, in its order: what can be heard is in the run's text."""
        while True:
            done = self._done
            while self._coming and not self.closed:
                piece = self._coming.popleft()
                if piece.text is None:
                    self._add(piece)
                elif words := self._words(piece):
                    yield Token(words)
                    with self._lock:
                        self._place(self._sentences.feed(words))
            if done is not None:
                return done
            self._await(lambda: bool(self._coming or self._done))

    def _add(self, piece: Piece) -> None:
        with self._lock:
            item = self._item(piece.name)
            self._playout.add(self._resampler.feed(piece.pcm))
            if piece.last:
                item.ended_at = self._playout.generated
            self._place()
            if piece.last:
                self._playout.pause()
            too_much = self._playout.backlog > MOST_AHEAD * self._rate
        self._news()
        if too_much:
            raise UpstreamMalformed(diagnosis=f"more than {MOST_AHEAD} s of an answer came that nobody had heard")

    def _words(self, piece: Piece) -> str:
        """What a piece of text adds. The space behind it belongs to the next word, if there is one."""
        with self._lock:
            item, text = self._item(piece.name), piece.text or ""
            if piece.last:
                so_far, text = item.text.lstrip(), text.strip()
                text = text[len(so_far) :] if text.startswith(so_far) else ""
                item.space = "" if so_far else item.space
            text = item.space + text
            words = text.rstrip()
            item.space = text[len(words) :]
            if words:
                item.arrivals.append((self._characters, self._playout.generated))
                item.text += words
                self._characters += len(words)
            return words

    def _item(self, name: str) -> Item:
        if name not in self._items:
            latest = self._latest
            self._end_item()
            space = "" if latest is None or not self._characters else latest.space or " "
            self._items[name] = Item(self._playout.generated, self._characters, space=space)
        return self._items[name]

    def _end_item(self) -> None:
        """The part that is being spoken is complete."""
        item = self._latest
        if item is not None and item.ended_at is None:
            item.ended_at = self._playout.generated
        self._place(self._sentences.end())

    def _place(self, sentences: Sequence[Sentence] = ()) -> None:
        """Have the playout know where the sentences begin of the part that is being spoken, as far as they have.

        :param sentences: that have been added to it.
        """
        item = self._latest
        if item is None:
            return
        item.sentences += sentences
        places = item.places(self._rate)
        if item.ended_at is not None:
            self._playout.relocate(places)
        for sentence in item.sentences:
            if sentence.start > self._placed:
                if places[sentence.start] > self._playout.generated:
                    break
                self._playout.sentence(sentence.text, sentence.start, at=places[sentence.start])
                self._placed = sentence.start

    @property
    def _latest(self) -> Item | None:
        return next(reversed(self._items.values()), None)

    def _account(self) -> None:
        """Enter what it has cost."""
        if self._accounted or not self._asked:
            return
        self._accounted = True
        meter, done = self._run.meter, self._done
        tokens = self._run.timing.tokens
        if done is not None and done.usage is not None:
            meter.carry_over({self._speaker.model: done.usage})
        elif tokens:
            meter.carry_over({self._speaker.model: Usage(0, tokens, estimated=True)})
        if done is not None:
            meter.finish_reason = REASONS.get(done.reason, "stop")

    def _is_heard(self) -> bool:
        with self._lock:
            return self._playout.done

    def _await(self, true: Callable[[], bool]) -> None:
        while not true():
            self._bell.wait(LOOKED_AGAIN)
            if self._error is not None:
                raise self._error
            if self.closed or self._run.cancelled:
                raise RunCancelled
            if self._done is None:
                self._require_life()

    def _require_life(self) -> None:
        """:raises LLMStreamError: the model's server is silent."""
        now, timeouts = monotonic(), self._run.model.settings.timeouts
        if self._refusal is not None and now - self._refusal[0] > REFUSED_WITHIN:
            raise self._refusal[1]
        patience = timeouts.idle if self._begun else timeouts.first_token
        if patience is not None and now - self._moved_at > patience:
            raise UpstreamTimeout("idle" if self._begun else "first_token")

    def _await_end(self) -> None:
        """Wait until nothing more of it can come, and its cost is known."""
        until = monotonic() + ENDED_WITHIN
        while self._asked and not (self._done or self._error or self._abandoned) and (left := until - monotonic()) > 0:
            with suppress(RunCancelled):  # it is being stopped as it is
                self._bell.wait(left)
