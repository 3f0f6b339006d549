"""Every configuration key, with its default: deployment facts, read once for each application, in `init_app`."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from .admission import Quota, WhenBusy
from .errors import ConfigurationError
from .providers import Timeouts
from .store import connect
from .usage import Price, Prices

log = logging.getLogger("flask_llmstream")

PREFIX = "LLMSTREAM_"
WRITE_TIMEOUT = 30.0
LEAST_LOG = 1024


@dataclass(frozen=True, slots=True)
class Key:
    """One configuration key.

    :param name: as it stands in `app.config`; in the environment it is preceded by ``FLASK_``.
    :param unit: what a value is.
    :param description: what it decides, in a sentence.
    :param check: makes the value usable, or raises ValueError with what it should be.
    """

    name: str
    default: Any
    unit: str
    description: str
    check: Callable[[Any], Any]


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
    match = (
        re.fullmatch(r"\s*([0-9_]+)\s*(?:/|per)\s*([0-9]*)\s*([a-z]+?)s?\s*", value) if isinstance(value, str) else None
    )
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
    known = [field.name for field in fields(Timeouts)] + ["write"]
    if not isinstance(value, Mapping) or any(name not in known for name in value):
        raise ValueError(f"a mapping with any of {', '.join(known)}")
    return {name: optional(positive_seconds)(given) for name, given in value.items()}


KEYS = (
    Key("MODEL", None, "name", "The model that answers; without it the provider's own default.", optional(text)),
    Key(
        "MODELS",
        None,
        "list of names",
        "The models that clients may ask for by name; `*` allows any. Without it, only the configured one.",
        optional(names),
    ),
    Key(
        "MAX_TOKENS",
        4096,
        "tokens",
        "The most that an answer may have, and what it gets if none is asked for.",
        count,
    ),
    Key(
        "TIMEOUTS",
        {},
        "seconds, by name",
        "How long to wait for the model: `connect` (5), `first_token` (60), `idle` (30) between two tokens, `total` "
        "(600); and `write` (30), for a client that does not read. null waits for ever.",
        timeouts,
    ),
    Key(
        "RETRIES",
        2,
        "count",
        "How often a model call that failed before its first token is repeated.",
        count_from_zero,
    ),
    Key("MAX_MESSAGE", 32_000, "characters", "The most that one message may have.", count),
    Key("MAX_INPUT", 200_000, "characters", "The most that all messages of a request may have together.", count),
    Key(
        "MAX_LOG",
        8_388_608,
        "bytes",
        "The memory that one run's log may take, at least 1024; a run that fills it ends there.",
        log_size,
    ),
    Key("RETENTION", 600, "seconds", "How long an ended run can still be read.", positive_seconds),
    Key(
        "ORPHAN_GRACE",
        20,
        "seconds",
        "How long a stream goes on with nobody reading it: 0 stops it at once, null lets it finish.",
        optional(seconds),
    ),
    Key("HEARTBEAT", 5, "seconds", "How often a silent stream sends a sign of life.", positive_seconds),
    Key(
        "MAX_OPEN",
        None,
        "count",
        "The most responses that a process keeps open at once; without it, derived from the server's own limits.",
        optional(count),
    ),
    Key(
        "ALLOWED_ORIGINS",
        (),
        "list of origins",
        "Other origins whose pages may send requests; `*` allows all. It only refuses: CORS headers are Flask-CORS's.",
        origins,
    ),
    Key(
        "ALLOW_ANONYMOUS",
        False,
        "flag",
        "Let visitors in who have not signed in, where there is no `identify`.",
        flag,
    ),
    Key(
        "REDIS_URL",
        None,
        "address",
        "Redis or Valkey, which the processes of the application share; without it, there is one process.",
        optional(address),
    ),
    Key("REDIS_PREFIX", "llmstream:", "text", "What the names of all keys and channels in Redis begin with.", prefix),
    Key(
        "MAX_RUNS_PER_USER",
        None,
        "count",
        "The most answers in progress that one user may have at a time; without it, any number.",
        optional(count),
    ),
    Key(
        "WHEN_BUSY",
        "reject",
        "word",
        "What becomes of a start beyond that, or in a conversation that is being answered: `reject` refuses it, "
        "`replace` stops the oldest answer, `join` shows the one that the conversation is getting.",
        one_of("reject", "replace", "join"),
    ),
    Key(
        "STARTS_PER_USER",
        None,
        "quota",
        "The most answers that one user may ask for in a window of time, such as `30/minute`.",
        optional(quota),
    ),
    Key(
        "TOKEN_BUDGET",
        None,
        "quota",
        "The most tokens that one user may use in a window of time, such as `100000/day`.",
        optional(quota),
    ),
    Key(
        "CONVERSATION_RETENTION",
        2_592_000,
        "seconds",
        "How long a conversation is kept after its last message; 2592000 are 30 days.",
        positive_seconds,
    ),
    Key(
        "PRICES",
        {},
        "prices, by model",
        "What a million tokens cost: `input`, `output` and `cached` (as `input`, where it is missing); `*` stands for "
        "models that are not named.",
        prices,
    ),
    Key(
        "UPLOADS",
        "llmstream-uploads",
        "path",
        "The folder in which files wait for their run; in the app's instance folder, unless it begins with a slash. "
        "Web processes and workers share it, as one user; on several machines it is one volume.",
        folder,
    ),
    Key("MAX_UPLOAD", 20_971_520, "bytes", "The most that a file may have, where its field does not say it.", count),
    Key(
        "JOB_RETENTION",
        86_400,
        "seconds",
        "How long an ended job, its result and those of a batch can still be read; 86400 are a day.",
        positive_seconds,
    ),
    Key(
        "CONCURRENCY",
        None,
        "count",
        "How many jobs a process performs at a time; without it 200 under gevent and 16 in threads.",
        optional(count),
    ),
    Key(
        "WEBHOOK_URL",
        None,
        "address",
        "Where the end of each job is told, where the job names no other address.",
        optional(text),
    ),
    Key(
        "WEBHOOK_SECRETS",
        (),
        "list of secrets",
        "What webhooks are signed with, each `whsec_` and base64; several while they are changed.",
        names,
    ),
    Key(
        "WEBHOOK_HOSTS",
        (),
        "list of hosts",
        "Names, addresses and networks that webhooks may go to although they are not public.",
        names,
    ),
    Key("JOIN_IDENTICAL", True, "flag", "Have a repeated request without a key join the run that it repeats.", flag),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The configuration of one application, checked; each field is the key of the same name."""

    model: str | None
    models: tuple[str, ...] | None
    max_tokens: int
    timeouts: Timeouts
    write_timeout: float | None
    retries: int
    max_message: int
    max_input: int
    max_log: int
    retention: float
    orphan_grace: float | None
    heartbeat: float
    max_open: int | None
    allowed_origins: tuple[str, ...]
    allow_anonymous: bool
    redis_url: str | None
    redis_prefix: str
    max_runs_per_user: int | None
    when_busy: WhenBusy
    starts_per_user: Quota | None
    token_budget: Quota | None
    prices: Prices
    conversation_retention: float
    uploads: str
    max_upload: int
    job_retention: float
    concurrency: int | None
    webhook_url: str | None
    webhook_secrets: tuple[str, ...]
    webhook_hosts: tuple[str, ...]
    join_identical: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Read and check all keys.

        :raises ConfigurationError: a value is not what its key takes.
        """
        values: dict[str, Any] = {}
        for key in KEYS:
            given = config.get(PREFIX + key.name, key.default)
            try:
                values[key.name.lower()] = key.check(given)
            except ValueError as error:
                raise ConfigurationError(f"{PREFIX}{key.name} must be {error}; it is {given!r}.") from None
        limits = values.pop("timeouts")
        values["write_timeout"] = limits.pop("write", WRITE_TIMEOUT)
        settings = cls(timeouts=Timeouts(**limits), **values)
        settings._warn(config)
        return settings

    def _warn(self, config: Mapping[str, Any]) -> None:
        least = 2.5 * self.heartbeat + 5
        if self.orphan_grace is not None and 0 < self.orphan_grace < least:
            log.warning(
                "LLMSTREAM_ORPHAN_GRACE is %g s: a client whose line dies notices after 2.5 heartbeats, so a run "
                "that it comes back for may be stopped already; use at least %g",
                self.orphan_grace,
                least,
            )
        known = {PREFIX + key.name for key in KEYS}
        for name in os.environ:
            if name.partition("__")[0] in known:
                log.warning("the environment variable %s is not read: Flask takes it as FLASK_%s", name, name)
        for name in config:
            if name.startswith(PREFIX) and name not in known:
                log.warning("there is no configuration key %s", name)
