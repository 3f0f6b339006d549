"""The feeds that this process follows: each once, for all who read it here.

Subscribe, wait for the acknowledgement, see where the feed ends, go on with what is published. Where something may have
been missed, and now and then because that may have been the last word, it is read again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from .errors import StoreUnavailable
from .feed import Entry, Feed, FeedReader, Place, read_place
from .runtime import Timer, current
from .store import Store, Subscription, digest

log = logging.getLogger("flask_llmstream")

READ_AT_ONCE = 100
"""Feeds that are read again in one step."""


class Following:
    """The feeds that this process follows.

    :param refresh: seconds after which each is read again, in case the last that was published was lost.
    """

    def __init__(self, store: Store, *, refresh: float) -> None:
        self._store = store
        self._refresh = refresh
        self._followed: dict[str, _Followed] = {}
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._reading = False
        self._doubtful = False

    def __len__(self) -> int:
        return len(self._followed)

    def read(self, owner: str, place: Place | None = None) -> FeedReader:
        """Follow the feed of an owner from behind a place.

        :raises StoreUnavailable: that is not possible now.
        """
        name = self._store.key("feed", digest(owner))
        with self._lock:
            followed = self._followed.get(name)
            if followed is None:
                followed = self._followed[name] = _Followed(Feed(name))
            followed.readers += 1
            if self._timer is None and self._store.shared:
                self._timer = current().timers.every(self._refresh, self._read_again)
        came = monotonic()
        try:
            with followed.opening:
                if followed.subscription is None:
                    self._open(followed, came)
            return FeedReader(followed.feed, place, partial(self._follow, name), lambda: self._leave(followed))
        except BaseException:
            self._leave(followed)
            raise

    def close(self) -> None:
        """Follow nothing any more."""
        with self._lock:
            followed, self._followed = list(self._followed.values()), {}
            self._stop_reading_again()
        for one in followed:
            one.close()

    def _open(self, followed: _Followed, came: float) -> None:
        if came < followed.refused_at:  # a crowd that waits is not to try one after the other
            raise StoreUnavailable(retry_after=2.0, diagnosis="another reader has just tried, and in vain")
        try:
            followed.subscription = self._subscribe(followed.feed)
        except StoreUnavailable:
            followed.refused_at = monotonic()
            raise

    def _subscribe(self, feed: Feed) -> Subscription:
        subscription = self._store.subscribe(feed.name, feed.hear, lost=lambda: self._lost(feed))
        try:
            asked = feed.question()
            known = feed.learn_end(asked, _entries(self._store.command("XREVRANGE", feed.name, "+", "-", "COUNT", 1)))
            while not known:
                asked = feed.question()
                known = feed.learn(asked, self._follow(feed.name, asked.place))
        except BaseException:
            subscription.close()
            raise
        return subscription

    def _leave(self, followed: _Followed) -> None:
        with self._lock:
            followed.readers -= 1
            if followed.readers:
                return
            if self._followed.get(followed.feed.name) is followed:
                del self._followed[followed.feed.name]
            if not self._followed:
                self._stop_reading_again()
        followed.close()

    def _stop_reading_again(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lost(self, feed: Feed) -> None:
        feed.doubt()
        self._read_again()

    def _read_again(self) -> None:
        """Read all feeds again, by itself, where it must not block."""
        with self._lock:
            self._doubtful = True
            begin, self._reading = not self._reading, True
        if begin:
            try:
                current().task(self._read_while_doubtful, lambda: None).start()
            except BaseException:
                self._reading = False
                raise

    def _read_while_doubtful(self) -> None:
        while True:
            with self._lock:
                if not self._doubtful:
                    self._reading = False
                    return
                self._doubtful = False
                feeds = [one.feed for one in self._followed.values() if one.subscription is not None]
            try:
                sure = [self._read_some(feeds[at : at + READ_AT_ONCE]) for at in range(0, len(feeds), READ_AT_ONCE)]
                if not all(sure):
                    self._doubtful = True
            except StoreUnavailable as error:
                log.info("what is told of runs could not be read: %s", error.diagnosis)
            except Exception:
                log.exception("what is told of runs could not be read")

    def _read_some(self, feeds: Sequence[Feed]) -> bool:
        asked = [feed.question() for feed in feeds]
        commands = [_following(feed.name, question.place) for feed, question in zip(feeds, asked, strict=True)]
        answers = self._store.commands(*commands)
        told = zip(feeds, asked, answers, strict=True)
        return all([feed.learn(question, _entries(answer)) for feed, question, answer in told])

    def _follow(self, name: str, place: Place) -> list[Entry]:
        return _entries(self._store.command(*_following(name, place)))


class _Followed:
    """A feed, how many read it, and the subscription by which it is heard of."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.readers = 0
        self.opening = threading.Lock()
        self.refused_at = -inf
        self.subscription: Subscription | None = None

    def close(self) -> None:
        if self.subscription is not None:
            self.subscription.close()


def _following(name: str, place: Place) -> tuple[Any, ...]:
    return "XRANGE", name, f"{place[0]}-{place[1]}", "+"


def _entries(reply: Any) -> list[Entry]:
    entries = []
    for place, fields in reply:
        content = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        entries.append(Entry(read_place(place), content[b"e"]))
    return entries
