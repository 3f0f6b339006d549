"""Whoever can write into Redis cannot have a worker run, import, unpickle or fetch anything: it performs declared jobs.

Each attack lies in the queue before a job of the application's. A canary, which any of them would kill, lives on, and
the worker goes on with what follows.
"""

from __future__ import annotations

import json
import pickle
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.serving import until
from tests.workers.site import Site, Worker, run_id

pytestmark = pytest.mark.needs("redis-server")

ENTRY = "flask_llmstream.worker.perform"
JOB = {"greenlets": ("/api/calm", "llmstream"), "fork": ("/api/compute", "llmstream-cpu")}
"""By kind of worker: a harmless job, and where it waits."""


class Canary:
    """What an attack that works would touch: a file that it makes, and an address that it fetches."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "dead"
        self.module = directory / "canary_module.py"
        self.module.write_text(f"open({str(self.file)!r}, 'w')\n\ndef call(*a, **k): pass\n")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    @property
    def touch(self) -> str:
        return f"touch {self.file}"

    @property
    def alive(self) -> bool:
        self._listener.settimeout(0)
        try:
            self._listener.accept()
        except BlockingIOError:
            return not self.file.exists()
        return False

    def close(self) -> None:
        self._listener.close()

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.touch,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    canary = Canary(tmp_path)
    yield canary
    canary.close()


def packed(function: Any, arguments: Any = (), options: Any = None, instance: Any = None) -> bytes:
    return zlib.compress(json.dumps([function, instance, list(arguments), options or {}]).encode())


def ours(*arguments: Any) -> dict[str, Any]:
    return {"data": packed(ENTRY, arguments)}


HARMLESS = ["llmstream", "a" * 22, 1]

FIELDS: dict[str, Callable[[Canary], dict[str, Any]]] = {
    "another function": lambda c: {"data": packed("os.system", [c.touch])},
    "a function of the package's own": lambda c: {"data": packed("flask_llmstream.worker.application", [])},
    "a function to import": lambda c: {"data": packed("canary_module.call", HARMLESS)},
    "a method of an instance": lambda c: {"data": packed("system", [c.touch], instance="os")},
    "a pickle": lambda c: {"data": zlib.compress(pickle.dumps(c))},
    "a pickle that is not packed": lambda c: {"data": pickle.dumps(c)},
    "a pickle as its result": lambda c: {**ours(*HARMLESS), "result": pickle.dumps(c)},
    "a pickle among its words": lambda c: {**ours(*HARMLESS), "meta": pickle.dumps(c)},
    "callbacks": lambda c: {
        **ours("llmstream", "nobody's", 1),
        "success_callback_name": "canary_module.call",
        "failure_callback_name": "canary_module.call",
        "stopped_callback_name": "canary_module.call",
    },
    "callbacks of what fails": lambda c: {
        "data": b"nothing",
        "failure_callback_name": "canary_module.call",
        "success_callback_name": "canary_module.call",
    },
    "webhooks": lambda c: {
        "data": b"nothing",
        "webhooks": json.dumps([{"url": c.url, "events": ["finished", "failed"], "statuses": ["finished", "failed"]}]),
    },
    "webhooks of what succeeds": lambda c: {
        **ours(*HARMLESS),
        "webhooks": json.dumps([{"url": c.url, "events": ["finished", "failed"], "statuses": ["finished", "failed"]}]),
    },
    "a dependency": lambda c: {**ours(*HARMLESS), "dependency_ids": '["dependency"]', "dependency_id": "dependency"},
    "a serializer": lambda c: {**ours(*HARMLESS), "serializer": "canary_module", "data_serializer": "pickle"},
    "a group": lambda c: {**ours(*HARMLESS), "group_id": "poisoned"},
    "repetitions": lambda c: {**ours(*HARMLESS), "repeats_left": "5", "repeat_intervals": "[0]", "retries_left": "9"},
    "garbage": lambda c: {"data": b"\xff\x00\xfe", "origin": b"\xff\xfe", "timeout": "soon", "status": "?", "ttl": "x"},
    "nothing": lambda c: {"status": "queued"},
    "what is too long": lambda c: {"data": zlib.compress(b" " * 50_000_000)},
    "what is nested": lambda c: {"data": b"[" * 4000},
    "no list": lambda c: {"data": b'{"a": 1}'},
    "a feature's name for a run's": lambda c: ours("llmstream", "calm", 1),
    "an unknown run": lambda c: ours("llmstream", "B" * 22, 1),
    "an extension that is not there": lambda c: ours("llmstream-elsewhere", "B" * 22, 1),
    "a run of no such form": lambda c: ours("llmstream", "\ud800\n../*", 1),
    "an attempt that is none": lambda c: ours("llmstream", "B" * 22, True),
    "an attempt that is huge": lambda c: ours("llmstream", "B" * 22, 10**400),
    "too many arguments": lambda c: ours("llmstream", "B" * 22, 1, "more"),
}


@pytest.mark.parametrize("kind", JOB)
def test_poisoned_jobs(works: Site, canary: Canary, kind: str, tmp_path: Path) -> None:
    path, queue = JOB[kind]
    client = works.redis.client()
    locations = []
    for n, (what, fields) in enumerate(FIELDS.items()):
        client.hset(f"rq:job:poison-{n}", mapping={"origin": queue, "status": "queued", **fields(canary)})
        client.rpush(f"rq:queue:{queue}", f"poison-{n}")
        if n % 4 == 0:
            locations.append(works.submit(path, json={"name": what.replace(" ", "-")}))
    for n, wrong in enumerate((client.lpush, client.sadd)):
        wrong(f"rq:job:wrong-{n}", "value")
        client.rpush(f"rq:queue:{queue}", f"wrong-{n}")
    for job_id in (b"\xff\xfe", b"", b"a b\n\x1b[2J", b"../" * 1000, b"a:b:c"):
        client.rpush(f"rq:queue:{queue}", job_id)
    # What RQ's maintenance would go through, with serializers of its own.
    client.sadd("rq:groups", "poisoned")
    client.sadd("rq:group:poisoned", "poison-0", "poison-4")
    client.zadd(f"rq:wip:{queue}", {"poison-4:x": 1, "poison-6": 1})
    client.rpush(f"rq:queue:{queue}:intermediate", "poison-4", "poison-8", b"\xff")
    client.sadd(f"rq:job:{run_id(locations[-1])}-1:dependents", "poison-0", "poison-6")
    client.hset("rq:job:dependency", mapping={"data": pickle.dumps(canary), "status": "finished"})
    locations.append(works.submit(path, json={"name": "last"}))

    with works.worker(kind, PYTHONPATH=str(tmp_path)) as worker:
        for location in locations:
            works.await_run(location, status="completed", attempt=1)
        assert canary.alive
        assert worker.running
        until(lambda: not works.queue(queue))
        for command in (b"garbage", b"[" * 100_000, b"{}", b'{"command": 1}', b'"shutdown"', b"\xff"):
            assert client.publish(channel(works), command) == 1
        for command in ("kill-horse", "stop-job", "os.system"):
            client.publish(
                channel(works), json.dumps({"command": command, "job_id": "poison-0", "serializer": "pickle"})
            )
        follows = works.submit(path, json={"name": "follows"})
        works.await_run(follows, status="completed", attempt=1)
        assert client.publish(channel(works), '{"command": "none"}') == 1  # it listens still
        assert canary.alive
        assert_says_little(worker, canary)
        worker.tell()
        assert worker.wait() == 0
    names = [beginning.name for beginning in works.beginnings()[-len(locations) - 1 :]]
    assert names[-2:] == ["last", "follows"]


def channel(works: Site) -> str:
    [key] = works.redis.client().smembers("rq:workers")
    return str(key).replace("rq:worker:", "rq:pubsub:")


def assert_says_little(worker: Worker, canary: Canary) -> None:
    """An attack does not get anything into the log but that it was dropped."""
    assert canary.touch not in worker.log
    assert "\x1b[2J" not in worker.log


def test_a_forked_run_is_not_killed_by_its_queue_id(works: Site) -> None:
    """RQ's command for that would have it tried again: what stops a run is its own address."""
    with works.worker("fork"):
        location = works.submit("/api/compute", json={"seconds": 1})
        until(lambda: works.beginnings(location))
        for command in ("kill-horse", "stop-job"):
            works.redis.client().publish(
                channel(works), json.dumps({"command": command, "job_id": f"{run_id(location)}-1"})
            )
        works.await_run(location, status="completed", attempt=1)


POISON = {
    "garbage": b"\xff\xfe{",
    "another form": b'{"owner": 1}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", JOB)
@pytest.mark.parametrize("about", POISON.values(), ids=POISON)
def test_a_poisoned_record(hasty: Site, kind: str, about: bytes) -> None:
    """That one run is lost, and nobody is kept from anything else."""
    path, _ = JOB[kind]
    poisoned, follows = hasty.submit(path, json={}), hasty.submit(path, json={})
    client = hasty.redis.client()
    client.hset(f"llmstream:run:{run_id(poisoned)}", "about", about)
    with hasty.worker(kind) as worker:
        hasty.await_run(follows, status="completed")
        assert hasty.beginnings(poisoned) == []
        with hasty.web.get(poisoned) as status:
            assert status.status == 404
        until(lambda: not client.zscore("llmstream:leases", run_id(poisoned)))
        assert "Traceback" not in worker.log
        worker.tell()
        assert worker.wait() == 0


def test_a_feature_that_is_not_declared(works: Site) -> None:
    """As after one was renamed, while jobs were waiting."""
    location = works.submit("/api/calm", json={})
    client, key = works.redis.client(), f"llmstream:run:{run_id(location)}"
    client.hset(key, "about", client.hget(key, "about").replace('"calm"', '"os.system"'))
    with works.worker():
        run = works.await_run(location, status="failed")
        assert run["error"]["status"] == 500
    assert works.beginnings(location) == []


def test_a_record_of_a_wrong_type(works: Site) -> None:
    client = works.redis.client()
    client.rpush("llmstream:run:" + "C" * 22, "nothing")
    client.hset("rq:job:wrong", mapping=ours("llmstream", "C" * 22, 1))
    client.rpush("rq:queue:llmstream", "wrong")
    with works.worker():
        works.await_run(works.submit("/api/calm", json={}), status="completed")
