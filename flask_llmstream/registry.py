"""The runs of a process: start, find, read, stop, forget; and what follows a run's end."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .audience import Audience
from .cursor import Cursor
from .errors import InvalidCursor, KeyReused, RunExpired, RunInterrupted, RunNotFound
from .journal import Journal
from .log import Log, Reader
from .models import BoundModel, ModelSettings
from .providers import Model
from .run import Order, Outcome, Run
from .runtime import Timer, current
from .store import Claim, Store
from .writer import Function, Writer

log = logging.getLogger("flask_llmstream")

LONGEST_RUN = 86400.0
"""Seconds that an idempotency key is held for a run that nobody ends."""
KEPT_MOST = 268_435_456
"""Bytes that the ended runs of one application may take together."""
RUN_OVERHEAD = 4096
"""Bytes that a kept run takes besides its log."""
END_WAITS = 1.0
"""Seconds that a run's terminal event waits for those who want to act before the client hears of the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is to be done for an order: the feature's side of a run.

    :param grace: seconds that the run goes on with no reader; None lets it finish.
    """

    function: Function
    provider: Model
    settings: ModelSettings
    grace: float | None


class Registry:
    """The runs that this process writes, live ones and those whose log is still kept.

    :param enter: opens the context in which application code runs.
    :param ended: tells the application of a run that ends.
    :param retention: seconds for which the log of an ended run is kept.
    :param log_limit: bytes that a log may take.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        enter: Callable[[], AbstractContextManager[Any]],
        ended: Callable[[Run], None],
        retention: float,
        log_limit: int,
    ) -> None:
        self._store = store
        self._journal = journal
        self._enter = enter
        self._ended = ended
        self._retention = retention
        self._log_limit = log_limit
        self._runs: dict[str, Run] = {}
        self._expiry: dict[str, tuple[Timer, int]] = {}
        self._kept = 0
        self._lock = threading.Lock()

    @property
    def live(self) -> list[Run]:
        """The runs that have not ended."""
        return [run for run in list(self._runs.values()) if not run.ended]

    def start(self, order: Order, claim: Claim, work: Work) -> tuple[Run, bool]:
        """Start a run, or join the one that has its key already.

        :returns: the run, and whether it is new.
        :raises KeyReused: the key belongs to another request.
        """
        run = Run(secrets.token_urlsafe(16), order, claim, Log(self._log_limit), self._enter)
        run.audience = Audience(work.grace, lambda: self._abandon(run))
        run.model = BoundModel(work.provider, work.settings, run.meter)
        writer = Writer(run, work.function, self._enter, self._end)
        run.task = task = current().task(writer.perform, writer.finish)
        # Findable before it is admitted: whoever is sent here by the key must find it.
        self._runs[run.id] = run
        try:
            holder = self._store.admit(run.id, claim, seconds=LONGEST_RUN)
        except BaseException:
            del self._runs[run.id]
            raise
        if holder.run_id != run.id:
            del self._runs[run.id]
            if holder.fingerprint != claim.fingerprint:
                raise KeyReused("Use a new key for a new request, and the old one only to repeat the same request.")
            return self.find(holder.run_id, claim.owner), False
        try:
            self._journal.follow(run.id, run.log)
            task.start()
        except BaseException:
            # No writer will end it, and a repeat of the request must not join it.
            self._end(run, Outcome(state="failed", error=RunInterrupted()))
            self.forget(run)
            raise
        return run, True

    def find(self, run_id: str, asker: str | None) -> Run:
        """A run that is live or kept.

        :param asker: who wants to know, for runs that are no longer kept.
        :raises RunNotFound: there is none, as far as the asker is concerned.
        :raises RunExpired: it was the asker's, and has expired.
        """
        run = self._runs.get(run_id)
        if run is not None:
            return run
        if asker is not None and self._store.was_owned_by(run_id, asker):
            raise RunExpired
        raise RunNotFound

    def read(self, run: Run, cursor: Cursor | None = None) -> Reader:
        """Follow a run from behind a cursor, or from its first event. End it with `leave`.

        :raises InvalidCursor: the run has never had such an event.
        """
        after = 0
        if cursor is not None:
            if cursor.epoch > run.log.epoch:
                raise InvalidCursor("The cursor is ahead of the run. Read the run again from its beginning.")
            # An older epoch's text is void: its reader begins anew.
            after = cursor.n if cursor.epoch == run.log.epoch else 0
        reader = Reader(run.log, current().bell(), after=after)
        run.audience.join()
        return reader

    def leave(self, run: Run, reader: Reader) -> None:
        """End a reading."""
        reader.leave()
        run.audience.leave()

    def stop(self, run: Run) -> None:
        """Have a run end as cancelled, at once. Idempotent; one that has ended stays as it is."""
        task = run.task
        if run.outcome is None and task is not None:
            run.meter.cancel()
            task.interrupt()

    def forget(self, run: Run) -> None:
        """Stop a run, and keep nothing of it."""
        self.stop(run)
        self._drop(run.id)
        self._store.forget(run.id, run.claim)

    def close(self) -> None:
        """Stop all runs, and keep none."""
        for run in list(self._runs.values()):
            self.stop(run)
            self._drop(run.id)

    def _abandon(self, run: Run) -> None:
        log.info("run %s of %s is stopped: nobody reads it", run.id, run.feature)
        self.stop(run)

    def _end(self, run: Run, outcome: Outcome) -> None:
        if not run.settle(outcome):
            return
        for step in (self._carry_out, self._record, self._announce):
            try:
                step(run)
            except Exception:
                log.exception("run %s of %s has ended, but not all that follows could be done", run.id, run.feature)
        run.close()
        self._keep(run)

    def _carry_out(self, run: Run) -> None:
        """Have the store know of the end."""
        if run.id in self._runs:
            self._store.finish(run.id, run.claim, retention=self._retention)
        if run.id not in self._runs:
            self._store.forget(run.id, run.claim)  # perhaps meanwhile

    def _record(self, run: Run) -> None:
        """Have the journal keep the end."""
        assert run.terminal is not None
        self._journal.end(run.id, run.terminal)

    def _announce(self, run: Run) -> None:
        """Tell the application before the client, so that a page which reloads at the end finds the answer saved."""
        told = current().bell()

        def tell() -> None:
            try:
                self._ended(run)
            except Exception:
                log.exception("a receiver of run_ended failed for run %s", run.id)
            finally:
                run.let_go()

        try:
            current().task(tell, told.ring).start()
        except BaseException:
            run.let_go()
            raise
        told.wait(END_WAITS)

    def _keep(self, run: Run) -> None:
        """Keep an ended run for those who come back to it; the longest ended go before their time if need be."""
        # The end is held twice: as it goes over the wire, and with its result for those who ask.
        size = run.log.size + 2 * len(run.terminal or b"") + RUN_OVERHEAD
        timer = current().timers.after(self._retention, lambda: self._drop(run.id))
        with self._lock:
            self._expiry[run.id] = timer, size
            self._kept += size
        if run.id not in self._runs:
            self._drop(run.id)  # it is forgotten, perhaps this very moment
        while (oldest := self._beyond_budget()) is not None:
            self._drop(oldest)

    def _beyond_budget(self) -> str | None:
        with self._lock:
            if self._kept <= KEPT_MOST or len(self._expiry) < 2:
                return None
            return next(iter(self._expiry))

    def _drop(self, run_id: str) -> None:
        with self._lock:
            self._runs.pop(run_id, None)
            timer, size = self._expiry.pop(run_id, (None, 0))
            self._kept -= size
        if timer is not None:
            timer.cancel()
