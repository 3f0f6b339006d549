"""Many jobs that wait, all at a time in one worker process."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import process_tree, workers
from benchmarks.servers import Redis, Server
from benchmarks.workers import GREENLETS, THREADS, Kind, Work

WARM_UP = 10


@dataclass(frozen=True)
class Case:
    """What all jobs of a crowd do.

    :param path: of their feature.
    """

    name: str
    kind: Kind
    path: str


CASES = (
    Case("greenlets that sleep", GREENLETS, "/sleep"),
    Case("greenlets that ask a model", GREENLETS, "/ask"),
    Case("threads that ask a model", THREADS, "/ask"),
)


@dataclass(frozen=True)
class Crowd:
    """What a crowd came to.

    :param connections: of the worker to Redis, at the end.
    :param added: bytes of memory that it took at most, beside what it had when idle.
    """

    work: Work
    connections: int
    added: int


def run(case: Case, model: Server, redis: Redis, web: Server, jobs: int) -> Crowd:
    """Have as many jobs done at a time as there are, by a worker that has done but a few before."""
    with workers.running(case.kind, model, redis, "crowd", "--concurrency", str(jobs)) as worker:
        workers.park(worker, web, WARM_UP, case.path)
        workers.work_off(worker, WARM_UP)
        workers.park(worker, web, jobs, case.path)
        idle = process_tree.resident_bytes(worker.pid)
        work = workers.work_off(worker, jobs)
        workers.require_completed(web, jobs)
        return Crowd(
            work,
            process_tree.connections(worker.pid, redis.port),
            process_tree.peak_resident_bytes(worker.pid) - idle,
        )
