"""Who performs a run, and how often: at once, or when it is its turn; here or elsewhere; and once more after a failure.

A run that waits is in the backlog. In a process of its own it is kept here as well, since nobody else could perform it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace

from .audience import Audience
from .backlog import Backlog, LocalQueue, Queue
from .errors import LLMStreamError, RunInterrupted, RunTimeout, StoreUnavailable
from .events import Restarted
from .journal import Journal
from .leases import Leases
from .ledger import Ledger
from .log import Log
from .mirror import Mirror
from .models import BoundModel
from .run import QUEUED, Outcome, Run
from .runtime import current
from .work import Callbacks, Work
from .writer import Writer, pause_before_retry

log = logging.getLogger("flask_llmstream")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moves:
    """What becomes of a run that is performed.

    :param end: its function is through.
    :param abandon: nobody reads it any more.
    :param stop: it is not wanted any more.
    :param interrupt: it cannot go on, for a reason.
    """

    end: Callable[[Run, Outcome], None]
    abandon: Callable[[Run], None]
    stop: Callable[[Run], None]
    interrupt: Callable[[Run, LLMStreamError], None]


class Attempts:
    """The attempts at runs that are made here.

    :param runs: the runs that this process knows, by id.
    :param queue: where runs wait for their turn; None performs them here.
    :param at_once: of those, how many are performed at a time.
    """

    def __init__(
        self,
        runs: MutableMapping[str, Run],
        ledger: Ledger,
        journal: Journal,
        leases: Leases,
        callbacks: Callbacks,
        moves: Moves,
        *,
        queue: Queue | None,
        at_once: int,
        log_limit: int,
    ) -> None:
        self._runs = runs
        self._journal = journal
        self._leases = leases
        self._callbacks = callbacks
        self._moves = moves
        self._log_limit = log_limit
        self._shared = ledger.store.shared
        self.backlog = Backlog(ledger, queue or LocalQueue(self.perform, at_once))
        self._waiting: dict[str, tuple[Run, Work]] = {}
        """Those of this process that wait for their turn. Whoever takes one out performs it, or ends it."""

    def equip(self, run: Run, work: Work, *, max_tokens: int = 0) -> None:
        """Give a run what performs it.

        :param max_tokens: what its owner's budget leaves its answer; 0 for all that it may have anyhow.
        """
        run.result_schema, run.caller = work.result_schema, work.caller
        run.audience = Audience(work.grace, lambda: self._moves.abandon(run))
        writer = Writer(run, work.function, self._callbacks.enter, self._moves.end, retry_on=work.retry_on)
        run.task = current().task(writer.perform, writer.finish)
        bind(run, work, max_tokens)

    def hold(self, run: Run) -> None:
        """Have it be this process's: nobody else performs it while this one lives, and its log is kept."""
        self._leases.hold(run)
        self._journal.follow(run)

    def begin(self, run: Run, work: Work) -> None:
        """Perform it."""
        assert run.task is not None
        if work.timeout is not None:
            error = RunTimeout(f"This took longer than the {work.timeout:g} s that it may take.")
            run.deadline = current().timers.after(work.timeout, lambda: self._moves.interrupt(run, error))
        run.task.start()

    def wait(self, run: Run, work: Work) -> None:
        """Have it wait for its turn.

        :raises StoreUnavailable: it cannot be put into its queue.
        """
        if not self._shared:
            self._waiting[run.id] = run, work
        self.backlog.put(run.id, run.attempt, run.about)

    def call_off(self, run: Run) -> Run | None:
        """Have it wait no longer.

        :returns: the attempt that waited here, if one did, so that it is for the caller to end it.
        """
        return self._waiting.pop(run.id, (None, None))[0]

    def perform(self, run_id: str, attempt: int) -> Run | None:
        """Begin to perform a run that waits.

        :returns: the run; None where that is not for this process to do.
        :raises StoreUnavailable: whether it is cannot be said now.
        """
        run, work = self._waiting.pop(run_id, (None, None))
        here = self._runs.get(run_id)
        if run is None and here is not None and here.attempt >= attempt:
            return None  # its queue had it twice
        taken = self.backlog.take(run_id, attempt)
        if isinstance(taken, str):
            log.info("attempt %d of run %s is not performed: %s", attempt, run_id, taken)
            return None
        if run is None or work is None:
            order, work = self._callbacks.resume(taken.about)
            run_log = Log(self._log_limit, epoch=taken.epoch)
            if attempt > 1:
                run_log.extend(_again(attempt))
            run = Run(run_id, order, taken.about, run_log, self._callbacks.enter, attempt=attempt)
            run.failures = taken.failures
            run.meter.carry_over(taken.used)
            self.equip(run, work, max_tokens=taken.max_tokens)
            if here is not None:
                self._leave(here)
        self._runs[run_id] = run
        try:
            self.hold(run)
            self.begin(run, work)
        except Exception:  # no thread is to be had: there may be one later
            log.exception("run %s of %s could not be begun", run_id, run.feature)
            error = RunInterrupted()
            error.retryable = True
            self._moves.end(run, Outcome(state="failed", error=error))
            return None
        return run

    def pass_on(self, run: Run, outcome: Outcome) -> bool:
        """Have another attempt follow this one, where it has failed by what may pass, or where its process ends.

        :returns: whether one follows.
        """
        put_back = self._shared and isinstance(run.broken, RunInterrupted)
        error = outcome.error
        if run.about.queue is None or run.forgotten or run.outcome is not None or error is None:
            return False
        if not put_back and (run.cancelled or not error.retryable):
            return False
        delay = 0.0 if put_back else pause_before_retry(error, run.failures)
        try:
            attempt = self.backlog.again(
                run.id, run.about, run.log.epoch, run.meter.by_model, delay=delay, failed=not put_back
            )
        except StoreUnavailable as unavailable:
            log.warning("run %s is tried again when its lease has lapsed: %s", run.id, unavailable.diagnosis)
            attempt = 0
        if isinstance(attempt, str):
            return False
        log.info("attempt %d of run %s of %s is over: %s", run.attempt, run.id, run.feature, error.detail)
        run.passed_on = True
        self._leases.release(run.id)
        self._journal.release(run.id)
        if not self._shared:
            self._await_next_turn(run, attempt, delay)
        else:
            self._runs.pop(run.id, None)
            if attempt and not delay:
                with suppress(StoreUnavailable):  # it is looked after
                    self.backlog.put(run.id, attempt, run.about)
            run.log.lose()
            run.let_go()
        self.backlog.queue.done(run.id)
        return True

    def take_over(self, mirror: Mirror) -> bool:
        """Have a run that its process has left be tried again; whether it is.

        :raises StoreUnavailable: that cannot be done now.
        """
        about = mirror.about
        if about.queue is None:
            return False
        attempt = self.backlog.again(mirror.id, about, mirror.epoch, mirror.estimate(), lapsed=True)
        if isinstance(attempt, str):
            return False
        log.warning("run %s of %s was left by its process: attempt %d follows", mirror.id, mirror.feature, attempt)
        self.backlog.put(mirror.id, attempt, about)
        return True

    def _leave(self, run: Run) -> None:
        """Give up an attempt to which this process lost its hold: the next one is made here, too."""
        run.passed_on = True
        self._leases.release(run.id)
        self._journal.release(run.id)
        run.log.lose()
        run.meter.cancel()
        if run.task is not None:
            run.task.interrupt()
        self.backlog.queue.done(run.id)

    def _await_next_turn(self, run: Run, attempt: int, delay: float) -> None:
        """Have a run of this process wait for its next attempt, which nobody else could make."""
        order, work = self._callbacks.resume(run.about)
        run.log.take_over(run.log.epoch + 1)
        run.log.extend(_again(attempt))
        again = Run(run.id, order, run.about, run.log, self._callbacks.enter, attempt=attempt)
        again.failures, again.standing = run.failures + 1, run.standing
        again.meter.carry_over(run.meter.by_model)
        self.equip(again, work, max_tokens=run.model.settings.max_tokens)
        self._runs[run.id] = again
        self._waiting[run.id] = again, work
        current().timers.after(delay, lambda: self.backlog.put(run.id, attempt, run.about))
        if run.cancelled:  # meanwhile
            self._moves.stop(run)


def bind(run: Run, work: Work, max_tokens: int) -> None:
    """Give a run its model.

    :param max_tokens: what its owner's budget leaves its answer; 0 for all that it may have anyhow.
    """
    most = min(max_tokens or work.settings.max_tokens, work.settings.max_tokens)
    run.model = BoundModel(work.provider, replace(work.settings, max_tokens=most), run.meter)


def _again(attempt: int) -> list[bytes]:
    """What the log of a further attempt begins with, as whoever had it tried again has written."""
    return [Restarted(attempt).encode(), QUEUED]
