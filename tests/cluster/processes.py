"""Server processes on one Redis, and what they and Redis hold together."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask_llmstream.testing import ModelServer
from tests.redis_server import RedisServer
from tests.servers import serving
from tests.servers.client import QUESTION, Answer
from tests.servers.serving import TROUBLE, Server, until

COMMAND = serving.GUNICORN.format("tests.cluster.app:create_app") + " -k gevent --worker-connections 1000 -w {}"
PREFIX = "llmstream:"


@dataclass(frozen=True)
class Cluster:
    """Gunicorn masters, of which each has an address of its own.

    :param told: the file in which the application writes down what it is told of runs that have ended.
    """

    servers: Sequence[Server]
    upstream: ModelServer
    told: Path

    def start(self, at: int = 0, path: str = "/api/lasting", **headers: str) -> Answer:
        """Have a server start a run that no other start is taken for."""
        return self.servers[at].post(path, json=QUESTION, Idempotency_Key=os.urandom(16).hex(), **headers)

    def tail(self, at: int, answer: Answer, after: str | None = None, **headers: str) -> Answer:
        """Have a server send the events of a run behind one of them, or from its first."""
        cursor = {} if after is None else {"Last_Event_ID": after}
        return self.servers[at].get(f"{answer.location}/events", **cursor, **headers)

    def pids(self) -> set[int]:
        """The worker processes that answer."""
        return {server.state()["pid"] for server in self.servers}

    def kill_worker(self, at: int) -> None:
        """End a server's only worker by SIGKILL; its master starts another."""
        server = self.servers[at]
        os.kill(server.state()["pid"], signal.SIGKILL)
        [said] = TROUBLE.findall(server.await_news("was sent SIGKILL"))
        assert "was sent SIGKILL" in said

    def endings(self, answer: Answer) -> list[tuple[str, int]]:
        """What the application was told of a run's end, each time: the state, and how long the text was."""
        run_id = answer.location.rpartition("/")[2]
        lines = (line.split() for line in self.told.read_text().splitlines())
        return [(state, int(length)) for told, state, length in lines if told == run_id]

    def await_empty(self) -> None:
        """Wait until no process holds anything."""
        for server in self.servers:
            server.await_state(open=0, live=0, watched=0, readers=0, mirrors=0)
        self.upstream.wait_for(lambda upstream: upstream.active == 0)


@contextmanager
def cluster(
    url: str, upstream: ModelServer, directory: Path, *, masters: int = 2, workers: int = 1
) -> Iterator[Cluster]:
    """Start gunicorn masters on one Redis, and end them."""
    told = directory / "told"
    told.touch()
    environment = {
        "OPENAI_BASE_URL": upstream.base_url,
        "TOLD": str(told),
        "FLASK_LLMSTREAM_REDIS_URL": json.dumps(url),
    }
    with ExitStack() as open_:
        servers = [
            open_.enter_context(serving.serve(f"master-{n}", directory, COMMAND.format(workers), **environment))
            for n in range(masters)
        ]
        yield Cluster(servers, upstream, told)


def held_in_redis(redis: RedisServer) -> dict[str, Any]:
    """What live runs hold: when there are none, nothing but empty."""
    client = redis.client()
    keys = redis.keys(PREFIX + "*")
    return {
        "leases": client.zrange(PREFIX + "leases", 0, -1),
        "live": [key for key in keys if key.startswith(PREFIX + "live:")],
        "slots": [key for key in keys if key.startswith(PREFIX + "talk:")],
        "channels": [channel for channel in redis.channels() if not channel.startswith(PREFIX + "process:")],
        "everlasting": [key for key in keys if client.ttl(key) == -1],
    }


def await_nothing_held(redis: RedisServer) -> None:
    last: dict[str, Any] = {}

    def nothing() -> bool:
        nonlocal last
        last = held_in_redis(redis)
        return not any(last.values())

    try:
        until(nothing)
    except AssertionError:
        raise AssertionError(f"Redis still has {last}") from None
