"""Runs that other processes write, as this one sees them: their record, and a copy of their log while it is read.

A copy is read by any number of readers, and filled once: subscribe, wait for the acknowledgement, read what is there,
go on with what is published. What comes twice is dropped; where something is missing, and now and then because that
may have been the last word, the log is read again from where the copy ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic, time
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from .anyrun import AnyRun, State
from .errors import StoreUnavailable
from .events import Usage
from .frames import read_frame
from .ledger import Found, Ledger
from .log import Log
from .order import About
from .run import QUEUED
from .runtime import Timer, current
from .store import Subscription
from .timing import Timing

log = logging.getLogger("flask_llmstream")

RESTORED_WITHIN = 6.0
"""Seconds in which a writer puts a log back that Redis has lost; after that its readers are sent away."""
REACHED_WITHIN = 15.0
"""Seconds in which Redis has to come back; after that, too, for the writer's own process may know more."""

Revive = Callable[[About], Any]
"""Makes a feature's input of what was sent."""


class Mirror(AnyRun):
    """A run of another process.

    :param found: its record.
    :param revive: makes its input of the request's.
    """

    def __init__(self, found: Found, ledger: Ledger, revive: Revive, mirrors: Mirrors | None = None) -> None:
        about = found.about
        self.id = found.id
        self.owner = about.owner
        self.feature = about.feature
        self.user = about.user
        self.view_args = about.view_args
        self.context = about.context
        self.conversation = about.conversation
        self.about = about
        self.data = about.data
        self.waiting = found.waiting
        self.left_at = found.attempt
        """The attempt that its record tells of."""
        self.used = found.used
        """What earlier attempts have consumed, by model."""
        self.created_at = about.created_at
        self.started_at = found.started_at
        self.ended_at = found.ended_at
        self.timing = Timing(0.0)  # which only its writer has measured
        self.stopped = found.stop
        self.epoch = found.epoch
        self.log = Log(0, complete=False)
        self._missed: float | None = None
        self._unreached: float | None = None
        self._ledger = ledger
        self._revive = revive
        self._mirrors = mirrors
        self._readers = 0
        self._subscription: Subscription | None = None
        self._joining = threading.Lock()
        self._refused_at = -inf
        self._filling = threading.Lock()
        self._behind = False
        self._catching_up = False

    @property
    def input(self) -> Any:
        """What its schema makes of the request."""
        return self._revive(self.about)

    @property
    def state(self) -> State:
        if self.log.ended:
            return super().state
        told = self.log.entries
        if not told:
            waiting = self.waiting or self.started_at is None
        else:  # one that computes from its first moment on says nothing for a while
            waiting = told[-1] == QUEUED and (self.waiting or self.about.queue is None)
        return "queued" if waiting else "in_progress"

    @property
    def attempt(self) -> int:  # type: ignore[override]
        for payload in reversed(list(self.log.entries)):
            if payload.startswith(b'{"restarted"'):
                return int(msgspec.json.decode(payload)["restarted"])
        return self.left_at

    def join(self) -> None:
        came = monotonic()
        with self._joining:
            if came < self._refused_at:
                raise StoreUnavailable(retry_after=2.0, diagnosis="another reader has just tried, and in vain")
            self._readers += 1
            if self._readers > 1 or self.log.ended:
                return
            try:
                if self._mirrors is not None:
                    self._mirrors.add(self)
                self._subscription = self._ledger.store.subscribe(
                    self._ledger.frames.channel(self.id), self._hear, lost=self.catch_up_soon
                )
                self.catch_up()
                if self._missed is not None:
                    raise StoreUnavailable(retry_after=2.0, diagnosis=f"Redis has lost the log of run {self.id}")
            except BaseException as error:
                if isinstance(error, StoreUnavailable):
                    self._refused_at = monotonic()  # a crowd that waits here is not to try one after the other
                self._readers -= 1
                self._go()
                raise

    def leave(self) -> None:
        with self._joining:
            self._readers -= 1
            if self._readers:
                return
            self._go()
            if self.log.ended:
                return
        # By itself: a response may end where nothing must block.
        current().task(self._touch, lambda: None).start()

    def estimate(self) -> dict[str, Usage]:
        """What its model calls have consumed, by model. Of an attempt whose process is gone only the text is known.

        :raises StoreUnavailable: that is not to be had now.
        """
        self.catch_up()
        said = self.said
        used, model = dict(self.used), self.about.model
        tokens = sum(entry.startswith(b'{"token"') for entry in said)
        if tokens or (said and self.about.queue is None):  # a job may have asked no model
            usage = Usage(self.about.prompt, tokens, estimated=True)
            used[model] = used[model] + usage if model in used else usage
        return used

    @property
    def said(self) -> list[bytes]:
        """What the present attempt has said by itself, as far as the copy has it."""
        return self.log.entries[self.log.parts[-1][1] + (1 if self.attempt == 1 else 2) :]

    def end(self, epoch: int, terminal: bytes) -> None:
        """Add its last event, which this process has written: the run was left by its own."""
        with self._filling:
            self._take(epoch, 1, [terminal], end=True)

    def catch_up(self) -> None:
        """Read what the copy does not have yet.

        :raises StoreUnavailable: that is not possible now.
        """
        with self._filling:
            while True:
                self._behind = False
                kept, frames = self._ledger.frames.entries(self.id, self.log.epoch, self.log.n)
                for epoch, n, payloads, end in frames:
                    self._take(epoch, n, payloads, end)
                if not self._behind:
                    break
        self._unreached = None
        if self._behind:
            self.catch_up_soon()  # it came while the lock was given back
        if kept or self.log.ended:
            self._missed = None
        elif self._missed is None:
            self._missed = monotonic()
        elif monotonic() - self._missed > RESTORED_WITHIN:
            self.log.lose()

    def catch_up_soon(self) -> None:
        """The same, by itself, where it must not block."""
        if not self._catching_up:
            self._catching_up = True
            try:
                current().task(self._try_to_catch_up, lambda: None).start()
            except BaseException:
                self._catching_up = False
                raise

    def _try_to_catch_up(self) -> None:
        self._catching_up = False  # what is heard from now on may come too late for this reading
        try:
            self.catch_up()
        except StoreUnavailable as error:
            log.info("the log of run %s could not be read: %s", self.id, error.diagnosis)
            if self._unreached is None:
                self._unreached = monotonic()
            elif monotonic() - self._unreached > REACHED_WITHIN:
                self.log.lose()

    def _touch(self) -> None:
        try:
            self._ledger.frames.touch(self.id)
        except StoreUnavailable as error:
            log.info("that run %s was read could not be told: %s", self.id, error.diagnosis)

    def _hear(self, message: bytes) -> None:
        epoch, n, payloads = read_frame(message)
        if not self._filling.acquire(blocking=False):
            self._behind = True  # whoever is reading reads once more
            return
        try:
            gap = epoch > self.log.epoch or (epoch == self.log.epoch and n - len(payloads) > self.log.n)
            if not gap:
                self._take(epoch, n, payloads, payloads[-1].startswith((b'{"done"', b'{"error"')))
        finally:
            self._filling.release()
        if gap or self._behind:
            self.catch_up_soon()

    def _take(self, epoch: int, n: int, payloads: list[bytes], end: bool) -> None:
        """Add what is new of a frame."""
        if self.log.ended or epoch < self.log.epoch:
            return
        if epoch > self.log.epoch:
            self.log.take_over(epoch)
        first = n - len(payloads) + 1
        if first > self.log.n + 1:
            return  # its writer puts back what is missing here
        news = payloads[max(0, self.log.n + 1 - first) :]
        if not news:
            return
        if self.started_at is None and n > 1:
            self.started_at = time()
        if epoch > self.epoch:  # its record was read before
            self.waiting = news[-1] == QUEUED
        if end:
            self.ended_at = self.ended_at or time()
            self.log.extend(news[:-1])
            self.log.end(news[-1])
        else:
            self.log.extend(news)

    def _go(self) -> None:
        if self._mirrors is not None:
            self._mirrors.remove(self)
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()


class Mirrors:
    """The copies that are read now.

    :param refresh: seconds after which each is read again, in case the last that was published was lost.
    """

    def __init__(self, ledger: Ledger, revive: Revive, *, refresh: float) -> None:
        self._ledger = ledger
        self._revive = revive
        self._refresh = refresh
        # Of a crowd that comes at once for a run, all are to get the same copy, also before the first of them reads it.
        self._mirrors: WeakValueDictionary[str, Mirror] = WeakValueDictionary()
        self._read: set[Mirror] = set()
        self._lock = threading.Lock()
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._read)

    def find(self, run_id: str) -> Mirror | None:
        """A run that some other process writes or wrote.

        :raises StoreUnavailable: nobody knows now.
        """
        mirror = self._mirrors.get(run_id)
        if mirror in self._read and not mirror.log.lost:
            return mirror
        found = self._ledger.find(run_id)
        if found is None:
            return None
        mirror = Mirror(found, self._ledger, self._revive, self)
        if found.terminal is None:
            return self._only(mirror)
        mirror.catch_up()
        return mirror if mirror.log.ended else None  # its log may have expired this moment

    def outlines(self, run_ids: Iterable[str]) -> list[Mirror]:
        """Some runs as their records tell of them; of their logs these have the last event at most.

        :raises StoreUnavailable: nobody knows now.
        """
        outlines = []
        for found in self._ledger.found(run_ids):
            mirror = Mirror(found, self._ledger, self._revive)
            if found.terminal is not None:
                mirror.log.end(found.terminal)
            outlines.append(mirror)
        return outlines

    def left(self, run_id: str) -> Mirror | None:
        """A run whose writer is gone, as its record has it now; also one that was to be forgotten at its end.

        :raises StoreUnavailable: nobody knows now.
        """
        found = self._ledger.find(run_id, forgotten=True)
        if found is None:
            return None
        mirror = self._mirrors.get(run_id) or Mirror(found, self._ledger, self._revive, self)
        mirror.epoch, mirror.stopped = found.epoch, found.stop
        mirror.waiting, mirror.left_at, mirror.used = found.waiting, found.attempt, found.used
        return mirror

    def _only(self, mirror: Mirror) -> Mirror:
        """The one copy of a run that all get."""
        with self._lock:
            known = self._mirrors.get(mirror.id)
            if known is None or known.log.lost:
                self._mirrors[mirror.id] = known = mirror
            return known

    def add(self, mirror: Mirror) -> None:
        with self._lock:
            self._read.add(mirror)
            if self._timer is None:
                self._timer = current().timers.every(self._refresh, self._read_again)

    def remove(self, mirror: Mirror) -> None:
        with self._lock:
            self._read.discard(mirror)
            if not self._read and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _read_again(self) -> None:
        for mirror in list(self._read):
            if not mirror.log.ended:
                mirror.catch_up_soon()
