"""The server that this process is a worker of, as far as it lets itself be known."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Protocol

from .runtime import current


class GunicornWorker(Protocol):
    """What of a gunicorn worker is of interest here."""

    alive: bool
    ppid: int
    nr: int
    max_requests: int
    cfg: Any
    tmp: Any


def gunicorn_worker() -> GunicornWorker | None:
    """The gunicorn worker that this process is, or None. It is known by the signal handlers that it installs."""
    if "gunicorn" not in sys.modules:
        return None
    worker: Any = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if hasattr(worker, "alive") else None  # with --preload it may still be the arbiter


def gunicorn_is_loading() -> bool:
    """Whether this is gunicorn before it has workers, as with --preload."""
    return "gunicorn.arbiter" in sys.modules and gunicorn_worker() is None


def is_leaving(worker: GunicornWorker) -> bool:
    """Whether a gunicorn worker has been told to go, or its master is gone, which it does not outlive."""
    return not worker.alive or worker.ppid != os.getppid()


def is_at_its_last_request(worker: GunicornWorker) -> bool:
    """Whether a gunicorn worker goes after the request that came last, by its own ``max_requests``."""
    return worker.nr == worker.max_requests


def has_successor(worker: GunicornWorker) -> bool:
    """Whether somebody else may serve those whom a leaving gunicorn worker sends away, before it has gone.

    A lone worker that has had its ``max_requests`` is replaced only then: whoever came back would wait for that.
    """
    return worker.cfg.workers > 1 or worker.nr < worker.max_requests


def on_quit(worker: GunicornWorker, action: Callable[[], None]) -> None:
    """Have `action` called where a gunicorn worker is told to go at once (INT, QUIT): it goes when that returns."""
    hook = worker.cfg.worker_int

    def quit(worker: GunicornWorker) -> None:
        action()
        hook(worker)

    worker.cfg.set("worker_int", quit)


@contextmanager
def signs_of_life(worker: GunicornWorker) -> Iterator[Callable[[], None]]:
    """What tells gunicorn's master that a worker is not stuck; it works on when the worker's own loop is through.

    The master would end a process that says nothing for `timeout` seconds, however much it has still to write.
    """
    try:
        descriptor = os.dup(worker.tmp.fileno())
    except ValueError:  # closed: the worker has gone, but for this process
        yield lambda: None
        return

    def notify() -> None:
        with suppress(OSError):
            os.utime(descriptor, (monotonic(), monotonic()))

    try:
        yield notify
    finally:
        os.close(descriptor)


def capacity() -> int:
    """How many open responses the server of this process can carry, leaving room for short requests.

    A server with a thread for each connection needs two of them for status and cancel; one with greenlets keeps a
    fifth of its connections, since beyond `worker_connections` it accepts nothing at all, health checks included.
    Each stream takes two descriptors: the client's socket and the model's.
    """
    limits = [int(_file_descriptors() * 0.8) // 2]
    worker = gunicorn_worker()
    if worker is not None:
        if current().cooperative:
            limits.append(int(worker.cfg.worker_connections * 0.8))
        else:
            limits.append(worker.cfg.threads - 2)
    return max(1, min(limits))


def _file_descriptors() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 1024
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65536 if soft == resource.RLIM_INFINITY else soft
