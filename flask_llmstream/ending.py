"""What follows when a run's function is through: the application is told, the ledger has it, the readers hear it.

Normally in this order, so that a page which reloads at the end finds the answer saved. Where another process may have
closed the run meanwhile, the ledger comes first, and what it says is what the readers hear. Where Redis cannot be
reached, they hear the end with ``"durable": false``, and the ledger is told as soon as it can be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from time import monotonic, time

import msgspec

from .anyrun import AnyRun, State
from .errors import LLMStreamError, RunInterrupted, StoreUnavailable
from .events import Done, Failed, Terminal, Usage
from .journal import Journal
from .leases import Leases
from .ledger import Ending, Ledger
from .mirror import Mirror
from .order import NOBODY
from .run import Run
from .runtime import current

log = logging.getLogger("flask_llmstream")

END_WAITS = 1.0
"""Seconds that a run's terminal event waits for those who want to act before the client hears of the end."""
TRIED_FOR = 60.0
"""Seconds in which the ledger is told of an end that it could not be told at once."""
BACKOFF = 0.1
BACKOFF_MOST = 2.0
"""Seconds between two attempts."""

INTERRUPTED = "The process that wrote this answer is gone. What it had written by then is kept, and the rest is lost."

Save = Callable[[AnyRun, State, Usage | None], None]
"""Keeps an answer with the conversation that it belongs to; may be called more than once for a run."""


class Endings:
    """How runs end in this process.

    :param ended: tells the application.
    :param save: keeps the answer.
    :param released: called when no other attempt can follow.
    """

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        leases: Leases,
        *,
        ended: Callable[[AnyRun], None],
        save: Save,
        released: Callable[[AnyRun], None] = lambda run: None,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._leases = leases
        self._ended = ended
        self._save = save
        self._released = released

    def carry_out(self, run: Run) -> bool:
        """See a run that has been settled to its end; whether other processes find that, too."""
        sure = self._leases.holds(run.id)
        if sure:
            with self._whatever_fails(run):
                self._announce(run)
        durable = self._finish(run)
        if not sure and not run.superseded:
            with self._whatever_fails(run):
                self._announce(run)
        elif not sure:
            run.let_go()
        return durable

    def reap(self, mirror: Mirror) -> None:
        """Close a run whose writer is gone, unless somebody else does.

        :raises StoreUnavailable: that cannot be done now.
        """
        used = mirror.estimate()
        if mirror.log.ended:
            return
        tokens = sum(entry.startswith(b'{"token"') for entry in mirror.said)
        usage = _total(used, mirror.about.model)
        terminal, state = _epitaph(mirror, tokens, usage)
        self._keep_answer(mirror, state, usage)
        ending = Ending(
            epoch=mirror.epoch,
            next_epoch=mirror.epoch + 1,
            n=1,
            terminal=terminal.encode(),
            state=state,
            lapsed=True,
            usage=_accounts(used, mirror),
            tokens=0 if usage is None else usage.prompt_tokens + usage.completion_tokens,
        )
        verdict, _, _ = self._ledger.finish(mirror.id, mirror.about, ending)
        if verdict != "ended":
            return
        if not mirror.waiting:
            log.warning("run %s of %s was left by its process, and is closed", mirror.id, mirror.feature)
        mirror.end(ending.next_epoch, ending.terminal)
        self._tell(mirror)
        self._let_go(mirror)

    def withdraw(self, run: Run) -> None:
        """Take back a start of which nobody knows whether it was admitted; a repeat of it is to start anew."""

        error = RunInterrupted()
        terminal = Failed(error=error.detail, problem=error.problem()).encode()

        def take_back() -> None:
            if not self._try_until_done(run, lambda: self._ledger.withdraw(run.id, run.about, terminal)):
                log.warning("whether run %s of %s was admitted is not known", run.id, run.feature)

        current().task(take_back, lambda: None).start()

    def _announce(self, run: Run) -> None:
        """Tell the application, and give it a moment to act before the client hears of the end."""
        told = current().bell()

        def tell() -> None:
            try:
                self._tell(run)
            finally:
                run.let_go()

        try:
            current().task(tell, told.ring).start()
        except BaseException:
            run.let_go()
            raise
        told.wait(END_WAITS)

    @staticmethod
    @contextmanager
    def _whatever_fails(run: Run) -> Iterator[None]:
        """A part that the others do not depend on."""
        try:
            yield
        except Exception:
            log.exception("run %s of %s has ended, but not all that follows could be done", run.id, run.feature)

    def _tell(self, run: AnyRun) -> None:
        try:
            self._ended(run)
        except Exception:
            log.exception("a receiver of run_ended failed for run %s", run.id)

    def _finish(self, run: Run) -> bool:
        """Have the ledger know; whether it does."""
        ending = self._ending(run, self._journal.release(run.id))
        try:
            self._decide(run, ending)
        except Exception as error:
            if isinstance(error, StoreUnavailable):
                log.warning("that run %s has ended is kept here alone for now: %s", run.id, error.diagnosis)
                current().task(lambda: self._keep_trying(run, ending), lambda: None).start()
            else:
                log.exception("the end of run %s of %s could not be kept", run.id, run.feature)
                self._leases.release(run.id)
            run.close(durable=False)
            return False
        return True

    def _decide(self, run: Run, ending: Ending) -> None:
        """Have the ledger decide how the run has ended, and the readers hear that.

        :raises StoreUnavailable: it cannot be asked.
        """
        assert run.decided is not None
        self._keep_answer(run, run.decided, run.usage)
        if run.result_apart is not None and not run.forgotten:
            self._ledger.keep_result(run.id, run.about, ending.epoch, run.result_apart)
        verdict, epoch, terminal = self._ledger.finish(run.id, run.about, ending)
        if verdict == "missing" and not run.forgotten:
            entries = _entries(run)[: ending.n - 1]
            self._ledger.restore(run.id, run.about, ending.epoch, entries, began=run.started_at, attempt=run.attempt)
            verdict, epoch, terminal = self._ledger.finish(run.id, run.about, ending)
        if run.forgotten and run.result_apart is not None:  # it may have been deleted while its result was kept
            self._ledger.drop_result(run.id, ending.epoch)
        if not run.passed_on:  # else the next attempt is made here, too, and holds it by now
            self._leases.release(run.id)
        if verdict == "fenced":  # another attempt is being made, or has been: its end is the run's
            run.superseded = True
            run.log.lose()
            return
        self._let_go(run)
        if run.ended:
            return
        if verdict == "already" and terminal != ending.terminal:
            run.close_as(epoch, terminal)
        else:
            run.close()

    def _let_go(self, run: AnyRun) -> None:
        """Give up what was kept for another attempt: its end is one that lasts."""
        try:
            self._released(run)
        except Exception:
            log.exception("not all that run %s of %s has had could be given up", run.id, run.feature)

    def _keep_answer(self, run: AnyRun, state: State, usage: Usage | None) -> None:
        """Save it. A mistake there is no reason for a run never to end in the ledger, and to be reaped for ever.

        :raises StoreUnavailable: that cannot be done now.
        """
        try:
            self._save(run, state, usage)
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("the answer of run %s of %s could not be saved", run.id, run.feature)

    def _keep_trying(self, run: Run, ending: Ending) -> None:
        if not self._try_until_done(run, lambda: self._decide(run, ending)):
            self._leases.release(run.id)

    @staticmethod
    def _try_until_done(run: Run, step: Callable[[], None]) -> bool:
        """Repeat a step until Redis can be reached again; whether it was done."""
        until, pause, rest = monotonic() + TRIED_FOR, BACKOFF, current().bell()
        while monotonic() < until:
            rest.wait(pause)
            pause = min(2 * pause, BACKOFF_MOST)
            try:
                step()
            except StoreUnavailable:
                continue
            except Exception:
                log.exception("the ledger could not be told of run %s of %s", run.id, run.feature)
                return False
            return True
        return False

    def _ending(self, run: Run, kept: int) -> Ending:
        """The end of a run that is written here.

        :param kept: the number of the last event that the journal has.
        """
        assert run.terminal is not None
        assert run.decided is not None
        entries, usage = _entries(run), run.usage
        return Ending(
            epoch=run.log.epoch,
            next_epoch=run.log.epoch,
            n=len(entries) + 1,
            terminal=run.terminal,
            state=run.decided,
            kept=kept,
            tail=entries[kept:] if kept else (),
            started_at=run.started_at,
            usage=_accounts(run.meter.by_model, run),
            tokens=0 if usage is None else usage.prompt_tokens + usage.completion_tokens,
            lasting=not (run.about.repeatable and _may_pass(run.error)),
        )


def _may_pass(error: LLMStreamError | None) -> bool:
    """Whether the same request may succeed at another time."""
    return error is not None and (error.retryable or error.status == RunInterrupted.status)


def _entries(run: Run) -> list[bytes]:
    """Its log, from the beginning of this attempt."""
    return run.log.entries[run.log.parts[-1][1] :]


def _epitaph(mirror: Mirror, tokens: int, usage: Usage | None) -> tuple[Terminal, State]:
    """The last event of a run whose writer is gone, and the state in which that leaves it."""
    total_ms = round((time() - mirror.created_at) * 1000, 1)
    if mirror.stopped:
        return Done(done=True, tokens=tokens, cancelled=True, usage=usage, total_ms=total_ms), "cancelled"
    error = RunInterrupted(INTERRUPTED, kept=str(mirror.cursor))
    problem = error.problem()
    return Failed(error=error.detail, problem=problem, tokens=tokens, usage=usage, total_ms=total_ms), "failed"


def _total(used: dict[str, Usage], model: str) -> Usage | None:
    """What several models have consumed.

    :param model: the run's own.
    """
    if not used:
        return None
    usage = reduce(add, used.values())
    return usage if used.keys() == {model} else msgspec.structs.replace(usage, models=used)


def _accounts(usage: dict[str, Usage], run: AnyRun) -> list[tuple[str, str, int]]:
    """What a run adds to its payer's usage of the day, by model."""
    if run.about.payer == NOBODY:
        return []
    items = [(run.about.model, "runs", 1)]
    for model, used in usage.items():
        items += [
            (model, "prompt", used.prompt_tokens),
            (model, "completion", used.completion_tokens),
            (model, "cached", used.cached_tokens),
        ]
    return items
