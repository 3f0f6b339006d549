"""A run's log: one writer appends encoded events, any number of readers follow it, each with a cursor of its own.

Readers are woken, never handed anything: what a slow one has not read yet is held once, in the log, whoever else
reads it. The log has a size limit instead of a trimmed beginning, so a cursor into it always leads on.
"""

from __future__ import annotations

import threading

from .errors import InvalidCursor
from .runtime import Bell

ENTRY_OVERHEAD = 48
"""Bytes that an entry takes besides its payload: the bytes object's own header and the list's slot."""


PIECE = 65536
"""Bytes that a reader is given at a time."""


class LogFull(Exception):
    """The log has reached its limit; what it has is kept, and the run ends `incomplete`."""


class Log:
    """The events of a run, encoded.

    :param limit: bytes of memory that the entries may take.
    :param epoch: which writer fills it.
    """

    __slots__ = ("_lock", "_readers", "ended", "entries", "epoch", "limit", "size")

    def __init__(self, limit: int, *, epoch: int = 1) -> None:
        self.entries: list[bytes] = []
        self.epoch = epoch
        self.limit = limit
        self.ended = False
        self.size = 0
        """Bytes that its entries take."""
        self._readers: tuple[Reader, ...] = ()
        self._lock = threading.Lock()

    def append(self, payload: bytes) -> None:
        """Add an event.

        :raises LogFull: it would exceed the limit.
        """
        self.size += len(payload) + ENTRY_OVERHEAD
        if self.size > self.limit:
            raise LogFull
        self.entries.append(payload)
        self.ring()

    def end(self, terminal: bytes) -> None:
        """Add the last event, for which there is always room."""
        self.entries.append(terminal)
        self.ended = True
        self.ring()

    def ring(self) -> None:
        """Wake all readers."""
        for reader in self._readers:
            reader.bell.ring()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def readers(self) -> int:
        """How many follow it now."""
        return len(self._readers)

    def add(self, reader: Reader) -> None:
        with self._lock:
            self._readers = (*self._readers, reader)

    def remove(self, reader: Reader) -> None:
        with self._lock:
            self._readers = tuple(other for other in self._readers if other is not reader)


class Reader:
    """One reader's place in a log.

    :param after: the number of the last event that it has.
    :raises InvalidCursor: the log has never had such an event.
    """

    __slots__ = ("bell", "log", "n")

    def __init__(self, log: Log, bell: Bell, *, after: int = 0) -> None:
        if after > len(log):
            raise InvalidCursor("The cursor is ahead of the run's log. Read the run again from its beginning.")
        self.log = log
        self.bell = bell
        self.n = after
        log.add(self)

    def take(self) -> list[bytes]:
        """The events that follow those that it has, in order and about `PIECE` bytes at most; empty when there are
        none now.

        A reader that comes late, or seldom, takes the log piece by piece: it never has a copy of the whole.
        """
        entries, n = self.log.entries, self.n
        size = 0
        while n < len(entries) and size < PIECE:
            size += len(entries[n])
            n += 1
        news = entries[self.n : n]
        self.n = n
        return news

    @property
    def finished(self) -> bool:
        """Whether it has everything that there will ever be."""
        return self.log.ended and self.n >= len(self.log)

    def leave(self) -> None:
        """Follow no longer. Idempotent."""
        self.log.remove(self)
