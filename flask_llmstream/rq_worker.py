"""What workers are made of: the application whose runs they perform, and RQ's worker without all that is not these."""

from __future__ import annotations

import json
import logging
import os
import signal
from contextlib import suppress
from typing import Any

from flask import Flask, current_app, has_app_context
from flask.cli import NoAppException, ScriptInfo
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from .errors import ConfigurationError, StoreUnavailable
from .record import Record
from .rq_queue import RunJob
from .runtime import current
from .store import RedisStore, faults

log = logging.getLogger("flask_llmstream")

BACKOFF = 0.5
"""Seconds between two attempts while Redis is not there."""

_application: Flask | None = None


def application() -> Flask:
    """The application whose runs are performed: the current one, or what ``FLASK_APP`` names.

    :raises NoAppException: it names none.
    """
    global _application
    if has_app_context():
        return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]
    if _application is None:
        _application = ScriptInfo(os.environ.get("FLASK_APP")).load_app()
    return _application


def records(app: Flask) -> dict[str, Record]:
    """What has runs in an application, by name.

    :raises ConfigurationError: nothing has, or they live in the memory of the web process.
    """
    found: dict[str, Record] = app.extensions.get("llmstream", {})
    if not found:
        raise ConfigurationError("The application has no LLMStream: there is nothing for a worker to do.")
    if not all(isinstance(record.store, RedisStore) for record in found.values()):
        raise ConfigurationError(
            "Without LLMSTREAM_REDIS_URL jobs run in the web process, and need no worker. Set it for both."
        )
    return found


class Outage:
    """A time in which Redis is away: told once, and waited for."""

    def __init__(self) -> None:
        self._told = False

    def wait(self, error: StoreUnavailable) -> None:
        """Rest before the next attempt."""
        if not self._told:
            log.warning("the worker waits for Redis: %s", error.diagnosis)
        self._told = True
        current().bell().wait(BACKOFF)

    def over(self) -> None:
        """Redis has answered."""
        self._told = False


class RunsOnly:
    """What all of these workers have in common: the jobs are runs, whatever their command line or Redis says."""

    queues: list[Queue]
    connection: Any

    def __init__(self, queues: Any, *args: Any, **options: Any) -> None:
        options.update(job_class=RunJob, serializer=JSONSerializer)
        try:
            self.app = application()
            self.records = records(self.app)
        except (ConfigurationError, NoAppException) as error:
            raise SystemExit(f"Error: {getattr(error, 'detail', error)}") from error
        super().__init__(queues, *args, **options)  # type: ignore[call-arg]

    def bootstrap(self, *args: Any, **options: Any) -> None:
        super().bootstrap(*args, **options)  # type: ignore[misc]
        for queue in self.queues:  # where a worker that was killed has left the ids that it had just taken
            self.connection.delete(queue.intermediate_queue_key)

    def run_maintenance_tasks(self) -> None:
        """Nothing: where a run stands is in its record, which all processes look after. RQ would go through its
        registries and groups, and restore jobs of any kind from there."""

    def check_for_suspension(self, burst: bool) -> None:
        with suppress(StoreUnavailable), faults():
            super().check_for_suspension(burst)  # type: ignore[misc]

    def handle_payload(self, message: Any) -> None:
        """RQ's commands: it may be told to go. What stops a run is its own address."""
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            if json.loads(message["data"])["command"] == "shutdown":
                os.kill(os.getpid(), signal.SIGINT)

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)  # type: ignore[misc,no-any-return]
            except Exception as error:
                drop_unreadable(error)


def drop_unreadable(error: Exception) -> None:
    """Go on without what RQ has just taken out of a queue, where that is no job at all.

    :raises Exception: this one, where it is of another kind.
    """
    job_id = getattr(error, "job_id", None)
    if _is_fault(error) or (job_id is None and not isinstance(error, UnicodeError)):
        raise error
    log.warning("job %r cannot be read, and is dropped: %s", job_id, type(error).__name__)


def _is_fault(error: Exception) -> bool:
    """Whether that is Redis being away."""
    try:
        with faults():
            raise error
    except Exception as told:
        return isinstance(told, StoreUnavailable)
