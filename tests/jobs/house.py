"""An application with jobs, and who performs them: itself, or with Redis a second one, as a worker would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from flask_llmstream import LLMStream
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.registry import Registry
from tests.puppet import PATIENCE, Puppet, eventually, stage
from tests.redis_server import RedisServer

WAITING = 10**13
"""What is added to the millisecond in which a run is looked after that waits."""
ENDED = ("completed", "incomplete", "failed", "cancelled")

Declare = Callable[[LLMStream], Any]


class House:
    """What a test opens, and closes when it is over.

    :param server: the Redis behind it; None where it has none.
    """

    def __init__(self, server: RedisServer | None, stack: ExitStack) -> None:
        self.server = server
        self._stack = stack
        self.hands: Hands | None = None

    def open(self, declare: Declare, model: Any = None, *, working: bool = True, **config: Any) -> FlaskClient:
        """A client of an application with these features.

        :param working: whether somebody performs what waits in Redis.
        """
        app, llm = self._stage(declare, model, config)
        self.app, self.record = app, llm.record(app)
        if self.server is not None:
            worker, its = self._stage(declare, model, config)
            self.hands = Hands(self.server, its.record(worker).registry)
            self.hands.registry.wake()
            eventually(lambda: self.hands.registry._leases._subscription)
            if working:
                self._stack.enter_context(self.hands.at_work())
        return app.test_client()

    @property
    def performer(self) -> Registry:
        """The registry of who performs the jobs."""
        return self.record.registry if self.hands is None else self.hands.registry

    def _stage(self, declare: Declare, model: Any, config: dict[str, Any]) -> tuple[Flask, LLMStream]:
        url = {} if self.server is None else {"REDIS_URL": self.server.url}
        app, llm = self._stack.enter_context(stage(model or Puppet(), **url, **config))
        declare(llm)
        return app, llm


class Hands:
    """What a worker does, without RQ's own: takes what is in the queue, and looks after what is due or was left."""

    QUEUE = "rq:queue:llmstream"

    def __init__(self, server: RedisServer, registry: Registry) -> None:
        self.registry = registry
        self._redis = server.client()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        over = threading.Event()

        def work() -> None:
            while not over.wait(0.005):
                try:
                    self.take()
                    self.look_after()
                except StoreUnavailable:
                    pass

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def take(self) -> None:
        """Perform what comes next."""
        place = self._redis.lpop(self.QUEUE)
        if place is not None:
            run_id, attempt = place.rsplit("-", 1)
            self.registry.perform(run_id, int(attempt))

    def waiting(self) -> list[str]:
        """What is in the queue."""
        return list(self._redis.lrange(self.QUEUE, 0, -1))

    def look_after(self) -> None:
        """As each process does every two seconds, when it has been there for eight."""
        seconds, microseconds = self._redis.time()
        now = seconds * 1000 + microseconds // 1000
        lapsed = self._redis.zrangebyscore("llmstream:leases", "-inf", now)
        for run_id in lapsed + self._redis.zrangebyscore("llmstream:leases", WAITING, WAITING + now):
            if run_id not in self.registry._runs:
                self.registry._reap(run_id)


def submit(client: FlaskClient, url: str, body: Any = None, **more: Any) -> str:
    """Start a job, and where its run is."""
    response = client.post(url, json=body or {}, **more)
    assert response.status_code == 202, response.text
    return str(response.headers["Location"])


def ending(client: FlaskClient, url: str) -> dict[str, Any]:
    """How the run there ends, in the words of its status."""
    eventually(lambda: client.get(url).json["status"] in ENDED, timeout=2 * PATIENCE)
    found: dict[str, Any] = client.get(url).json
    return found
