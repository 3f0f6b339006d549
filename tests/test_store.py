"""The store's scripts, over the embedded emulation and over a real Redis."""

import subprocess

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_llmstream import store as store_module
from flask_llmstream.store import PREFIX, Claim, EmbeddedStore, Holder, Store, digest
from tests.components import find
from tests.puppet import eventually

KEY = Claim("user:ann", "key:1", "print", lasting=True)
CLICK = Claim("user:ann", "same:print", "print", lasting=False)


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    """A Redis of one's own on a Unix socket, where it is installed. It keeps nothing on disk."""
    program = find("redis-server")
    if program is None:
        yield None
        return
    directory = tmp_path_factory.mktemp("redis")
    path = directory / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(directory)]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as process:
        eventually(path.exists)
        yield path
        process.terminate()


@pytest.fixture(params=["embedded", pytest.param("redis", marks=pytest.mark.needs("redis-server"))])
def store(request, server):
    if request.param == "embedded":
        store = EmbeddedStore()
    else:
        client = redis.Redis(unix_socket_path=str(server))
        client.flushall()
        store = Store(client)
    yield store
    store.close()


def lifetime(store, name):
    """Seconds that something lives on, as Redis has it: -1 for ever, -2 where it is gone."""
    left = store._redis.pttl(name)
    return left / 1000 if left > 0 else left


def test_the_first_one_gets_the_key(store):
    assert store.admit("r1", KEY, seconds=60) == Holder("r1", "print")


def test_the_second_one_is_told_who_has_it(store):
    store.admit("r1", KEY, seconds=60)
    assert store.admit("r2", KEY, seconds=60) == Holder("r1", "print")
    assert store.admit("r3", KEY, seconds=60) == Holder("r1", "print")


def test_with_another_request_it_is_told_that_too(store):
    store.admit("r1", KEY, seconds=60)
    other = Claim(KEY.owner, KEY.key, "another print", lasting=True)
    assert store.admit("r2", other, seconds=60) == Holder("r1", "print")


def test_the_same_key_of_another_owner_is_another_key(store):
    store.admit("r1", KEY, seconds=60)
    assert store.admit("r2", Claim("user:bob", KEY.key, "print", lasting=True), seconds=60).run_id == "r2"


def test_a_claim_that_nobody_ends_expires(store):
    store.admit("r1", KEY, seconds=60)
    assert 59 < lifetime(store, KEY.name) <= 60
    store.admit("r2", KEY, seconds=600)
    assert lifetime(store, KEY.name) <= 60, "who is turned away must not prolong it"
    store._redis.pexpire(KEY.name, 5)
    eventually(lambda: store.admit("r2", KEY, seconds=60).run_id == "r2")


def test_the_end_keeps_a_lasting_key_for_as_long_as_the_log(store):
    store.admit("r1", KEY, seconds=60)
    store.finish("r1", KEY, retention=600)
    assert 599 < lifetime(store, KEY.name) <= 600
    assert store.admit("r2", KEY, seconds=60).run_id == "r1"


def test_the_end_drops_the_key_of_a_click(store):
    store.admit("r1", CLICK, seconds=60)
    store.finish("r1", CLICK, retention=600)
    assert store.admit("r2", CLICK, seconds=60).run_id == "r2"


def test_the_end_leaves_a_key_alone_that_has_passed_on(store):
    store.admit("r1", CLICK, seconds=60)
    store.forget("r1", CLICK)
    store.admit("r2", CLICK, seconds=60)
    store.finish("r1", CLICK, retention=600)
    assert store.admit("r3", CLICK, seconds=60).run_id == "r2"


def test_a_key_that_expired_is_not_brought_back_by_the_end(store):
    store.finish("r1", KEY, retention=600)
    assert store.admit("r2", KEY, seconds=60).run_id == "r2"


def test_the_end_leaves_a_tombstone_that_only_its_owner_sees(store):
    store.admit("r1", KEY, seconds=60)
    assert not store.was_owned_by("r1", "user:ann")
    store.finish("r1", KEY, retention=600)
    assert store.was_owned_by("r1", "user:ann")
    assert not store.was_owned_by("r1", "user:bob")
    assert not store.was_owned_by("r2", "user:ann")


def test_the_tombstone_stands_longer_than_the_log(store):
    store.finish("r1", KEY, retention=600)
    (name,) = store._redis.keys(PREFIX + "ended:*")
    assert 1199 < lifetime(store, name) <= 1200


def test_forgetting_leaves_nothing(store):
    store.admit("r1", KEY, seconds=60)
    store.finish("r1", KEY, retention=600)
    store.forget("r1", KEY)
    assert store._redis.keys("*") == []


def test_forgetting_leaves_a_key_alone_that_has_passed_on(store):
    store.admit("r1", CLICK, seconds=60)
    store.finish("r1", CLICK, retention=600)
    store.admit("r2", CLICK, seconds=60)
    store.forget("r1", CLICK)
    assert store.admit("r3", CLICK, seconds=60).run_id == "r2"


def test_a_time_too_short_for_redis_is_a_short_time(store):
    """PEXPIRE with 0 deletes, and SET with PX 0 is an error."""
    store.admit("r1", KEY, seconds=0.0001)
    store.finish("r1", KEY, retention=0.0001)
    eventually(lambda: not store.was_owned_by("r1", "user:ann"))


def test_what_is_kept_names_neither_owner_nor_key(store):
    store.admit("r1", KEY, seconds=60)
    store.finish("r1", KEY, retention=60)
    names = store._redis.keys("*")
    kept = b" ".join([*names, store._redis.get(PREFIX + "ended:r1"), *store._redis.hvals(KEY.name)])
    assert len(names) == 2
    assert b"ann" not in kept and b"key:1" not in kept


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["admit", "finish", "forget"]), st.integers(1, 4)), max_size=12))
def test_any_order_of_steps_leaves_the_key_with_the_run_that_took_it_last(store, steps):
    """Against a model of it: a lasting key goes with forgetting and with nothing else."""
    store._redis.flushall()
    holder = None
    for step, number in steps:
        run_id = f"r{number}"
        if step == "admit":
            holder = holder or run_id
            assert store.admit(run_id, KEY, seconds=60).run_id == holder
        elif step == "finish":
            store.finish(run_id, KEY, retention=60)
        else:
            store.forget(run_id, KEY)
            holder = None if holder == run_id else holder
    assert store.admit("last", KEY, seconds=60).run_id == (holder or "last")


def test_names_are_told_apart_wherever_the_line_between_their_parts_is():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", "c") == digest("ab", "c")


def test_the_sweep_takes_expired_keys_out_of_the_embedded_stores_memory(monkeypatch):
    monkeypatch.setattr(store_module, "SWEEP_EVERY", 0.01)
    store = EmbeddedStore()
    memory = store._redis.connection_pool.connection_kwargs["server"].dbs[0]
    store.admit("r1", KEY, seconds=60)
    assert KEY.name.encode() in dict.keys(memory._dict)
    store._redis.pexpire(KEY.name, 1)
    eventually(lambda: KEY.name.encode() not in dict.keys(memory._dict))
    eventually(lambda: store._sweeper is None)  # an empty store has no timer
    store.admit("r2", KEY, seconds=60)
    assert store._sweeper is not None
    store.close()


def test_a_closed_store_sweeps_no_more():
    store = EmbeddedStore()
    store.admit("r1", KEY, seconds=60)
    sweeper = store._sweeper
    store.close()
    assert sweeper.action is None
