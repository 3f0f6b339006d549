"""The queue that web processes and workers share: RQ's, in which a run is an id and nothing more.

Whoever can write into Redis could have RQ import a function, a callback or a serializer, or fetch a URL. A `RunJob`
reads three plain values of what lies there, whatever else does, and what these can bring about is a declared feature.
Which attempt at a run is made, and by whom, is decided by the run's record: RQ's own retries, results, time-outs and
registries are not used.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Callable
from typing import Any

from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import import_attribute

from .backlog import Place
from .store import RedisStore

log = logging.getLogger("flask_llmstream")

ENTRY = "flask_llmstream.worker.perform"
"""The one function that such a job names. Others would not be called."""
KEPT = 86_400
"""Seconds for which RQ keeps a job that nobody takes, or that a forking worker could not perform."""
MOST = 4096
"""Bytes that such a job has at most; what lies there may be packed and come to any number."""
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


class RunJob(Job):
    """A run's place in a queue, as RQ keeps it."""

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:
        super().__init__(id, connection=connection, serializer=JSONSerializer)

    def restore(self, raw_data: Any) -> None:
        """Read what RQ has of the job, and of that only what is needed."""
        known = {name: raw_data[name] for name in (b"data", b"origin") if name in raw_data}
        if b"data" in known:
            known[b"data"] = _unpacked(known[b"data"])
        super().restore(known)
        self._status = JobStatus.QUEUED
        self.timeout, self.result_ttl, self.failure_ttl = -1, 0, KEPT
        self._func_name, self._instance, self._args, self._kwargs = ENTRY, None, [], {}
        self.description = self.id

    @property
    def place(self) -> tuple[str, str, int] | None:
        """The extension, the run and the attempt; None where something else lies there."""
        try:
            function, _, arguments, _ = json.loads(self.data)
            extension, run_id, attempt = arguments
        except (ValueError, TypeError, RecursionError):
            return None
        if function != ENTRY or not isinstance(extension, str) or type(attempt) is not int:
            return None
        if not isinstance(run_id, str) or not RUN_ID.match(run_id):
            return None
        return extension, run_id, attempt

    def _execute(self) -> None:
        """Perform the run to its end. Called by workers of RQ's own kind."""
        place = self.place
        if place is None:
            raise ValueError(f"job {self.id} is none of this package's")
        import_attribute(ENTRY)(*place)


class RQQueue:
    """Puts runs into RQ's queues."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._queues: dict[str, Queue] = {}
        self.listener: Callable[[str], None] = lambda run_id: None
        """Called with the id of a run that is performed here no longer."""

    def name(self, queue: str) -> str:
        """What RQ calls a queue: several applications may share a Redis."""
        prefix = self._store.prefix.rstrip(":")
        return prefix if queue == "default" else f"{prefix}-{queue}"

    def put(self, place: Place) -> None:
        with self._store.lend() as redis:
            job = RunJob.create(
                ENTRY,
                args=[place.extension, place.run_id, place.attempt],
                id=_job_id(place),
                connection=redis,
                timeout=-1,
                result_ttl=0,
                failure_ttl=KEPT,
                ttl=KEPT,
                description=place.run_id,
            )
            self._queue(place.queue, redis).enqueue_job(job)

    def has(self, place: Place) -> bool:
        key = self._store_key(place.queue)
        return self._store.command("LPOS", key, _job_id(place)) is not None

    def done(self, run_id: str) -> None:
        self.listener(run_id)

    def _store_key(self, queue: str) -> str:
        return f"{Queue.redis_queue_namespace_prefix}{self.name(queue)}"

    def _queue(self, name: str, redis: Any) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(
                self.name(name), connection=redis, job_class=RunJob, serializer=JSONSerializer
            )
        return queue


def _unpacked(data: bytes) -> bytes:
    """The beginning of what RQ has packed."""
    try:
        return zlib.decompressobj().decompress(data, MOST)
    except zlib.error:
        return data[:MOST]


def _job_id(place: Place) -> str:
    return f"{place.run_id}-{place.attempt}"
