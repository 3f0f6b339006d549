"""The one connection of a process on which it hears what others publish, over a real Redis."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import closing

import pytest

from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.store import RedisStore, subscriptions
from flask_llmstream.store.subscriptions import ACKNOWLEDGED_WITHIN
from tests.puppet import PATIENCE, eventually
from tests.redis_server import RedisServer

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A busy machine's Redis is there all the same."""
    monkeypatch.setattr(subscriptions, "ACKNOWLEDGED_WITHIN", PATIENCE)


@pytest.fixture
def store(redis_server):
    with closing(RedisStore(redis_server.url, "llmstream:")) as store:
        yield store


@pytest.fixture
def own():
    with RedisServer() as server:
        yield server


class Ear:
    """Somebody who hears a channel."""

    def __init__(self):
        self.heard = []
        self.lost = 0

    def lose(self):
        self.lost += 1

    def subscribe(self, store, channel="a"):
        return store.subscribe(channel, self.heard.append, lost=self.lose)


def publish(server, message="hello", channel="a"):
    """How many connections it has reached."""
    return server.client().publish(channel, message)


# Acknowledged


def test_whoever_has_subscribed_hears_all_from_then_on(store, redis_server):
    for n in range(20):
        ear = Ear()
        subscription = ear.subscribe(store, f"channel {n}")
        assert publish(redis_server, channel=f"channel {n}") == 1
        eventually(lambda ear=ear: ear.heard == [b"hello"])
        assert ear.lost == 0
        subscription.close()


def test_what_comes_in_the_order_in_which_it_was_published(store, redis_server):
    ear = Ear()
    subscription = ear.subscribe(store)
    said = [b"%d" % n for n in range(500)]
    pipeline = redis_server.client().pipeline(transaction=False)
    for one in said:
        pipeline.publish("a", one)
    pipeline.execute()
    eventually(lambda: len(ear.heard) == 500)
    assert ear.heard == said
    subscription.close()


def test_it_is_refused_where_nobody_answers(own, monkeypatch):
    monkeypatch.setattr(subscriptions, "ACKNOWLEDGED_WITHIN", 0.1)
    with closing(RedisStore(own.url, "llmstream:")) as store, own.paused():
        with pytest.raises(StoreUnavailable) as refused:
            Ear().subscribe(store)
        assert "acknowledged" in refused.value.diagnosis
        assert store._subscriptions._channels == {}


def test_the_second_of_a_channel_waits_for_the_acknowledgement_too(own):
    """Or it would read a log before it hears what is added to it."""
    with closing(RedisStore(own.url, "llmstream:")) as store:
        Ear().subscribe(store, "other")
        done = []
        threads = [threading.Thread(target=lambda: done.append(Ear().subscribe(store))) for _ in range(3)]
        with own.paused():
            for thread in threads:
                thread.start()
            eventually(lambda: len(store._subscriptions._channels["a"].waiting) == 3)
            assert done == []
        for thread in threads:
            thread.join(PATIENCE)
        assert len(done) == 3
        for subscription in done:
            subscription.close()


# One connection


def test_many_channels_have_one_connection(store, redis_server):
    ears = {f"channel {n}": Ear() for n in range(50)}
    made = []

    def subscribe(channel, ear):
        made.append(ear.subscribe(store, channel))

    threads = [threading.Thread(target=subscribe, args=pair) for pair in ears.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert redis_server.connections()["pubsub"] == 1
    for channel in ears:
        publish(redis_server, channel, channel)
    eventually(lambda: all(ear.heard == [channel.encode()] for channel, ear in ears.items()))
    for subscription in made:
        subscription.close()
    eventually(lambda: redis_server.channels() == [])


def test_a_channel_that_nobody_hears_any_more_is_left(store, redis_server):
    one, other = Ear(), Ear()
    first, second = one.subscribe(store), other.subscribe(store)
    first.close()
    assert publish(redis_server) == 1
    eventually(lambda: other.heard)
    second.close()
    eventually(lambda: publish(redis_server) == 0)
    assert one.heard == []


def test_whoever_fails_to_take_something_keeps_nobody_else_from_it(store, redis_server, caplog):
    def fail(message):
        raise ZeroDivisionError

    ear = Ear()
    broken, whole = store.subscribe("a", fail), ear.subscribe(store)
    publish(redis_server)
    publish(redis_server)
    eventually(lambda: len(ear.heard) == 2)
    assert "ZeroDivisionError" in caplog.text
    broken.close()
    whole.close()


def test_one_and_the_same_receiver_may_hear_a_channel_twice(store, redis_server):
    ear = Ear()
    first, second = ear.subscribe(store), ear.subscribe(store)
    publish(redis_server)
    eventually(lambda: len(ear.heard) == 2)
    first.close()
    publish(redis_server)
    eventually(lambda: len(ear.heard) == 3)
    second.close()


# Quickly off and on again


def test_who_comes_back_at_once_hears_all_or_is_told(store, redis_server):
    """Acknowledgements of what was left meanwhile must not be taken for one's own."""
    for n in range(100):
        Ear().subscribe(store).close()
        ear = Ear()
        subscription = ear.subscribe(store)
        publish(redis_server, str(n))
        eventually(lambda ear=ear: ear.heard or ear.lost)
        subscription.close()
    eventually(lambda: redis_server.channels() == [])


def test_many_who_come_and_go_at_once_leave_nothing(store, redis_server):
    def come_and_go():
        for _ in range(50):
            ear = Ear()
            subscription = ear.subscribe(store)
            publish(redis_server)
            eventually(lambda ear=ear: ear.heard or ear.lost)
            subscription.close()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE)
    assert store._subscriptions._channels == {}
    eventually(lambda: redis_server.channels() == [])
    last = Ear()
    subscription = last.subscribe(store)
    publish(redis_server)
    eventually(lambda: last.heard)
    subscription.close()


# Broken


def hears_again(server, ear, channel="a"):
    before = len(ear.heard)
    eventually(lambda: publish(server, "again", channel) and len(ear.heard) > before)


def test_a_connection_that_is_killed_is_made_anew_and_all_are_told(store, redis_server, caplog):
    ears = {channel: Ear() for channel in ("a", "b")}
    made = [ear.subscribe(store, channel) for channel, ear in ears.items()]
    redis_server.client().client_kill_filter(_type="pubsub")
    eventually(lambda: all(ear.lost for ear in ears.values()))
    for channel, ear in ears.items():
        hears_again(redis_server, ear, channel)
    assert redis_server.connections()["pubsub"] == 1
    assert "is lost" in caplog.text
    for subscription in made:
        subscription.close()


def test_a_restart_of_redis_is_survived(own):
    with closing(RedisStore(own.url, "llmstream:")) as store:
        ear = Ear()
        subscription = ear.subscribe(store)
        own.restart()
        eventually(lambda: ear.lost)
        hears_again(own, ear)
        subscription.close()


def test_however_often_it_breaks(own, monkeypatch):
    """A connection that has failed must not count for ever: there is a most of them that a pool makes."""
    monkeypatch.setattr(subscriptions, "BACKOFF_MOST", 0.01)
    with closing(RedisStore(own.url, "llmstream:")) as store:
        ear = Ear()
        subscription = ear.subscribe(store)
        tries = Counter()
        connect = store._subscriptions._connect
        store._subscriptions._connect = lambda: tries.update("x") or connect()
        own.kill()
        eventually(lambda: tries["x"] > 40)
        own.start()
        hears_again(own, ear)
        assert store.command("PING")
        subscription.close()


def test_who_subscribes_while_it_is_broken_is_heard_when_it_is_whole(own, monkeypatch):
    monkeypatch.setattr(subscriptions, "ACKNOWLEDGED_WITHIN", 2 * PATIENCE)
    with closing(RedisStore(own.url, "llmstream:")) as store:
        first = Ear().subscribe(store, "b")
        own.kill()
        ear, made = Ear(), []
        thread = threading.Thread(target=lambda: made.append(ear.subscribe(store)))
        thread.start()
        eventually(lambda: "a" in store._subscriptions._channels)
        own.start()
        thread.join(2 * PATIENCE)
        assert publish(own) == 1
        eventually(lambda: ear.heard)
        made[0].close()
        first.close()


def test_who_leaves_while_it_is_broken_is_gone_when_it_is_whole(own):
    with closing(RedisStore(own.url, "llmstream:")) as store:
        left, stayed = Ear(), Ear()
        leaving, staying = left.subscribe(store, "a"), stayed.subscribe(store, "b")
        own.kill()
        leaving.close()
        own.start()
        hears_again(own, stayed, "b")
        assert own.channels() == ["b"]
        staying.close()


def test_a_silent_connection_is_tried_and_one_that_is_dead_is_given_up(own, monkeypatch):
    """What a firewall has forgotten sends no reset."""
    monkeypatch.setattr(subscriptions, "PING_EVERY", 0.05)
    with closing(RedisStore(own.url, "llmstream:")) as store:
        ear = Ear()
        subscription = ear.subscribe(store)
        eventually(lambda: own.commands()["ping"] >= 2)
        assert ear.lost == 0
        with own.paused():
            eventually(lambda: store._subscriptions._connection is None)
        eventually(lambda: ear.lost)
        hears_again(own, ear)
        subscription.close()


def test_kills_while_others_come_and_go_leave_nobody_deaf(store, redis_server, monkeypatch):
    monkeypatch.setattr(subscriptions, "BACKOFF", 0.001)
    monkeypatch.setattr(subscriptions, "ACKNOWLEDGED_WITHIN", PATIENCE)
    ears = [Ear() for _ in range(5)]
    stay = [ear.subscribe(store, f"stays {n}") for n, ear in enumerate(ears)]
    over = threading.Event()

    def come_and_go(name):
        while not over.is_set():
            Ear().subscribe(store, name).close()

    threads = [threading.Thread(target=come_and_go, args=(f"goes {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        redis_server.client().client_kill_filter(_type="pubsub")
        time.sleep(0.005)
    over.set()
    for thread in threads:
        thread.join(PATIENCE)
    for n, ear in enumerate(ears):
        hears_again(redis_server, ear, f"stays {n}")
    eventually(lambda: redis_server.channels() == [f"stays {n}" for n in range(5)])
    for subscription in stay:
        subscription.close()


def test_closing_ends_its_thread_and_complains_of_nothing(own, caplog):
    store = RedisStore(own.url, "llmstream:")
    before = set(threading.enumerate())
    Ear().subscribe(store)
    store.close()
    eventually(lambda: set(threading.enumerate()) <= before)
    assert own.connections().total() == 0
    assert caplog.records == []


def test_closing_while_redis_is_away_ends_its_thread_too(own):
    store = RedisStore(own.url, "llmstream:")
    before = set(threading.enumerate())
    Ear().subscribe(store)
    own.kill()
    store.close()
    eventually(lambda: set(threading.enumerate()) <= before)


def test_after_closing_nobody_waits_for_an_acknowledgement(own):
    store = RedisStore(own.url, "llmstream:")
    Ear().subscribe(store)
    store.close()
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        Ear().subscribe(store)
    assert time.monotonic() - begun < ACKNOWLEDGED_WITHIN
