"""The one door to Redis: over the embedded emulation and over a real server, and what it says when Redis cannot."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from flask_llmstream import store as store_module
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.ledger import Ledger
from flask_llmstream.store import EmbeddedStore, RedisStore, Store, digest
from flask_llmstream.store.connection import POOL, RESERVED
from tests.orders import OWNER, admit
from tests.puppet import PATIENCE, eventually
from tests.redis_server import Account, RedisServer

PREFIX = "llmstream:"


def ledger(store: Store) -> Ledger:
    return Ledger(store, retention=600, lease=60)


def start(store, run_id="r1"):
    """Something that is carried out by a script."""
    return admit(ledger(store), run_id)


def feed(store):
    return store.key("feed", digest(OWNER))


# What it does, whatever is behind it


def test_the_names_of_keys_begin_with_the_prefix(store):
    assert store.key("run", "r1") == "llmstream:run:r1"
    start(store)
    assert all(name.startswith(PREFIX.encode()) for name in store.command("KEYS", "*"))


def test_commands_go_together_and_their_replies_come_in_order(store):
    replies = store.commands(("SET", store.key("a"), "1"), ("GET", store.key("a")), ("GET", store.key("b")))
    assert replies[1:] == [b"1", None]


def test_a_script_is_carried_out(store):
    assert start(store).verdict == "admitted"
    assert store.command("EXISTS", store.key("run", "r1")) == 1


def test_a_script_that_redis_has_forgotten_is_sent_again(store):
    start(store)
    store.command("SCRIPT", "FLUSH")
    assert start(store, "r2").verdict == "admitted"


@pytest.mark.needs("redis-server")
def test_a_script_is_sent_once_however_often_it_is_carried_out(own, connected):
    store = connected(own.url)
    for number in range(5):
        start(store, f"r{number}")
    calls = own.client().info("commandstats")
    assert (calls["cmdstat_script|load"]["calls"], calls["cmdstat_evalsha"]["calls"]) == (1, 6)


@pytest.mark.parametrize("script", sorted(Path(store_module.__file__).parent.glob("*.lua")), ids=lambda path: path.stem)
def test_a_script_is_headed_by_its_keys_and_arguments(script):
    lines = script.read_text().splitlines()
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("--"), lines))
    body = "\n".join(lines).removeprefix(head)
    named = set(re.findall(r"^-- ((?:KEYS|ARGV)\[\d+)", head, re.MULTILINE))
    used = set(re.findall(r"(?:KEYS|ARGV)\[\d+", body))
    assert used <= named
    assert ("KEYS[" in body, "ARGV[" in body) == ("KEYS[" in head, "ARGV[" in head)


def test_what_is_published_is_heard(store):
    heard = []
    subscription = store.subscribe(feed(store), heard.append)
    start(store)
    eventually(lambda: heard)
    assert heard[0].partition(b" ")[2].startswith(b'{"started":{"id":"r1"')
    subscription.close()


def test_each_who_subscribes_hears_it_until_they_close(store):
    heard = {1: [], 2: []}
    first = store.subscribe(feed(store), heard[1].append)
    second = store.subscribe(feed(store), heard[2].append)
    start(store)
    eventually(lambda: heard[1] and heard[2])
    first.close()
    first.close()
    start(store, "r2")
    eventually(lambda: len(heard[2]) == 2)
    assert len(heard[1]) == 1
    second.close()
    start(store, "r3")
    third = store.subscribe(feed(store), heard[1].append)
    start(store, "r4")
    eventually(lambda: len(heard[1]) == 2)
    assert len(heard[2]) == 2
    third.close()


def test_other_channels_are_not_heard(store):
    heard = []
    subscription = store.subscribe(feed(store) + "x", heard.append)
    other = store.subscribe(feed(store), lambda message: heard.append(b"feed"))
    start(store)
    eventually(lambda: heard)
    assert heard == [b"feed"]
    subscription.close()
    other.close()


def test_a_mistake_of_this_program_is_no_fault_of_redis(store):
    store.command("SET", store.key("leases"), "no sorted set")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.command("ZCARD", store.key("leases"))


def test_a_process_has_a_name_of_its_own_also_after_a_fork(store, monkeypatch):
    name = store.process
    assert store.process == name
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert store.process != name


def test_names_are_told_apart_wherever_the_line_between_their_parts_is():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", "c") == digest("ab", "c")


# The embedded one


def test_the_sweep_takes_expired_keys_out_of_the_embedded_stores_memory(monkeypatch):
    monkeypatch.setattr(store_module, "SWEEP_EVERY", 0.01)
    store = EmbeddedStore()
    memory = store._redis.connection_pool.connection_kwargs["server"].dbs[0]
    start(store)
    assert dict.keys(memory._dict)
    for name in store.command("KEYS", "*"):
        store.command("PEXPIRE", name, 1)
    eventually(lambda: not dict.keys(memory._dict))
    eventually(lambda: store._sweeper is None)  # an empty store has no timer
    start(store, "r2")
    assert store._sweeper is not None
    store.close()


def test_a_closed_store_sweeps_no_more():
    store = EmbeddedStore()
    start(store)
    sweeper = store._sweeper
    store.close()
    assert sweeper.action is None


def test_what_one_hears_in_the_embedded_store_may_lead_to_more():
    """A receiver may carry out a script itself: what that publishes is heard as well."""
    store = EmbeddedStore()
    heard = []

    def receive(message):
        heard.append(message)
        if len(heard) == 1:
            start(store, "r2")

    subscription = store.subscribe(feed(store), receive)
    start(store)
    assert [b'"r1"' in heard[0], b'"r2"' in heard[1]] == [True, True]
    subscription.close()
    store.close()


# When Redis cannot


def refused(store, *, within):
    """The diagnosis with which a store refuses, in time."""
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable) as refusal:
        store.command("SET", store.key("a"), "1")
    assert time.monotonic() - begun < within
    assert refusal.value.retry_after == 2.0
    return refusal.value.diagnosis


@pytest.fixture
def own():
    """A Redis of the test's own, and stores over it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def connected():
    """Makes stores, and closes them."""
    made = []

    def connected(url):
        made.append(RedisStore(url, PREFIX))
        return made[-1]

    yield connected
    for store in made:
        store.close()


@pytest.mark.needs("redis-server")
def test_a_redis_that_is_gone_is_told_at_once_and_found_again(own, connected):
    store = connected(own.url)
    store.command("SET", store.key("a"), "1")
    own.kill()
    assert "refused" in refused(store, within=1)
    own.start()
    assert store.command("GET", store.key("a")) is None


@pytest.mark.needs("redis-server")
def test_a_connection_that_died_in_the_pool_is_replaced_without_a_word(own, connected):
    store = connected(own.url)
    store.command("SET", store.key("a"), "1")
    own.client().client_kill_filter(_type="normal", skipme=True)
    assert store.command("GET", store.key("a")) == b"1"


@pytest.mark.needs("redis-server")
def test_a_redis_that_does_not_answer_is_given_up_in_time(own, connected):
    store = connected(own.url)
    store.command("SET", store.key("a"), "1")
    with own.paused():
        assert "Timeout" in refused(store, within=1.9)
    assert store.command("GET", store.key("a")) == b"1"


@pytest.mark.needs("redis-server")
def test_a_redis_out_of_memory_is_a_fault_of_its_own(connected):
    with RedisServer(maxmemory="1mb", maxmemory_policy="noeviction") as server:
        store = connected(server.url)
        server.client().config_set("maxmemory", "1")
        assert "memory" in refused(store, within=1)
        with pytest.raises(StoreUnavailable):
            start(store)
        server.client().config_set("maxmemory", "0")
        assert start(store).verdict == "admitted"


@pytest.mark.parametrize("code", ["OOM", "READONLY", "MISCONF"])
def test_what_a_script_meets_is_told_apart_as_redis_6_words_it(store, code, monkeypatch):
    said = f"Error running script (call to f_8b66): @user_script:163: @user_script: 163: -{code} command not allowed"

    def fail(script):
        raise ResponseError(said)

    monkeypatch.setattr(store, "_script", fail)
    with pytest.raises(StoreUnavailable):
        start(store)


def test_sentinels_that_name_no_master_are_told_of_in_few_words(connected, caplog):
    """redis-py's own words have a kilobyte, and stand in the log with each request."""
    store = connected("redis+sentinel://127.0.0.1:1,127.0.0.1:2/mymaster")
    with pytest.raises(StoreUnavailable) as refusal:
        store.command("PING")
    assert refusal.value.diagnosis == "Redis: No master found for 'mymaster'"
    with pytest.raises(StoreUnavailable):
        store.subscribe(store.key("channel"), print)
    [told] = caplog.messages
    assert told.endswith("is lost: No master found for 'mymaster'")


@pytest.mark.needs("redis-server")
def test_a_replica_is_none_to_write_to(own, connected):
    with RedisServer(replica_of=own) as replica:
        eventually(lambda: replica.client().info("replication")["master_link_status"] == "up")
        store = connected(replica.url)
        assert "read only" in refused(store, within=1)
        with pytest.raises(StoreUnavailable):
            start(store)


@pytest.mark.needs("redis-server")
def test_a_master_that_nobody_copies_may_refuse_to_write(own, connected):
    own.client().config_set("min-replicas-to-write", "1")
    assert "NOREPLICAS" in refused(connected(own.url), within=1)


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(
    ("url", "word"),
    [("redis://wrong:password@127.0.0.1:{port}/0", "invalid"), ("redis://127.0.0.1:{port}/0", "uthentication")],
    ids=["wrong", "none"],
)
def test_a_password_that_is_not_taken(url, word, connected):
    with RedisServer(account=Account("secret", name="app")) as server:
        assert word in refused(connected(url.format(port=server.port)), within=1)


@pytest.mark.needs("redis-server")
def test_a_user_who_may_not_is_told_apart(connected):
    with RedisServer(account=Account("secret", name="app", rules="~other:* &* +@all")) as server:
        assert "permission" in refused(connected(server.url), within=1)


@pytest.mark.needs("redis-server")
def test_a_user_who_may_use_the_prefix_alone_is_enough(connected):
    """What docs say to give it: keys and channels under the prefix, and no more."""
    with RedisServer(account=Account("secret", name="app", rules=f"~{PREFIX}* &{PREFIX}* +@all")) as server:
        store, heard = connected(server.url), []
        subscription = store.subscribe(feed(store), heard.append)
        assert start(store).verdict == "admitted"
        eventually(lambda: heard)
        subscription.close()


@pytest.mark.needs("redis-server")
def test_who_finds_no_connection_free_waits_for_one_but_not_for_ever(own, connected, monkeypatch):
    store = connected(own.url)
    store.command("SET", store.key("a"), "1")
    with own.paused():
        waiting = [threading.Thread(target=store.command, args=("PING",)) for _ in range(POOL - RESERVED)]
        for thread in waiting:
            thread.start()
        eventually(lambda: store._places._value == 0)
        monkeypatch.setattr("flask_llmstream.store.PATIENCE", 0.05)
        with pytest.raises(StoreUnavailable, match="keep track") as refusal:
            store.command("PING")
        assert "taken" in refusal.value.diagnosis
    for thread in waiting:
        thread.join(PATIENCE)


@pytest.mark.needs("redis-server")
def test_what_is_urgent_finds_a_connection_where_the_others_wait(own, connected):
    store = connected(own.url)
    for _ in range(POOL - RESERVED):
        store._places.acquire()
    store.call("touch", [store.key("run", "r1")], [], urgent=True)
    for _ in range(RESERVED):
        store._reserved.acquire()
    with pytest.raises(StoreUnavailable) as refusal:
        store.call("touch", [store.key("run", "r1")], [], urgent=True)
    assert "taken" in refusal.value.diagnosis


@pytest.mark.needs("redis-server")
def test_many_at_once_share_a_handful_of_connections(own, connected):
    store, together, said = connected(own.url), threading.Barrier(40), []

    def work():
        together.wait(PATIENCE)
        said.append(store.command("ECHO", "a"))

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert said == [b"a"] * 40
    assert own.connections()["normal"] <= POOL


@pytest.mark.needs("redis-server")
def test_a_closed_store_gives_back_its_connections(own):
    store = RedisStore(own.url, PREFIX)
    store.command("PING")
    store.subscribe("a", lambda message: None)
    assert own.connections().total() == 2
    store.close()
    eventually(lambda: own.connections().total() == 0)


@pytest.mark.needs("redis-server")
def test_one_alone_has_connections_of_its_own(own, connected):
    store = connected(own.url)
    other = store.alone()
    store.command("PING")
    other.command("PING")
    assert own.connections()["normal"] == 2
    other.close()
    eventually(lambda: own.connections()["normal"] == 1)
    assert store.command("PING")
