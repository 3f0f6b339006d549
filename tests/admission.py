"""Starts that meet the limits of their owner."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from flask_llmstream.admission import Allowance, Quota
from flask_llmstream.anyrun import AnyRun
from flask_llmstream.errors import LimitReached
from flask_llmstream.events import Usage
from flask_llmstream.models import ModelSettings
from flask_llmstream.order import Claim, Order
from flask_llmstream.registry import Registry
from flask_llmstream.store import RedisStore, Store
from flask_llmstream.usage import standing
from flask_llmstream.work import Callbacks, Work
from tests.orders import OWNER, answer
from tests.puppet import Puppet, eventually

DAY = 86400

Make = Callable[..., Registry]
numbers = itertools.count()


@contextmanager
def registries(store: Store) -> Iterator[Make]:
    """Makes registries; `another=True` makes one that is another process's to the first, on the same Redis."""
    made: list[Registry] = []
    stores: list[Store] = []

    def make(*, another: bool = False, **allowance: Any) -> Registry:
        own = store
        if another:
            assert isinstance(store, RedisStore)
            own = store.alone()
            stores.append(own)
        registry = Registry(
            own,
            Callbacks(enter=nullcontext, ended=lambda run: None),
            allowance=Allowance(**allowance),
            retention=600,
            log_limit=10**6,
        )
        registry.wake()
        made.append(registry)
        return registry

    try:
        yield make
    finally:
        for registry in made:
            for run in registry.live:
                registry.stop(run)
        eventually(lambda: not any(registry.live for registry in made))
        for thing in (*made, *stores):
            thing.close()


def start(
    registry: Registry,
    *lines: Any,
    owner: str = OWNER,
    conversation: str | None = None,
    key: str | None = None,
    usage: Usage | None = None,
    max_tokens: int = 1000,
    **more: Any,
) -> AnyRun:
    """Start a run in which a model says these lines.

    :param more: as `Work` has it.
    """
    order = Order(feature="chat", owner=owner, user="ann", input=[], conversation=conversation)
    given: dict[str, Any] = {"function": answer, "provider": Puppet(lines or ["Hello"], usage=usage), "grace": None}
    work = Work(settings=ModelSettings(max_tokens=max_tokens, retries=0), **given | more)
    run, _ = registry.start(order, Claim(owner, key or f"key:{next(numbers)}", "print", lasting=True), work)
    return run


def refusal(registry: Registry, *lines: Any, **more: Any) -> LimitReached:
    """Why a start is refused."""
    with pytest.raises(LimitReached) as refused:
        start(registry, *lines, **more)
    return refused.value


def ended(*runs: AnyRun) -> None:
    """Wait for the ends of runs."""
    eventually(lambda: all(run.ended for run in runs))


def used(store: Store, quota: str) -> int:
    """How much of a day's quota is used."""
    (stands,) = standing(store, OWNER, {quota: Quota(1, DAY)})
    return stands.used


def together(count: int, do: Callable[[int], Any]) -> list[Any]:
    """Have many do something at the same moment; a refusal is what they get, too."""
    line = threading.Barrier(count)

    def one(n: int) -> Any:
        line.wait()
        try:
            return do(n)
        except LimitReached as refused:
            return refused

    with ThreadPoolExecutor(count) as crowd:
        return list(crowd.map(one, range(count)))
