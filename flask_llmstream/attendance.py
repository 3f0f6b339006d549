"""A client that follows a run: its place in the log, and whether it is still there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from flask import request

from .cursor import Cursor
from .record import Record
from .run import Run
from .runtime import Watch, current


class Attendance:
    """The client of the current request, reading a run. Close it when the client has been answered.

    :param cursor: the last event that the client has.
    :param left: called when it is seen to be gone; must not block.
    """

    def __init__(
        self, record: Record, run: Run, cursor: Cursor | None = None, *, left: Callable[[], None] = lambda: None
    ) -> None:
        self.run = run
        self.gone = False
        self.socket = client_socket(request.environ)
        self.reader = record.registry.read(run, cursor)
        self._registry = record.registry
        self._left = left
        self._closed = False
        self._watch: Watch | None = None
        try:
            if self.socket is not None:
                self._watch = current().watcher.watch(self.socket, self.leave)
        except BaseException:
            self.close()
            raise

    def leave(self) -> None:
        """The client is gone."""
        self.gone = True
        self.reader.bell.ring()
        self._left()

    def close(self) -> None:
        """It reads no longer. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.close()
        self._registry.leave(self.run, self.reader)


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
