"""A server whose worker goes, which is the test's own, and another one, which stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flask_llmstream.testing import ModelServer
from tests.redis_server import RedisServer
from tests.servers.conftest import Pool
from tests.servers.deploys.masters import KINDS, Start, gunicorn
from tests.servers.serving import TROUBLE, Server


@pytest.fixture
def start(upstream: ModelServer, tmp_path: Path) -> Iterator[Start]:
    """Starts the server whose worker goes."""
    with ExitStack() as running:

        def start(kind: str = "gevent", *, redis: RedisServer | None = None, **options: int | str) -> Server:
            return running.enter_context(gunicorn(tmp_path, upstream, kind, redis, **options))

        yield start
    upstream.wait_for(lambda upstream: upstream.active == 0)


@pytest.fixture(scope="package")
def staying(pool: Pool, redis_process: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with gunicorn(tmp_path_factory.mktemp("staying"), pool.upstream, "gevent", redis_process) as server:
        yield server


@pytest.fixture
def other(staying: Server) -> Iterator[Server]:
    """Another master on the same Redis: what a deploy leaves running."""
    yield staying
    staying.await_state(open=0, live=0)
    trouble = TROUBLE.findall(staying.news())
    assert not trouble, f"the other's log has {trouble}"


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param
