"""RQ workers that perform runs: one that performs many at a time, and one that forks for each.

    flask --app … llmstream worker urgent default
    FLASK_APP=… python -m gevent.monkey --module rq.cli worker -u redis://… -w flask_llmstream.worker.Worker llmstream
    FLASK_APP=… rq worker -u redis://… -w flask_llmstream.worker.ForkWorker llmstream-cpu

A run waits for its model most of the time, so one process has place for many. Where gevent has patched the standard
library, as the first two of these do, they are greenlets, else threads. The first one takes the names of queues as
features have them, and the address of Redis from the configuration; RQ's own command takes RQ's names (see
`RQQueue.name`), and an address that has to be the same.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from flask import Flask
from rq import Queue
from rq import Worker as RQWorker
from rq.exceptions import DequeueTimeout
from rq.job import Job
from rq.worker import BaseWorker

from .ending import TRIED_FOR
from .errors import StoreUnavailable
from .features import JobFeature
from .record import GREENLETS, THREADS, Record
from .rq_queue import RQQueue, RunJob
from .rq_worker import BACKOFF, Outage, RunsOnly, application, drop_unreadable, records
from .run import Run
from .runtime import current
from .store import RedisStore, faults, rq_connection

log = logging.getLogger("flask_llmstream")

GRACE = 30.0
"""Seconds that a worker which is told to go gives its runs, before it puts them back."""
PUT_BACK_WITHIN = 3.0
"""Seconds that it takes at most to put back what goes on then."""
LOOKED_EVERY = 0.1
"""Seconds between two looks at whether a run that is performed by itself was stopped, and in which it may see that."""
POLLED_EVERY = 1
"""Seconds that it waits for the next run before it looks whether it is told to go."""
BEATS_EVERY = 30.0
"""Seconds between two signs of life for RQ's own monitoring."""


def perform(extension: str, run_id: str, attempt: int) -> None:
    """Perform a run to the end of this attempt. This is what RQ's own kinds of workers call.

    A function that computes does not see that it was stopped. It is not waited for: a forked process ends with this.
    """
    record = records(application()).get(extension)
    if record is None:
        log.warning("run %s is not performed: the application has no %s", run_id, extension)
        return
    done = threading.Event()
    _queue(record).listener = lambda ended: done.set() if ended == run_id else None
    outage, until = Outage(), monotonic() + TRIED_FOR
    while True:
        try:
            run = record.registry.perform(run_id, attempt)
            break
        except StoreUnavailable as error:
            if monotonic() > until:
                raise
            outage.wait(error)
    if run is not None:
        while not done.wait(LOOKED_EVERY):
            if run.cancelled and run.broken is None and not done.wait(LOOKED_EVERY):
                record.registry.give_up(run)
        _await_told(record, run)


def prepare(app: Flask, queues: Sequence[str], *, concurrency: int | None, grace: float) -> Worker:
    """A worker for an application, once there is a Redis for it.

    :param queues: names of queues, the most urgent first.
    :param concurrency: how many runs it performs at a time; None leaves it to the configuration.
    :param grace: seconds for what is going on when it is told to go.
    :raises ConfigurationError: the application is not set up for workers.
    """
    record = next(iter(records(app).values()))
    store = record.store
    assert isinstance(store, RedisStore)
    outage = Outage()
    while True:
        try:
            store.command("PING")
            break
        except StoreUnavailable as error:
            outage.wait(error)
    known = {f.queue for each in records(app).values() for f in each.features.values() if isinstance(f, JobFeature)}
    for queue in set(queues) - known - {"default"}:
        log.warning("no job of this application waits in the queue %s", queue)
    names = [_queue(record).name(queue) for queue in queues]
    with app.app_context():
        return Worker(names, connection=rq_connection(store), concurrency=concurrency, grace=grace)


class ForkWorker(RunsOnly, RQWorker):
    """A worker that forks for each run: for functions that compute rather than wait. It is told to go as RQ's own is:
    it finishes what is going on, however long that takes; told again, it kills it, and another worker tries again."""

    max_connection_wait_time = 5.0

    def __init__(self, queues: Any, *args: Any, **options: Any) -> None:
        if current().cooperative:
            raise SystemExit("Error: ForkWorker cannot be used where gevent has patched the standard library.")
        super().__init__(queues, *args, **options)
        self._outage = Outage()

    # RQ's own takes the loss of Redis for a reason to quit, except where it waits for the next job.

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        while True:
            try:
                with faults():
                    found = super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except StoreUnavailable as error:
                self._outage.wait(error)
                continue
            self._outage.over()
            return found

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Perform a run. One that has not begun is looked after, and comes again."""
        with suppress(StoreUnavailable), faults():
            super().execute_job(job, queue)

    def maintain_heartbeats(self, job: Job) -> None:
        with suppress(StoreUnavailable), faults():
            super().maintain_heartbeats(job)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        with suppress(StoreUnavailable), faults():
            super().heartbeat(timeout, pipeline)

    def set_state(self, state: str, pipeline: Any = None) -> None:
        with suppress(StoreUnavailable), faults():
            super().set_state(state, pipeline)


class Worker(RunsOnly, BaseWorker):
    """A worker that performs many runs at a time.

    :param concurrency: how many; None leaves it to the configuration.
    :param grace: seconds that runs which are going on have when it is told to go.
    """

    def __init__(
        self, queues: Any, *args: Any, concurrency: int | None = None, grace: float = GRACE, **options: Any
    ) -> None:
        super().__init__(queues, *args, **options)
        settings = next(iter(self.records.values())).settings
        most = concurrency or settings.concurrency or (GREENLETS if current().cooperative else THREADS)
        self.most = most
        self._places = threading.BoundedSemaphore(most)
        self._performed: Counter[str] = Counter()
        """How often each run is performed here: the next attempt may begin before the last one is quite over."""
        self._placed: Counter[str] = Counter()
        """The same of those that have a place; runs that only wait for others give theirs back at once."""
        self._changed = threading.Condition()
        self._grace = grace
        self._hurry = False
        self._beat_at = monotonic()
        self._asked_at = 0.0
        self._outage = Outage()
        for record in self.records.values():
            _queue(record).listener = self._done

    @property
    def dequeue_timeout(self) -> int:
        return POLLED_EVERY

    def bootstrap(self, *args: Any, **options: Any) -> None:
        super().bootstrap(*args, **options)
        for record in self.records.values():
            record.registry.wake()
            record.sweep()

    def request_stop(self, signum: int, frame: Any) -> None:
        """Told to go: finish what is going on; told again: put it back at once."""
        self._hurry = self._stop_requested
        self._stop_requested = True

    def check_for_suspension(self, burst: bool) -> None:
        if monotonic() - self._asked_at >= POLLED_EVERY:  # not before each run: that would be a sixth of all it asks
            self._asked_at = monotonic()
            super().check_for_suspension(burst)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Have RQ's own monitoring know that it lives. A Redis that has lost that is told anew."""
        if monotonic() - self._beat_at < BEATS_EVERY:
            return
        with suppress(StoreUnavailable), faults():
            if not self.connection.exists(self.key):
                self.register_birth()  # type: ignore[no-untyped-call]
            super().heartbeat(timeout)
            self._beat_at = monotonic()

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """The next run, when there is a place for it; None when it is to go."""
        idle_since = monotonic()
        while not self._stop_requested:
            self.heartbeat()
            if not self._places.acquire(timeout=POLLED_EVERY):
                continue
            found = self._next(blocking=timeout is not None)
            if found is not None:
                return found
            self._places.release()
            if self._performed:
                idle_since = monotonic()
                if timeout is None:
                    self._await_change()
            elif timeout is None or (max_idle_time is not None and monotonic() - idle_since > max_idle_time):
                return None
        return None

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Begin to perform a run. Its place is given back at its end."""
        try:
            self._begin(job)
        finally:
            self._forget(job, queue)

    def teardown(self) -> None:
        self._finish()
        with suppress(StoreUnavailable), faults():
            super().teardown()  # type: ignore[no-untyped-call]
        for record in self.records.values():
            record.close()

    def kill_horse(self, *args: Any) -> None:
        """There is none."""

    def wait_for_horse(self) -> tuple[None, None, None]:
        return None, None, None

    def _next(self, *, blocking: bool) -> tuple[Job, Queue] | None:
        try:
            with faults():
                found: tuple[Job, Queue] | None = self.queue_class.dequeue_any(
                    self._ordered_queues,
                    POLLED_EVERY if blocking else None,
                    connection=self.connection,
                    job_class=self.job_class,
                    serializer=self.serializer,
                )
        except DequeueTimeout:
            found = None
        except StoreUnavailable as error:
            self._outage.wait(error)
            return None
        except Exception as error:
            drop_unreadable(error)
            return None
        self._outage.over()
        return found

    def _begin(self, job: Job) -> None:
        assert isinstance(job, RunJob)
        place = job.place
        record = self.records.get(place[0]) if place else None
        if place is None or record is None:
            log.warning("job %r is none of this application's, and is dropped", job.id)
            self._places.release()
            return
        _, run_id, attempt = place
        with self._changed:
            self._performed[run_id] += 1
            self._placed[run_id] += 1
        run = self._take_up(record, run_id, attempt)
        if run is None:
            self._done(run_id)
        elif run.about.light:
            self._give_place_back(run_id)

    def _take_up(self, record: Record, run_id: str, attempt: int) -> Run | None:
        while True:
            try:
                return record.registry.perform(run_id, attempt)
            except StoreUnavailable as error:
                if self._stop_requested:
                    return None
                self._outage.wait(error)
            except Exception:
                log.exception("run %s could not be taken up, and is dropped", run_id)
                return None

    def _done(self, run_id: str) -> None:
        if self._count_down(self._performed, run_id):
            self._give_place_back(run_id)

    def _give_place_back(self, run_id: str) -> None:
        if self._count_down(self._placed, run_id):
            self._places.release()

    def _count_down(self, runs: Counter[str], run_id: str) -> bool:
        with self._changed:
            if run_id not in runs:
                return False
            runs[run_id] -= 1
            if not runs[run_id]:
                del runs[run_id]
            self._changed.notify_all()
        return True

    def _forget(self, job: Job, queue: Queue) -> None:
        """Have RQ know nothing of it any more: what is to be known is in the run's record."""
        with suppress(StoreUnavailable), faults():
            pipeline = self.connection.pipeline(transaction=False)
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            pipeline.delete(job.key)
            pipeline.execute()

    def _finish(self) -> None:
        """Wait for what is going on, and put back what still is when the time is up; at once, what only waits for
        other runs."""
        until = monotonic() + self._grace
        while self._placed and monotonic() < until and not self._hurry:
            self._await_change()
        for record in self.records.values():
            record.registry.break_off()
        until = monotonic() + PUT_BACK_WITHIN
        while self._performed and monotonic() < until:
            self._await_change()

    def _await_change(self) -> None:
        with self._changed:
            self._changed.wait(0.2)


def _await_told(record: Record, run: Run) -> None:
    """Stay until Redis knows how a run has ended that it could not be told at once: with this process goes whoever is
    about to."""
    until = monotonic() + TRIED_FOR
    while run.ended and run.ending.get("durable") is False and monotonic() < until:
        with suppress(StoreUnavailable):
            found = record.registry.ledger.find(run.id)
            if found is None or found.terminal is not None or found.epoch != run.log.epoch:
                return
        current().bell().wait(BACKOFF)


def _queue(record: Record) -> RQQueue:
    queue = record.queue
    assert isinstance(queue, RQQueue)
    return queue
