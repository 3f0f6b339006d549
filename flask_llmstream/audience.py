"""Who still wants a run: whoever reads it, and for a grace time whoever did."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from time import monotonic

from .runtime import Timer, current

PAUSE = 0.5
"""Seconds, at least, between two looks at who reads a run elsewhere."""


class Audience:
    """Who still wants a run. When nobody has for the grace time, it is abandoned.

    :param grace: seconds; None waits for ever.
    :param abandoned: called then; must not block.
    """

    def __init__(self, grace: float | None, abandoned: Callable[[], None]) -> None:
        self.grace = grace
        self._read_elsewhere: float | None = None
        """When somebody was found to read it in another process; None where the last look found nobody."""
        self._abandoned = abandoned
        self._present = 0
        self._timer: Timer | None = None
        self._lock = threading.Lock()

    def join(self) -> None:
        """Somebody reads."""
        with self._lock:
            self._present += 1
            self._stop_waiting()

    def leave(self) -> None:
        """Somebody reads no longer."""
        with self._lock:
            self._present -= 1
            if self._present or self.grace is None:
                return
            if self.grace > 0:
                self._timer = current().timers.after(self.grace, self._give_up)
                return
        self._abandoned()

    def wait_again(self, seconds: float) -> None:
        """Give it that much longer: somebody may want it elsewhere."""
        with self._lock:
            if self._present == 0 and self.grace is not None:
                self._stop_waiting()
                self._timer = current().timers.after(max(seconds, PAUSE), self._give_up)

    def is_gone(self, ago: float | None) -> bool:
        """Whether nobody wants it, in any process. Where somebody may, it is found out again later.

        :param ago: seconds since readers in other processes were last seen; 0 for now, None for never.
        """
        grace, now = self.grace or 0.0, monotonic()
        ago = inf if ago is None else ago
        before, self._read_elsewhere = self._read_elsewhere, now if ago == 0 else None
        if before is not None and ago > now - before:
            ago = 0.0  # nobody has said when they left: their process was killed, and they are on their way back
        if ago < grace or ago == 0:
            self.wait_again(grace - ago)
            return False
        return not self._present  # somebody may have come meanwhile

    def close(self) -> None:
        """The run has ended: nobody can abandon it."""
        with self._lock:
            self.grace = None
            self._stop_waiting()

    def _give_up(self) -> None:
        with self._lock:
            if self._present or self.grace is None:
                return  # somebody came back while the timer was already on its way
        self._abandoned()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
