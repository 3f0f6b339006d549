"""How this process waits, runs things side by side and notices that a socket is dead.

There are two members: `greenlets` where gevent has patched the standard library (``gunicorn -k gevent``), and
`threads` everywhere else. `current()` gives the one of this process, made at first use and made anew after a
fork, so that importing the package starts nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from .sockets import hang_up, reset
from .timers import Timer, Timers
from .watcher import Watch, Watcher

__all__ = ["Bell", "Pacemaker", "Runtime", "Task", "Timer", "Timers", "Watch", "Watcher", "current", "hang_up", "reset"]


class Bell(Protocol):
    """Wakes the one who waits. A ring while nobody waits is kept for the next wait; several are one."""

    def ring(self) -> None: ...

    def wait(self, timeout: float | None = None) -> None:
        """Return at the next ring, or after `timeout` seconds."""


class Task(Protocol):
    """A function that runs by itself."""

    def start(self) -> None: ...

    def shelter(self) -> None:
        """What comes from here on is not to be interrupted. Called by the work itself."""

    def interrupt(self) -> None:
        """Raise `RunCancelled` in it, wherever it is, if this runtime can; the caller sees to it otherwise."""


class Pacemaker(Protocol):
    """A beat that goes on by itself."""

    def stop(self) -> None:
        """Beat no more. Idempotent."""


class Runtime(Protocol):
    """What the rest of the package needs from its surroundings."""

    cooperative: bool
    timers: Timers
    watcher: Watcher

    def task(self, work: Callable[[], None], done: Callable[[], None]) -> Task:
        """What will do `work` by itself, and `done` afterwards, however `work` ended. `done` is never interrupted."""

    def keep(self, work: Callable[[], None]) -> None:
        """Do `work` by itself. A process that ends waits for the end of it, and everything else goes on meanwhile."""

    def whole(self) -> AbstractContextManager[None]:
        """A section of a task's work that is done whole or not at all: it is interrupted before or behind it."""

    def bell(self) -> Bell: ...

    def pacemaker(self, seconds: float, beat: Callable[[], None], end: Callable[[], None]) -> Pacemaker:
        """Call `beat` now and each `seconds`, and `end` after the last, in a thread of the operating system's own: a
        busy loop of greenlets does not hold it up. It shares nothing with other threads, but hands over what it finds.
        """

    def hand_over(self, action: Callable[[], None]) -> None:
        """Have `action` done by itself; for pacemakers, whose thread is none for the package's other work."""


_current: tuple[int, Runtime] | None = None
_lock = threading.Lock()


def current() -> Runtime:
    """The runtime of this process."""
    global _current
    if _current is None or _current[0] != os.getpid():
        with _lock:
            if _current is None or _current[0] != os.getpid():
                _current = (os.getpid(), _make())
    return _current[1]


def _make() -> Runtime:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        from .greenlets import Greenlets

        return Greenlets()
    from .threads import Threads

    return Threads()
