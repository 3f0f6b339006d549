"""Ended runs whose log this process keeps for those who come back to it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .run import Run
from .runtime import Timer, current

MOST = 268_435_456
"""Bytes that the ended runs of one application may take together."""
RUN_OVERHEAD = 4096
"""Bytes that a kept run takes besides its log."""


class Kept:
    """The ended runs of an application; the longest ended go before their time if they take too much.

    :param retention: seconds for which each is kept that says nothing else.
    :param drop: called with the id of a run that is to be kept no longer.
    """

    def __init__(self, retention: float, drop: Callable[[str], None]) -> None:
        self._retention = retention
        self._drop = drop
        self._expiry: dict[str, tuple[Timer, int]] = {}
        self._size = 0
        self._lock = threading.Lock()

    def add(self, run: Run) -> None:
        """Keep a run from now on."""
        # The end is held twice: as it goes over the wire, and with its result for those who ask.
        size = run.log.size + 2 * len(run.terminal or b"") + 2 * len(run.result_apart or b"") + RUN_OVERHEAD
        timer = current().timers.after(run.about.retention or self._retention, lambda: self._drop(run.id))
        with self._lock:
            self._expiry[run.id] = timer, size
            self._size += size
        while (oldest := self._beyond_budget()) is not None:
            self._drop(oldest)

    def remove(self, run_id: str) -> None:
        """Keep it no longer. Idempotent."""
        with self._lock:
            timer, size = self._expiry.pop(run_id, (None, 0))
            self._size -= size
        if timer is not None:
            timer.cancel()

    def _beyond_budget(self) -> str | None:
        with self._lock:
            if self._size <= MOST or len(self._expiry) < 2:
                return None
            return next(iter(self._expiry))
