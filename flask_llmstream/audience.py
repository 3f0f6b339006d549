"""Who still wants a run: whoever reads it, and for a grace time whoever did."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .runtime import Timer, current


class Audience:
    """Who still wants a run. When nobody has for the grace time, it is abandoned.

    :param grace: seconds; None waits for ever.
    :param abandoned: called then; must not block.
    """

    def __init__(self, grace: float | None, abandoned: Callable[[], None]) -> None:
        self.grace = grace
        self.read_elsewhere: float | None = None
        """When somebody was found to read it in another process; None where the last look found nobody."""
        self._abandoned = abandoned
        self._present = 0
        self._timer: Timer | None = None
        self._lock = threading.Lock()

    @property
    def present(self) -> bool:
        """Whether somebody reads it here."""
        return self._present > 0

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
        """Somebody has read it elsewhere: give it that much longer."""
        with self._lock:
            if self._present == 0 and self.grace is not None:
                self._stop_waiting()
                self._timer = current().timers.after(seconds, self._give_up)

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
