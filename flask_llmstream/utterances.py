"""Whose words are whose, in a relayed call, without I/O: utterances have numbers here, and are items at the server.

An utterance that the server has found is known by its item. One whose end the server was told of is whichever item is
not known otherwise. Words may come before an utterance has its number, after those of the next one, or never.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass

SPOKEN = "(spoken)"
"""Stands for what a user has said, where nobody has written it down."""
LATEST = 32
"""Utterances of which something is remembered."""


@dataclass(eq=False, slots=True)
class Utterance:
    item: str | None
    words: str | None
    number: int | None = None


class Utterances:
    """The utterances of one call."""

    def __init__(self) -> None:
        self._open: deque[Utterance] = deque(maxlen=LATEST)
        self._partly: OrderedDict[str, str] = OrderedDict()
        self._found: deque[str] = deque(maxlen=LATEST)
        self._lock = threading.Lock()

    def found(self, item: str) -> None:
        """The server has found one."""
        self._found.append(item)

    def end(self, item: str | None, words: str | None = None) -> None:
        """One is over.

        :param item: None where its end is told to the server.
        :param words: where they are known.
        """
        with self._lock:
            self._open.append(Utterance(item, words))

    def settle(self, number: int) -> str | None:
        """Number the one that ended first; its words, if they are there already."""
        with self._lock:
            for utterance in self._open:
                if utterance.number is None:
                    utterance.number = number
                    if utterance.words is not None:
                        self._open.remove(utterance)
                    return utterance.words
        return ""

    def hear(self, item: str, text: str) -> str:
        """Take further words; all that are known of the item."""
        with self._lock:
            so_far = self._partly[item] = self._partly.get(item, "") + text
            if len(self._partly) > LATEST:
                self._partly.popitem(last=False)
            return so_far

    def finish(self, item: str, words: str) -> int | None:
        """Take all words of an item; their number, where there is one."""
        with self._lock:
            self._partly.pop(item, None)
            wanted = item if item in self._found else None
            for utterance in self._open:
                if utterance.item == wanted and utterance.words is None:
                    utterance.words = words
                    if utterance.number is not None:
                        self._open.remove(utterance)
                    return utterance.number
            return None

    def give_up(self, number: int) -> bool:
        """Wait no more for the words of one; whether they have not come."""
        with self._lock:
            for utterance in self._open:
                if utterance.number == number:
                    self._open.remove(utterance)
                    return True
            return False
