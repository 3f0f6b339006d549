"""What a configuration value may be: each check makes it usable, or says in a ValueError what it should be."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from .admission import Quota
from .providers import Timeouts
from .store import connect
from .usage import Price, Prices

LEAST_LOG = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class SocketTimeouts:
    """How long things may take on a WebSocket, in seconds; None sets no limit.

    :param ping: between two signs of life that are asked for.
    :param quiet: a call in which nobody says anything.
    :param call: a call in all.
    """

    ping: float | None = 20.0
    quiet: float | None = 300.0
    call: float | None = 3600.0


def seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError("a number of seconds")
    return float(value)


def positive_seconds(value: Any) -> float:
    if seconds(value) == 0:
        raise ValueError("a number of seconds above 0")
    return float(value)


def count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number from 1")
    return value


def count_from_zero(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a whole number from 0")
    return value


def log_size(value: Any) -> int:
    if count(value) < LEAST_LOG:
        raise ValueError(f"a whole number of bytes from {LEAST_LOG}")
    return int(value)


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a string that is not empty")
    return value


def names(value: Any) -> tuple[str, ...]:
    """Several strings, of which an environment variable can hold one alone or a comma between them."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(part, str) for part in value):
        raise ValueError("a list of strings")
    return tuple(value)


def origins(value: Any) -> tuple[str, ...]:
    listed = names(value)
    for origin in listed:
        if origin != "*" and ("://" not in origin or origin.count("/") != 2):
            raise ValueError(f"origins such as https://app.example.com, which {origin!r} is not")
    return tuple(origin.lower() for origin in listed)


def address(value: Any) -> str:
    connect(text(value)).close()  # it connects when it is first used: this only reads the address
    return str(value)


def folder(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError("the path of a folder")
    return str(value)


def prefix(value: Any) -> str:
    if not text(value).isprintable() or " " in value:
        raise ValueError("a string of visible characters, such as 'llmstream:'")
    return str(value)


QUOTA = re.compile(r"\s*([0-9_]+)\s*(?:/|per)\s*([0-9]*)\s*([a-z]+?)s?\s*")
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604_800}


def quota(value: Any) -> Quota:
    """So many in a window of time, as in Flask-Limiter: ``30/minute``, ``100000 per day``, ``5/10 minutes``."""
    match = QUOTA.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[3] not in PERIODS or int(match[1]) < 1 or match[2] == "0":
        raise ValueError(f"a number a {', '.join(PERIODS)}, such as '30/minute'")
    return Quota(int(match[1]), int(match[2] or 1) * PERIODS[match[3]])


def prices(value: Any) -> Prices:
    """By model, what a million tokens cost; numbers may be text, so that they stay as they are written."""
    if not isinstance(value, Mapping):
        raise ValueError("a mapping from models to what a million tokens cost: {'*': {'input': 0.25, 'output': 2}}")
    return {str(model): _price(model, given) for model, given in value.items()}


def _price(model: Any, given: Any) -> Price:
    if not isinstance(given, Mapping) or not {"input", "output"} <= set(given) <= {"input", "cached", "output"}:
        raise ValueError(f"a mapping whose prices have input, output and perhaps cached, which {model!r} has not")
    try:
        known = {name: Decimal(str(amount)) for name, amount in given.items()}
    except InvalidOperation:
        known = {}
    if not known or any(not amount.is_finite() or amount < 0 for amount in known.values()):
        raise ValueError(f"a mapping whose prices are numbers from 0, which those of {model!r} are not")
    return Price(known["input"], known.get("cached", known["input"]), known["output"])


def one_of(*words: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return check


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def timeouts(value: Any) -> dict[str, float | None]:
    known = [field.name for kind in (Timeouts, SocketTimeouts) for field in fields(kind)] + ["write"]
    if not isinstance(value, Mapping) or any(name not in known for name in value):
        raise ValueError(f"a mapping with any of {', '.join(known)}")
    return {name: optional(positive_seconds)(given) for name, given in value.items()}
