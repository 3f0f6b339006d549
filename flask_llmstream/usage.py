"""What owners have used: the accounts that ends of runs are entered in, and what they come to at given prices.

An account is an owner's day (UTC). Costs are exact decimal numbers, in the currency of the prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from .admission import Quota, Standing
from .events import Usage
from .ledger import USAGE_KEPT
from .store import Store, digest

DAYS_KEPT = int(USAGE_KEPT // 86400)
ANY_MODEL = "*"
"""Stands for the models that have no price of their own."""
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost.

    :param input: of the prompt.
    :param cached: of the prompt's, where the provider had them in its cache.
    :param output: of the answer.
    """

    input: Decimal
    cached: Decimal
    output: Decimal


Prices = Mapping[str, Price]
"""By model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What was used: by an owner on a day with a model, or in sum, where these are empty.

    :param prompt_tokens: the cached ones are among them.
    """

    day: str = ""
    owner: str = ""
    model: str = ""
    runs: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: Decimal | None = Decimal(0)
    """None where something was used that has no price."""

    def __add__(self, other: Entry) -> Entry:
        return replace(
            self,
            runs=self.runs + other.runs,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=None if self.cost is None or other.cost is None else self.cost + other.cost,
        )


class Accounts:
    """The accounts of all owners.

    :param prices: what the costs are reckoned by.
    """

    def __init__(self, store: Store, prices: Prices) -> None:
        self._store = store
        self._prices = prices

    def of(self, owner: str, first: date, last: date) -> list[Entry]:
        """What an owner used from one day to another, by day and model.

        :raises StoreUnavailable: nobody can say so now.
        """
        days = list(_days(first, last))
        return self._entries([(day, owner) for day in days])

    def all(self, first: date, last: date) -> list[Entry]:
        """What everybody used, by day, owner and model.

        :raises StoreUnavailable: nobody can say so now.
        """
        days = list(_days(first, last))
        owners = self._store.commands(*(("SMEMBERS", self._store.key("users", day)) for day in days))
        return [
            entry
            for day, names in zip(days, owners, strict=True)
            for entry in self._entries([(day, name.decode()) for name in sorted(names)])
        ]

    def _entries(self, accounts: Sequence[tuple[str, str]]) -> list[Entry]:
        if not accounts:
            return []
        key = self._store.key
        commands = [("HGETALL", key("usage", day, digest(owner))) for day, owner in accounts]
        entries = []
        for (day, owner), fields in zip(accounts, self._store.commands(*commands), strict=True):
            for model, measures in sorted(_by_model(fields).items()):
                entries.append(self._entry(day, owner, model, measures))
        return entries

    def _entry(self, day: str, owner: str, model: str, measures: Mapping[str, int]) -> Entry:
        prompt, cached = measures.get("prompt", 0), measures.get("cached", 0)
        completion = measures.get("completion", 0)
        return Entry(
            day=day,
            owner=owner,
            model=model,
            runs=measures.get("runs", 0),
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            cost=cost(self._prices, {model: Usage(prompt, completion, cached)}),
        )


def cost(prices: Prices, usage: Mapping[str, Usage]) -> Decimal | None:
    """What some tokens cost.

    :param usage: by model.
    :returns: None where there is no price for one of the models.
    """
    total = Decimal(0)
    for model, used in usage.items():
        if not used.prompt_tokens and not used.completion_tokens:
            continue
        price = prices.get(model) or prices.get(ANY_MODEL)
        if price is None:
            return None
        fresh = max(0, used.prompt_tokens - used.cached_tokens)
        total += fresh * price.input + used.cached_tokens * price.cached + used.completion_tokens * price.output
    return total / MILLION


def total(entries: Iterable[Entry]) -> Entry:
    """All of it in one sum."""
    return sum(entries, Entry())


def by_owner_and_model(entries: Iterable[Entry]) -> list[Entry]:
    """The sums over all days."""
    sums: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        whose = entry.owner, entry.model
        sums[whose] = sums.get(whose, Entry(owner=entry.owner, model=entry.model)) + entry
    return [sums[whose] for whose in sorted(sums)]


def standing(store: Store, owner: str, quotas: Mapping[str, Quota | None]) -> list[Standing]:
    """How an owner's quotas stand now.

    :param quotas: by name: ``starts``, ``tokens``.
    :raises StoreUnavailable: nobody can say so now.
    """
    given = [(name, quota) for name, quota in quotas.items() if quota is not None]
    if not given:
        return []
    read = [("HMGET", store.key(name, digest(owner)), "window", "n") for name, _ in given]
    (seconds, microseconds), *counts = store.commands(("TIME",), *read)
    now = int(seconds) * 1000 + int(microseconds) // 1000
    stand = []
    for (name, quota), (window, n) in zip(given, counts, strict=True):
        length = quota.seconds * 1000
        current = window is not None and int(float(window)) == now // length
        stand.append(Standing(name, quota.n, length, int(float(n)) if current else 0, length - now % length))
    return stand


def today() -> date:
    return datetime.now(UTC).date()


def amount(cost: Decimal | None) -> str | None:
    """A cost in full, as text: as a number, JSON's readers would round it."""
    if cost is None:
        return None
    text = f"{cost:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def describe(entry: Entry, *names: str) -> dict[str, Any]:
    """An entry as JSON.

    :param names: what tells it from the others: ``day``, ``owner``, ``model``.
    """
    return {name: getattr(entry, name) for name in names} | {
        "runs": entry.runs,
        "prompt_tokens": entry.prompt_tokens,
        "cached_tokens": entry.cached_tokens,
        "completion_tokens": entry.completion_tokens,
        "cost": amount(entry.cost),
    }


def _days(first: date, last: date) -> Iterator[str]:
    """The days between two, both included, of which there may be an account."""
    first, last = max(first, today() - timedelta(DAYS_KEPT)), min(last, today() + timedelta(1))
    while first <= last:
        yield first.isoformat()
        first += timedelta(1)


def _by_model(fields: Any) -> dict[str, dict[str, int]]:
    """An account's fields: ``<measure> <model>`` each."""
    pairs = fields.items() if isinstance(fields, Mapping) else zip(fields[::2], fields[1::2], strict=True)
    models: dict[str, dict[str, int]] = {}
    for name, n in pairs:
        measure, _, model = name.decode().partition(" ")
        models.setdefault(model, {})[measure] = int(n)
    return models
