"""The one connection of a process on which it hears what others publish.

It is made with the first subscription, made anew whenever it breaks, and reads from a task of its own. Whoever
subscribes is heard from when Redis has acknowledged that; whenever something may have been missed since, they are told
so, and read again what they follow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswer

from ..errors import StoreUnavailable
from ..runtime import Bell, current
from .connection import reason

log = logging.getLogger("flask_llmstream")

ACKNOWLEDGED_WITHIN = 1.5
"""Seconds."""
PING_EVERY = 4.0
"""Seconds of silence after which the connection is tried; after as many again it is taken for dead."""
BACKOFF = 0.05
BACKOFF_MOST = 1.0
"""Seconds between two attempts to connect."""

TROUBLED_FOR = 5.0
"""Seconds in which those who write runs notice what Redis has lost, and put it back."""

Receive = Callable[[bytes], None]


class Subscription:
    """A channel that is heard."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close: Callable[[], None] | None = close

    def close(self) -> None:
        """Hear it no longer. Idempotent."""
        close, self._close = self._close, None
        if close is not None:
            close()


class Channel:
    """Who hears a channel."""

    def __init__(self) -> None:
        self.receivers: list[tuple[Receive, Callable[[], None]]] = []
        self.acknowledged = False
        self.waiting: list[Bell] = []


class Subscriptions:
    """The subscriptions of a process.

    :param connect: makes a connection, which is not open yet.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._channels: dict[str, Channel] = {}
        self._lock = threading.RLock()
        self._running = False
        self._closed = False
        self._lost_at = -inf

    @property
    def troubled(self) -> bool:
        """Whether the connection was lost a moment ago."""
        return monotonic() - self._lost_at < TROUBLED_FOR

    def add(self, name: str, receive: Receive, lost: Callable[[], None]) -> Subscription:
        """Hear a channel; returns when Redis has acknowledged it.

        :param lost: called when messages may have been missed.
        :raises StoreUnavailable: it has not.
        """
        bell = current().bell()
        with self._lock:
            if self._closed:
                raise StoreUnavailable(diagnosis="the store is closed")
            channel = self._channels.get(name)
            new = channel is None
            if channel is None:
                channel = self._channels[name] = Channel()
            channel.receivers.append((receive, lost))
            channel.waiting.append(bell)
            begin, self._running = not self._running, True
            if new and not begin:
                self._send("SUBSCRIBE", name)
        subscription = Subscription(lambda: self._remove(name, receive, lost))
        until = monotonic() + ACKNOWLEDGED_WITHIN
        try:
            if begin:
                self._begin()
            while not channel.acknowledged:
                left = until - monotonic()
                if left <= 0:
                    raise StoreUnavailable(retry_after=2.0, diagnosis="Redis has not acknowledged a subscription")
                bell.wait(left)
        except BaseException:
            subscription.close()
            raise
        finally:
            channel.waiting.remove(bell)
        return subscription

    def close(self) -> None:
        """Hear nothing any more."""
        with self._lock:
            self._closed = True
            self._channels.clear()
        self._disconnect()

    def _begin(self) -> None:
        try:
            current().task(self._run, lambda: None).start()
        except BaseException:
            self._running = False
            raise

    def _remove(self, name: str, receive: Receive, lost: Callable[[], None]) -> None:
        with self._lock:
            channel = self._channels.get(name)
            if channel is None:
                return
            channel.receivers.remove((receive, lost))
            if channel.receivers:
                return
            del self._channels[name]
            self._send("UNSUBSCRIBE", name)

    def _send(self, *words: str) -> None:
        """Say something on the connection, if there is one; a new one says all there is to say."""
        with self._lock:
            # One that has broken would connect itself anew here, and hear nothing but this.
            if self._connection is not None and self._connection.is_connected:
                with suppress(RedisError, OSError):  # the reader will notice
                    self._connection.send_command(*words, check_health=False)

    def _run(self) -> None:
        pause, told = BACKOFF, False
        rest = current().bell()
        while not self._closed:
            try:
                self._open()
                pause, told = BACKOFF, False
                self._listen()
            except Exception as error:
                told = self._report(error, told)
            self._disconnect()
            if not self._closed:
                rest.wait(pause)
                pause = min(2 * pause, BACKOFF_MOST)

    def _report(self, error: Exception, told: bool) -> bool:
        """Say why it is not heard now: once, however often it is tried again."""
        self._lost_at = monotonic()
        if self._closed:
            return True  # closing a connection under the hands of who reads it may well surprise them
        faulty = isinstance(error, (RedisError, OSError))
        # Who finds it broken when they send takes it from under the one who reads, which redis-py is not made for.
        closed = self._connection is None or not self._connection.is_connected
        if not (faulty or closed):
            log.error("the connection on which other processes are heard is made anew", exc_info=error)
        elif not told:
            why = reason(error) if faulty else "it was closed"
            log.warning("the connection on which other processes are heard is lost: %s", why)
        return True

    def _open(self) -> None:
        connection = self._connect()
        connection.connect()
        with self._lock:
            self._connection = connection
            if self._closed:
                return
            if self._channels:
                self._send("SUBSCRIBE", *self._channels)

    def _disconnect(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            for channel in self._channels.values():
                channel.acknowledged = False
        if connection is not None:
            connection.disconnect()

    def _listen(self) -> None:
        connection = self._connection
        asked = False
        while not self._closed:
            try:
                message = connection.read_response(disconnect_on_error=False, timeout=PING_EVERY)
            except NoAnswer:
                if asked:
                    raise
                asked = True
                self._send("PING")
                continue
            asked = False
            kind = message[0]
            if kind == b"message":
                self._deliver(message[1].decode(), message[2])
            elif kind == b"subscribe":
                self._acknowledge(message[1].decode())

    def _deliver(self, name: str, data: bytes) -> None:
        channel = self._channels.get(name)
        if channel is None:
            return
        for receive, _ in list(channel.receivers):
            try:
                receive(data)
            except Exception:
                log.exception("what was published on %s could not be taken", name)

    def _acknowledge(self, name: str) -> None:
        with self._lock:
            channel = self._channels.get(name)
            if channel is None:
                return
            channel.acknowledged = True
            waiting, receivers = list(channel.waiting), list(channel.receivers)
        for bell in waiting:
            bell.ring()
        if not waiting or len(receivers) > len(waiting):
            for _, lost in receivers:
                lost()
