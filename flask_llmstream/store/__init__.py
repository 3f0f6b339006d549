"""The one door to Redis: what all processes must agree on, each step an atomic script.

Without Redis the scripts run on an in-process emulation of it, so there is one way in which a run is admitted and
ended. The scripts lie beside this file, each headed by its KEYS and ARGV.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from redis.exceptions import (
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from ..errors import StoreUnavailable
from ..runtime import Timer, current
from .connection import PATIENCE, POOL, RESERVED, URGENT_PATIENCE, connect, reason
from .subscriptions import Receive, Subscription, Subscriptions

__all__ = [
    "PATIENCE",
    "EmbeddedStore",
    "RedisStore",
    "Store",
    "Subscription",
    "connect",
    "digest",
    "faults",
    "rq_connection",
]

SWEEP_EVERY = 60.0
"""Seconds between two sweeps of the embedded store."""
UNFIT = (OutOfMemoryError, ReadOnlyError, NoPermissionError, MasterDownError)
UNFIT_CODE = re.compile(r"(?:^|: -)(?:BUSY|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY) ")
"""Errors that tell of the state of Redis, and not of what it was asked. Before 7.0, Redis names a script's own error
first, and then the one that the script has met."""
RETRY_AFTER = 2.0
"""Seconds after which a client may try again that Redis has failed."""


class Store:
    """What processes agree on.

    :param redis: a client for Redis, or for what behaves like it.
    :param prefix: what the names of all keys and channels begin with.
    """

    shared = True
    """Whether other processes, and later ones, see what is in it."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self.prefix = prefix
        self._redis = redis
        self._scripts: dict[str, Any] = {}
        self._process: tuple[int, str] | None = None

    @property
    def process(self) -> str:
        """What this process is called: other ones reach it under this name."""
        if self._process is None or self._process[0] != os.getpid():
            self._process = os.getpid(), secrets.token_urlsafe(9)
        return self._process[1]

    @property
    def troubled(self) -> bool:
        """Whether it has been away a moment ago, and may not have again what it had."""
        return False

    def key(self, *parts: str) -> str:
        """The name of a key or channel."""
        return self.prefix + ":".join(parts)

    def call(self, script: str, keys: Sequence[str], args: Sequence[Any], *, urgent: bool = False) -> Any:
        """Carry out a script.

        :param urgent: it waits for a free connection less long than others, and finds one sooner.
        :raises StoreUnavailable: Redis did not do it, as far as one can tell.
        """
        with self._connected(urgent=urgent):
            return self._script(script)(keys=keys, args=args)

    def command(self, *words: Any) -> Any:
        """Carry out a single command.

        :raises StoreUnavailable: as above.
        """
        with self._connected():
            return self._redis.execute_command(*words)

    def commands(self, *commands: Sequence[Any]) -> list[Any]:
        """Carry out several commands in one round trip.

        :raises StoreUnavailable: as above.
        """
        with self._connected():
            pipeline = self._redis.pipeline(transaction=False)
            for words in commands:
                pipeline.execute_command(*words)
            replies: list[Any] = pipeline.execute()
        return replies

    def subscribe(self, channel: str, receive: Receive, *, lost: Callable[[], None] = lambda: None) -> Subscription:
        """Hear what is published on a channel, from now on.

        :param receive: called with each message; must not block.
        :param lost: called when messages may have been missed; must not block.
        :raises StoreUnavailable: as above.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back connections."""
        self._redis.close()

    @contextmanager
    def _connected(self, *, urgent: bool = False) -> Iterator[None]:
        with faults():
            yield

    def _script(self, name: str) -> Any:
        script = self._scripts.get(name)
        if script is None:
            source = Path(__file__).with_name(f"{name}.lua").read_text("utf-8")
            script = self._scripts[name] = self._redis.register_script(source)
        return script


class RedisStore(Store):
    """The store that several processes share: Redis or Valkey, alone or with Sentinels.

    :param url: where it is; see `store.connection`.
    """

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(connect(url), prefix)
        self.url = url
        self._places = threading.BoundedSemaphore(POOL - RESERVED)
        self._reserved = threading.BoundedSemaphore(RESERVED)
        self._closed = False

    @cached_property
    def _subscriptions(self) -> Subscriptions:
        pool = self._redis.connection_pool
        # Not the pool's own way to make one: it counts them, and never hears of the end of one that it did not give.
        return Subscriptions(lambda: pool.connection_class(**pool.connection_kwargs))

    def subscribe(self, channel: str, receive: Receive, *, lost: Callable[[], None] = lambda: None) -> Subscription:
        with faults():
            return self._subscriptions.add(channel, receive, lost)

    @property
    def troubled(self) -> bool:
        return "_subscriptions" in self.__dict__ and self._subscriptions.troubled

    @contextmanager
    def lend(self) -> Iterator[Any]:
        """The client itself, for a library that wants one.

        :raises StoreUnavailable: as `command` does; also what the library meets inside.
        """
        with self._connected():
            yield self._redis

    def alone(self) -> RedisStore:
        """The same store over connections of its own, for a thread that must not wait for others."""
        return RedisStore(self.url, self.prefix)

    def close(self) -> None:
        if "_subscriptions" in self.__dict__:
            self._subscriptions.close()
        super().close()
        self._closed = True
        self._let_connections_go()

    def _let_connections_go(self) -> None:
        # What is in use is somebody's end of a run, perhaps; it is let go when they have come to theirs.
        self._redis.connection_pool.disconnect(inuse_connections=False)

    @contextmanager
    def _connected(self, *, urgent: bool = False) -> Iterator[None]:
        places = self._taken_place(urgent)
        try:
            with faults():
                yield
        finally:
            places.release()
            if self._closed:
                self._let_connections_go()

    def _taken_place(self, urgent: bool) -> threading.BoundedSemaphore:
        # A pool that is exhausted would refuse: here those wait for whom it has no connection.
        if self._places.acquire(timeout=0 if urgent else PATIENCE):
            return self._places
        if urgent and self._reserved.acquire(timeout=URGENT_PATIENCE):
            return self._reserved
        raise StoreUnavailable(retry_after=RETRY_AFTER, diagnosis="all connections to Redis are taken")


class EmbeddedStore(Store):
    """The store of a single process, in its memory."""

    shared = False

    def __init__(self, prefix: str = "llmstream:") -> None:
        from fakeredis import FakeRedis, FakeServer

        super().__init__(FakeRedis(server=FakeServer()), prefix)
        self._sweeper: Timer | None = None
        self._pubsub: Any = None
        self._receivers: dict[str, list[Receive]] = {}
        self._lock = threading.RLock()

    def call(self, script: str, keys: Sequence[str], args: Sequence[Any], *, urgent: bool = False) -> Any:
        if self._sweeper is None:
            self._sweeper = current().timers.after(SWEEP_EVERY, self.sweep)
        said = super().call(script, keys, args, urgent=urgent)
        if self._receivers:
            self._deliver()
        return said

    def subscribe(self, channel: str, receive: Receive, *, lost: Callable[[], None] = lambda: None) -> Subscription:
        with self._lock:
            if self._pubsub is None:
                self._pubsub = self._redis.pubsub()
            if channel not in self._receivers:
                self._pubsub.subscribe(channel)
            self._receivers.setdefault(channel, []).append(receive)
        return Subscription(lambda: self._unsubscribe(channel, receive))

    def sweep(self) -> None:
        """Drop what has expired: the emulation only does so for keys that are asked for, and when it counts them."""
        left = self._redis.dbsize()
        self._sweeper = current().timers.after(SWEEP_EVERY, self.sweep) if left else None

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._pubsub is not None:
            self._pubsub.close()
        super().close()

    @contextmanager
    def _connected(self, *, urgent: bool = False) -> Iterator[None]:
        with current().whole(), self._lock, faults():  # the emulation leaves half of a script done that is interrupted
            yield

    def _unsubscribe(self, channel: str, receive: Receive) -> None:
        with self._lock:
            receivers = self._receivers[channel]
            receivers.remove(receive)
            if not receivers:
                del self._receivers[channel]
                self._pubsub.unsubscribe(channel)

    def _deliver(self) -> None:
        """Hand on what scripts have published: in one process nothing else publishes, and nobody has to wait for it."""
        with self._lock:  # to the end, so that all is heard in the order in which it was published
            while (message := self._pubsub.get_message(timeout=0)) is not None:
                if message["type"] == "message":
                    for receive in tuple(self._receivers.get(message["channel"].decode(), ())):
                        receive(message["data"])


def rq_connection(store: RedisStore) -> Any:
    """A client of its own for an RQ worker, which changes the time-outs of what it is given."""
    return connect(store.url)


def digest(*parts: str) -> str:
    """One short name for several strings, in which none of them can be read."""
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


@contextmanager
def faults() -> Iterator[None]:
    """Tell what Redis cannot do now from what is wrong with this program."""
    try:
        yield
    except ResponseError as error:
        if isinstance(error, UNFIT) or UNFIT_CODE.search(str(error)):
            raise StoreUnavailable(retry_after=RETRY_AFTER, diagnosis=f"Redis: {error}") from error
        raise
    except (RedisError, OSError) as error:
        raise StoreUnavailable(retry_after=RETRY_AFTER, diagnosis=f"Redis: {reason(error)}") from error
