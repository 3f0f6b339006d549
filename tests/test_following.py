"""Following feeds over a store: what is told there is heard once and in order, also across breaks and restarts."""

from __future__ import annotations

import json
import threading
from time import monotonic

import pytest

from flask_llmstream import following as following_module
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.feed import KEPT, START, Feed
from flask_llmstream.following import Following
from flask_llmstream.ledger import Ledger
from flask_llmstream.store import RedisStore, Subscription
from tests.orders import OWNER, about_of, admit, claim_of, ending
from tests.puppet import PATIENCE, eventually
from tests.redis_server import RedisServer

REFRESH = 3600.0
"""Seconds: so that nothing is found by being read again now and then, unless a test is about that."""


def kinds(entries):
    """What entries say, and of which run."""
    return [(kind, about["id"]) for entry in entries for kind, about in json.loads(entry.payload).items()]


@pytest.fixture
def ledger(store):
    return Ledger(store, retention=60, lease=8)


@pytest.fixture
def feeds(store):
    feeds = Following(store, refresh=REFRESH)
    yield feeds
    assert len(feeds) == 0, "a reader was not closed"
    assert feeds._timer is None
    feeds.close()


@pytest.fixture
def reader(feeds):
    """One that knows how things stand at the beginning."""
    reader = feeds.read(OWNER)
    assert reader.take() is None
    reader.resume(reader.end)
    yield reader
    reader.close()


def heard(reader, n):
    """The next entries of a reader, who waits for them."""
    got, deadline = [], monotonic() + PATIENCE
    while len(got) < n:
        assert monotonic() < deadline, f"of {n} there are {len(got)}"
        news = reader.take()
        assert news is not None
        got += news
        if not news:
            reader.bell.wait(0.1)
    return got


def finish(ledger, run_id, **more):
    ledger.finish(run_id, about_of(claim_of(run_id), **more), ending())


def test_a_reader_hears_of_what_starts_ends_and_is_forgotten(ledger, reader):
    about = about_of(claim_of("r1"), conversation="c1")
    admit(ledger, "r1", about)
    ledger.tell("r1", about)
    finish(ledger, "r1", conversation="c1")
    ledger.forget("r1", about_of(claim_of("r1")))
    got = heard(reader, 3)
    assert kinds(got) == [("started", "r1"), ("ended", "r1"), ("forgotten", "r1")]
    started, ended, _ = (json.loads(entry.payload) for entry in got)
    assert started["started"].keys() == {"id", "feature", "created_at", "conversation"}
    assert ended["ended"].keys() == {"id", "feature", "status", "ended_at", "conversation"}
    assert (ended["ended"]["status"], ended["ended"]["conversation"]) == ("completed", "c1")


def test_of_a_live_run_that_was_forgotten_nothing_more_is_told(ledger, reader):
    """It ends a moment later, and its links lead nowhere."""
    admit(ledger, "r1")
    ledger.forget("r1", about_of(claim_of("r1")))
    finish(ledger, "r1")
    admit(ledger, "r2")
    assert kinds(heard(reader, 3)) == [("started", "r1"), ("forgotten", "r1"), ("started", "r2")]


def test_the_first_thing_that_is_said_after_a_reader_came_is_heard(ledger, reader):
    admit(ledger, "r1")
    assert kinds(heard(reader, 1)) == [("started", "r1")]


def test_an_owner_hears_nothing_of_anothers(ledger, feeds, reader):
    other = feeds.read("user:bob")
    other.resume(other.end)
    admit(ledger, "b1", about_of(claim_of("b1", owner="user:bob")))
    admit(ledger, "a1")
    assert kinds(heard(reader, 1)) == [("started", "a1")]
    assert kinds(heard(other, 1)) == [("started", "b1")]
    assert len(feeds) == 2
    other.close()
    assert len(feeds) == 1


def test_readers_share_one_copy(ledger, feeds, reader, store, monkeypatch):
    subscribed = []
    monkeypatch.setattr(store, "subscribe", lambda *args, **more: subscribed.append(args))
    others = [feeds.read(OWNER) for _ in range(20)]
    assert (len(feeds), subscribed) == (1, [])
    for other in others:
        other.resume(other.end)
    admit(ledger, "r1")
    assert [kinds(heard(one, 1)) for one in (reader, *others)] == [[("started", "r1")]] * 21
    for other in others:
        other.close()
        other.close()
    assert reader._feed.readers == 1


def test_a_reader_comes_back_to_any_place(ledger, feeds, reader):
    for n in range(5):
        admit(ledger, f"r{n}")
    told = heard(reader, 5)
    for at, entry in enumerate(told):
        again = feeds.read(OWNER, entry.place)
        assert again.take() == told[at + 1 :]
        assert again.take() == []
        again.close()


def test_a_reader_comes_back_where_nothing_had_been_told_yet(ledger, feeds, reader):
    admit(ledger, "r1")
    again = feeds.read(OWNER, START)
    assert kinds(again.take()) == [("started", "r1")]
    again.close()


@pytest.mark.parametrize("place", [(1, 0), (10**13 * 9, 0), (0, 1)])
def test_a_place_that_is_not_kept(ledger, feeds, reader, place):
    admit(ledger, "r1")
    again = feeds.read(OWNER, place)
    assert again.take() is None
    again.close()


def test_of_a_very_long_feed_the_last_part_is_kept(ledger, feeds, reader):
    for n in range(KEPT + 300):
        admit(ledger, f"r{n}")
        if n == 0:
            (first,) = heard(reader, 1)
        if n == 400:
            late = heard(reader, 400)[-1]
    assert kinds(heard(reader, 399))[-1] == ("started", "r799")
    before, within = feeds.read(OWNER, first.place), feeds.read(OWNER, late.place)
    assert before.take() is None
    assert kinds(within.take()) == [("started", f"r{n}") for n in range(401, 800)]
    before.close()
    within.close()


def test_a_reader_that_comes_while_things_happen_misses_nothing(ledger, feeds):
    """Who is told how things stand from the store after its place was taken hears of all that it was not told."""
    stop = threading.Event()

    def start_runs():
        n = 0
        while not stop.is_set() and n < 400:
            admit(ledger, f"r{n}")
            n += 1

    thread = threading.Thread(target=start_runs)
    thread.start()
    readers = []
    try:
        for _ in range(20):
            reader = feeds.read(OWNER)
            end = reader.end
            known = set(ledger.live(OWNER))
            reader.resume(end)
            readers.append((reader, known))
    finally:
        stop.set()
        thread.join()
    everything = set(ledger.live(OWNER))
    for reader, known in readers:
        while known != everything:
            news = reader.take()
            known |= {run_id for _, run_id in kinds(news)}
            if not news:
                reader.bell.wait(PATIENCE)
        reader.close()


def test_a_crowd_that_comes_while_the_store_is_away_is_refused_together(feeds, store, monkeypatch):
    came, tried, refused = [], [], []

    def clock():
        came.append(monotonic())
        return came[-1]

    def fail(*_, **__):
        tried.append(True)
        eventually(lambda: len(came) == 10)
        raise StoreUnavailable(diagnosis="gone")

    def come():
        with pytest.raises(StoreUnavailable):
            feeds.read(OWNER)
        refused.append(True)

    monkeypatch.setattr(following_module, "monotonic", clock)
    monkeypatch.setattr(store, "subscribe", fail)
    crowd = [threading.Thread(target=come) for _ in range(10)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len(refused) == 10 and len(tried) == 1
    monkeypatch.undo()
    feeds.read(OWNER).close()


def test_the_last_reader_that_leaves_ends_the_subscription(feeds, store, ledger):
    readers = [feeds.read(OWNER) for _ in range(3)]
    for reader in readers:
        reader.close()
    assert len(feeds) == 0
    if isinstance(store, RedisStore):
        eventually(lambda: store.command("PUBSUB", "CHANNELS", "*feed:*") == [])
    else:
        assert not store._receivers


def test_closing_ends_all_at_once(store):
    feeds = Following(store, refresh=REFRESH)
    reader = feeds.read(OWNER)
    feeds.close()
    assert len(feeds) == 0
    reader.close()
    assert feeds._timer is None


class Wire:
    """Stands for the subscription of a store, so that a test decides what is heard, and when."""

    def __init__(self, store):
        self.receive = self.lost = None
        self.meanwhile = []
        self._commands = store.commands
        store.subscribe, store.commands = self.subscribe, self.commands

    def subscribe(self, channel, receive, *, lost):
        self.receive, self.lost = receive, lost
        return Subscription(lambda: None)

    def commands(self, *commands):
        replies = self._commands(*commands)
        if self.meanwhile:
            self.receive(self.meanwhile.pop(0))
        return replies


def test_what_is_heard_after_a_break_waits_for_what_was_missed(store, ledger, feeds):
    wire = Wire(store)
    reader = feeds.read(OWNER)
    reader.resume(reader.end)
    for n in range(3):
        admit(ledger, f"r{n}")
    third = ledger.store.command("XREVRANGE", reader._feed.name, "+", "-", "COUNT", 1)[0][0]
    wire.meanwhile = [third + b" {}"] * 2  # while the store is asked, and while it is asked again
    wire.lost()
    assert kinds(heard(reader, 3)) == [("started", f"r{n}") for n in range(3)]
    eventually(lambda: reader._feed.sure)
    assert wire.meanwhile == []
    reader.close()


def test_a_message_between_a_break_and_the_answer_is_not_believed(store, ledger, feeds, monkeypatch):
    wire = Wire(store)
    reader = feeds.read(OWNER)
    reader.resume(reader.end)
    monkeypatch.setattr(feeds, "_read_again", lambda: None)
    admit(ledger, "r1")
    wire.lost()
    wire.receive(b"9999999999999-0 {}")
    assert reader.take() == []
    monkeypatch.undo()
    feeds._read_again()
    assert kinds(heard(reader, 1)) == [("started", "r1")]
    reader.close()


# Redis in trouble


@pytest.fixture
def own_redis():
    """A Redis that a test may treat as it likes."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_store(own_redis):
    store = RedisStore(own_redis.url, "llmstream:")
    yield store
    store.close()


@pytest.mark.needs("redis-server")
def test_after_a_break_of_the_line_nothing_is_missing(own_redis, own_store):
    ledger, feeds = Ledger(own_store, retention=60, lease=8), Following(own_store, refresh=REFRESH)
    reader = feeds.read(OWNER)
    reader.resume(reader.end)
    for n in range(6):
        own_redis.client().client_kill_filter(_type="pubsub")
        admit(ledger, f"r{n}")
    assert kinds(heard(reader, 6)) == [("started", f"r{n}") for n in range(6)]
    reader.close()
    feeds.close()


@pytest.mark.needs("redis-server")
def test_what_is_published_and_not_heard_is_found_by_reading_again(own_redis, own_store, monkeypatch):
    ledger, feeds = Ledger(own_store, retention=60, lease=8), Following(own_store, refresh=0.05)
    monkeypatch.setattr(Feed, "hear", lambda feed, message: None)
    reader = feeds.read(OWNER)
    reader.resume(reader.end)
    admit(ledger, "r1")
    assert kinds(heard(reader, 1)) == [("started", "r1")]
    reader.close()
    assert feeds._timer is None


@pytest.mark.needs("redis-server")
def test_a_redis_that_was_restarted_has_forgotten(own_redis, own_store):
    ledger, feeds = Ledger(own_store, retention=60, lease=8), Following(own_store, refresh=0.1)
    reader = feeds.read(OWNER)
    reader.resume(reader.end)
    admit(ledger, "r1")
    heard(reader, 1)
    own_redis.restart()
    eventually(lambda: reader.take() is None)
    reader.resume(reader.end)
    eventually(lambda: admitted(ledger, "r2"))
    assert kinds(heard(reader, 1)) == [("started", "r2")]
    again = feeds.read(OWNER, START)
    assert kinds(again.take()) == [("started", "r2")]
    for one in (reader, again):
        one.close()
    feeds.close()


def admitted(ledger, run_id):
    try:
        return admit(ledger, run_id)
    except StoreUnavailable:
        return False


@pytest.mark.needs("redis-server")
def test_a_persistent_redis_that_was_restarted_has_not():
    with RedisServer(persistent=True) as server:
        store = RedisStore(server.url, "llmstream:")
        ledger, feeds = Ledger(store, retention=60, lease=8), Following(store, refresh=0.1)
        reader = feeds.read(OWNER)
        reader.resume(reader.end)
        admit(ledger, "r1")
        server.restart()
        eventually(lambda: admitted(ledger, "r2"))
        assert kinds(heard(reader, 2)) == [("started", "r1"), ("started", "r2")]
        reader.close()
        feeds.close()
        store.close()


@pytest.mark.needs("redis-server")
def test_without_redis_nobody_can_begin_to_read_and_nothing_is_held(own_redis, own_store):
    feeds = Following(own_store, refresh=REFRESH)
    own_redis.stop()
    with pytest.raises(StoreUnavailable):
        feeds.read(OWNER)
    assert len(feeds) == 0 and feeds._timer is None
    own_redis.start()
    eventually(lambda: reads(feeds))
    feeds.close()


def reads(feeds):
    try:
        feeds.read(OWNER).close()
    except StoreUnavailable:
        return False
    return True


@pytest.mark.needs("redis-server")
def test_many_feeds_are_read_again_in_a_few_steps(own_redis, own_store):
    feeds = Following(own_store, refresh=REFRESH)
    readers = [feeds.read(f"user:{n}") for n in range(150)]
    for reader in readers:
        reader.resume(reader.end)
    asked = []
    commands = own_store.commands
    own_store.commands = lambda *words: asked.append(len(words)) or commands(*words)
    feeds._read_again()
    eventually(lambda: not feeds._reading)
    assert asked == [100, 50]
    assert own_redis.connections()["pubsub"] == 1
    for reader in readers:
        reader.close()
    assert len(feeds) == 0
