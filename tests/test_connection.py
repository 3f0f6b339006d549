"""Addresses of Redis: what they may be, what is refused, and that time-outs are our own."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, closing

import pytest
from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.sentinel import MasterNotFoundError, SentinelManagedSSLConnection

from flask_llmstream.errors import ConfigurationError, StoreUnavailable
from flask_llmstream.store import RedisStore
from flask_llmstream.store.connection import (
    ANSWER_TIMEOUT,
    CONNECT_TIMEOUT,
    HEALTH_CHECK,
    MORE,
    POOL,
    SENTINEL_PORT,
    SENTINEL_TIMEOUT,
    connect,
)
from tests.puppet import PATIENCE, eventually
from tests.redis_server import Account, RedisServer


def options(url):
    """What the connections to an address are made with."""
    return connect(url).connection_pool.connection_kwargs


@pytest.mark.parametrize("name", ["redis", "valkey", "REDIS"])
def test_one_server(name):
    given = options(f"{name}://127.0.0.1:6380/3")
    assert (given["host"], given["port"], given["db"]) == ("127.0.0.1", 6380, 3)


def test_its_user_and_password_may_hold_any_character():
    given = options("redis://the%20app:p%40ss%2Fword@host/0")
    assert (given["username"], given["password"]) == ("the app", "p@ss/word")


@pytest.mark.parametrize("name", ["rediss", "valkeys"])
def test_over_tls(name):
    pool = connect(f"{name}://host:6380/0?ssl_ca_certs=/etc/ca.pem").connection_pool
    assert pool.connection_class is SSLConnection
    assert pool.connection_kwargs["ssl_ca_certs"] == "/etc/ca.pem"


@pytest.mark.parametrize("name", ["unix"])
def test_over_a_unix_socket(name):
    pool = connect(f"{name}://:secret@/run/redis.sock?db=2").connection_pool
    assert pool.connection_class is UnixDomainSocketConnection
    given = pool.connection_kwargs
    assert (given["path"], given["db"], given["password"]) == ("/run/redis.sock", 2, "secret")


def sentinels(url):
    pool = connect(url).connection_pool
    hosts = [client.connection_pool.connection_kwargs for client in pool.sentinel_manager.sentinels]
    return pool, hosts


@pytest.mark.parametrize("name", ["redis+sentinel", "valkey+sentinel"])
def test_a_master_that_sentinels_name(name):
    pool, hosts = sentinels(f"{name}://app:secret@one:26380,two,%5B::1%5D:26381/mymaster/2")
    assert pool.service_name == "mymaster" and pool.is_master
    assert [(host["host"], host["port"]) for host in hosts] == [("one", 26380), ("two", SENTINEL_PORT), ("::1", 26381)]
    given = pool.connection_kwargs
    assert (given["username"], given["password"], given["db"]) == ("app", "secret", 2)
    assert all(host.get("password") is None for host in hosts)


def test_sentinels_have_credentials_of_their_own():
    url = "redis+sentinel://app:secret@one/mymaster?sentinel_username=watcher&sentinel_password=p%40ss"
    pool, ((host),) = sentinels(url)
    assert (host["username"], host["password"]) == ("watcher", "p@ss")
    assert pool.connection_kwargs["password"] == "secret" and "db" not in pool.connection_kwargs


def test_sentinels_over_tls():
    pool, ((host),) = sentinels("rediss+sentinel://one/mymaster/0?ssl_ca_certs=/etc/ca.pem")
    assert pool.connection_class is SentinelManagedSSLConnection
    assert pool.connection_kwargs["ssl_ca_certs"] == host["ssl_ca_certs"] == "/etc/ca.pem"


@pytest.mark.parametrize("url", ["redis://host/0", "rediss://host/0", "unix:///run/redis.sock", "redis+sentinel://h/m"])
def test_the_time_outs_are_our_own(url):
    given = options(url)
    assert given["socket_connect_timeout"] == CONNECT_TIMEOUT
    assert given["socket_timeout"] == ANSWER_TIMEOUT
    assert given["health_check_interval"] == HEALTH_CHECK
    assert connect(url).connection_pool.max_connections == POOL + MORE


def test_sentinels_get_less_time_since_several_may_be_gone():
    _, ((host),) = sentinels("redis+sentinel://one/mymaster")
    assert (host["socket_connect_timeout"], host["socket_timeout"]) == (SENTINEL_TIMEOUT, SENTINEL_TIMEOUT)
    _, ((host),) = sentinels("redis+sentinel://one/mymaster?socket_timeout=3")
    assert (host["socket_connect_timeout"], host["socket_timeout"]) == (SENTINEL_TIMEOUT, 3)


def test_sentinels_that_do_not_answer_are_given_up():
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{server.getsockname()[1]}" for server in silent)
        client = connect(f"redis+sentinel://{hosts}/mymaster")
        begun = time.monotonic()
        with pytest.raises(MasterNotFoundError):
            client.ping()
        assert time.monotonic() - begun < 2 * 3 * SENTINEL_TIMEOUT + 1
        client.close()


def test_options_of_the_connections_may_be_given():
    given = options("redis://host/0?socket_timeout=0.5&client_name=shop")
    assert (given["socket_timeout"], given["client_name"]) == (0.5, "shop")
    given = options("redis+sentinel://host/mymaster?socket_timeout=0.5")
    assert given["socket_timeout"] == 0.5


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:6379",
        "http://host",
        "redis+cluster://host",
        "redis://host:port/0",
        "redis://host/0?socket_timeout=soon",
        "redis+sentinel://host",
        "redis+sentinel:///mymaster",
        "redis+sentinel://one,,two/mymaster",
        "redis+sentinel://one:port/mymaster",
    ],
)
def test_an_address_that_is_none_is_refused_with_one_that_would_do(url):
    with pytest.raises(ConfigurationError) as refused:
        connect(url)
    assert refused.value.detail.startswith("LLMSTREAM_REDIS_URL")
    assert "redis://127.0.0.1:6379/0 or redis+sentinel://" in refused.value.detail


def test_making_one_connects_to_nobody():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        connect(f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_server_that_takes_connections_and_says_nothing_is_given_up():
    """Such as a Redis that is stopped: its kernel accepts in its name."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = RedisStore(f"redis://127.0.0.1:{listener.getsockname()[1]}/0?socket_timeout=0.2", "llmstream:")
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.command("PING")
        assert time.monotonic() - begun < 1
        store.close()


def test_a_host_that_does_not_answer_is_given_up():
    """A listener whose queue is full drops what comes, as a host does that is switched off."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        store = RedisStore(f"redis://127.0.0.1:{address[1]}/0?socket_connect_timeout=0.2", "llmstream:")
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.command("PING")
        assert time.monotonic() - begun < 1
        store.close()
        for one in waiting:
            one.close()


def works(url):
    """Whether commands, scripts' channels and all go through an address."""
    with closing(RedisStore(url, "llmstream:")) as store:
        heard = []
        store.command("PING")
        subscription = store.subscribe(store.key("a"), heard.append)
        store.command("PUBLISH", store.key("a"), "hello")
        eventually(lambda: heard)
        subscription.close()
        return heard == [b"hello"]


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("account", [None, Account("p@ss/word"), Account("p@ss:w%rd", name="the-app")], ids=str)
@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_real_servers(transport, account):
    with RedisServer(transport=transport, account=account) as server:
        assert works(server.url)


@pytest.mark.needs("redis-tls")
def test_a_real_server_over_tls():
    with RedisServer(transport="tls", account=Account("secret", name="app")) as server:
        assert works(server.url)
        with pytest.raises(StoreUnavailable, match="keep track") as refused:
            works(server.url.partition("?")[0])
        assert "certificate" in refused.value.diagnosis.lower()


@pytest.mark.needs("redis-server")
def test_our_connections_are_named_so_that_an_operator_knows_them(redis_server):
    store = RedisStore(redis_server.url, "llmstream:")
    store.command("PING")
    assert "llmstream" in [client["name"] for client in redis_server.client().client_list()]
    store.close()


def test_a_connection_is_made_by_whoever_needs_it_first():
    """Many at the start of a process do not each make a store's subscriptions."""
    store, made = RedisStore("redis://127.0.0.1:1/0", "llmstream:"), []
    together = threading.Barrier(8)

    def ask():
        together.wait(PATIENCE)
        made.append(store._subscriptions)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, made))) == 1
    store.close()
