"""A client's socket in the hands of several: whole writes, reads that leave others their turn, and deadlines."""

from __future__ import annotations

import _socket
import os
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from time import monotonic
from typing import Any

from .runtime import current, hang_up

PIECE = 65536
"""Bytes that are read at a time."""
SLICE = 0.001
"""Seconds of work, at most, between two rests. A request of somebody else's needs three or four turns."""
REST = 0.0005
"""Seconds. gevent's ``sleep(0)`` serves neither timers nor sockets, which any sleep does."""
RETRY = 0.05
"""Seconds after which a TLS connection is written to again that wants to be read first, which its reader does."""
BUSY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Share:
    """One's share of the process's time: whoever has had a slice of it rests for a moment."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = monotonic()

    def renew(self) -> None:
        """One has waited: others have had their turn."""
        self._since = monotonic()

    def spend(self) -> None:
        """Rest, if the slice is used up."""
        if monotonic() - self._since > SLICE:
            rest()
            self._since = monotonic()


def rest() -> None:
    """Let the others have their turn."""
    time.sleep(REST)


class Wire:
    """A client's socket, which one reads and many may write to, one at a time.

    The socket itself is never waited in: under gevent that would let nobody else do so, and OpenSSL's state is not for
    two threads at once.

    :param sock: stays its server's, which closes it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._lock = threading.Lock()
        self._tls = hasattr(sock, "pending")
        self._buried = False
        sock.settimeout(0)
        with suppress(OSError):  # no TCP
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wait(self, timeout: float) -> bool:
        """Wait until there is something to read, or the connection has ended.

        :param timeout: seconds.
        """
        return self._pending() or self._poll(select.POLLIN, timeout)

    def read(self) -> bytes | None:
        """What has come; nothing where the connection has ended, None where there is nothing yet after all.

        :raises OSError: the connection is broken.
        """
        with self._lock:
            try:
                return self.socket.recv(PIECE)
            except BUSY:
                return None

    def write(self, data: bytes, within: float) -> None:
        """Write all of it. Writers take turns by a lock of their own.

        :param within: seconds.
        :raises TimeoutError: the client did not take it in time; a part of it may have been written.
        :raises OSError: the connection is broken.
        """
        until, rest = monotonic() + within, memoryview(data)
        while rest:
            sent, to_be_read = 0, False
            with self._lock:
                try:
                    sent = self.socket.send(rest)  # gevent's says 0 where TLS would block
                except ssl.SSLWantReadError:
                    to_be_read = True
                except BUSY:
                    pass
            rest = rest[sent:]
            if sent == 0:
                left = until - monotonic()
                if left <= 0:
                    raise TimeoutError
                if to_be_read:
                    time.sleep(min(left, RETRY))
                else:
                    self._poll(select.POLLOUT, left)

    def finish(self) -> None:
        """Nothing more is written."""
        self._shut(socket.SHUT_WR)

    def shut(self) -> None:
        """Nothing more is read or written: whoever waits is woken. What was written still arrives."""
        self._shut(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End the connection as it stands, in the middle of a message perhaps: so that it is not taken for complete."""
        if not self._buried:
            hang_up(self.socket)

    def bury(self) -> None:
        """Leave the server a socket that has ended, of which it reads no further request. Nobody may use it now.

        A threaded server goes on to read what its client has sent, so there a dead descriptor takes the place of the
        real one, which is closed thereby (see `runtime.sockets.reset`).
        """
        self.shut()
        self._buried = True
        with suppress(OSError):
            self.socket.settimeout(None)
            if not current().cooperative:
                dead, other = socket.socketpair()
                with dead, other:
                    os.dup2(dead.fileno(), self.socket.fileno(), inheritable=False)

    def _shut(self, how: int) -> None:
        if self._buried:
            return
        with suppress(OSError):  # the client was faster
            # Not the socket's own method: a TLS socket forgets its state by it (see `runtime.sockets.hang_up`).
            _socket.socket.shutdown(getattr(self.socket, "_sock", self.socket), how)

    def _pending(self) -> bool:
        """Whether TLS has already taken off the network what is to be read, so that no poll would tell of it."""
        if not self._tls:
            return False
        sock: Any = self.socket
        with self._lock:
            return bool(sock.pending())

    def _poll(self, events: int, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self.socket, events)
        return bool(poll.poll(max(0.0, timeout) * 1000))
