"""A client that reads something: its place in what it reads, and whether it is still there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from flask import request

from .anyrun import AnyRun
from .cursor import Cursor
from .record import Record
from .runtime import Bell, Watch, current


class Reading(Protocol):
    """A place in something that goes on."""

    bell: Bell
    """Rings when there is something new."""

    @property
    def lost(self) -> bool:
        """Whether nothing more of it will ever be known in this process, though it has not ended."""

    def close(self) -> None:
        """Read it no longer. Idempotent."""


class RunReading:
    """A run that is read: whoever does so is among those who want it.

    :param cursor: the last event that the client has.
    """

    def __init__(self, record: Record, run: AnyRun, cursor: Cursor | None = None) -> None:
        self.run = run
        self.reader = record.registry.read(run, cursor)
        self.bell: Bell = self.reader.bell
        self._registry = record.registry
        self._closed = False

    @property
    def finished(self) -> bool:
        """Whether the client has everything that there will ever be."""
        return self.reader.finished

    @property
    def lost(self) -> bool:
        return self.reader.log.lost

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._registry.leave(self.run, self.reader)


class Attendance:
    """The client of the current request, while it reads. Close it when the client has been answered.

    :param reading: what it reads, which is closed with it.
    :param left: called when it is seen to be gone; must not block.
    """

    def __init__(self, reading: Reading, *, left: Callable[[], None] = lambda: None) -> None:
        self.gone = False
        self.socket = client_socket(request.environ)
        self._reading = reading
        self._left = left
        self._watch: Watch | None = None
        try:
            if self.socket is not None:
                self._watch = current().watcher.watch(self.socket, self.leave)
        except BaseException:
            self.close()
            raise

    @property
    def over(self) -> bool:
        """Whether the client is gone, or what it reads is lost to this process."""
        return self.gone or self._reading.lost

    def leave(self) -> None:
        """The client is gone."""
        self.gone = True
        self._reading.bell.ring()
        self._left()

    def close(self) -> None:
        """It reads no longer. Idempotent."""
        if self._watch is not None:
            self._watch.close()
        self._reading.close()


def client_socket(environ: dict[str, Any]) -> socket.socket | None:
    """The socket of a request's client, where the server shows it and it serves this request alone."""
    if environ.get("SERVER_PROTOCOL", "").startswith("HTTP/2"):
        return None  # one socket carries all streams of its client
    for name in ("werkzeug.socket", "gunicorn.socket", "gunicorn.sock"):
        sock = environ.get(name)
        if isinstance(sock, socket.socket):
            return sock
    raw = getattr(getattr(environ.get("wsgi.input"), "rfile", None), "raw", None)
    sock = getattr(raw, "_sock", None)  # gevent's pywsgi
    return sock if isinstance(sock, socket.socket) else None
