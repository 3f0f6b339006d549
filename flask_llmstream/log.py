"""A run's log: one writer appends encoded events, any number of readers follow it, each with a cursor of its own.

Readers are woken, never handed anything: what a slow one has not read yet is held once, in the log, whoever else
reads it. The log has a size limit instead of a trimmed beginning, so a cursor into it always leads on.

A log has one part an epoch, which is to say a writer, and events are numbered from 1 in each. A cursor into a part that
was given up leads to that part's end and on into the next, also where it is ahead of what was kept of it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

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
    :param complete: whether it has every event that there is; the copy of another process's log may be behind.
    """

    __slots__ = ("_lock", "_readers", "complete", "ended", "entries", "limit", "lost", "parts", "size")

    def __init__(self, limit: int, *, epoch: int = 1, complete: bool = True) -> None:
        self.entries: list[bytes] = []
        self.parts: list[tuple[int, int]] = [(epoch, 0)]
        """Epoch and first index in `entries` of each part."""
        self.limit = limit
        self.complete = complete
        self.ended = False
        self.lost = False
        """Whether nothing more of it will ever be known here, and the end is not."""
        self.size = 0
        """Bytes that its entries take."""
        self._readers: tuple[Reader, ...] = ()
        self._lock = threading.Lock()

    @property
    def epoch(self) -> int:
        """Which writer fills it now."""
        return self.parts[-1][0]

    @property
    def n(self) -> int:
        """The number of the last event in this epoch."""
        return len(self.entries) - self.parts[-1][1]

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

    def take_over(self, epoch: int) -> None:
        """Begin the part of another writer. An epoch that has nothing yet is replaced."""
        part = epoch, len(self.entries)
        if part[1] == self.parts[-1][1]:
            self.parts[-1] = part
        else:
            self.parts.append(part)

    def extend(self, payloads: Sequence[bytes]) -> None:
        """Add events that another process wrote, whose limit holds."""
        self.size += sum(map(len, payloads)) + ENTRY_OVERHEAD * len(payloads)
        self.entries.extend(payloads)
        self.ring()

    def lose(self) -> None:
        """Tell all readers that nothing more will come, though it has not ended."""
        self.lost = True
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

    def part_of(self, epoch: int) -> int:
        """Which part a cursor of an epoch belongs to: the next one, where nothing of that epoch is kept.

        :raises InvalidCursor: there has been no such writer.
        """
        for place, (other, _) in enumerate(self.parts):
            if other >= epoch:
                return place
        raise InvalidCursor("The cursor is ahead of the run. Read the run again from its beginning.")

    def add(self, reader: Reader) -> None:
        with self._lock:
            self._readers = (*self._readers, reader)

    def remove(self, reader: Reader) -> None:
        with self._lock:
            self._readers = tuple(other for other in self._readers if other is not reader)


class Reader:
    """One reader's place in a log.

    :param epoch: the writer of the last event that it has; None for the present one.
    :param after: the number of that event; 0 for the beginning.
    :raises InvalidCursor: the log has never had such an event.
    """

    __slots__ = ("_index", "_part", "bell", "log")

    def __init__(self, log: Log, bell: Bell, *, epoch: int | None = None, after: int = 0) -> None:
        self._part = log.part_of(log.epoch if epoch is None else epoch)
        is_epoch, start = log.parts[self._part]
        if epoch is not None and is_epoch != epoch:
            after = 0
        if log.complete and is_epoch == log.epoch and after > log.n:
            raise InvalidCursor("The cursor is ahead of the run's log. Read the run again from its beginning.")
        self.log = log
        self.bell = bell
        self._index = start + after
        log.add(self)

    @property
    def epoch(self) -> int:
        """The writer of the last event that it has."""
        return self.log.parts[self._part][0]

    @property
    def n(self) -> int:
        """The number of the last event that it has."""
        return self._index - self.log.parts[self._part][1]

    def take(self) -> list[bytes]:
        """The events that follow those that it has, in order and about `PIECE` bytes at most; empty when there are
        none now. They are of one epoch.

        A reader that comes late, or seldom, takes the log piece by piece: it never has a copy of the whole.
        """
        log = self.log
        entries, parts = log.entries, log.parts
        end = len(entries)
        while self._part + 1 < len(parts):
            end = parts[self._part + 1][1]
            if self._index < end:
                break
            self._part += 1
            self._index, end = end, len(entries)
        if self._index > end:
            if not log.ended:
                return []  # it has more than is known here yet
            self._index = end - 1  # it has more than was kept, but not the end
        start = index = self._index
        size = 0
        while index < end and size < PIECE:
            size += len(entries[index])
            index += 1
        self._index = index
        return entries[start:index]

    @property
    def finished(self) -> bool:
        """Whether it has everything that there will ever be."""
        return self.log.ended and self._index == len(self.log)

    def rewind(self, n: int) -> None:
        """Go back to an event of the present epoch."""
        self._index = self.log.parts[self._part][1] + n

    def leave(self) -> None:
        """Follow no longer. Idempotent."""
        self.log.remove(self)
