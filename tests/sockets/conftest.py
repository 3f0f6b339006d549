"""One server of each kind a test process; each test leaves it empty and with a clean log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.servers import serving
from tests.servers.serving import TROUBLE, Server
from tests.sockets import client

APP = "tests.sockets.app:create_app"
GUNICORN = f"-m gunicorn {APP}() -b 127.0.0.1:0 --no-control-socket --access-logfile - -w 1"
COMMANDS = {
    "gevent": f"{GUNICORN} --graceful-timeout 1 -k gevent --worker-connections 400",
    "gthread": f"{GUNICORN} --graceful-timeout 1 -k gthread --threads 12",
    "flask": f"-m flask --app {APP} run --port 0",
}


class Pool:
    """Servers that are started when they are first asked for."""

    def __init__(self, directories: pytest.TempPathFactory) -> None:
        self._directories = directories
        self._running: dict[str, Server] = {}
        self._open = ExitStack()

    def get(self, kind: str) -> Server:
        if kind not in self._running:
            directory = self._directories.mktemp(kind)
            self._running[kind] = server = self._open.enter_context(serving.serve(kind, directory, COMMANDS[kind]))
            with client.connect(server, "/echo") as first:  # the first of a process is slow
                first.send("")
                first.recv()
        return self._running[kind]

    def close(self) -> None:
        self._open.close()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory)
    yield pool
    pool.close()


@pytest.fixture(scope="session", params=list(COMMANDS))
def running(request: pytest.FixtureRequest, pool: Pool) -> Server:
    """Each kind of server in turn."""
    return pool.get(request.param)


@pytest.fixture(scope="session")
def running_gevent(pool: Pool) -> Server:
    return pool.get("gevent")


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield from left_empty(running)


@pytest.fixture
def gevent_server(running_gevent: Server) -> Iterator[Server]:
    yield from left_empty(running_gevent)


def left_empty(server: Server) -> Iterator[Server]:
    """Lend a server to a test. Afterwards it holds nothing, and its log has no trouble that the test has not read."""
    server.news()
    server.do("/reset")
    yield server
    server.await_state(open=0, watched=0, threads=0)
    trouble = TROUBLE.findall(server.news())
    assert not trouble, f"the server's log has {trouble}"
