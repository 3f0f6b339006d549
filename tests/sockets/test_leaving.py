"""A deploy: calls are told first, then closed by 1012, and what they clean up in the end is cleaned up."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.servers.serving import TROUBLE, Server, serve, until
from tests.sockets.client import TEXT, Raw, connect
from tests.sockets.conftest import COMMANDS

GRACE = 10.0
"""Seconds that gunicorn gives its workers."""
CALLS = 5


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_a_worker_that_is_told_to_go(tmp_path, kind):
    noted = tmp_path / "marks"
    command = COMMANDS[kind].replace("--graceful-timeout 1", f"--graceful-timeout {GRACE:g}")
    with serve(kind, tmp_path, command, MARKS=str(noted)) as server:
        clients = [Raw(server, "/leaving") for _ in range(CALLS)]
        assert [client.frame() for client in clients] == [(TEXT, b"ready")] * CALLS
        os.kill(server.pid, signal.SIGTERM)
        told = time.monotonic()
        for client in clients:
            assert [client.frame(), client.frame()] == [(TEXT, b"draining"), (TEXT, b"woken")]
        for client in clients:
            assert client.until_close() == (1012, "The server is about to restart. Please come back.")
            client.__exit__()
        news = server.await_news("Shutting down: Master")
        assert time.monotonic() - told < GRACE, "it was killed, or nearly so"
        assert not TROUBLE.search(news)
    marks = noted.read_text().splitlines()
    assert marks[:CALLS] == ["told"] * CALLS
    assert sorted(marks[CALLS:]) == ["closed 1012"] * CALLS + ["finally"] * CALLS


def test_a_worker_that_is_killed(gevent_server):
    """Its clients find out at once, and the next worker knows nothing of them."""
    with Raw(gevent_server, "/echo") as client:
        worker = gevent_server.await_state(open=1)["pid"]
        os.kill(worker, signal.SIGKILL)
        assert client.frame() is None
    gevent_server.await_news("SIGKILL")
    until(lambda: answers(gevent_server))
    assert gevent_server.state()["pid"] != worker
    with connect(gevent_server, "/echo") as client:
        client.send("hello")
        assert client.recv() == "hello"


def answers(server: Server) -> bool:
    """Whether there is a worker again."""
    try:
        return bool(server.state())
    except OSError:
        return False
