"""Keeps the logs of runs that are written here where other processes find them.

The journal is one more reader of each log. What all runs have said since it last wrote goes out in one step: at once
while little is going on, and a few milliseconds later when much is, so that a step's price is shared by many events.
When Redis is not there, the logs themselves are what is kept, until it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from .errors import StoreUnavailable
from .frames import Frames
from .log import Reader
from .run import Run
from .runtime import Bell, current

log = logging.getLogger("flask_llmstream")

WINDOW = 0.001
"""Seconds to the next step for each log that had something to say in this one, up to WINDOW_MOST."""
WINDOW_MOST = 0.02
LITTLE = 2
"""Logs that have something to say; with no more of them, nothing waits."""
BACKOFF = 0.05
BACKOFF_MOST = 1.0
"""Seconds between two attempts while Redis is not there."""


class Journal(Protocol):
    """Keeps logs where other processes, and later ones, find them."""

    def follow(self, run: Run) -> None:
        """Begin to keep the log of a run, whose foreword is kept already."""

    def release(self, run_id: str) -> int:
        """Stop, since the end of the run is kept in another way: the number of the last event that is kept."""

    def close(self) -> None: ...


class NullJournal:
    """One process, and its memory: nobody else would read it."""

    def follow(self, run: Run) -> None:
        pass

    def release(self, run_id: str) -> int:
        return 0

    def close(self) -> None:
        pass


class Follower:
    """A run's log, as far as the journal has it. It is the bell of its own reader: what rings is taken next."""

    __slots__ = ("_dirty", "_wake", "began_told", "kept", "reader", "run")

    def __init__(self, run: Run, dirty: dict[Follower, None], wake: Callable[[], None]) -> None:
        self.run = run
        self.kept = run.foreword
        self.began_told = False
        self._dirty = dirty
        self._wake = wake
        self.reader = Reader(run.log, self, after=self.kept)

    def ring(self) -> None:
        if self not in self._dirty:
            self._dirty[self] = None
            self._wake()

    def wait(self, timeout: float | None = None) -> None:
        raise NotImplementedError("the journal waits for all of its logs at once")


class SharedJournal:
    """The journal of a process among several.

    :param lost: called with a run whose log Redis has lost, or a part of it, to put it back.
    """

    def __init__(self, frames: Frames, lost: Callable[[Run], None]) -> None:
        self._logs = frames
        self._lost = lost
        self._followers: dict[str, Follower] = {}
        self._dirty: dict[Follower, None] = {}
        self._lock = threading.Lock()
        self._running = False
        self._closed = False
        self._bell: Bell | None = None

    def follow(self, run: Run) -> None:
        with self._lock:
            if self._bell is None:
                self._bell = current().bell()
            self._followers[run.id] = follower = Follower(run, self._dirty, self._bell.ring)
            begin, self._running = not self._running, True
        if begin:
            try:
                current().task(self._run, lambda: None).start()
            except BaseException:
                self._running = False
                raise
        follower.ring()

    def release(self, run_id: str) -> int:
        with self._lock:
            follower = self._followers.pop(run_id, None)
        if follower is None:
            return 0
        follower.reader.leave()
        self._dirty.pop(follower, None)
        if not self._followers:
            self._wake()
        return follower.kept

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    def _run(self) -> None:
        """Write until there is nothing to follow."""
        pause = 0.0
        bell = self._bell
        assert bell is not None
        rest = current().bell()
        while not self._closed:
            if not self._dirty:
                with self._lock:
                    if not self._followers:
                        self._running = False
                        return
                bell.wait()
                continue
            taken = self._take()
            try:
                self._write(taken)
                pause = 0.0
            except StoreUnavailable as error:
                if not pause:
                    log.warning("the journal waits for Redis: %s", error.diagnosis)
                pause = min(max(2 * pause, BACKOFF), BACKOFF_MOST)
            except Exception:
                log.exception("the journal could not be written")
                pause = BACKOFF_MOST
            if pause:
                for follower in taken:
                    if follower.run.id in self._followers:
                        self._dirty[follower] = None
                rest.wait(pause)
            elif len(taken) > LITTLE:
                rest.wait(min(WINDOW * len(taken), WINDOW_MOST))

    def _take(self) -> list[Follower]:
        """The logs that have news. Those that ring from now on are for the next time."""
        taken = list(self._dirty)
        for follower in taken:
            self._dirty.pop(follower, None)
        return taken

    def _write(self, taken: Sequence[Follower]) -> None:
        """Write what some logs have to say.

        :raises StoreUnavailable: it is not written, as far as one can tell; writing it again does no harm.
        """
        frames, written = [], []
        for follower in taken:
            reader, run = follower.reader, follower.run
            reader.rewind(follower.kept)
            payloads = reader.take()
            if payloads:
                began = None if follower.began_told else run.started_at
                frames.append((run.id, run.log.epoch, follower.kept, payloads, began))
                written.append((follower, reader.n))
        if not frames:
            return
        for (follower, n), said in zip(written, self._logs.append(frames), strict=True):
            if said == 0:
                self._lost(follower.run)  # which keeps this, and perhaps more
            follower.kept = n
            follower.began_told = follower.run.started_at is not None
            if n < follower.run.log.n and not follower.run.ended:
                follower.ring()
