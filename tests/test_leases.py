"""Holds on runs, over a real Redis: renewed while a process lives, taken away when it no longer does, never else."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing

import pytest

from flask_llmstream import leases as leases_module
from flask_llmstream.leases import LEASE, OUT_OF_TOUCH, RENEWED_EVERY, Leases, NullLeases, SharedLeases
from flask_llmstream.ledger import Ledger
from flask_llmstream.store import RedisStore
from flask_llmstream.store.connection import ANSWER_TIMEOUT
from tests.ledgers import REAPED, lapse
from tests.orders import admit, ending, left_by_its_writer, make_run
from tests.puppet import PATIENCE, eventually
from tests.redis_server import RedisServer

redis = pytest.mark.needs("redis-server")

BRIEF = {"LEASE": 0.8, "RENEWED_EVERY": 0.05, "OUT_OF_TOUCH": 0.3}
BRIEF_ANSWER = 0.1
"""Seconds, each in the same proportion to the others as in earnest."""


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    for name, seconds in BRIEF.items():
        monkeypatch.setattr(leases_module, name, seconds)


class Process:
    """What a process has of its own: a store, and leases. What a test asks Redis by itself may take its time."""

    def __init__(self, server, lapsed=lambda run_id: None):
        self.store = RedisStore(server.url, "llmstream:")
        self._own = RedisStore(f"{server.url}?socket_timeout={BRIEF_ANSWER}", "llmstream:")
        self._own._process = os.getpid(), self.store.process  # both are one to the others
        self.ledger = Ledger(self.store, retention=600, lease=BRIEF["LEASE"])
        self.news = []
        self.lapsed = Counter()
        self._lapsed = lapsed
        self.leases = SharedLeases(self._own, lambda *news: self.news.append(news), self.reap)
        self.closed = False

    def reap(self, run_id):
        self.lapsed[run_id] += 1
        self._lapsed(run_id)

    def settle(self):
        """Be in touch for as long as it takes to judge others."""
        self.leases.start()
        eventually(lambda: time.monotonic() - self.leases._in_touch_since > BRIEF["LEASE"] + 0.1)

    def write(self, run_id="r1"):
        run = make_run(run_id)
        admit(self.ledger, run_id, run.about)
        self.leases.hold(run)
        return run

    def hear(self, run_id, what):
        eventually(lambda: (run_id, what) in self.news)

    def close(self):
        self.leases.close()
        self._own.close()
        self.store.close()
        self.closed = True


@pytest.fixture
def make(redis_server):
    made = []

    def make(server=redis_server, **more):
        made.append(Process(server, **more))
        return made[-1]

    yield make
    for process in made:
        if not process.closed:
            process.close()


@pytest.fixture
def process(make):
    return make()


def lapses(process, run_id="r1"):
    """When a lease does, in milliseconds; None where there is none."""
    score = process.store.command("ZSCORE", process.store.key("leases"), run_id)
    return None if score is None else float(score)


# Without Redis


def test_one_process_alone_needs_no_leases():
    leases: Leases = NullLeases()
    leases.start()
    leases.hold(make_run())
    assert leases.holds("r1")
    leases.release("r1")
    leases.close()


# Renewals


def test_the_times_leave_no_moment_in_which_the_living_are_taken_for_dead():
    """Whoever judges has asked within `OUT_OF_TOUCH` of an answer, and had it within `ANSWER_TIMEOUT`: were Redis away
    for all that time, a lease that was renewed before must still go on.
    """
    assert OUT_OF_TOUCH + ANSWER_TIMEOUT < LEASE - RENEWED_EVERY
    assert RENEWED_EVERY + ANSWER_TIMEOUT < OUT_OF_TOUCH, "one answer that is lost is no outage"


@redis
def test_a_run_is_held_until_it_is_released(process):
    process.write()
    seen = set()
    eventually(lambda: seen.add(lapses(process)) or len(seen) > 4)
    process.leases.release("r1")
    last = lapses(process)
    process.write("r2")
    seen = set()
    eventually(lambda: seen.add(lapses(process, "r2")) or len(seen) > 4)
    assert lapses(process) - last <= 1000 * BRIEF["RENEWED_EVERY"], "a beat may have been on its way"
    assert process.news == []


@redis
def test_the_beat_has_a_connection_of_its_own_however_often_it_is_started(process, redis_server):
    for _ in range(3):
        process.leases.start()
    eventually(lambda: process.leases._subscription is not None)
    eventually(lambda: redis_server.connections() == Counter({"normal": 1, "pubsub": 1}))


@redis
def test_all_runs_are_renewed_in_one_step(process, redis_server):
    for n in range(20):
        process.write(f"r{n}")
    before = redis_server.commands()["evalsha"]
    beats = process.leases._in_touch
    eventually(lambda: process.leases._in_touch > beats + 2 * BRIEF["RENEWED_EVERY"])
    assert redis_server.commands()["evalsha"] - before <= 6


@redis
def test_closing_ends_the_beat_and_gives_everything_back(process, redis_server):
    before = set(threading.enumerate())
    process.write()
    eventually(lambda: process.leases._subscription is not None)
    process.close()
    eventually(lambda: set(threading.enumerate()) <= before)
    eventually(lambda: redis_server.connections().total() == 0)
    last = redis_server.client().zscore("llmstream:leases", "r1")
    time.sleep(3 * BRIEF["RENEWED_EVERY"])
    assert redis_server.client().zscore("llmstream:leases", "r1") == last
    process.leases.close()


@redis
def test_closing_while_redis_is_away_leaves_no_thread_that_tries_for_ever(make):
    with RedisServer() as server:
        process, before = make(server), set(threading.enumerate())
        server.kill()
        process.leases.start()
        process.close()
        eventually(lambda: set(threading.enumerate()) <= before)


@redis
def test_a_mistake_does_not_end_the_beat(process, caplog):
    """A process whose leases are renewed no longer loses all of its runs."""
    process.store.command("SET", process.store.key("leases"), "no sorted set")
    process.leases.start()
    eventually(lambda: "the leases could not be renewed" in caplog.text)
    process.store.command("DEL", process.store.key("leases"))
    process.write()
    first = lapses(process)
    eventually(lambda: lapses(process) > first)


# What it is told


@redis
def test_a_stop_is_heard_at_once(process, make, monkeypatch):
    monkeypatch.setattr(leases_module, "RENEWED_EVERY", 3600)
    process.write()
    eventually(lambda: process.leases._subscription is not None)
    make().ledger.stop("r1")
    process.hear("r1", "stop")


@redis
def test_a_stop_that_was_not_heard_comes_with_a_renewal(process, make):
    """It was sent before this process had subscribed, or while its connection was broken."""
    process.leases._listen = lambda: None
    process.write()
    make().ledger.stop("r1")
    process.hear("r1", "stop")


@redis
def test_whose_run_was_closed_hears_so(process):
    run = process.write()
    process.ledger.finish("r1", run.about, ending())
    process.hear("r1", "ended")


@redis
def test_whose_run_has_another_writer_hears_so(process):
    process.write()
    process.store.command("HSET", process.store.key("run", "r1"), "epoch", 2)
    process.hear("r1", "fenced")
    held = lapses(process)
    time.sleep(2 * BRIEF["RENEWED_EVERY"])
    assert lapses(process) == held, "the other's lease is not ours to renew"


@redis
def test_whose_run_redis_has_lost_hears_so_until_it_is_back(process):
    run = process.write()
    process.store.command("FLUSHALL")
    process.hear("r1", "missing")
    assert lapses(process) is None
    process.ledger.restore("r1", run.about, 1, list(run.log.entries))
    seen = set()
    eventually(lambda: seen.add(lapses(process)) or len(seen) > 3)


@redis
def test_whose_run_was_forgotten_hears_so(process, make):
    run = process.write()
    eventually(lambda: process.leases._subscription is not None)
    make().ledger.forget("r1", run.about)
    process.hear("r1", "forget")


@redis
def test_of_runs_that_are_released_nothing_is_told(process):
    process.write()
    process.write("r2")
    process.ledger.stop("r2")
    process.hear("r2", "stop")
    process.leases.release("r1")
    process.leases._tell([[b"r1", b"stop"]], [])
    assert ("r1", "stop") not in process.news


@redis
def test_what_was_lost_and_is_held_again_is_another_attempt_at_it(process):
    process.write()
    process.leases._tell([[b"r1", b"fenced"], [b"r2", b"fenced"]], [])
    assert ("r2", "fenced") in process.news
    assert ("r1", "fenced") not in process.news


# Whether it is sure


@redis
def test_it_holds_a_run_for_as_long_as_nobody_else_can_have_closed_it(make):
    with RedisServer() as server:
        process = make(server)
        assert not process.leases.holds("r1")
        process.write()
        assert process.leases.holds("r1")
        with server.paused():
            eventually(lambda: not process.leases.holds("r1"))
        eventually(lambda: process.leases.holds("r1"))
        process.leases.release("r1")
        assert not process.leases.holds("r1")


# Runs that are left


@redis
def test_a_run_that_was_left_is_closed_once_though_all_processes_see_it(make):
    verdicts = Counter()

    def reap(process):
        def lapsed(run_id):
            verdicts[
                process().ledger.finish(run_id, make_run(run_id).about, left_by_its_writer(terminal=REAPED))[0]
            ] += 1

        return lapsed

    reapers = []
    for n in range(2):
        reapers.append(make(lapsed=reap(lambda n=n: reapers[n])))
    for reaper in reapers:
        reaper.settle()
    writer = make()
    for n in range(5):
        writer.write(f"r{n}")
    writer.leases.close()  # and never says another word
    eventually(lambda: verdicts["ended"] == 5)
    assert set(verdicts) <= {"ended", "already"}
    assert all(lapses(writer, f"r{n}") is None for n in range(5))


@redis
def test_one_that_could_not_be_closed_is_tried_again(make):
    goes_on = threading.Event()

    def lapsed(run_id):
        assert goes_on.wait(PATIENCE)

    process = make(lapsed=lapsed)
    process.settle()
    admit(process.ledger, "r1")
    lapse(process.ledger)
    eventually(lambda: process.lapsed["r1"] == 1)
    beats = process.leases._in_touch
    eventually(lambda: process.leases._in_touch > beats + 3 * BRIEF["RENEWED_EVERY"])
    assert process.lapsed["r1"] == 1, "not while the first attempt goes on"
    goes_on.set()
    eventually(lambda: process.lapsed["r1"] > 1)


@redis
def test_nobody_closes_a_run_of_their_own(process):
    process.settle()
    process.write()
    process.leases._tell([], [b"r1"])
    time.sleep(2 * BRIEF["RENEWED_EVERY"])
    assert not process.lapsed


@redis
def test_a_new_process_gives_the_others_time_to_say_that_they_live(process, make):
    """It may have begun right after an outage, in which all leases have lapsed."""
    begun = time.monotonic()
    admit(process.ledger, "r1")
    lapse(process.ledger)
    process.leases.start()
    eventually(lambda: process.lapsed)
    assert time.monotonic() - begun >= BRIEF["LEASE"]


@redis
def test_after_an_outage_nobody_closes_the_runs_of_the_living(make):
    """All leases have lapsed then: those who live renew theirs, and only those of the dead are left."""
    with RedisServer() as server:
        writer, judge, dead = make(server), make(server), make(server)
        judge.settle()
        writer.write("living")
        dead.write("dead")
        dead.leases.close()
        with server.paused():
            time.sleep(1.5 * BRIEF["LEASE"])
        back = time.monotonic()
        eventually(lambda: judge.lapsed["dead"])
        assert time.monotonic() - back > BRIEF["LEASE"] - BRIEF["OUT_OF_TOUCH"]
        assert judge.lapsed["living"] == writer.lapsed["living"] == 0
        assert not writer.news


@redis
def test_an_outage_that_is_shorter_than_a_lease_costs_nobody_anything(make):
    with RedisServer() as server:
        writer, judge = make(server), make(server)
        judge.settle()
        writer.write()
        for _ in range(3):
            with server.paused():
                time.sleep(0.25 * BRIEF["LEASE"])
            held = lapses(writer)
            eventually(lambda held=held: lapses(writer) > held)
        assert not judge.lapsed and not writer.news


@redis
def test_when_redis_clock_is_put_forward_nobody_closes_the_runs_of_the_living(make, monkeypatch):
    """As by a fail-over to a machine whose clock is ahead: all leases have lapsed in the same moment."""
    judge, dead = make(), make()
    judge.settle()
    begun, call = time.monotonic(), RedisStore.call

    def as_later(store, script, keys, args, **more):
        said = call(store, script, keys, args, **more)
        return [*said[:2], said[2] + 60_000] if script == "renew" else said

    monkeypatch.setattr(RedisStore, "call", as_later)
    admit(dead.ledger, "r1")
    lapse(dead.ledger)
    eventually(lambda: judge.lapsed["r1"])
    assert time.monotonic() - begun > BRIEF["LEASE"], "in which the living renew theirs"


@redis
def test_a_process_that_was_closed_is_not_woken_again(process):
    process.leases.close()
    process.leases.start()
    assert process.leases._pacemaker is None


# A loop that is busy


SPIN = """
from gevent import monkey
monkey.patch_all()
import sys, time
from flask_llmstream import leases
leases.RENEWED_EVERY = 0.05
from flask_llmstream.ledger import Ledger
from flask_llmstream.runtime import current
from flask_llmstream.store import RedisStore
from tests.orders import admit, make_run

store = RedisStore(sys.argv[1], "llmstream:")
ledger, run = Ledger(store, retention=600, lease=8), make_run("r1")
admit(ledger, "r1", run.about)
heard = []
held = leases.SharedLeases(store, lambda *news: heard.append(news), lambda run_id: None)
held.hold(run)
assert current().cooperative
time.sleep(0.1)
print("spinning", flush=True)
end = time.monotonic() + 1
while time.monotonic() < end:
    pass
assert heard == []
print("done", flush=True)
until = time.monotonic() + 5
while not heard and time.monotonic() < until:
    time.sleep(0.01)
print(heard, flush=True)
held.close()
store.close()
"""


@redis
def test_a_busy_loop_of_greenlets_does_not_lose_its_runs(redis_server):
    """The beat is a thread of the system's; what it finds is done when the loop comes to it."""
    command = [sys.executable, "-c", SPIN, redis_server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout.readline() == "spinning\n"
        client, seen = redis_server.client(), set()
        until = time.monotonic() + 0.7
        for pause in itertools.repeat(0.02):
            seen.add(client.zscore("llmstream:leases", "r1"))
            if time.monotonic() > until:
                break
            time.sleep(pause)
        with closing(RedisStore(redis_server.url, "llmstream:")) as store:
            Ledger(store, retention=600, lease=8).stop("r1")
        rest = child.stdout.read()
    assert child.returncode == 0, rest
    assert len(seen) > 5, "it was not renewed while the loop was busy"
    assert rest.splitlines()[0] == "done" and "('r1', 'stop')" in rest
