"""What this process can carry: how many responses may be open at once, and the pulse that keeps them alive."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .drain import Drain
from .errors import Overloaded
from .runtime import Timer, current
from .server import capacity

RETRY_AFTER = (1.0, 4.0)
"""Seconds; drawn at random, so that those who were refused together don't come back together."""


class Pulsed(Protocol):
    """An open response that is to be looked after."""

    def pulse(self, beat: int) -> None:
        """A fifth of the heartbeat's interval has passed; must not block."""

    def send_away(self) -> None:
        """Have the client come back by another connection, unless the response is about to end by itself. Idempotent;
        must not block."""


class OpenResponses:
    """The responses that are open in this process, each looked after five times a heartbeat.

    One timer serves all of them, and none runs while there are none.

    :param limit: how many may be open; None asks the server that the process runs under.
    :param heartbeat: seconds.
    :param drain: sees to their end.
    """

    BEATS = 5

    def __init__(self, limit: int | None, heartbeat: float, drain: Drain | None = None) -> None:
        self.heartbeat = heartbeat
        self._drain = drain or Drain()
        self._drain.carry(readers=self)
        self._limit = limit
        self._responses: dict[Pulsed, None] = {}
        self._places = 0
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self.beat = 0
        """How often it has pulsed."""

    def __len__(self) -> int:
        return self._places

    @property
    def busy(self) -> bool:
        """Whether there is a response to be looked after."""
        return bool(self._responses)

    @property
    def limit(self) -> int:
        if self._limit is None:
            self._limit = capacity()
        return self._limit

    def take_place(self) -> None:
        """Count one more response.

        :raises Overloaded: all places are taken.
        """
        limit = self.limit
        with self._lock:
            if self._places >= limit:
                raise Overloaded(
                    "The server has as many open streams as it can carry. Please try again in a moment.",
                    retry_after=round(random.uniform(*RETRY_AFTER), 1),
                )
            self._places += 1

    def give_back(self) -> None:
        """Count one response less."""
        with self._lock:
            self._places -= 1

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place that is given back if what happens inside fails, and kept otherwise."""
        self.take_place()
        try:
            yield
        except BaseException:
            self.give_back()
            raise

    def look_after(self, response: Pulsed) -> None:
        """Begin to pulse `response`."""
        with self._lock:
            self._responses[response] = None
            if self._timer is None:
                self._timer = current().timers.every(self.heartbeat / self.BEATS, self._pulse)
        self._drain.watch()
        if self._drain.sending_away:
            response.send_away()

    def send_away(self) -> None:
        """Have all clients come back by another connection."""
        for response in list(self._responses):
            response.send_away()

    def let_go(self, response: Pulsed) -> None:
        """Pulse it no longer. Idempotent."""
        with self._lock:
            self._responses.pop(response, None)
            if not self._responses and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _pulse(self) -> None:
        self.beat += 1
        for response in list(self._responses):
            response.pulse(self.beat)
