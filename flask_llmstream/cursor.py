"""A reader's place in a run's log, or in an owner's feed, as it goes over the wire."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InvalidCursor

_CURSOR = re.compile(r"([A-Za-z0-9_-]{1,64}):([0-9]{1,15})-([0-9]{1,12})")


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last event that a reader has: ``<run id>:<epoch>-<n>`` on the wire, short ASCII as SSE clients need it.

    :param run_id: which run; ``runs`` for an owner's feed.
    :param epoch: which writer of the run, from 1. In a feed, the millisecond in which something was told.
    :param n: which event of that writer, from 1; 0 before the first. In a feed, which one within its millisecond.
    """

    run_id: str
    epoch: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read the wire form.

        :raises InvalidCursor: it is none.
        """
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise InvalidCursor("The cursor must be the id of an event, such as 'V1StGXR8_Z5jdHi6B-myTA:1-42'.")
        return cls(match[1], int(match[2]), int(match[3]))

    def __str__(self) -> str:
        return f"{self.run_id}:{self.epoch}-{self.n}"
