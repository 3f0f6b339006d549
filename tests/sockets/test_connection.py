"""A connection in this process, at the other end of a pair of sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flask_llmstream.connection import Connection, SocketLimits
from flask_llmstream.websocket import ConnectionClosed
from tests.puppet import eventually
from tests.sockets.client import UPGRADE, close, text

KEY = {"HTTP_SEC_WEBSOCKET_KEY": UPGRADE["Sec-WebSocket-Key"]}


@contextmanager
def connected(**limits: Any) -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and its client's socket behind the handshake."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection({"gunicorn.socket": ours} | KEY, limits=SocketLimits(**limits))
        while not theirs.recv(4096).endswith(b"\r\n\r\n"):
            pass
        yield connection, theirs
        theirs.shutdown(socket.SHUT_RDWR)
        connection.end()


def test_it_is_open_until_it_is_closed():
    with connected() as (connection, client):
        assert (connection.closed, connection.code, connection.reason) == (False, 1005, "")
        client.sendall(close(4000, "enough"))
        eventually(lambda: connection.closed)
        assert (connection.code, connection.reason) == (4000, "enough")
        for use in (connection.receive, lambda: connection.send("too late")):
            with pytest.raises(ConnectionClosed) as closed:
                use()
            assert (closed.value.reason, closed.value.message) == (4000, "enough")


def test_who_closes_hears_nothing_more():
    with connected() as (connection, client):
        client.sendall(text("one") + text("two"))
        assert connection.receive() == "one"
        client.shutdown(socket.SHUT_WR)  # or it would be waited for
        connection.close(4001, "heard enough")
        with pytest.raises(ConnectionClosed):
            connection.receive()


def test_a_call_to_wake_is_kept():
    with connected() as (connection, client):
        connection.wake()
        client.sendall(text("one"))
        assert [connection.receive(timeout=5), connection.receive(timeout=5)] == [None, "one"]


def test_receiving_makes_room():
    """A full backlog stops the reading, and an emptied one starts it again."""
    with connected(backlog=1000) as (connection, client):
        said = [str(n) * 300 for n in range(10)] * 100
        speaker = threading.Thread(target=lambda: client.sendall(b"".join(map(text, said))))
        speaker.start()
        assert [connection.receive(timeout=5) for _ in said] == said
        speaker.join()


def test_a_writer_that_is_ended_in_the_midst_of_a_message_ends_the_connection(monkeypatch):
    """The rest of the stream would be read as the rest of that message."""

    class Killed(BaseException):
        pass

    def write(data: bytes, within: float) -> None:
        raise Killed

    with connected() as (connection, _):
        monkeypatch.setattr(connection._wire, "write", write)
        with pytest.raises(Killed):
            connection.send("hello")
        assert (connection.closed, connection.code) == (True, 1006)


def test_a_client_that_is_gone_before_the_101():
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(OSError):
        Connection({"gunicorn.socket": ours} | KEY)
