"""Clients that leave are noticed without a write to them, on real sockets."""

import contextlib
import errno
import os
import socket
import struct
import threading

import pytest

from flask_llmstream import runtime
from flask_llmstream.runtime.watcher import Watcher
from tests.puppet import PATIENCE, eventually
from tests.runtime.connection import connection


@pytest.fixture
def watcher():
    return runtime._make().watcher


def close(client):
    client.close()


def abort(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def half_close(client):
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("unread", [b"", b"GET / HTTP/1.1\r\n\r\n"], ids=["nothing unread", "unread bytes"])
@pytest.mark.parametrize("leave", [close, abort, half_close])
def test_a_client_that_leaves_is_noticed_once(watcher, leave, unread):
    with connection() as (server, client):
        calls = []
        watch = watcher.watch(server, lambda: calls.append(1))
        client.sendall(unread)
        leave(client)
        eventually(lambda: calls)
        watch.close()
        assert calls == [1]


def test_one_that_only_speaks_has_not_left(watcher):
    with connection() as (server, client), connection() as (other_server, other_client):
        calls = []
        watches = [
            watcher.watch(server, lambda: calls.append("speaker")),
            watcher.watch(other_server, lambda: calls.append("leaver")),
        ]
        client.sendall(b"x" * 1000)
        other_client.close()
        eventually(lambda: calls)
        assert calls == ["leaver"]
        client.close()
        eventually(lambda: len(calls) == 2)
        for watch in watches:
            watch.close()


def test_one_that_had_left_before_is_noticed(watcher):
    with connection() as (server, client):
        client.close()
        called = threading.Event()
        watch = watcher.watch(server, called.set)
        assert called.wait(PATIENCE)
        watch.close()


def test_what_is_no_longer_watched_is_not_noticed(watcher):
    with connection() as (server, client), connection() as (other_server, other_client):
        calls = []
        watch = watcher.watch(server, lambda: calls.append("unwatched"))
        other = watcher.watch(other_server, lambda: calls.append("watched"))
        watch.close()
        watch.close()
        client.close()
        other_client.close()
        eventually(lambda: calls)
        assert calls == ["watched"]
        assert len(watcher) == 1
        other.close()
        assert len(watcher) == 0


def test_it_rests_when_nothing_is_watched_and_begins_anew(watcher):
    for _ in range(3):
        with connection() as (server, client):
            called = threading.Event()
            watch = watcher.watch(server, called.set)
            client.close()
            assert called.wait(PATIENCE)
            watch.close()
    eventually(lambda: not any(thread.name == "llmstream-watcher" for thread in threading.enumerate()))


def test_many_are_told_apart(watcher):
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connection()) for _ in range(50)]
        gone = []
        watches = [
            watcher.watch(server, lambda number=number: gone.append(number)) for number, (server, _) in enumerate(pairs)
        ]
        for _, client in pairs[::2]:
            client.close()
        eventually(lambda: len(gone) == 25)
        assert sorted(gone) == list(range(0, 50, 2))
        for watch in watches:
            watch.close()


def test_a_callback_that_fails_does_not_keep_the_others_from_being_called(watcher, caplog):
    with connection() as (server, client), connection() as (other_server, other_client):
        called = threading.Event()
        watches = [watcher.watch(server, lambda: 1 / 0), watcher.watch(other_server, called.set)]
        client.close()
        eventually(lambda: "ZeroDivisionError" in caplog.text)
        other_client.close()
        assert called.wait(PATIENCE)
        for watch in watches:
            watch.close()


def test_a_descriptor_that_comes_back_is_watched_anew(watcher):
    """A server closed its socket before the watch, and the next connection got the same number."""
    with connection() as (server, _), connection() as (next_server, next_client):
        stale = watcher.watch(server, lambda: None)
        os.dup2(next_server.fileno(), server.fileno())
        called = threading.Event()
        watch = watcher.watch(server, called.set)
        next_client.close()
        assert called.wait(PATIENCE)
        watch.close()
        stale.close()


def test_a_stale_watch_does_not_end_that_of_its_descriptor_s_next_owner(watcher):
    with connection() as (server, _), connection() as (next_server, next_client):
        stale = watcher.watch(server, lambda: None)
        os.dup2(next_server.fileno(), server.fileno())
        called = threading.Event()
        watch = watcher.watch(server, called.set)
        stale.close()
        assert len(watcher) == 1
        next_client.close()
        assert called.wait(PATIENCE)
        watch.close()
        assert len(watcher) == 0


@pytest.mark.parametrize("name", ["register", "start"])
def test_a_socket_that_the_system_cannot_watch_is_left_to_the_heartbeats(name, caplog):
    """There are limits to what one user may watch, and to descriptors."""

    class Exhausted:
        def register(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        def unregister(self, *_):
            raise FileNotFoundError

        def fileno(self):
            return -1

    class Poller:
        def start(self, *_):
            if name == "start":
                raise OSError(errno.EMFILE, "Too many open files")

        def stop(self):
            pass

    with connection() as (server, _):
        watcher = Watcher(Exhausted, Poller())
        watch = watcher.watch(server, lambda: None)
        assert len(watcher) == 0
        assert "cannot be watched" in caplog.text
        watch.close()


def test_a_socket_that_is_closed_cannot_be_watched(watcher):
    with connection() as (server, _):
        server.close()
        watcher.watch(server, lambda: None).close()
        assert len(watcher) == 0


def test_where_there_is_no_epoll_nothing_is_watched():
    with connection() as (server, _):
        watcher = Watcher(None, poller=None)
        watcher.watch(server, lambda: None).close()
        assert len(watcher) == 0
