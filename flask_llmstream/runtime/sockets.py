"""Two ways to end a client's connection, neither of which looks like a proper end of the response."""

from __future__ import annotations

import _socket
import os
import socket
import struct

_NO_LINGER = struct.pack("ii", 1, 0)


def reset(sock: socket.socket, *, cooperative: bool) -> None:
    """Make the connection end with a TCP reset.

    A FIN before the RST would do harm: a proxy that speaks HTTP/1.0 to us takes it for the end of the answer. With
    SO_LINGER 0, close() alone sends a reset, and gunicorn's gevent worker does nothing but close. Other servers
    shut the connection down first, so there the descriptor is closed at once, by putting a dead one in its place,
    which the server may close when it likes.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        if not cooperative:
            dead, other = socket.socketpair()
            with dead, other:
                os.dup2(dead.fileno(), sock.fileno(), inheritable=False)
    except OSError:  # the client was faster
        pass


def hang_up(sock: socket.socket) -> None:
    """End the connection while another thread or greenlet is blocked in a write to it, which then fails.

    Closing would not wake that writer. Its client does not read, so the FIN that this queues never arrives: the
    reset that close() then sends is what the client sees.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        # Not sock.shutdown: SSLSocket's own forgets its TLS state without waking anybody, and gevent's raises an
        # error in the writer which servers log, where the system's raises EPIPE, which they expect.
        _socket.socket.shutdown(getattr(sock, "_sock", sock), socket.SHUT_RDWR)
    except OSError:
        pass
