"""Workers of several kinds, and what it costs them to do a number of jobs that lie ready all at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rq import Queue
from rq.serializers import JSONSerializer

from benchmarks import process_tree, servers
from benchmarks.caller import Caller
from benchmarks.jobs_app import PARKED
from benchmarks.noop import nothing
from benchmarks.servers import Redis, Server

APP = "benchmarks.jobs_app"
RQ = (sys.executable, "-m", "rq.cli", "worker", "--quiet", "--serializer", "json")
OURS = (sys.executable, "-m", "flask", "--app", APP, "llmstream", "worker")
POLLED_EVERY = 0.005
"""Seconds between two looks at what is left."""
PATIENCE = 120
"""Seconds without a job done at which a worker is given up, on a machine that is busy with other things."""
QUEUES, FINISHED, LEASES = "rq:queue:", "rq:finished:", "llmstream:leases"


@dataclass(frozen=True)
class Kind:
    """A kind of worker.

    :param name: as printed.
    :param command: what starts it; the queue's name follows.
    :param runs: whether its jobs are runs, of features; else they are calls of a function, as RQ has them.
    :param forks: whether it forks for each job.
    """

    name: str
    command: Sequence[str]
    runs: bool = True
    forks: bool = False


RQ_SIMPLE = Kind("RQ SimpleWorker", (*RQ, "--worker-class", "rq.SimpleWorker"), runs=False)
RQ_FORKS = Kind("RQ Worker", RQ, runs=False, forks=True)
GREENLETS = Kind("greenlets", OURS)
THREADS = Kind("threads", (*OURS, "--threads"))
FORKS = Kind("ForkWorker", (*RQ, "--worker-class", "flask_llmstream.worker.ForkWorker"), forks=True)
KINDS = (RQ_SIMPLE, GREENLETS, THREADS, RQ_FORKS, FORKS)


@dataclass(frozen=True)
class Worker:
    """A running worker.

    :param queue: its queue, as RQ calls it.
    :param pid: the top of its tree of processes.
    """

    kind: Kind
    queue: str
    pid: int
    redis: Redis


@dataclass(frozen=True, kw_only=True)
class Work:
    """What some jobs came to, from when they were there to the end of the last.

    :param seconds: wall time.
    :param cpu_ms: CPU of the worker's processes, a job.
    :param redis_ms: CPU of Redis, a job.
    :param messages: what Redis had to read, a job; a pipeline counts once.
    """

    jobs: int
    seconds: float
    cpu_ms: float
    redis_ms: float
    messages: float


@contextmanager
def running(kind: Kind, model: Server, redis: Redis, queue: str, *options: str) -> Iterator[Worker]:
    """A worker of one queue, once it waits for jobs.

    :param queue: the queue's name, which no other worker of the benchmark has.
    """
    name = f"llmstream-{queue}" if kind.runs else queue
    # Our own command knows queues as features name them, and Redis from the application's configuration.
    by_rq = "rq.cli" in kind.command
    arguments = [name, "--url", redis.url] if by_rq else [queue]
    environment = servers.environment(model, redis) | {"FLASK_APP": APP}
    with servers.running([*kind.command, *options, *arguments], environment) as process:
        give_up = time.monotonic() + servers.START_TIME
        while not redis.client.scard(f"rq:workers:{name}"):
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"The worker {kind.name!r} did not start; its error is above.")
            time.sleep(0.02)
        print(f"{kind.name}: process {process.pid}", file=sys.stderr)
        yield Worker(kind, name, process.pid, redis)


def park(worker: Worker, web: Server, jobs: int, path: str = "/nothing") -> None:
    """Have jobs lie ready that a worker shall do, without its knowing.

    :param path: of the feature whose runs they are.
    """
    if worker.kind.runs:
        with Caller(web) as caller:
            for _ in range(jobs):
                caller.post(path)
        return
    parked = Queue(PARKED, connection=worker.redis.client, serializer=JSONSerializer)
    for number in range(jobs):
        parked.enqueue(nothing, number)


def work_off(worker: Worker, jobs: int) -> Work:
    """Give a worker the jobs that are parked, all at once, and wait for the end of the last.

    :param jobs: how many there are.
    """
    redis, source = worker.redis, PARKED if not worker.kind.runs else f"llmstream-{PARKED}"
    done_before = redis.client.zcard(FINISHED + PARKED)

    def left() -> int:
        if worker.kind.runs:
            return int(redis.client.zcard(LEASES))
        return jobs - int(redis.client.zcard(FINISHED + PARKED)) + int(done_before)

    cpu, by_redis, read = process_tree.cpu_seconds(worker.pid), redis.cpu_seconds(), redis.messages()
    begun = time.monotonic()
    redis.client.rename(QUEUES + source, QUEUES + worker.queue)
    polls = _wait_for_end(worker, left)
    seconds = time.monotonic() - begun
    return Work(
        jobs=jobs,
        seconds=seconds,
        cpu_ms=(process_tree.cpu_seconds(worker.pid) - cpu) * 1000 / jobs,
        redis_ms=(redis.cpu_seconds() - by_redis) * 1000 / jobs,
        messages=(redis.messages() - read - polls) / jobs,
    )


def require_completed(web: Server, jobs: int) -> None:
    """End the benchmark if any of the last jobs has failed: that may well be cheaper.

    :param jobs: how many there were; of these, the last hundred are looked at.
    """
    with Caller(web) as caller:
        runs = caller.runs()[:jobs]
    for run in runs:
        if run["status"] != "completed":
            raise SystemExit(f"A job has {run['status']}: {run['error']}")


def _wait_for_end(worker: Worker, left: Callable[[], int]) -> int:
    """Wait until nothing is left; how often that was asked."""
    polls, least, since = 1, left(), time.monotonic()
    while least:
        time.sleep(POLLED_EVERY)
        polls, now = polls + 1, left()
        if now < least:
            least, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise SystemExit(f"The worker {worker.kind.name!r} has left {now} jobs undone; its error is above.")
    return polls
