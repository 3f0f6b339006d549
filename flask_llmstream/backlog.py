"""The runs that wait to be performed: put into a queue, taken up by one process, tried again, looked after.

    waiting ──take──> performed ──again──> waiting (the next attempt, in the next epoch) ──> ...

Where a run stands is in its record, and each step is a script. The queue only says which run comes next: what it loses
is put into it again, and what it has twice is taken once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from .anyrun import AnyRun
from .events import Usage
from .ledger import LOOKED_AFTER, UNREADABLE, Ledger, encode, ms, read_about, read_used
from .order import About

log = logging.getLogger("flask_llmstream")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A run's place in a queue.

    :param extension: the name of the `LLMStream` that its feature belongs to.
    :param queue: the queue's name.
    """

    run_id: str
    attempt: int
    extension: str
    queue: str


class Queue(Protocol):
    """Says which run is to be performed next, and by whom."""

    def put(self, place: Place) -> None:
        """Have a run performed when its turn comes.

        :raises StoreUnavailable: it cannot be put there now.
        """

    def has(self, place: Place) -> bool:
        """Whether a run is there.

        :raises StoreUnavailable: that is not known now.
        """

    def done(self, run_id: str) -> None:
        """A run is performed here no longer. Idempotent."""


class LocalQueue:
    """The queue of a single process, which performs what is in it.

    :param perform: begins to perform a run, and returns at once.
    :param most: how many are performed at a time.
    """

    def __init__(self, perform: Callable[[str, int], AnyRun | None], most: int) -> None:
        self._perform = perform
        self._most = most
        self._places: deque[Place] = deque()
        self._performed: set[str] = set()
        self._lock = threading.Lock()

    def put(self, place: Place) -> None:
        with self._lock:
            self._places.append(place)
        self._go_on()

    def has(self, place: Place) -> bool:
        with self._lock:
            return place in self._places

    def done(self, run_id: str) -> None:
        with self._lock:
            self._performed.discard(run_id)
        self._go_on()

    def _go_on(self) -> None:
        while True:
            with self._lock:
                if not self._places or len(self._performed) >= self._most:
                    return
                place = self._places.popleft()
                self._performed.add(place.run_id)
            run = None
            try:
                run = self._perform(place.run_id, place.attempt)
            finally:
                if run is None or run.about.light:
                    with self._lock:
                        self._performed.discard(place.run_id)


@dataclass(frozen=True, slots=True)
class Taken:
    """A run that this process is to perform.

    :param failures: the attempts that failed.
    :param max_tokens: what its owner's budget leaves its answer; 0 without a budget.
    :param used: what its model calls have consumed in earlier attempts, by model.
    """

    about: About
    epoch: int
    failures: int
    max_tokens: int
    used: Mapping[str, Usage]


class Backlog:
    """The runs that wait.

    :param queue: where they wait.
    """

    def __init__(self, ledger: Ledger, queue: Queue) -> None:
        self._ledger = ledger
        self._store = ledger.store
        self.queue = queue
        self._told_of: set[str | None] = set()

    def put(self, run_id: str, attempt: int, about: About, *, unless_there: bool = False) -> None:
        """Have a run performed when its turn comes.

        :param unless_there: whether it may be in its queue already.
        :raises StoreUnavailable: it cannot be put into its queue now; some process does so later.
        """
        place = _place(run_id, attempt, about)
        if not (unless_there and self.queue.has(place)):
            self.queue.put(place)

    def take(self, run_id: str, attempt: int) -> Taken | str:
        """Take up a run that waits.

        :returns: the run; or why it is not this process's: ``missing``, ``ended``, ``stopped``, ``held``, ``stale``,
            ``unreadable``.
        :raises StoreUnavailable: nobody can say so now.
        """
        key = self._store.key
        keys = [key("run", run_id), key("leases")]
        args = [run_id, attempt, self._store.process, ms(self._ledger.lease)]
        verdict, *found = self._store.call("take", keys, args)
        if verdict != b"taken":
            return str(verdict.decode())
        about, epoch, failures, reserved, used = found
        try:
            about = read_about(about)
            return Taken(about, epoch, failures, max(0, reserved - about.prompt), read_used(used) if used else {})
        except UNREADABLE:
            return "unreadable"

    def again(
        self,
        run_id: str,
        about: About,
        epoch: int,
        used: Mapping[str, Usage],
        *,
        delay: float = 0.0,
        failed: bool = True,
        lapsed: bool = False,
    ) -> int | str:
        """Have a run wait for its next attempt, in the next epoch. Unless there is a delay, `put` it then.

        :param epoch: its writer's.
        :param used: what its model calls have consumed by now, by model.
        :param delay: seconds until it is due.
        :param failed: whether this attempt counts as one that failed.
        :param lapsed: it is not the writer who says so: the run must have been left.
        :returns: the next attempt; or why there is none: ``spent``, ``stopped``, ``leased``, ``fenced``, ``ended``,
            ``missing``.
        :raises StoreUnavailable: nobody can say so now.
        """
        ask = {
            "id": run_id,
            "epoch": epoch,
            "lapsed": lapsed,
            "failed": failed,
            "attempts": about.attempts,
            "delay": ms(delay) if delay else 0,
            "turn": ms(LOOKED_AFTER),
            "used": encode(used).decode() if used else "",
            "alone": self._ledger.alone,
        }
        key = self._store.key
        verdict, *found = self._store.call(
            "again", [key("run", run_id), key("log", run_id), key("leases")], [encode(ask)]
        )
        return int(found[0]) if verdict == b"waiting" else str(verdict.decode())

    def look_after(self, run_id: str, attempt: int, about: About) -> None:
        """See to it that a run which waits is in its queue, unless that is some time away.

        :raises StoreUnavailable: that cannot be done now.
        """
        key = self._store.key
        if self._store.call("postpone", [key("run", run_id), key("leases")], [run_id, ms(LOOKED_AFTER)]):
            self.put(run_id, attempt, about, unless_there=True)
            if about.queue not in self._told_of:
                self._told_of.add(about.queue)
                log.warning("run %s waits in the queue %s for long: is there a worker for it?", run_id, about.queue)


def _place(run_id: str, attempt: int, about: About) -> Place:
    return Place(run_id=run_id, attempt=attempt, extension=about.extension, queue=about.queue or "")
