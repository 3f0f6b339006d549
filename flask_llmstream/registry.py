"""The runs that an application knows: start, find, read, stop, forget. Some are written here, others elsewhere."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from .admission import LEAST_ANSWER, Allowance, Verdict, refusal
from .anyrun import AnyRun
from .attempts import Attempts, Moves, bind
from .backlog import Queue
from .cursor import Cursor
from .drain import Drain
from .ending import Endings
from .errors import (
    KeyReused,
    LLMStreamError,
    RunCancelled,
    RunExpired,
    RunInterrupted,
    RunNotFound,
    StoreUnavailable,
)
from .journal import Journal, NullJournal, SharedJournal
from .kept import Kept
from .leases import LEASE, Leases, NullLeases, SharedLeases
from .ledger import LONGEST_RUN, Ledger
from .log import Log, Reader
from .mirror import Mirror, Mirrors
from .order import Claim, Order
from .orphans import Orphans
from .run import Outcome, Run
from .runtime import current
from .store import RedisStore, Store
from .work import Callbacks, Work

log = logging.getLogger("flask_llmstream")

LISTED = 100
"""Runs of an owner that are listed at most."""
SEARCHED = 2000
"""Runs of an owner among which those of one feature are looked for."""
CLOSED_WITHIN = 2.0
"""Seconds that the end of all runs is waited for when they are stopped together."""
INTERRUPTED_WITHIN = 1.0
"""Seconds that a function has to end by itself."""


class Registry:
    """The runs of an application.

    :param retention: seconds for which the log of an ended run is kept.
    :param log_limit: bytes that a log may take.
    :param refresh: seconds after which what is read of another process's run is read again.
    :param drain: sees to the end of what is live here.
    :param queue: where runs wait for their turn; None performs them here.
    :param jobs_at_once: of those, how many are performed at a time.
    """

    def __init__(
        self,
        store: Store,
        callbacks: Callbacks,
        *,
        allowance: Allowance | None = None,
        retention: float,
        log_limit: int,
        refresh: float = 5.0,
        drain: Drain | None = None,
        queue: Queue | None = None,
        jobs_at_once: int = 16,
    ) -> None:
        self._store = store
        self._callbacks = callbacks
        self._allowance = allowance or Allowance()
        self._log_limit = log_limit
        self._journal: Journal = NullJournal()
        self._leases: Leases = NullLeases()
        lease = LONGEST_RUN
        if isinstance(store, RedisStore):
            lease = LEASE
            self._leases = SharedLeases(store, self._hear, self._reap)
        self.ledger = Ledger(store, retention=retention, lease=lease, alone=not store.shared)
        if store.shared:
            self._journal = SharedJournal(self.ledger.frames, self._restore)
        self.mirrors = Mirrors(self.ledger, callbacks.revive, refresh=refresh)
        self._endings = Endings(
            self.ledger,
            self._journal,
            self._leases,
            ended=callbacks.ended,
            save=callbacks.save,
            released=callbacks.released,
        )
        self._runs: dict[str, Run] = {}
        self._drain = drain or Drain()
        self._drain.carry(runs=self)
        orphans = Orphans(self.ledger, self._drain, self.stop)
        self._attempts = Attempts(
            self._runs,
            self.ledger,
            self._journal,
            self._leases,
            callbacks,
            Moves(end=self._end, abandon=orphans.add, stop=self.stop, interrupt=self.interrupt),
            queue=queue,
            at_once=jobs_at_once,
            log_limit=log_limit,
        )
        self._kept = Kept(retention, self._expire)

    @property
    def live(self) -> list[Run]:
        """The runs that are written here and have not ended."""
        return [run for run in list(self._runs.values()) if not run.ended]

    @property
    def busy(self) -> bool:
        """Whether a run is live here."""
        return any(not run.ended for run in list(self._runs.values()))

    def wake(self) -> None:
        """Begin to look after runs that other processes leave. Idempotent; needed once a process."""
        self._leases.start()

    def start(self, order: Order, claim: Claim, work: Work) -> tuple[AnyRun, bool]:
        """Start a run, or have it wait for its turn, or join the one that has its key already.

        :returns: the run, and whether it is new.
        :raises KeyReused: the key belongs to another request.
        :raises LimitReached: the owner has as much as they may have.
        :raises ShuttingDown: this process is about to end.
        :raises StoreUnavailable: nobody can say so now.
        """
        here = work.queue is None or not self._store.shared
        if here:
            self._drain.admit()
        about = work.describe(order, claim)
        run = Run(secrets.token_urlsafe(16), order, about, Log(self._log_limit), self._enter)
        self._attempts.equip(run, work)
        if here:  # findable before it is admitted: whoever is sent here by the key must find it
            self._runs[run.id] = run
        try:
            self._drain.watch()
            verdict = self._admit(run, work)
        except BaseException as error:
            self._runs.pop(run.id, None)
            if isinstance(error, StoreUnavailable):
                self._endings.withdraw(run)
            raise
        if verdict.run != run.id:
            self._runs.pop(run.id, None)
            if verdict.verdict == "known" and verdict.fingerprint != claim.fingerprint:
                raise KeyReused("Use a new key for a new request, and the old one only to repeat the same request.")
            return self.find(verdict.run, claim.owner), False
        try:
            self._set_going(run, work)
        except BaseException as error:
            if here or not isinstance(error, RunCancelled):  # else a run that starts others: this one is looked after
                self._take_back(run)
            raise
        if here:
            return run, True
        found = self.find(run.id, run.owner)
        found.standing = run.standing
        return found, True

    def perform(self, run_id: str, attempt: int) -> Run | None:
        """Begin to perform a run that waits.

        :returns: the run; None where that is not for this process to do.
        :raises StoreUnavailable: whether it is cannot be said now.
        """
        run = self._attempts.perform(run_id, attempt)
        self._drain.watch()
        return run

    def find(self, run_id: str, asker: str | None) -> AnyRun:
        """A run that is live or kept.

        :param asker: who wants to know, for runs that are no longer kept.
        :raises RunNotFound: there is none, as far as the asker is concerned.
        :raises RunExpired: it was the asker's, and has expired.
        :raises StoreUnavailable: it is none of this process's, and there is no asking others; or Redis has just been
            away, and the writers may yet put back what it has lost.
        """
        run: AnyRun | None = self._runs.get(run_id)
        if run is None and self._store.shared:
            self.wake()
            run = self.mirrors.find(run_id)
        if run is not None:
            return run
        if self._store.troubled:
            raise StoreUnavailable(retry_after=2.0, diagnosis=f"Redis, which has just been away, has no run {run_id}")
        if asker is not None and self.ledger.was_owned_by(run_id, asker):
            raise RunExpired
        raise RunNotFound

    def latest(self, run: AnyRun) -> AnyRun:
        """A run that was found a while ago, as the attempt at it that is made here by now."""
        return self._runs.get(run.id, run)

    def listed(self, owner: str, *, live: bool = False, feature: str | None = None) -> list[AnyRun]:
        """An owner's runs, the newest first: those that are live, and of the others those that ended last.

        There are `LISTED` at most; those of other processes are as their records tell, and have no log to read.

        :param live: whether those that have ended are left out.
        :param feature: whose runs are meant; None for those of all features.
        :raises StoreUnavailable: it takes others to know, and they can't be asked.
        """
        ids = self.ledger.live(owner)
        if not live:
            goes_on = set(ids)
            kept = self.ledger.kept(owner, most=LISTED if feature is None else SEARCHED)
            # Those that go on are the last: what is kept for long, as jobs are, would hide them.
            ids = [*(run_id for run_id in kept if run_id not in goes_on), *ids]
        found: list[AnyRun] = []
        for end in range(len(ids), 0, -LISTED):
            runs = self._outlines(ids[max(0, end - LISTED) : end])
            found += [run for run in runs if feature in (None, run.feature) and not (live and run.ended)]
            if len(found) >= LISTED:
                break
        return sorted(found, key=lambda run: run.created_at, reverse=True)[:LISTED]

    def read(self, run: AnyRun, cursor: Cursor | None = None) -> Reader:
        """Follow a run from behind a cursor, or from its first event. End it with `leave`.

        :raises InvalidCursor: the run has never had such an event.
        :raises StoreUnavailable: it lives elsewhere, and cannot be read.
        """
        run.join()
        try:
            first = run.log.parts[0][0]
            epoch, after = (first, 0) if cursor is None else (cursor.epoch, cursor.n)
            return Reader(run.log, current().bell(), epoch=epoch, after=after)
        except BaseException:
            run.leave()
            raise

    def leave(self, run: AnyRun, reader: Reader) -> None:
        """End a reading."""
        reader.leave()
        run.leave()

    def stop(self, run: AnyRun) -> None:
        """Have a run end as cancelled, at once. Idempotent; one that has ended stays as it is.

        :raises StoreUnavailable: it lives elsewhere, and cannot be reached.
        """
        if not isinstance(run, Run):
            if self.ledger.stop(run.id):
                self._reap(run.id)
        elif waiting := self._attempts.call_off(run):
            self._end(waiting, Outcome(state="failed" if run.broken else "cancelled", error=run.broken))
        elif run.outcome is None and (task := run.task) is not None:
            run.meter.cancel()  # which closes sockets: it may have ended, and have no task, after that
            task.interrupt()

    def look_after(self, run: AnyRun) -> None:
        """See to it that a run which waits for its first attempt is in its queue: who started it, or who took it from
        there, may have been killed.

        :raises StoreUnavailable: that cannot be done now.
        """
        if isinstance(run, Mirror) and run.waiting and run.left_at == 1:
            self._attempts.backlog.put(run.id, 1, run.about, unless_there=True)

    def interrupt(self, run: Run, error: LLMStreamError | None = None) -> None:
        """Close a run that cannot go on here, whatever its function does.

        :param error: why; without it, since its process ends, in which case another one goes on with what waited for
            its turn.
        """
        why = run.broken = error or RunInterrupted()
        self.stop(run)

        def insist() -> None:
            self._end(run, Outcome(state="failed", error=why))

        # Its own end is the better one, with the usage counted. A function that cannot be stopped has none.
        current().timers.after(INTERRUPTED_WITHIN, lambda: current().hand_over(insist))

    def give_up(self, run: Run) -> None:
        """End a run that was stopped, and whose function does not see that."""
        self._end(run, Outcome(state="cancelled"))

    def break_off(self) -> None:
        """Close all that is live here: this process ends."""
        for run in reversed(self.live):  # what waits goes first, so that nothing more begins
            if run.broken is None:
                log.warning("run %s of %s is broken off: it has outlasted its process", run.id, run.feature)
                current().hand_over(partial(self.interrupt, run))  # one that waits is ended right there

    def forget(self, run: AnyRun) -> None:
        """Stop a run, and keep nothing of it.

        :raises StoreUnavailable: others may still know of it.
        """
        if isinstance(run, Run):
            run.forgotten = True
            self.stop(run)
            self._drop(run.id)
        if self.ledger.forget(run.id, run.about, run.log.epoch):
            self._reap(run.id)

    def close(self) -> None:
        """Stop all runs, and keep none."""
        for run in reversed(list(self._runs.values())):
            self.stop(run)
        if self._store.shared:
            self._await_ends()
        for run_id in list(self._runs):
            self._drop(run_id)
        self._journal.close()
        self._leases.close()

    def _await_ends(self) -> None:
        """Give the runs that have been stopped the time to tell the store so, which others share."""
        bell, until = current().bell(), monotonic() + CLOSED_WITHIN
        readers = [Reader(run.log, bell, after=run.log.n) for run in self.live]
        while not all(reader.log.ended for reader in readers) and (left := until - monotonic()) > 0:
            bell.wait(left)
        for reader in readers:
            reader.leave()

    def _outlines(self, ids: Sequence[str]) -> list[AnyRun]:
        runs: list[AnyRun] = [run for run in map(self._runs.get, ids) if run is not None]
        if self._store.shared:
            here = {run.id for run in runs}
            runs += self.mirrors.outlines(run_id for run_id in ids if run_id not in here)
        return runs

    def _enter(self) -> AbstractContextManager[Any]:
        return self._callbacks.enter()

    def _admit(self, run: Run, work: Work) -> Verdict:
        allowance = work.allowance or self._allowance
        if work.when_busy is not None:
            allowance = replace(allowance, busy=work.when_busy)
        most = work.settings.max_tokens
        verdict = self.ledger.admit(run.id, run.about, run.log.entries[0], allowance, max_tokens=most)
        for run_id in verdict.replaced:
            self._hear(run_id, "stop")  # without waiting for what the script has published
        if verdict.verdict == "busy":
            raise refusal(verdict, allowance, work.prompt + min(most, LEAST_ANSWER))
        run.standing = verdict.standing
        bind(run, work, verdict.max_tokens)
        return verdict

    def _set_going(self, run: Run, work: Work) -> None:
        """Begin to perform a run that has been admitted, or have it wait for its turn."""
        if work.queue is None:
            self._attempts.hold(run)
        self._callbacks.opened(run)
        if run.conversation is not None:
            self.ledger.tell(run.id, run.about)
        if work.queue is None:
            self._attempts.begin(run, work)
        else:
            self._attempts.wait(run, work)

    def _take_back(self, run: Run) -> None:
        """Undo a start. No writer will end it, and a repeat of the request must not join it, or find it in its
        conversation."""
        run.forgotten = True
        self._end(run, Outcome(state="failed", error=RunInterrupted()))
        try:
            self.forget(run)
        except StoreUnavailable:
            self._endings.withdraw(run)

    def _hear(self, run_id: str, what: str) -> None:
        """What others want of a run that is written here."""
        run = self._runs.get(run_id)
        if run is None:
            return
        if what == "missing":
            current().task(lambda: self._try_to_restore(run), lambda: None).start()
            return
        if what == "forget":
            run.forgotten = True
            self._drop(run_id)
        elif what in ("ended", "fenced") and run.outcome is None:  # else it may well be its own end that was found
            log.warning("run %s of %s was closed by another process", run.id, run.feature)
        self.stop(run)

    def _restore(self, run: Run) -> None:
        """Put back a run that Redis has lost.

        :raises StoreUnavailable: that is not possible now.
        """
        if not run.forgotten and run.outcome is None:
            log.warning("run %s of %s is put back into Redis, which has lost it", run.id, run.feature)
            self.ledger.restore(
                run.id, run.about, run.log.epoch, list(run.log.entries), began=run.started_at, attempt=run.attempt
            )

    def _try_to_restore(self, run: Run) -> None:
        with suppress(StoreUnavailable):  # the next renewal tries again
            self._restore(run)

    def _reap(self, run_id: str) -> None:
        """Close a run that its process has left."""
        try:
            mirror = self.mirrors.left(run_id)
            if mirror is None:
                self.ledger.let_go(run_id)
            elif mirror.waiting and not mirror.stopped:
                self._attempts.backlog.look_after(run_id, mirror.left_at, mirror.about)
            elif mirror.waiting or not self._attempts.take_over(mirror):
                self._endings.reap(mirror)
        except StoreUnavailable as error:
            log.info("run %s, which was left, is looked after later: %s", run_id, error.diagnosis)
        except Exception:
            log.exception("run %s, which was left, could not be closed", run_id)

    def _end(self, run: Run, outcome: Outcome) -> None:
        if run.deadline is not None:
            run.deadline.cancel()
        if run.passed_on or not run.is_over():
            return
        try:
            if self._attempts.pass_on(run, outcome):
                return
        except Exception:
            log.exception("run %s of %s could not be tried again", run.id, run.feature)
        if not run.settle(outcome):
            return
        try:
            durable = self._endings.carry_out(run)
        except Exception:
            log.exception("run %s of %s has ended, but not all that follows could be done", run.id, run.feature)
            durable = False
            self._leases.release(run.id)
            if not run.ended:
                run.close(durable=False)
        if run.passed_on:  # meanwhile, and the next attempt is made here, too
            return
        if durable and self._store.shared:
            self._drop(run.id)  # the journal has it for everybody alike
        elif run.id in self._runs:
            self._kept.add(run)
            if run.id not in self._runs:
                self._kept.remove(run.id)  # it is forgotten, perhaps this very moment
        self._attempts.backlog.queue.done(run.id)

    def _expire(self, run_id: str) -> None:
        """Keep an ended run no longer: its time is over, or others need the room."""
        run = self._runs.get(run_id)
        self._drop(run_id)
        if run is not None and not self._store.shared:
            self.ledger.drop(run_id, run.log.epoch)

    def _drop(self, run_id: str) -> None:
        self._runs.pop(run_id, None)
        self._kept.remove(run_id)
