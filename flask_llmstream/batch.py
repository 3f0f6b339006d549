"""A batch: many inputs for one feature, and the results of those that are done, kept beside the run that drives it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from marshmallow import Schema, fields

from .admission import Quota
from .anyrun import AnyRun
from .errors import RunExpired, RunInterrupted, RunNotFound, StoreUnavailable
from .events import Failed, Usage
from .ledger import LONGEST_RUN, ms
from .record import Record
from .store import Store, digest

log = logging.getLogger("flask_llmstream")

NAME = "batch"
MOST_INPUTS = 10_000


class BatchOrder(Schema):
    """What the driver of a batch is given.

    :param inputs: under which id its inputs are kept.
    :param requests: with `tokens`, how many a minute.
    :param concurrency: inputs that are carried out at a time.
    """

    feature = fields.String(required=True)
    inputs = fields.String(required=True)
    total = fields.Integer(required=True)
    requests = fields.Integer(allow_none=True, load_default=None)
    tokens = fields.Integer(allow_none=True, load_default=None)
    concurrency = fields.Integer(allow_none=True, load_default=None)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many inputs have a result, and what these took."""

    completed: int = 0
    failed: int = 0
    prompt: int = 0
    completion: int = 0


class Batch:
    """What is kept of a batch beside its run: its inputs and its results.

    :param inputs_id: names it.
    :param retention: seconds for which results are kept.
    """

    def __init__(self, store: Store, inputs_id: str, retention: float) -> None:
        self._store = store
        self._keys = {name: store.key(NAME, inputs_id, name) for name in ("inputs", "done", "results", "counts")}
        self._life = ms(LONGEST_RUN + retention)

    def add(self, lines: Iterable[bytes]) -> None:
        """Keep some more inputs, JSON each."""
        self._store.commands(("RPUSH", self._keys["inputs"], *lines), ("PEXPIRE", self._keys["inputs"], self._life))

    def inputs(self, first: int, n: int) -> list[bytes]:
        """Some inputs, as they were sent."""
        lines: list[bytes] = self._store.command("LRANGE", self._keys["inputs"], first, first + n - 1)
        return lines

    def settle(
        self, index: int, line: Mapping[str, Any], usage: Usage | None, *, payer: str, budget: Quota | None
    ) -> bool:
        """Keep the result of an input; whether it had none.

        :param payer: whose tokens are counted, where there is a budget for them.
        """
        used = usage or Usage(0, 0)
        keys = [*(self._keys[name] for name in ("done", "results", "counts", "inputs"))]
        keys.append(self._store.key("tokens", digest(payer)))
        told = msgspec.json.encode({"index": index} | dict(line))
        window = 0 if budget is None else budget.seconds * 1000
        args = [index, told, line["status"], used.prompt_tokens, used.completion_tokens, self._life, window]
        return bool(self._store.call("settle", keys, args))

    def undone(self, total: int) -> Iterator[int]:
        """The indexes of the inputs that have no result."""
        bits: bytes = self._store.command("GET", self._keys["done"]) or b""
        for index in range(total):
            place, bit = divmod(index, 8)
            if place >= len(bits) or not bits[place] & (0x80 >> bit):
                yield index

    def has_result(self, index: int) -> bool:
        """Whether an input has one."""
        return bool(self._store.command("GETBIT", self._keys["done"], index))

    def counts(self) -> Counts:
        """How far it is."""
        names = ("completed", "failed", "prompt", "completion")
        return Counts(*(int(n or 0) for n in self._store.command("HMGET", self._keys["counts"], *names)))

    def results(self, after: int, n: int) -> list[bytes]:
        """Results in the order in which they came, a line of JSON each.

        :param after: how many the reader has.
        """
        lines: list[bytes] = self._store.command("LRANGE", self._keys["results"], after, after + n - 1)
        return lines

    def drop_inputs(self) -> None:
        """Keep the results alone."""
        self._store.command("UNLINK", self._keys["inputs"])

    def drop(self) -> None:
        """Keep nothing."""
        self._store.command("UNLINK", *self._keys.values())


def kept(record: Record, run: AnyRun) -> Batch:
    """What is kept of a batch beside its run."""
    return Batch(record.store, run.about.data["inputs"], record.settings.job_retention)


def drop(record: Record, run: AnyRun) -> None:
    """Keep nothing of a batch that was deleted.

    :raises StoreUnavailable: that is not possible now.
    """
    if run.feature == NAME:
        kept(record, run).drop()


def clear(record: Record, run: AnyRun) -> None:
    """Leave nothing of the parts of a batch that has ended: those that go on are stopped. Of one that is forgotten
    nothing is left at all."""
    if run.feature != NAME:
        return
    registry, store, owner = record.registry, record.store, owner_of_parts(run)
    try:
        for run_id in registry.ledger.kept(owner):
            try:
                registry.forget(registry.find(run_id, None))
            except (RunNotFound, RunExpired):
                _withdraw(record, run_id)
        store.command("UNLINK", *(store.key(name, digest(owner)) for name in ("feed", "kept", "starts", "tokens")))
        if registry.ledger.find(run.id) is None:
            kept(record, run).drop()
        else:
            kept(record, run).drop_inputs()
    except StoreUnavailable as error:
        log.warning("what is left of the parts of batch %s expires by itself: %s", run.id, error.diagnosis)


def owner_of_parts(run: AnyRun) -> str:
    """Whose the parts of a batch are: nobody's who could ask for them."""
    return f"{NAME}:{run.id}"


def _withdraw(record: Record, run_id: str) -> None:
    """Take back a part that was admitted as its driver was stopped, and has begun nowhere."""
    ledger, error = record.registry.ledger, RunInterrupted()
    found = ledger.find(run_id)
    if found is not None:
        terminal = Failed(error=error.detail, problem=error.problem())
        ledger.withdraw(run_id, found.about, terminal.encode())
