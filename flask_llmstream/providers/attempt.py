"""One request to a model's server on its way: which socket it waits on, and what makes it give up.

Stop and time-outs work alike: they shut the socket down, which makes whoever blocks on it fail at once, in plain
threads too, where closing would not wake it. What the failure means is asked of the attempt afterwards (`check`).
One timer for each attempt looks after all four time-outs, so that sockets stay without one of their own: under
gevent a time-out for each read costs a tenth of what reading a token does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from math import inf
from time import monotonic
from typing import Literal, Self

from ..errors import RunCancelled, UpstreamTimeout
from ..runtime import Timer, Timers
from . import Call, Timeouts

TimeoutPhase = Literal["connect", "first_token", "idle", "total"]


class Attempt:
    """A call's one request. Use it as a context manager around all that may block.

    `limits` are its time-outs. `waiting_since` is when the wait for the next piece of the answer began
    (`time.monotonic`), infinite while the consumer of the answer is at work and nobody waits: the idle time-out
    counts from it.

    :param call: what is asked for; it can be cancelled through this attempt.
    :param limits: the time-outs that hold for it.
    :param timers: what looks after them.
    """

    def __init__(self, call: Call, limits: Timeouts, timers: Timers) -> None:
        self.phase: Literal["connect", "first_token", "idle"] = "connect"
        self.waiting_since = inf
        self._call = call
        self.limits = limits
        self._timers = timers
        self._timer: Timer | None = None
        self._started = monotonic()
        self._expired: TimeoutPhase | None = None
        self._socket: socket.socket | None = None
        self._ended = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        # In this order: a cancel that comes between the two finds either the function or its own flag looked at.
        self._call.abort = self._break_off
        self.check()
        self._look_at_the_clock()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._call.abort = None
        with self._lock:
            self._ended = True
            self._socket = None
            if self._timer is not None:
                self._timer.cancel()

    def blocks_on(self, sock: socket.socket | None) -> None:
        """Say which socket is about to be waited on; None when it no longer belongs to this attempt.

        :raises RunCancelled: as in `check`.
        """
        with self._lock:
            self._socket = sock
        if sock is not None:
            self.check()

    def connected(self) -> None:
        """The connection stands; from now on it is the answer that is waited for."""
        self.phase = "first_token"

    def check(self) -> None:
        """
        :raises RunCancelled: the call was cancelled.
        :raises UpstreamTimeout: its time is up.
        """
        if self._call.cancelled:
            raise RunCancelled
        if self._expired is not None:
            raise UpstreamTimeout(self._expired)

    def give_up_after(self, seconds: float) -> None:
        """Break the socket off at that time, whatever happens: the answer is in, this is about the rest."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._timers.after(seconds, self._break_off)

    def _break_off(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                # The base class's: a TLS socket's own shutdown drops its state first, and wakes nobody.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _look_at_the_clock(self) -> None:
        due, phase = self._due()
        now = monotonic()
        if due <= now:
            self._expired = phase
            self._break_off()
            return
        # A wait for the next piece can begin at any time from now on.
        pause = min(due - now, _limit(self.limits.idle))
        with self._lock:
            if pause < inf and not self._ended:
                self._timer = self._timers.after(pause, self._look_at_the_clock)

    def _due(self) -> tuple[float, TimeoutPhase]:
        limits, started = self.limits, self._started
        dues: list[tuple[float, TimeoutPhase]] = [(started + _limit(limits.total), "total")]
        if self.phase == "connect":
            dues.append((started + _limit(limits.connect), "connect"))
        if self.phase == "idle":
            dues.append((self.waiting_since + _limit(limits.idle), "idle"))
        else:
            dues.append((started + _limit(limits.first_token), "first_token"))
        return min(dues)


@contextlib.contextmanager
def making(attempt: Attempt | None) -> Iterator[None]:
    """Let the transport know for which attempt it is asked to send: the official client lies between the two."""
    token = _current.set(attempt)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Attempt | None:
    """The attempt that this thread or greenlet is making a request for."""
    return _current.get()


def _limit(seconds: float | None) -> float:
    return inf if seconds is None else seconds


_current: ContextVar[Attempt | None] = ContextVar("flask_llmstream_attempt", default=None)
