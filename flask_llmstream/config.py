"""Every configuration key, with its default: deployment facts, read once for each application, in `init_app`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .admission import Quota, WhenBusy
from .errors import ConfigurationError
from .providers import Timeouts
from .usage import Prices
from .values import (
    SocketTimeouts,
    address,
    count,
    count_from_zero,
    flag,
    folder,
    log_size,
    names,
    one_of,
    optional,
    origins,
    positive_seconds,
    prefix,
    prices,
    quota,
    seconds,
    text,
    timeouts,
)

log = logging.getLogger("flask_llmstream")

PREFIX = "LLMSTREAM_"
WRITE_TIMEOUT = 30.0


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
        "(600); `write` (30), for a client that does not read; and of WebSockets `ping` (20), how often they are asked "
        "for a sign of life, `quiet` (300), how long a call may last in which nobody says anything, and `call` (3600), "
        "in all. null waits for ever.",
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
    socket_timeouts: SocketTimeouts
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
        given = {field.name: limits.pop(field.name) for field in fields(SocketTimeouts) if field.name in limits}
        values["socket_timeouts"] = SocketTimeouts(**given)
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
