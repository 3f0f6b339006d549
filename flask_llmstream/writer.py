"""Executes an application's function and turns what it yields into its run's log.

A function may yield text and events, return an iterator of them, or return a value, which becomes the result. It is
stopped by an exception, `RunCancelled`: under gevent wherever it waits; in threads at its next yield, or where its
model's socket, closed under it, wakes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

import msgspec

from .errors import FeatureFailed, InvalidOutput, LLMStreamError, RunCancelled, RunInterrupted
from .events import NOT_JSON, Event, Terminal, Token, encode
from .log import LogFull
from .run import CUT_SHORT, Outcome, Run

Function = Callable[[Run], Any]

log = logging.getLogger("flask_llmstream")


class Writer:
    """Performs one run.

    :param enter: opens the context in which the function runs.
    :param ended: called with the outcome, once, from a thread or greenlet that no stop can interrupt.
    """

    def __init__(
        self,
        run: Run,
        function: Function,
        enter: Callable[[], AbstractContextManager[Any]],
        ended: Callable[[Run, Outcome], None],
    ) -> None:
        self._run = run
        self._function = function
        self._enter = enter
        self._ended = ended
        self._outcome: Outcome | None = None

    def perform(self) -> None:
        """Execute the function to its end. An exception of its own becomes the run's outcome."""
        run = self._run
        try:
            with self._enter():
                try:
                    if run.cancelled:
                        return
                    run.begin()
                    result = self._plain(self._write(self._function(run)))
                finally:
                    # What the context gives back at its end, such as a database session, is not to be interrupted.
                    if run.task is not None:
                        run.task.shelter()
            reason = run.meter.finish_reason
            self._outcome = Outcome(
                state="incomplete" if reason in CUT_SHORT else "completed", result=result, finish_reason=reason
            )
        except LogFull:
            self._outcome = Outcome(state="incomplete", finish_reason="log_full")
        except RunCancelled:
            raise
        except BaseException as error:  # time-outs of gevent's and exits among them: nobody else would report these
            self._outcome = self._failure(error)

    def finish(self) -> None:
        """Report how it ended; also for a run that was stopped before, or interrupted while, it was performed."""
        run, outcome = self._run, self._outcome
        if run.interrupted:
            outcome = None
        elif run.cancelled:
            # An error is the stop's own doing, and a function that returned did so because it was asked to.
            outcome = Outcome(state="cancelled", result=outcome and outcome.result)
        if outcome is None:
            outcome = Outcome(state="failed", error=RunInterrupted())
        self._ended(run, outcome)

    def _write(self, output: Any) -> Any:
        """Put what the function produces into the log; what it returns, if anything."""
        if not isinstance(output, Iterator):
            return output
        run = self._run
        try:
            while True:
                try:
                    item = next(output)
                except StopIteration as stop:
                    return stop.value
                if run.cancelled:
                    self._throw(output)
                if isinstance(item, str):
                    if item:
                        self._say(Token(item))
                elif isinstance(item, Event) and not isinstance(item, Terminal):
                    self._say(item)
                else:
                    what = type(item).__name__
                    raise InvalidOutput(diagnosis=f"{run.feature} yielded {what}, which is neither text nor an event")
        finally:
            close = getattr(output, "close", None)
            if close is not None:
                close()

    def _say(self, event: Event) -> None:
        try:
            self._run.say(event)
        except NOT_JSON as error:
            raise InvalidOutput(diagnosis=f"{self._run.feature} yielded what JSON cannot hold: {error}") from error

    def _plain(self, result: Any) -> Any:
        """The function's result, as JSON has it: nobody can change it afterwards."""
        if result is None:
            return None
        try:
            return msgspec.json.decode(encode(result))
        except NOT_JSON as error:
            raise InvalidOutput(diagnosis=f"{self._run.feature} returned what JSON cannot hold: {error}") from error

    @staticmethod
    def _throw(output: Iterator[Any]) -> None:
        """Let a generator see the stop at its yield, where its own `finally` clauses are; then leave."""
        throw = getattr(output, "throw", None)
        if throw is not None:
            with suppress(StopIteration):
                throw(RunCancelled())
        raise RunCancelled

    def _failure(self, error: BaseException) -> Outcome:
        run = self._run
        if isinstance(error, LLMStreamError):
            if not run.cancelled:
                log.warning("run %s of %s failed: %s", run.id, run.feature, error.diagnosis or error.detail)
            # The run is kept for a while, and with a traceback it would keep all that the function had in hand.
            error.__cause__ = error.__context__ = None
            return Outcome(state="failed", error=error.with_traceback(None))
        if not run.cancelled:
            log.error("run %s of %s failed", run.id, run.feature, exc_info=error)
        return Outcome(state="failed", error=FeatureFailed())
