"""One answer of a call: a run whose text is spoken, and of which is kept what its user has heard.

The run ends when all has been heard, or with what had been heard when it was cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol

from .anyrun import AnyRun
from .delivery import Delivery
from .errors import RunCancelled
from .log import Reader
from .playout import Playout
from .run import Run
from .runtime import current
from .turns import WORD
from .writer import Function

MANY = 64
"""Events at once, for which the run may have waited."""
FLUSHED_WITHIN = 0.5
"""Seconds that a client has to say what it has played of an answer that was cut short; then its last report counts."""


class Runs(Protocol):
    """Where a call's answers come from."""

    def start(self, text: str, spoken: Callable[[Function], Function]) -> AnyRun:
        """Begin the run that answers a message.

        :param spoken: makes of the feature's function what is to be performed.
        :raises LLMStreamError: there is none.
        """

    def stop(self, run: AnyRun) -> None:
        """Have it end as cancelled, at once."""

    def discard(self, run: AnyRun) -> None:
        """Have it be as if it had never been started."""

    def read(self, run: AnyRun) -> Reader:
        """Follow it from its first event."""

    def leave(self, run: AnyRun, reader: Reader) -> None:
        """End a reading."""

    def links(self, run: AnyRun) -> dict[str, str]:
        """Its addresses."""


class Performance(Protocol):
    """How one answer comes to be heard."""

    def perform(self, function: Function) -> Generator[Any, None, Any]:
        """What goes into the run's log, while the audio goes into its playout; ends when all has been heard.

        :param function: the feature's.
        :returns: the run's result.
        :raises RunCancelled: the answer is not wanted any more.
        :raises LLMStreamError: it cannot be had.
        """

    def moved(self) -> None:
        """Something has been heard, or is to be sent again."""

    def close(self) -> None:
        """Perform no more. Idempotent; callable from anywhere."""

    def cut(self, samples: int) -> None:
        """It was cut short when so many samples had been heard."""


Performs = Callable[[Run, Delivery, Playout], Performance]
"""Prepares the answer of a run."""


class Answer:
    """The answer to one message.

    :param asked_at: when the user's speech ended, or the message came; seconds on the monotonic clock. None for an
        answer that is begun before it is asked for: nobody hears of it until it is adopted.
    :param over: called with it, when it has ended.
    """

    def __init__(
        self,
        text: str,
        delivery: Delivery,
        performs: Performs,
        runs: Runs,
        *,
        asked_at: float | None,
        over: Callable[[Answer], None],
    ) -> None:
        self.text = text
        self.run: AnyRun | None = None
        self.silenced_at: float | None = None
        """When the user began to interrupt it."""
        self._delivery = delivery
        self._performs = performs
        self._runs = runs
        self._asked_at = asked_at
        self._words_at = monotonic()
        self._over = over
        self._playout: Playout | None = None
        self._performance: Performance | None = None
        self._stopped = self._discarded = self._announced = self._opened = self._held = self._ended = False
        self._told = current().bell()
        self._wanted = current().bell()

    @property
    def anticipated(self) -> bool:
        """Whether nobody has asked for it yet, and somebody still may."""
        return self._asked_at is None and not self._discarded

    def fits(self, text: str) -> bool:
        """Whether it answers this."""
        return WORD.findall(self.text.lower()) == WORD.findall(text.lower())

    def begin(self) -> None:
        """Start the run, and follow it to its end. Blocks.

        :raises LLMStreamError: it is refused.
        """
        try:
            if self._discarded:
                return
            run = self.run = self._runs.start(self.text, self._spoken)
            if self._stopped:
                self._end(run)
            self._follow(run)
        finally:
            with self._delivery.lock:
                self._ended = True
            self._over(self)

    def adopt(self, asked_at: float) -> bool:
        """Have it heard, since it is what was asked for; whether it still can be."""
        with self._delivery.lock:
            if self._ended:
                return False
            self._asked_at, self._words_at = asked_at, monotonic()
            self._open()
        self._wanted.ring()
        return True

    def hold(self, at: float) -> None:
        """Silence it, whether it has begun to be heard or not; it can still go on.

        :param at: when the user began to make a sound.
        """
        with self._delivery.lock:
            self._held = True
            self.silenced_at = at
            if self._opened:
                self._delivery.hush("speech")

    def go_on(self) -> None:
        """Let it go on from where it was heard."""
        with self._delivery.lock:
            self._held = False
            self.silenced_at = None
            if self._opened:
                self._delivery.go_on()
        self.moved()

    def stop(self, reason: str, at: float | None = None) -> None:
        """Let it end with what has been heard of it; one that nobody has asked for never was.

        :param at: when the user began to interrupt it.
        """
        self._discarded = self._discarded or self.anticipated
        self._stopped = True
        if self.silenced_at is None:
            self.silenced_at = at
        if self._opened:
            self._delivery.hush(reason)
        if self.run is not None:
            self._end(self.run)
        if self._performance is not None:
            self._performance.close()
        self._wanted.ring()

    def discard(self) -> None:
        """Let it be as if it had never been."""
        self._discarded = True
        self.stop("stop")

    def moved(self) -> None:
        """Something of it has been heard, or is to be heard again."""
        if self._performance is not None:
            self._performance.moved()
        self._told.ring()

    def _end(self, run: AnyRun) -> None:
        if self._discarded:
            self._runs.discard(run)
        else:
            self._runs.stop(run)

    def _open(self) -> None:
        """Have the client hear it, as soon as there is something to hear."""
        if self._playout is None or self.run is None or self.anticipated or self._opened or self._discarded:
            return
        self._opened = True
        self._announce(self.run)
        self._delivery.begin(self.run.id, self._playout, held=self._held or self._stopped)

    def _announce(self, run: AnyRun) -> None:
        """Tell the client of the run, once, before anything else of it."""
        with self._delivery.lock:
            if not self._announced:
                self._announced = True
                self._delivery.tell("run", id=run.id, links=self._runs.links(run))

    def _follow(self, run: AnyRun) -> None:
        reader = self._runs.read(run)
        try:
            while self.anticipated and not self._stopped:
                self._wanted.wait()
            if not self._discarded:
                self._announce(run)  # it may end before it is performed
            while not reader.finished and not run.log.lost:
                news = reader.take()
                if not news:
                    reader.bell.wait()
                for payload in news if not self._discarded else ():
                    self._delivery.pass_on(run.id, payload)
                if len(news) > MANY:
                    self.moved()
        finally:
            self._runs.leave(run, reader)
        if not self._discarded:
            self._delivery.tell("turn", run=run.id, timing=self._timing(run))

    def _spoken(self, function: Function) -> Function:
        def perform(run: Run) -> Generator[Any, None, Any]:
            delivery = self._delivery
            with delivery.lock:
                self.run, self._playout = run, delivery.page()
                self._open()
            performance = self._performance = self._performs(run, delivery, self._playout)
            run.heard_so_far = partial(self._heard_so_far, run, self._playout)
            try:
                result = yield from performance.perform(function)
                return result
            except BaseException:
                performance.close()
                run.heard = ""  # of what has not been begun to be heard
                if self._opened:
                    delivery.hush("stop")
                    performance.cut(self._keep_what_was_heard(run))
                raise
            finally:
                run.heard_so_far = None
                performance.close()
                delivery.end(self._playout)

        return perform

    def _heard_so_far(self, run: Run, playout: Playout) -> str:
        with self._delivery.lock:
            heard = playout.heard()
        return run.text[:heard]

    def _keep_what_was_heard(self, run: Run) -> int:
        """Have it last; the samples of it."""
        delivery, until = self._delivery, monotonic() + FLUSHED_WITHIN
        while not delivery.silent and (left := until - monotonic()) > 0:
            with suppress(RunCancelled):  # it is being stopped as it is
                self._told.wait(left)
        with delivery.lock:
            playout = delivery.playout
            heard, samples = (0, 0) if playout is None else (playout.heard(), playout.samples_heard)
        run.heard = run.text[:heard]
        delivery.tell(
            "interrupted", run=run.id, heard=run.heard, played_ms=round(samples * 1000 / delivery.output.rate)
        )
        return samples

    def _timing(self, run: AnyRun) -> dict[str, float]:
        """Milliseconds since the end of the user's speech, of what has happened."""
        delivery, asked_at = self._delivery, self._asked_at
        assert asked_at is not None
        moments = {
            "transcript_ms": self._words_at,
            "first_token_ms": run.timing.first if isinstance(run, Run) else None,
        }
        if self._opened:
            moments |= {"first_audio_ms": delivery.first_sent, "played_ms": delivery.first_played}
        timing = {name: round((at - asked_at) * 1000, 1) for name, at in moments.items() if at is not None}
        if self._opened and self.silenced_at is not None and delivery.flushed_at is not None:
            timing["silence_ms"] = round((delivery.flushed_at - self.silenced_at) * 1000, 1)
        return timing
