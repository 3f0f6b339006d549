"""One cluster a test process, shared by its tests; each leaves nothing behind in it or in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flask_llmstream.testing import ModelServer, Schedule
from tests.cluster.processes import Cluster, await_nothing_held, cluster
from tests.redis_server import RedisServer
from tests.servers.serving import KEY, TROUBLE, until

CONNECTIONS = {"normal": 9, "pubsub": 1}
"""The most that a process has: a pool of eight and one for the leases, and one on which it hears the others."""


@pytest.fixture(scope="session")
def model() -> Iterator[ModelServer]:
    with ModelServer(key=KEY) as model:
        yield model


class Pool:
    """Clusters that are started when they are first asked for, and run to the end of all tests."""

    def __init__(self, model: ModelServer, directories: pytest.TempPathFactory) -> None:
        self._model = model
        self._directories = directories
        self._running: dict[tuple[int, int], tuple[Cluster, RedisServer]] = {}
        self._open = ExitStack()

    def get(self, masters: int, workers: int) -> tuple[Cluster, RedisServer]:
        shape = masters, workers
        if shape not in self._running:
            redis = self._open.enter_context(RedisServer())
            directory = self._directories.mktemp("cluster")
            running = cluster(redis.url, self._model, directory, masters=masters, workers=workers)
            self._running[shape] = self._open.enter_context(running), redis
        return self._running[shape]

    def close(self) -> None:
        self._open.close()


@pytest.fixture(scope="session")
def pool(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(model, tmp_path_factory)
    yield pool
    pool.close()


@pytest.fixture
def upstream(model: ModelServer) -> ModelServer:
    """The model's server, with nothing put down for it yet."""
    model.reset()
    model.schedule = Schedule()
    return model


@pytest.fixture(scope="session")
def running_pair(pool: Pool) -> tuple[Cluster, RedisServer]:
    return pool.get(masters=2, workers=1)


@pytest.fixture(scope="session")
def running_workers(pool: Pool) -> tuple[Cluster, RedisServer]:
    return pool.get(masters=1, workers=2)


@pytest.fixture
def pair(running_pair: tuple[Cluster, RedisServer], upstream: ModelServer) -> Iterator[Cluster]:
    """Two masters of one worker each."""
    yield from left_empty(*running_pair, processes=2)


@pytest.fixture
def redis(running_pair: tuple[Cluster, RedisServer]) -> Iterator[RedisServer]:
    """The Redis of the pair, which a test may pause and fill."""
    yield running_pair[1]
    running_pair[1].resume()
    running_pair[1].client().config_set("maxmemory", 0)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """One that a test may end: the processes of others would be disturbed, and the next test's be taken for a leak."""
    with RedisServer() as redis:
        yield redis


@pytest.fixture
def own_pair(own_redis: RedisServer, upstream: ModelServer, tmp_path: Path) -> Iterator[Cluster]:
    """Two masters of one worker each, on that Redis."""
    with cluster(own_redis.url, upstream, tmp_path) as running:
        yield from left_empty(running, own_redis, processes=2)


@pytest.fixture
def workers(running_workers: tuple[Cluster, RedisServer], upstream: ModelServer) -> Iterator[Cluster]:
    """One master of two workers."""
    yield from left_empty(*running_workers, processes=2)


def left_empty(running: Cluster, redis: RedisServer, *, processes: int) -> Iterator[Cluster]:
    """Lend a cluster to a test. Afterwards it holds nothing, and its logs no trouble that the test has not read."""

    def awake() -> bool:
        for server in running.servers:
            with server.post("/api/lasting") as first:  # the official client is slow to be imported
                assert first.status == 200, first.read()
                first.text()
        return len(redis.channels()) == processes

    until(awake)
    for server in running.servers:
        server.news()
    redis.client().flushall()
    running.upstream.reset()
    yield running
    running.await_empty()
    await_nothing_held(redis)
    until(lambda: len(redis.channels()) == processes)
    assert all(redis.connections()[kind] <= processes * most for kind, most in CONNECTIONS.items())
    for server in running.servers:
        trouble = TROUBLE.findall(server.news())
        assert not trouble, f"the log of {server.kind} has {trouble}"
