"""Holds on runs: renewed while this process lives, and taken away from those that no longer do.

A run is its writer's for as long as the lease goes on. One that has lapsed is anybody's to close; a script decides who
does. Whoever was out of touch with Redis for a while does not judge others by what they missed in that time: after a
pause all leases have lapsed, and those who live renew theirs first. So they have where Redis' clock was put forward, or
where a replica whose clock is ahead has become the master.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any, Protocol

from .errors import StoreUnavailable
from .run import Run
from .runtime import Pacemaker, current
from .store import RedisStore, Store, Subscription

log = logging.getLogger("flask_llmstream")

LEASE = 8.0
"""Seconds for which a run is its writer's without a further word."""
RENEWED_EVERY = 2.0
"""Seconds."""
OUT_OF_TOUCH = LEASE / 2
"""Seconds without an answer after which a process no longer knows what the others have said."""
LOST = (b"ended", b"fenced")
"""What is said of a run that another process has closed, or has had tried again."""
MOST_LAPSED = 50
"""Runs of others that are looked after at a time."""


class Leases(Protocol):
    """This process's hold on the runs that it writes."""

    def start(self) -> None:
        """Begin to hear of what others ask, and of runs that are left. Idempotent."""

    def hold(self, run: Run) -> None:
        """Renew the lease of a run from now on."""

    def release(self, run_id: str) -> None:
        """Renew it no longer."""

    def holds(self, run_id: str) -> bool:
        """Whether nobody else can have closed the run."""

    def close(self) -> None: ...


class NullLeases:
    """One process: its runs are nobody else's, and end with it."""

    def start(self) -> None:
        pass

    def hold(self, run: Run) -> None:
        pass

    def release(self, run_id: str) -> None:
        pass

    def holds(self, run_id: str) -> bool:
        return True

    def close(self) -> None:
        pass


class SharedLeases:
    """The leases of a process among several.

    :param news: called with the id of a run that is written here and what is to become of it: ``stop``, ``forget``,
        ``ended`` or ``fenced`` where another process has closed it, ``missing`` where Redis has lost it.
    :param lapsed: called with the id of a run whose writer is gone.
    """

    def __init__(self, store: RedisStore, news: Callable[[str, str], None], lapsed: Callable[[str], None]) -> None:
        self._store: Store = store
        self._alone = store.alone
        self._news = news
        self._lapsed = lapsed
        self._runs: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._pacemaker: Pacemaker | None = None
        self._subscription: Subscription | None = None
        self._in_touch = -inf
        self._in_touch_since = 0.0
        self._clock_ahead: float | None = None
        self._closed = False
        self._reaping: set[str] = set()

    def start(self) -> None:
        with self._lock:
            if self._pacemaker is not None or self._closed:
                return
            own = self._alone()
            self._pacemaker = current().pacemaker(RENEWED_EVERY, lambda: self._beat(own), own.close)
        current().task(self._listen, lambda: None).start()

    def hold(self, run: Run) -> None:
        self.start()
        self._runs[run.id] = run.log.epoch, monotonic()

    def release(self, run_id: str) -> None:
        self._runs.pop(run_id, None)

    def holds(self, run_id: str) -> bool:
        held = self._runs.get(run_id)
        return held is not None and monotonic() - max(held[1], self._in_touch) < LEASE - RENEWED_EVERY

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._pacemaker is not None:
                self._pacemaker.stop()
            if self._subscription is not None:
                self._subscription.close()

    def _listen(self) -> None:
        """Hear what others ask of this process. What was asked before, or is missed, comes with a renewal."""
        channel = self._store.key("process", self._store.process)
        while self._subscription is None and not self._closed:
            with suppress(StoreUnavailable):
                self._subscription = self._store.subscribe(channel, self._hear)
                if self._closed:
                    self._subscription.close()
                return
            current().bell().wait(RENEWED_EVERY)

    def _hear(self, message: bytes) -> None:
        what, _, run_id = message.decode().partition(" ")
        self._news(run_id, what)

    def _beat(self, store: Store) -> None:
        """In a thread of its own: nothing here may wait for, or be waited for by, what runs elsewhere."""
        held = list(self._runs.items())
        now = monotonic()
        if now - self._in_touch > OUT_OF_TOUCH:
            self._in_touch_since = now
        settled = now - self._in_touch_since >= LEASE
        args: list[Any] = [store.prefix, int(LEASE * 1000), MOST_LAPSED if settled else 0]
        for run_id, (epoch, _) in held:
            args += run_id, epoch
        try:
            news, lapsed, clock = store.call("renew", [store.key("leases")], args)
        except StoreUnavailable:
            return
        except Exception as error:
            fault = error  # and the next beat comes all the same
            with suppress(RuntimeError):
                current().hand_over(lambda: log.error("the leases could not be renewed", exc_info=fault))
            return
        news = self._let_go(dict(held), news)
        self._in_touch = now
        if self._leaps(clock / 1000 - now):
            self._in_touch_since, lapsed = now, []
        if news or lapsed:
            with suppress(RuntimeError):  # no thread is to be had: the next beat says it again
                current().hand_over(lambda: self._tell(news, lapsed))

    def _let_go(
        self, held: Mapping[str, tuple[int, float]], news: Sequence[Sequence[bytes]]
    ) -> Sequence[Sequence[bytes]]:
        """Hold no longer what is another's by now, before anybody takes being in touch for holding it.

        :returns: the news of what has not been released, or taken up anew, since it was asked for.
        """
        still = [(run_id, what) for run_id, what in news if self._runs.get(run_id.decode()) is held[run_id.decode()]]
        for run_id, what in still:
            if what in LOST:
                self._runs.pop(run_id.decode(), None)
        return still

    def _leaps(self, ahead: float) -> bool:
        """Whether Redis' clock has been changed since the last beat.

        :param ahead: seconds that it is ahead of the clock here, which nobody changes.
        """
        before, self._clock_ahead = self._clock_ahead, ahead
        return before is not None and abs(ahead - before) > OUT_OF_TOUCH

    def _tell(self, news: Sequence[Sequence[bytes]], lapsed: Sequence[bytes]) -> None:
        for run_id, what in news:
            held = run_id.decode() in self._runs
            if held != (what in LOST):  # what was lost, and is held again, is another attempt
                self._news(run_id.decode(), what.decode())
        for left in lapsed:
            self._reap(left.decode())

    def _reap(self, run_id: str) -> None:
        if run_id in self._reaping or run_id in self._runs:
            return
        self._reaping.add(run_id)

        def done() -> None:
            self._reaping.discard(run_id)

        try:
            current().task(lambda: self._lapsed(run_id), done).start()
        except BaseException:
            done()
            raise
