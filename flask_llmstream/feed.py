"""What is told of an owner's runs: which have started and ended, whichever process writes them.

The scripts that start and end runs add to the owner's feed, in the store, and publish what they add. This is a feed as
one process has it, and its readers; there is no I/O here, what is heard and read is brought to it.

Nothing is queued for a reader, who has a place in the feed: one that is further behind than this process remembers
reads the store, and for one that is further behind than the store remembers, the only way on is to be told how
things stand now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .runtime import Bell, current

Place = tuple[int, int]
"""Of an entry: the milliseconds since 1970, and which one it is within them."""
START: Place = (0, 0)
KEPT = 500
"""Entries that the store keeps at least, as the scripts have it."""
REMEMBERED = 50
"""Entries that this process remembers of a feed."""


class Entry(NamedTuple):
    """What a feed says, once.

    :param payload: JSON: ``started``, ``ended`` or ``forgotten``, and of which run.
    """

    place: Place
    payload: bytes


class Point(NamedTuple):
    """A point in a feed as this process has it.

    :param epoch: which feed: one that the store has lost begins anew, and its places with it.
    """

    epoch: int
    place: Place


class Question(NamedTuple):
    """What the store is asked: what follows a place.

    :param heard: how much had been heard, and not believed, when it was asked.
    """

    place: Place
    heard: int


class Feed:
    """An owner's feed as this process has it.

    It is `sure` while nothing can have been missed. Until then what is published only shows that there is something
    to read: to believe it would be to jump over what came before it.

    :param name: of its key in the store, and of the channel on which it is published.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.sure = False
        self._entries: tuple[Entry, ...] = ()
        self._since = self._end = START
        self._epoch = 0
        self._heard = 0
        self._readers: tuple[FeedReader, ...] = ()
        self._lock = threading.Lock()

    @property
    def readers(self) -> int:
        """How many follow it here."""
        return len(self._readers)

    @property
    def end(self) -> Point:
        """Where it ends, as far as is known."""
        with self._lock:
            return Point(self._epoch, self._end)

    def after(self, point: Point) -> list[Entry] | None:
        """What follows a point; None if that is not remembered."""
        with self._lock:
            if point.epoch != self._epoch or not self._since <= point.place <= self._end:
                return None
            return [entry for entry in self._entries if entry.place > point.place]

    def hear(self, message: bytes) -> None:
        """Something was published."""
        place, _, payload = message.partition(b" ")
        with self._lock:
            if self.sure:
                self._add([Entry(read_place(place), payload)])
            else:
                self._heard += 1

    def doubt(self) -> None:
        """Something may have been missed."""
        with self._lock:
            self.sure = False
            self._heard += 1

    def question(self) -> Question:
        """What the store has to be asked."""
        with self._lock:
            return Question(self._end, self._heard)

    def learn_end(self, asked: Question, last: Sequence[Entry]) -> bool:
        """The last entry in the store, if there is any: what follows it is what this process hears of.

        :returns: whether nothing has been missed since it was asked.
        """
        with self._lock:
            self._begin_again(last)
            return self._settle(asked)

    def learn(self, asked: Question, entries: Sequence[Entry]) -> bool:
        """The store's answer. If it has lost what was asked for, all readers have lost their place.

        :returns: as above.
        """
        with self._lock:
            if reach(asked.place, entries):
                self._add(entries)
            elif asked.place != self._end:
                return False  # an old question
            else:
                self._begin_again(entries[-1:])
            return self._settle(asked)

    def add(self, reader: FeedReader) -> None:
        with self._lock:
            self._readers = (*self._readers, reader)

    def remove(self, reader: FeedReader) -> None:
        with self._lock:
            self._readers = tuple(other for other in self._readers if other is not reader)

    def _settle(self, asked: Question) -> bool:
        self.sure = self._heard == asked.heard
        return self.sure

    def _add(self, entries: Sequence[Entry]) -> None:
        news = [entry for entry in entries if entry.place > self._end]
        if not news:
            return
        known = (*self._entries, *news)
        if len(known) > REMEMBERED:
            self._since = known[-REMEMBERED - 1].place
        self._entries = known[-REMEMBERED:]
        self._end = news[-1].place
        self._ring()

    def _begin_again(self, last: Sequence[Entry]) -> None:
        self._entries = ()
        self._since = self._end = last[0].place if last else START
        self._epoch += 1
        self._ring()

    def _ring(self) -> None:
        for reader in self._readers:
            reader.bell.ring()


class FeedReader:
    """One reader's place in a feed. Close it at the end.

    :param place: the last entry that it has; None for one that has come for the first time.
    :param read: reads the feed in the store from a place on, that one included.
    :param leave: called when it is closed.
    """

    def __init__(
        self, feed: Feed, place: Place | None, read: Callable[[Place], list[Entry]], leave: Callable[[], None]
    ) -> None:
        self.bell: Bell = current().bell()
        self._feed = feed
        self._point = None if place is None else Point(-1, place)
        self._read = read
        self._leave = leave
        self._closed = False
        feed.add(self)

    @property
    def place(self) -> Place | None:
        """The last entry that it has; None if what follows that one is not known."""
        return self._point and self._point.place

    def take(self) -> list[Entry] | None:
        """What follows its place, in order; None if that is not known: then find out how things stand, and `resume`.

        :raises StoreUnavailable: the store would have to be asked, and can't be.
        """
        point = self._point
        if point is None:
            return None
        news = self._feed.after(point)
        if news is None:
            point = Point(self._feed.end.epoch, point.place)
            entries = self._read(point.place)
            if not reach(point.place, entries):
                self._point = None
                return None
            news = [entry for entry in entries if entry.place > point.place]
        self._point = Point(point.epoch, news[-1].place) if news else point
        return news

    @property
    def end(self) -> Point:
        """Where the feed ends by now: whoever then finds out how things stand may `resume` from here."""
        return self._feed.end

    def resume(self, point: Point) -> None:
        """Go on from somewhere."""
        self._point = point

    def close(self) -> None:
        """Follow no longer. Idempotent."""
        if not self._closed:
            self._closed = True
            self._feed.remove(self)
            self._leave()


def reach(place: Place, entries: Sequence[Entry]) -> bool:
    """Whether entries that the store has from a place on follow it without a gap.

    A feed that is shorter than what is always kept has never been cut.
    """
    if place == START:
        return len(entries) < KEPT
    return bool(entries) and entries[0].place == place


def read_place(text: bytes) -> Place:
    """A place as Redis has it: ``<ms>-<n>``."""
    ms, _, number = text.partition(b"-")
    return int(ms), int(number)
