"""One server of each kind a test process, shared by its tests; each test leaves it empty and with a clean log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from flask_llmstream.testing import ModelServer, Schedule
from tests.components import require
from tests.servers import serving
from tests.servers.app import EDITIONS
from tests.servers.serving import COMMANDS, KEY, TROUBLE, Server


class Pool:
    """Servers that are started when they are first asked for, and run to the end of all tests."""

    def __init__(self, upstream: ModelServer, directories: pytest.TempPathFactory) -> None:
        self.upstream = upstream
        self._directories = directories
        self._running: dict[str, Server] = {}
        self._open = ExitStack()

    def get(self, kind: str) -> Server:
        if kind not in self._running:
            server = self._open.enter_context(
                serving.serve(kind, self._directories.mktemp(kind), OPENAI_BASE_URL=self.upstream.base_url)
            )
            self.upstream.schedule = Schedule()
            with server.post() as first:  # the official client is slow to be imported
                first.read()
            self._running[kind] = server
        return self._running[kind]

    def close(self) -> None:
        self._open.close()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with ModelServer(key=KEY) as upstream:
        pool = Pool(upstream, tmp_path_factory)
        yield pool
        pool.close()


@pytest.fixture(scope="session", params=list(COMMANDS))
def running(request: pytest.FixtureRequest, pool: Pool) -> Server:
    """Each kind of server in turn."""
    return pool.get(request.param)


@pytest.fixture(scope="session")
def running_gevent(pool: Pool) -> Server:
    return pool.get("gevent")


@pytest.fixture(scope="session", params=["gthread", "flask"])
def running_threaded(request: pytest.FixtureRequest, pool: Pool) -> Server:
    return pool.get(request.param)


@pytest.fixture
def upstream(pool: Pool) -> ModelServer:
    """The model's server, with nothing put down for it yet."""
    pool.upstream.reset()
    pool.upstream.schedule = Schedule()
    return pool.upstream


@pytest.fixture
def server(running: Server, upstream: ModelServer) -> Iterator[Server]:
    yield from left_empty(running, upstream)


@pytest.fixture
def gevent_server(running_gevent: Server, upstream: ModelServer) -> Iterator[Server]:
    yield from left_empty(running_gevent, upstream)


@pytest.fixture
def threaded_server(running_threaded: Server, upstream: ModelServer) -> Iterator[Server]:
    yield from left_empty(running_threaded, upstream)


def left_empty(running: Server, upstream: ModelServer) -> Iterator[Server]:
    """Lend a server to a test. Afterwards it holds nothing, and its log has no trouble that the test has not read."""
    server = running.at("")
    server.news()
    for edition in EDITIONS:
        server.at(edition).do("/reset")
    yield server
    for edition in EDITIONS:
        server.at(edition).await_state(open=0, live=0, watched=0)
    upstream.wait_for(lambda upstream: upstream.active == 0)
    trouble = TROUBLE.findall(server.news())
    assert not trouble, f"the server's log has {trouble}"


@pytest.fixture(scope="session")
def proxied(running: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address of nginx in front of the server."""
    with serving.nginx(require("nginx"), running, tmp_path_factory.mktemp("nginx")) as address:
        yield address
