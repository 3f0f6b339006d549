"""What a test must not leave behind: each probe names the things of its kind that are alive now."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from flask_llmstream.journal import SharedJournal
from flask_llmstream.leases import SharedLeases
from flask_llmstream.limits import OpenResponses
from flask_llmstream.mirror import Mirrors
from flask_llmstream.registry import Registry
from flask_llmstream.store.subscriptions import Subscriptions
from flask_llmstream.testing import ModelServer

# What an instance of each class holds that should have been given back.
HELD: dict[type, Callable[[Any], list[str]]] = {
    Registry: lambda registry: [f"run {run.id} of {run.feature}" for run in registry.live],
    OpenResponses: lambda places: [f"{len(places)} open responses of {id(places):x}"] if len(places) else [],
    SharedLeases: lambda leases: ["leases that are still renewed"] if leases._pacemaker and not leases._closed else [],
    SharedJournal: lambda journal: [f"run {run_id}, which is still journalled" for run_id in list(journal._followers)],
    Mirrors: lambda mirrors: [f"run {mirror.id}, which is still read" for mirror in list(mirrors._read)],
    Subscriptions: lambda all_of_them: ["the connection of subscriptions"] if all_of_them._connection else [],
    ModelServer: lambda server: [f"{server.active} requests to {server.base_url}"] if server.active else [],
}


def remember(kind: type) -> WeakSet[Any]:
    """Every instance of a class that is made from now on and still there: the package keeps no such list."""
    made: WeakSet[Any] = WeakSet()
    original = kind.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **more: Any) -> None:
        made.add(self)
        original(self, *args, **more)

    kind.__init__ = init  # type: ignore[misc]
    return made


MADE = {kind: remember(kind) for kind in HELD}


def held() -> Iterable[str]:
    """Live runs, taken places, open upstream requests, and what is kept up for other processes."""
    for kind, describe in HELD.items():
        for thing in list(MADE[kind]):
            yield from describe(thing)


def threads() -> Iterable[str]:
    """Threads that would keep the process from ending, and those that are a run."""
    for thread in threading.enumerate():
        if thread.name == "llmstream-run":
            yield f"thread {thread.name} {thread.ident}"
        elif not thread.daemon:
            yield f"thread {thread.name}"


def children() -> Iterable[str]:
    """Processes that this one started, where Linux tells."""
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            for pid in task.read_text().split():
                yield f"{PROCESS}{pid}"


PROBES = (held, threads, children)


PROCESS = "process "


def described(thing: str) -> str:
    """A process with its command line, which it may have changed since it was first seen; all else as it is."""
    if not thing.startswith(PROCESS):
        return thing
    try:
        command = Path(f"/proc/{thing.removeprefix(PROCESS)}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        command = b""
    return f"{thing} {command.replace(bytes(1), b' ').decode(errors='replace').strip()}"


def alive() -> set[str]:
    """Everything that the probes see."""
    return {thing for probe in PROBES for thing in probe()}


def left_behind(before: set[str], *, patience: float = 5.0) -> set[str]:
    """What is alive now and was not before; what is about to end gets the time to.

    :param patience: seconds.
    """
    deadline = time.monotonic() + patience
    while (leaked := alive() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return {described(thing) for thing in leaked}
