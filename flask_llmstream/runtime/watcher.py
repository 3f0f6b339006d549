"""Notices that a client has gone, without writing to it.

No WSGI server tells an application that its client has left before a write fails, and the first write after
a FIN always succeeds. The kernel knows at once: one epoll set with EPOLLRDHUP over all clients' sockets reports it
within a millisecond, unread bytes and TLS notwithstanding. Where there is no epoll (macOS, Windows) the
heartbeats have to find out, which takes two of them.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

log = logging.getLogger("flask_llmstream")

EPOLLRDHUP = 0x2000
EPOLLONESHOT = 1 << 30


class Poller(Protocol):
    """Calls back whenever the epoll set has news, for as long as it is started."""

    def start(self, epoll: Any, news: Callable[[], None]) -> None: ...

    def stop(self) -> None: ...


class Watch:
    """One watched socket; `close` it before the server closes the socket.

    :param gone: what to call, once, when its peer is gone.
    """

    __slots__ = ("_close", "fd", "gone")

    def __init__(self, fd: int, gone: Callable[[], None], close: Callable[[Watch], None]) -> None:
        self.fd = fd
        self.gone = gone
        self._close = close

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._close(self)


class Watcher:
    """The sockets that this process watches.

    :param epoll: makes the set; None where the system has none.
    :param poller: waits on it.
    """

    def __init__(self, epoll: Callable[[], Any] | None, poller: Poller) -> None:
        self._make_epoll = epoll
        self._epoll: Any = None
        self._poller = poller
        self._watches: dict[int, Watch] = {}
        self._lock = threading.Lock()

    def watch(self, sock: socket.socket, gone: Callable[[], None]) -> Watch:
        """Call `gone` once, soon after the peer of `sock` has closed or reset the connection.

        Where that can't be done, the heartbeats find out.
        """
        watch = Watch(sock.fileno(), gone, self._forget)
        if self._make_epoll is not None and watch.fd >= 0:
            try:
                self._register(watch)
            except (OSError, RuntimeError) as error:  # out of descriptors, or of threads
                log.warning("a client's socket cannot be watched: %s", error)
                self._forget(watch)
        return watch

    def __len__(self) -> int:
        return len(self._watches)

    def _register(self, watch: Watch) -> None:
        assert self._make_epoll is not None
        with self._lock:
            if self._epoll is None:
                self._epoll = self._make_epoll()
            if not self._watches:
                self._poller.start(self._epoll, self._news)
            self._watches[watch.fd] = watch
            try:
                self._epoll.register(watch.fd, EPOLLRDHUP | EPOLLONESHOT)
            except FileExistsError:  # a descriptor that came back before its watch was closed
                self._epoll.modify(watch.fd, EPOLLRDHUP | EPOLLONESHOT)

    def _forget(self, watch: Watch) -> None:
        with self._lock:
            if self._watches.get(watch.fd) is not watch:
                return  # closed before, or its descriptor is another's by now
            del self._watches[watch.fd]
            with suppress(OSError):  # closed already, which takes it out of the set
                self._epoll.unregister(watch.fd)
            if not self._watches:
                self._poller.stop()

    def _news(self) -> None:
        for fd, _ in self._epoll.poll(0):
            watch = self._watches.get(fd)
            if watch is not None:
                try:
                    watch.gone()
                except Exception:
                    log.exception("a watcher's callback failed")


def system_epoll() -> Callable[[], Any] | None:
    """The standard library's epoll, where the system has one."""
    return getattr(select, "epoll", None)
