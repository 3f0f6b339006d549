"""Registries of runs as an application has them, without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from flask_llmstream.anyrun import AnyRun
from flask_llmstream.cursor import Cursor
from flask_llmstream.order import Order
from flask_llmstream.registry import Registry
from flask_llmstream.run import Run
from flask_llmstream.store import Store
from flask_llmstream.work import Callbacks
from tests.orders import OWNER
from tests.puppet import eventually

ORDER = Order(feature="chat", owner=OWNER, user="ann", input=[{"role": "user", "content": "Hello"}], data={"q": 1})


@contextmanager
def registries(store: Callable[[], Store]) -> Iterator[Callable[..., Registry]]:
    """Makes registries, and closes them when their runs have ended.

    :param store: called for the store of each.
    """
    made: list[Registry] = []

    def make(*, retention: float = 600.0, log_limit: int = 10**6, allowance: Any = None, **callbacks: Any) -> Registry:
        given = {"enter": nullcontext, "ended": lambda run: None} | callbacks
        made.append(
            Registry(store(), Callbacks(**given), allowance=allowance, retention=retention, log_limit=log_limit)
        )
        return made[-1]

    yield make
    for registry in made:
        live = registry.live
        registry.close()
        eventually(lambda live=live: all(run.ended for run in live))


def over(registry: Registry, run: Run) -> bool:
    """Whether all that follows its end has been done, here and in the store."""
    found = registry.ledger.find(run.id)
    return run.ended and found is not None and found.terminal is not None and run not in registry.live


def follow(registry: Registry, run: AnyRun, cursor: Cursor | None = None) -> list[bytes]:
    """What a reader gets to the end, and leaves then."""
    reader = registry.read(run, cursor)
    heard: list[bytes] = []

    def finished() -> bool:
        heard.extend(reader.take())
        return reader.finished

    try:
        eventually(finished)
    finally:
        registry.leave(run, reader)
    return heard
