"""The server that this process is a worker of, as far as it lets itself be known."""

from __future__ import annotations

import signal
import sys
from typing import Any

from .runtime import current


def gunicorn_worker() -> Any:
    """The gunicorn worker that this process is, or None. It is known by the signal handlers that it installs."""
    if "gunicorn" not in sys.modules:
        return None
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if hasattr(worker, "alive") else None  # with --preload it may still be the arbiter


def gunicorn_is_loading() -> bool:
    """Whether this is gunicorn before it has workers, as with --preload."""
    return "gunicorn.arbiter" in sys.modules and gunicorn_worker() is None


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
