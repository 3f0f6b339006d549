"""The end of this process, as far as its server announces it: nothing new is begun, and what is live comes to its end.

    serving ──> told to go ──> readers are sent away, runs go on ──> time is up: what still goes on is closed

gunicorn tells a worker to go by TERM, by HUP to its master, or by itself after `max_requests`; all that an application
gets to see of it is ``worker.alive``. Some time later, `graceful_timeout`, it kills what is left. Under gevent it ends
the process even before that, as soon as no connection is open, whatever is still being written: so what watches here
is of the kind that a process waits for. It watches only while something is live. Other servers announce nothing.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Protocol

from .errors import ShuttingDown
from .runtime import Bell, current
from .server import (
    GunicornWorker,
    gunicorn_worker,
    has_successor,
    is_at_its_last_request,
    is_leaving,
    on_quit,
    signs_of_life,
)

log = logging.getLogger("flask_llmstream")

POLLED_EVERY = 0.25
"""Seconds."""
MARGIN = 3.0
"""Seconds before the server's limit, or half of that where it is short, at which what still goes on is closed: a
function has one to end by itself, those who want to act on the end have another, and Redis must be told."""
QUITS_WITHIN = 2.0
"""Seconds for which a process stays that is told to go at once."""
BACK_WITHIN = 10.0
"""Seconds that those who were sent away may take to come back, however short the patience with other readers is."""
RETRY_AFTER = (2.0, 4.0)
"""Seconds; drawn at random. A worker that is told to go may still accept connections for one."""


class Runs(Protocol):
    """The runs that are written here."""

    @property
    def busy(self) -> bool:
        """Whether there is one that has not ended."""

    def break_off(self) -> None:
        """Close those that still go on; must not block."""


class Readers(Protocol):
    """The responses that are open here."""

    @property
    def busy(self) -> bool:
        """Whether there is one."""

    def send_away(self) -> None:
        """Have them come back by another connection, those apart that are about to end by themselves."""


class Drain:
    """The end of this process.

    :param elsewhere: whether another process can go on with what is read here.
    """

    def __init__(self, *, elsewhere: bool = False) -> None:
        self.sending_away = False
        """Whether readers are sent away. Those who begin now are, too."""
        self._elsewhere = elsewhere
        self._runs: list[Runs] = []
        self._readers: list[Readers] = []
        self._lock = threading.Lock()
        self._watching = False
        self._hooked = False
        self._end = inf
        self._sent_away_at = 0.0
        self._hurry = False

    def carry(self, *, runs: Runs | None = None, readers: Readers | None = None) -> None:
        """See to the end of these, too."""
        if runs is not None:
            self._runs.append(runs)
        if readers is not None:
            self._readers.append(readers)

    @property
    def refuses(self) -> bool:
        """Whether nothing is begun here any more, and nobody can come back."""
        worker = gunicorn_worker()
        return worker is not None and is_leaving(worker) and not is_at_its_last_request(worker)

    def admit(self) -> None:
        """Let a run be started.

        :raises ShuttingDown: this process would not see its end.
        """
        if self.refuses:
            raise ShuttingDown(
                "The server is about to restart. Please try again in a moment.",
                retry_after=round(random.uniform(*RETRY_AFTER), 1),
            )

    def watch(self) -> None:
        """Begin to watch, where that is of use: something is live from here on."""
        worker = gunicorn_worker()
        if worker is None:
            return
        with self._lock:
            begin, self._watching = not self._watching, True
        if not begin:
            return
        try:
            current().keep(lambda: self._watch(worker))
        except BaseException:
            self._watching = False
            raise

    @property
    def awaited(self) -> float:
        """Seconds within which those who were sent away may still come back."""
        return max(0.0, self._sent_away_at + BACK_WITHIN - monotonic()) if self.sending_away else 0.0

    def _watch(self, worker: GunicornWorker) -> None:
        rest = current().bell()
        try:
            if not self._hooked:
                self._hooked = True
                on_quit(worker, self._be_quick)
            with signs_of_life(worker) as notify:
                while not self._is_idle() and monotonic() < self._end:
                    if is_leaving(worker):
                        self._drain(worker, rest, notify)
                    else:
                        rest.wait(POLLED_EVERY)
        except Exception:
            log.exception("what is live here could not be brought to its end")
            self._watching = False  # what begins next has it tried again

    def _is_idle(self) -> bool:
        """Whether nothing is live; then nobody watches from now on."""
        with self._lock:  # what begins meanwhile finds nobody watching, or is seen here
            self._watching = self._busy(self._runs) or self._busy(self._readers)
            return not self._watching

    def _drain(self, worker: GunicornWorker, rest: Bell, notify: Callable[[], None]) -> None:
        grace = worker.cfg.graceful_timeout
        if self._end == inf:
            self._end = monotonic() + grace
            log.info("this process is told to go: it starts nothing more, and finishes what it has begun")
        closing = self._end - min(max(MARGIN, grace / 10), grace / 2)

        def stay(until: float, live: Callable[[], bool]) -> None:
            while live() and monotonic() < until:
                notify()
                rest.wait(POLLED_EVERY)

        if self._elsewhere and has_successor(worker):
            self._send_away()
        stay(closing, lambda: self._busy(self._runs) and not self._hurry)
        if self._hurry:
            self._end = min(self._end, monotonic() + QUITS_WITHIN)
        for runs in self._runs:
            runs.break_off()
        stay(self._end, lambda: self._busy(self._runs))
        self._send_away()
        stay(self._end, lambda: self._busy(self._readers))

    def _send_away(self) -> None:
        if not self.sending_away:
            self._sent_away_at = monotonic()
            self.sending_away = True
        for readers in self._readers:
            readers.send_away()

    def _be_quick(self) -> None:
        """Have it over with, and return then: what calls this ends the process, and may be called more than once."""
        self._hurry = True
        until, rest = monotonic() + QUITS_WITHIN, current().bell()
        while self._watching and monotonic() < until:
            rest.wait(POLLED_EVERY / 5)

    @staticmethod
    def _busy(those: list[Runs] | list[Readers]) -> bool:
        return any(one.busy for one in those)
