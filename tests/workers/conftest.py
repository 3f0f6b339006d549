"""One site a test process, shared by its tests; each starts workers of its own, and leaves none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_llmstream.testing import ModelServer, Schedule
from tests.redis_server import RedisServer
from tests.servers.serving import KEY, TROUBLE, until
from tests.workers.app import SHORT_LEASE, SHORT_LOOK
from tests.workers.site import Site, site


@pytest.fixture(scope="session")
def model() -> Iterator[ModelServer]:
    with ModelServer(key=KEY) as model:
        yield model


@pytest.fixture
def upstream(model: ModelServer) -> ModelServer:
    """The model's server, with nothing put down for it yet."""
    model.reset()
    model.schedule = Schedule()
    return model


@pytest.fixture(scope="session")
def running_works(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with RedisServer() as redis, site(redis, model, tmp_path_factory.mktemp("works")) as running:
        yield running


@pytest.fixture(scope="session")
def running_hasty(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    short = {"LEASE": str(SHORT_LEASE), "LOOKED_AFTER": str(SHORT_LOOK)}
    with RedisServer() as redis, site(redis, model, tmp_path_factory.mktemp("hasty"), **short) as running:
        yield running


@pytest.fixture
def works(running_works: Site, upstream: ModelServer) -> Iterator[Site]:
    """A web process and its Redis, as they are when nothing is changed."""
    yield from left_clean(running_works)


@pytest.fixture
def hasty(running_hasty: Site, upstream: ModelServer) -> Iterator[Site]:
    """The same with short leases, for what is to be seen when one has lapsed."""
    yield from left_clean(running_hasty)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """One that a test may end; what it has acknowledged is there again when it is back."""
    with RedisServer(persistent=True) as redis:
        yield redis


@pytest.fixture
def own(own_redis: RedisServer, upstream: ModelServer, tmp_path: Path) -> Iterator[Site]:
    """A web process on that Redis."""
    with site(own_redis, upstream, tmp_path) as running:
        yield from left_clean(running)


def left_clean(running: Site) -> Iterator[Site]:
    """Lend a site to a test. Afterwards its model is not asked any more, and its log has no trouble."""
    running.redis.client().flushall()
    running.web.news()
    yield running
    running.upstream.wait_for(lambda upstream: upstream.active == 0)
    running.redis.resume()
    trouble = TROUBLE.findall(running.web.news())
    assert not trouble, f"the web process' log has {trouble}"


@pytest.fixture
def judging(hasty: Site) -> Site:
    """The web process has been in touch for long enough to judge others."""
    hasty.submit("/api/hurried", json={})  # the leases begin with the first that is started
    until(lambda: hasty.web.state()["judges"])
    return hasty
