"""How a connection is ended so that nobody takes it for a proper end."""

import contextlib
import errno
import select
import socket
import threading

import pytest

from flask_llmstream.runtime import hang_up, reset
from tests.puppet import PATIENCE, eventually
from tests.runtime.connection import connection


def end_of(client):
    """What the client gets at the end: a clean one is empty bytes."""
    client.settimeout(PATIENCE)
    try:
        while client.recv(65536):
            pass
    except OSError as error:
        return errno.errorcode[error.errno]
    return "EOF"


def test_what_a_plain_close_looks_like():
    """The difference that the next tests are about."""
    with connection() as (server, client):
        server.close()
        assert end_of(client) == "EOF"


def test_a_reset_is_no_end_where_the_server_only_closes():
    with connection() as (server, client):
        server.sendall(b"half of it")
        assert client.recv(100) == b"half of it"
        reset(server, cooperative=True)
        server.close()
        assert end_of(client) == "ECONNRESET"


def test_a_reset_is_no_end_where_the_server_shuts_down_first():
    with connection() as (server, client):
        server.sendall(b"half of it")
        assert client.recv(100) == b"half of it"
        reset(server, cooperative=False)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)
        server.close()
        assert end_of(client) == "ECONNRESET"


def test_a_reset_reaches_the_client_before_the_server_does_anything():
    with connection() as (server, client):
        reset(server, cooperative=False)
        assert end_of(client) == "ECONNRESET"


@pytest.mark.parametrize("end", [hang_up, lambda sock: reset(sock, cooperative=False)], ids=["hang_up", "reset"])
def test_a_socket_that_is_closed_already_is_left_alone(end):
    with connection() as (server, _):
        server.close()
        end(server)


def test_hanging_up_wakes_a_blocked_writer():
    with connection() as (server, client):
        failed = []

        def write():
            try:
                server.sendall(b"x" * 50_000_000)
            except OSError as error:
                failed.append(error)
            server.close()

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: not select.select([], [server], [], 0)[1])
        assert writer.is_alive()
        hang_up(server)
        writer.join(PATIENCE)
        assert not writer.is_alive() and len(failed) == 1
        assert end_of(client) == "ECONNRESET"
