"""Executes an application's function and turns what it yields into its run's log.

A function may yield text and events, return an iterator of them, or return a value, which becomes the result. It is
stopped by an exception, `RunCancelled`: under gevent wherever it waits; in threads at its next yield, or where its
model's socket, closed under it, wakes it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

import msgspec

from .anyrun import CUT_SHORT
from .errors import FeatureFailed, InvalidOutput, LLMStreamError, RunCancelled, RunInterrupted
from .events import NOT_JSON, Event, Terminal, Token, encode
from .log import LogFull
from .run import Outcome, Run

Function = Callable[[Run], Any]

log = logging.getLogger("flask_llmstream")

BACKOFF = 2.0
"""Seconds before a function is tried again that has failed once, doubled for each further time, up to BACKOFF_MOST."""
BACKOFF_MOST = 300.0


class Writer:
    """Performs one run.

    :param enter: opens the context in which the function runs.
    :param ended: called with the outcome, once, from a thread or greenlet that no stop can interrupt.
    :param retry_on: exceptions of the function's that may pass.
    """

    def __init__(
        self,
        run: Run,
        function: Function,
        enter: Callable[[], AbstractContextManager[Any]],
        ended: Callable[[Run, Outcome], None],
        *,
        retry_on: tuple[type[Exception], ...] = (),
    ) -> None:
        self._run = run
        self._function = function
        self._enter = enter
        self._ended = ended
        self._retry_on = retry_on
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
                    result = produce(run, self._function)
                finally:
                    # What the context gives back at its end, such as a database session, is not to be interrupted.
                    if run.task is not None:
                        run.task.shelter()
            reason = run.meter.finish_reason
            cut_short = result is None and reason in CUT_SHORT  # who returns a result has judged the answers by itself
            self._outcome = Outcome(
                state="incomplete" if cut_short else "completed", result=result, finish_reason=reason
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
        if run.broken is not None:
            outcome = Outcome(state="failed", error=run.broken)
        elif run.cancelled:
            # An error is the stop's own doing, and a function that returned did so because it was asked to.
            outcome = Outcome(state="cancelled", result=outcome and outcome.result)
        if outcome is None:
            outcome = Outcome(state="failed", error=RunInterrupted())
        self._ended(run, outcome)

    def _failure(self, error: BaseException) -> Outcome:
        run = self._run
        if isinstance(error, LLMStreamError):
            if not run.cancelled:
                log.warning("run %s of %s failed: %s", run.id, run.feature, error.diagnosis or error.detail)
            # The run is kept for a while, and with a traceback it would keep all that the function had in hand.
            error.__cause__ = error.__context__ = None
            error.retryable = error.retryable or isinstance(error, self._retry_on)
            return Outcome(state="failed", error=error.with_traceback(None))
        if not run.cancelled:
            log.error("run %s of %s failed", run.id, run.feature, exc_info=error)
        failed = FeatureFailed()
        failed.retryable = isinstance(error, self._retry_on)
        return Outcome(state="failed", error=failed)


def produce(run: Run, function: Function) -> Any:
    """Call a run's function, and put what it yields into the run's log.

    :returns: its result, as JSON has it: nobody can change it afterwards.
    :raises InvalidOutput: it yielded or returned something that is not to be sent.
    :raises RunCancelled: the run was stopped.
    :raises LogFull: the log has reached its limit.
    """
    result = _write(run, function(run))
    if run.result_schema is not None and not run.cancelled:
        result = _dumped(run, result)
    if result is None:
        return None
    try:
        return msgspec.json.decode(encode(result))
    except NOT_JSON as error:
        raise InvalidOutput(diagnosis=f"{run.feature} returned what JSON cannot hold: {error}") from error


def _write(run: Run, output: Any) -> Any:
    """Put what the function produces into the log; what it returns, if anything."""
    if not isinstance(output, Iterator):
        return output
    try:
        while True:
            try:
                item = next(output)
            except StopIteration as stop:
                return stop.value
            if run.cancelled:
                _throw(output)
            if isinstance(item, str):
                if item:
                    _say(run, Token(item))
            elif isinstance(item, Event) and not isinstance(item, Terminal):
                _say(run, item)
            else:
                what = type(item).__name__
                raise InvalidOutput(diagnosis=f"{run.feature} yielded {what}, which is neither text nor an event")
    finally:
        close = getattr(output, "close", None)
        if close is not None:
            close()


def _dumped(run: Run, result: Any) -> Any:
    """The result as its schema has it, which would dump nearly anything: as nothing, where it finds no field."""
    schema = run.result_schema.schema
    try:
        dumped = run.result_schema.dump(result)
        wrong = _without(schema.error_messages["unknown"], schema.validate(dumped))
    except Exception as error:
        raise InvalidOutput(diagnosis=f"{run.feature} returned what its schema is not for: {error}") from error
    if wrong:
        raise InvalidOutput(diagnosis=f"{run.feature} returned what its schema does not take: {wrong}")
    return dumped


def _without(unknown: str, errors: Any) -> Any:
    """Of what is wrong with what was dumped, all but that of fields which are only dumped."""
    if isinstance(errors, Mapping):
        return {name: left for name, wrong in errors.items() if (left := _without(unknown, wrong))}
    return [error for error in errors if error != unknown]


def _say(run: Run, event: Event) -> None:
    try:
        run.say(event)
    except NOT_JSON as error:
        raise InvalidOutput(diagnosis=f"{run.feature} yielded what JSON cannot hold: {error}") from error


def _throw(output: Iterator[Any]) -> None:
    """Let a generator see the stop at its yield, where its own `finally` clauses are; then leave."""
    throw = getattr(output, "throw", None)
    if throw is not None:
        with suppress(StopIteration):
            throw(RunCancelled())
    raise RunCancelled


def pause_before_retry(error: LLMStreamError, failures: int) -> float:
    """Seconds until a function that has failed is tried again: exponential with full jitter, after what was asked for.

    :param failures: the attempts that have failed before this one.
    """
    backoff = random.uniform(0.5, 1.0) * min(BACKOFF * 2**failures, BACKOFF_MOST)
    return float((error.retry_after or 0.0) + backoff)
