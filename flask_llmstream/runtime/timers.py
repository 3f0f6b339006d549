"""One timer for everything that a process does later: heartbeats, grace times, expiry.

The loop that waits exists only while something is due, so an idle process has no thread or greenlet of ours.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Bell

log = logging.getLogger("flask_llmstream")


class Timer:
    """One thing to do later."""

    __slots__ = ("action", "period")

    def __init__(self, action: Callable[[], None], period: float | None) -> None:
        self.action: Callable[[], None] | None = action
        self.period = period

    def cancel(self) -> None:
        """Don't do it. Idempotent."""
        self.action = None


class Timers:
    """Runs actions at their time, one after the other; an action must not block.

    :param start: runs a function by itself.
    :param bell: makes the bell that interrupts the wait when something earlier is added.
    """

    def __init__(self, start: Callable[[Callable[[], None]], object], bell: Callable[[], Bell]) -> None:
        self._start = start
        self._bell = bell()
        self._due: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._running = False

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action` once, `seconds` from now."""
        return self._add(seconds, Timer(action, None))

    def every(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action` each `seconds` until it is cancelled."""
        return self._add(seconds, Timer(action, seconds))

    def _add(self, seconds: float, timer: Timer) -> Timer:
        with self._lock:
            heapq.heappush(self._due, (monotonic() + seconds, next(self._order), timer))
            first = self._due[0][2] is timer
            begin = not self._running
            self._running = True
        if begin:
            try:
                self._start(self._loop)
            except BaseException:
                timer.cancel()  # whoever asked for it has no handle
                self._running = False
                raise
        elif first:
            self._bell.ring()
        return timer

    def _loop(self) -> None:
        while True:
            with self._lock:
                while self._due and self._due[0][2].action is None:
                    heapq.heappop(self._due)
                if not self._due:
                    self._running = False
                    return
                when, _, timer = self._due[0]
                now = monotonic()
                if when <= now:
                    heapq.heappop(self._due)
                    if timer.period is not None:
                        heapq.heappush(self._due, (now + timer.period, next(self._order), timer))
            if when <= now:
                self._call(timer)
            else:
                self._bell.wait(when - now)

    def _call(self, timer: Timer) -> None:
        action = timer.action
        if action is None:
            return
        try:
            action()
        except Exception:
            log.exception("a timed action failed")
