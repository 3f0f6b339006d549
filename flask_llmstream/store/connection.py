"""Connects to Redis or Valkey as an address says, with time-outs of our own.

    redis://user:password@host:6379/0        rediss:// over TLS, unix:///path/to/socket?db=0
    redis+sentinel://host:26379,host:26379/name/0        a master that Sentinels name; rediss+sentinel:// over TLS

`valkey` may stand for `redis`. What follows a question mark are options of redis-py's connections, such as
``ssl_ca_certs``; ``sentinel_username`` and ``sentinel_password`` are those of the Sentinels.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import ConnectionError as NotConnected
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from ..errors import ConfigurationError

POOL = 8
"""Connections for commands that a process has at most; those who find none free wait."""
RESERVED = 2
"""How many of these are for what is urgent alone."""
MORE = 8
"""Connections beside these: for the subscriptions and the leases."""
PATIENCE = 2.0
"""Seconds to wait for a connection that is free."""
URGENT_PATIENCE = 0.5
"""The same for what is urgent, the end of a run: readers hear of it within two seconds, so it is better tried again."""
CONNECT_TIMEOUT = 1.0
ANSWER_TIMEOUT = 1.5
"""Seconds. redis-py would try for a minute, with its own time-outs and retries."""
HEALTH_CHECK = 15.0
"""Seconds; a connection that was idle for longer is tried before it is used."""
SENTINEL_TIMEOUT = 0.5
"""Seconds; several that do not answer are asked one after the other, and twice, before a start is refused."""
SENTINEL_PORT = 26379

EXAMPLES = "such as redis://127.0.0.1:6379/0 or redis+sentinel://host1,host2/mymaster/0"


def connect(url: str) -> Any:
    """A client for the server at an address; it connects when it is first used.

    :raises ConfigurationError: the address is none.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower().replace("valkey", "redis")
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": ANSWER_TIMEOUT,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK,
        # A connection that has died in the pool is replaced; every step that we take may be repeated.
        "retry": Retry(NoBackoff(), 1, supported_errors=(NotConnected,)),
        "protocol": 2,
        "client_name": "llmstream",
        "max_connections": POOL + MORE,
    }
    if scheme == "unix":
        del options["socket_keepalive"]
    try:
        if scheme in ("redis+sentinel", "rediss+sentinel"):
            return Redis(connection_pool=_sentinels(scheme.removesuffix("+sentinel"), rest, options))
        if scheme in ("redis", "rediss", "unix"):
            return Redis(connection_pool=ConnectionPool.from_url(f"{scheme}://{rest}", **options))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"LLMSTREAM_REDIS_URL is not usable: {error}. Give it one {EXAMPLES}.") from None
    raise ConfigurationError(f"LLMSTREAM_REDIS_URL must be an address {EXAMPLES}.")


def reason(error: Exception) -> str:
    """What Redis said, or what kept it from saying anything. Of Sentinels that name no master, redis-py lists the whole
    of its clients as well."""
    return str(error).partition(" : <")[0]


def _sentinels(scheme: str, rest: str, options: dict[str, Any]) -> SentinelConnectionPool:
    parts = urlsplit(f"{scheme}://{rest}")
    login, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service or not hosts:
        raise ValueError("an address of Sentinels ends in the name of their master")
    query = dict(parse_qsl(parts.query))
    own = {name: query.pop("sentinel_" + name) for name in ("username", "password") if "sentinel_" + name in query}
    # redis-py knows what kind of value each option has, and does so for an address of a single server.
    given = "&".join(f"{name}={value}" for name, value in query.items())
    known = parse_url(f"{scheme}://{login + '@' if login else ''}host/{database}?{given}")  # type: ignore[no-untyped-call]
    options = {**options, **known}
    for name in ("host", "port", "connection_class"):
        options.pop(name, None)
    for_sentinels = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_", "retry"))}
    for_sentinels |= {"protocol": 2, "ssl": scheme == "rediss", **own}
    for name in ("socket_connect_timeout", "socket_timeout"):
        if name not in known:
            for_sentinels[name] = SENTINEL_TIMEOUT
    addresses = [_address(host) for host in hosts.split(",")]
    sentinel = Sentinel(addresses, sentinel_kwargs=for_sentinels)  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(service, sentinel, ssl=scheme == "rediss", **options)  # type: ignore[no-untyped-call]


def _address(host: str) -> tuple[str, int]:
    parts = urlsplit(f"//{unquote(host)}")
    if not parts.hostname:
        raise ValueError(f"{host!r} is no host")
    return parts.hostname, parts.port or SENTINEL_PORT
