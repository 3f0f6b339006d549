"""A TCP proxy that imitates a mobile line: late, stalling, silently half-open, reset in the middle of a byte run.

    with Line(server.address, Reset(after=200), Silence(after=50)) as line:
        page.goto(line.url)

Each request that asks for an event stream meets the next trouble on the list; once the list is used up, and for
every other request, the line is good. Bytes are counted from the start of the response that the trouble meets.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

LINGER_ZERO = struct.pack("ii", 1, 0)
TROUBLED = b"accept: text/event-stream"


@dataclass(frozen=True)
class Trouble:
    """What happens to a response.

    :param after: how many bytes of the response, its head included, get through before.
    """

    after: int = 0


class Reset(Trouble):
    """Both ends get a TCP reset."""


class End(Trouble):
    """Both ends get an orderly end, as from a proxy that gives up."""


class Silence(Trouble):
    """Half-open: nothing gets through any more, in either direction, and no one is told."""


@dataclass(frozen=True)
class Stall(Trouble):
    """Nothing gets through for a while.

    :param seconds: how long.
    """

    seconds: float = 1.0


def storm(seed: int, *, responses: int, reach: int, kinds: Iterable[type[Trouble]] = (Reset, End)) -> list[Trouble]:
    """Troubles at random bytes.

    :param seed: the same one gives the same storm.
    :param responses: how many responses meet one.
    :param reach: the last byte that may get through.
    """
    dice = random.Random(seed)
    kinds = list(kinds)
    return [dice.choice(kinds)(after=dice.randrange(reach)) for _ in range(responses)]


class Line:
    """The proxy, listening on a free loopback port while its context is open.

    :param upstream: host and port of the server behind it.
    :param troubles: what successive event streams meet; None lets one through.
    :param delay: seconds that bytes take, each way.
    """

    def __init__(self, upstream: tuple[str, int], *troubles: Trouble | None, delay: float = 0.0) -> None:
        self.upstream = upstream
        self.delay = delay
        self.down = False
        self._troubles: Iterator[Trouble | None] = iter(troubles)
        self._connections: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept, name="line", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    @property
    def url(self) -> str:
        """Where it is reached, without a slash at the end."""
        return "http://{}:{}".format(*self.address)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for connection in self._connections:
            connection.reset()
            connection.join()

    def fall(self) -> None:
        """Reset every connection, and each new one from now on, until `rise`."""
        self.down = True
        for connection in self._current():
            connection.reset()

    def rise(self) -> None:
        """Be good again."""
        self.down = False

    def hush(self) -> None:
        """Make every connection that there is now half-open; new ones are good."""
        for connection in self._current():
            connection.silent.set()

    def next_trouble(self) -> Trouble | None:
        """What the next event stream meets."""
        with self._lock:
            return next(self._troubles, None)

    def _current(self) -> list[_Connection]:
        with self._lock:
            return list(self._connections)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self.upstream)
            except OSError:
                _reset(client)
                continue
            connection = _Connection(self, client, server, self._closed)
            with self._lock:
                self._connections.append(connection)
            connection.start()


class _Connection:
    """One client's connection, and ours to the server for it: a thread each way."""

    def __init__(self, line: Line, client: socket.socket, server: socket.socket, closed: threading.Event) -> None:
        self.line = line
        self.client = client
        self.server = server
        self.closed = closed
        self.silent = threading.Event()
        self.gone = threading.Event()
        self.trouble: Trouble | None = None
        self.passed = 0
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.threads = [threading.Thread(target=pump, daemon=True) for pump in (self._upwards, self._downwards)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()

    def reset(self) -> None:
        self.gone.set()
        for end in (self.client, self.server):
            _reset(end)

    def end(self) -> None:
        self.gone.set()
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _upwards(self) -> None:
        tail = b""
        for data in self._received(self.client, self.server):
            seen = (tail + data).lower()
            if TROUBLED in seen:
                self.passed, self.trouble = 0, self.line.next_trouble()
                seen = b""
            tail = seen[-len(TROUBLED) + 1 :]
            if not self._send(self.server, data):
                return

    def _downwards(self) -> None:
        for data in self._received(self.server, self.client):
            ready = data
            trouble = self.trouble
            if trouble and self.passed + len(data) >= trouble.after:
                ready, data = data[: trouble.after - self.passed], data[trouble.after - self.passed :]
                if not self._send(self.client, ready):
                    return
                self._meet(trouble)
                ready = data
            if not self._send(self.client, ready):
                return
            self.passed += len(ready)

    def _meet(self, trouble: Trouble) -> None:
        self.trouble = None
        if isinstance(trouble, Reset):
            self.reset()
        elif isinstance(trouble, End):
            self.end()
        elif isinstance(trouble, Silence):
            self.silent.set()
        elif isinstance(trouble, Stall):
            self.closed.wait(trouble.seconds)

    def _received(self, end: socket.socket, other: socket.socket) -> Iterator[bytes]:
        """What comes from one end. How it ends, orderly or by a reset, the other end gets to know."""
        try:
            while data := end.recv(65536):
                if self.line.delay:
                    self.closed.wait(self.line.delay)
                yield data
            if not self.gone.is_set() and not self.silent.is_set():
                other.shutdown(socket.SHUT_WR)
        except OSError:
            if not self.silent.is_set():
                self.reset()

    def _send(self, end: socket.socket, data: bytes) -> bool:
        if self.silent.is_set():
            self.closed.wait()
            return False
        with suppress(OSError):
            end.sendall(data)
            return True
        return False


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    # A thread that waits in recv keeps the connection alive past close: it has to be woken first.
    with suppress(OSError):
        end.shutdown(socket.SHUT_RD)
    end.close()
