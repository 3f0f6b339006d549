"""Who may start: slots and starts are asked for in one step, given back at every end, and never leak."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from flask_llmstream.admission import Allowance, Quota
from flask_llmstream.errors import LimitReached, UpstreamForbidden
from flask_llmstream.ledger import Ledger
from flask_llmstream.store import digest
from flask_llmstream.usage import standing
from tests.admission import DAY, ended, refusal, registries, start, together, used
from tests.orders import OWNER, about_of, admit, claim_of, left_by_its_writer
from tests.puppet import PATIENCE, Pause, eventually

THRICE = Quota(3, DAY)


@pytest.fixture
def make(store):
    with registries(store) as make:
        yield make


# Slots


def test_a_run_beyond_the_slots_is_refused_and_told_which_are_taken(make):
    registry = make(runs=2)
    runs = [start(registry, "Hel", Pause()) for _ in range(2)]
    refused = refusal(registry)
    assert refused.limit == "runs" and refused.status == 429
    assert list(refused.live) == [run.id for run in runs]
    assert refused.retry_after == 2


def test_a_slot_is_free_again_after_every_kind_of_end(make):
    registry = make(runs=1)
    ended(start(registry, "Hello"))
    ended(start(registry, UpstreamForbidden()))
    ended(start(registry, "Hel", UpstreamForbidden()))
    stopped = start(registry, "Hel", Pause())
    registry.stop(stopped)
    ended(stopped)
    forgotten = start(registry, "Hel", Pause())
    registry.forget(forgotten)
    ended(forgotten)
    ended(start(registry, "Hello"))


def test_each_owner_has_slots_of_their_own(make):
    registry = make(runs=1)
    start(registry, Pause())
    start(registry, Pause(), owner="user:bob")
    assert refusal(registry).limit == "runs"


def test_the_oldest_comes_first_however_fast_they_came(store):
    ledger = Ledger(store, retention=600, lease=60)
    ids = [f"{n * 7919 % 1000:03}" for n in range(30)]
    for run_id in ids:
        admit(ledger, run_id)
    assert admit(ledger, "one more", None, Allowance(runs=1)).live == ids


def test_a_repeat_takes_no_slot(make):
    registry = make(runs=1)
    run = start(registry, Pause(), key="key:one")
    assert start(registry, Pause(), key="key:one") is run


def test_of_a_hundred_at_once_three_slots_admit_three(make, store):
    registry = make(runs=3)
    registries = [registry] if not store.shared else [registry, make(another=True, runs=3)]
    got = together(100, lambda n: start(registries[n % len(registries)], Pause(), key=f"key:of {n}"))
    admitted = [run for run in got if not isinstance(run, LimitReached)]
    assert len(admitted) == 3
    assert {refused.limit for refused in got if isinstance(refused, LimitReached)} == {"runs"}
    assert len([run for registry in registries for run in registry.live]) == 3


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys
from contextlib import nullcontext
import gevent
from flask_llmstream.errors import LimitReached
from flask_llmstream.admission import Allowance
from flask_llmstream.registry import Registry
from flask_llmstream.work import Callbacks
from flask_llmstream.store import EmbeddedStore, RedisStore
from tests.admission import start
from tests.puppet import Pause

store = RedisStore(sys.argv[1], "llmstream:") if sys.argv[1:] else EmbeddedStore()
callbacks = Callbacks(enter=nullcontext, ended=lambda run: None)
registry = Registry(store, callbacks, allowance=Allowance(runs=3), retention=600, log_limit=10**6)

def one(n):
    try:
        start(registry, Pause(), key=f"key:of {n}")
    except LimitReached as refused:
        return refused.limit
    return "admitted"

said = [greenlet.get() for greenlet in [gevent.spawn(one, n) for n in range(100)]]
print(said.count("admitted"), said.count("runs"), len(registry.live))
for run in registry.live:
    registry.stop(run)
while registry.live:
    gevent.sleep(0.01)
print(len(store.command("KEYS", "*live*")))
"""


def test_greenlets_are_admitted_as_threads_are(request, store_server):
    address = [] if store_server is None else [request.getfixturevalue("redis_server").url]
    ran = subprocess.run(
        [sys.executable, "-c", GREENLETS, *address], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[:2] == ["3 97 3", "0"]


def test_a_run_whose_lease_has_lapsed_holds_no_slot(store):
    """Its process was killed, and nobody has closed it yet."""
    killed = Ledger(store, retention=600, lease=0.001)
    living = Ledger(store, retention=600, lease=60)
    one = Allowance(runs=1)
    talking = [about_of(claim_of(name), conversation="talk") for name in ("left", "next")]
    assert admit(killed, "left", talking[0], one).verdict == "admitted"
    eventually(lambda: admit(living, "next", talking[1], one).verdict == "admitted")
    refused = admit(living, "third", None, one)
    assert (refused.verdict, refused.live) == ("busy", ["next"])
    living.finish("left", talking[0], left_by_its_writer())
    assert admit(living, "third", None, one).live == ["next"]
    assert admit(living, "fourth", about_of(claim_of("fourth"), conversation="talk")).limit == "conversation"


# Busy: replace, join


def test_replace_stops_the_oldest_and_goes_on(make):
    registry = make(runs=2, busy="replace")
    oldest, other = start(registry, "Hel", Pause()), start(registry, "Hel", Pause())
    newest = start(registry, "Hel", Pause())
    ended(oldest)
    assert oldest.state == "cancelled"
    assert registry.live == [other, newest]


def test_a_replaced_run_frees_its_slot_however_long_it_takes(make, store):
    """Its function does not listen."""
    registry = make(runs=1, busy="replace")
    goes_on = threading.Event()
    run = start(registry, function=lambda run: goes_on.wait(PATIENCE), conversation="talk")
    try:
        for conversation in ("other", "talk", "talk"):  # which it answers no longer, whatever it does
            start(registry, Pause(), conversation=conversation)
            assert store.command("ZCARD", store.key("live", digest(OWNER))) == 1
        assert refusal(registry, when_busy="reject", conversation="other").limit == "runs"
        assert not run.ended
    finally:
        goes_on.set()
    ended(run)
    assert run.state == "cancelled"


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("store_server", ["redis"], indirect=True)
def test_replace_reaches_another_process(make, store):
    here, there = make(runs=1, busy="replace"), make(another=True, runs=1, busy="replace")
    first = start(here, "Hel", Pause())
    second = start(there, "Hel", Pause())
    ended(first)
    assert first.state == "cancelled" and there.live == [second]


def test_a_start_that_is_refused_after_all_replaces_nothing(make):
    registry = make(runs=1, busy="replace", starts=Quota(1, DAY))
    run = start(registry, "Hel", Pause())
    assert refusal(registry).limit == "starts"
    assert registry.live == [run] and not run.cancelled


@pytest.mark.parametrize("busy", ["reject", "replace", "join"])
def test_a_conversation_is_answered_once_at_a_time(make, busy):
    registry = make(busy=busy)
    run = start(registry, "Hel", Pause(), conversation="talk")
    start(registry, Pause(), conversation="another talk")
    if busy == "reject":
        refused = refusal(registry, conversation="talk")
        assert refused.limit == "conversation" and run.id in refused.live
    elif busy == "join":
        assert start(registry, Pause(), conversation="talk") is run
    else:
        again = start(registry, "Hel", Pause(), conversation="talk")
        ended(run)
        assert (run.state, again.ended) == ("cancelled", False)


def test_an_end_that_comes_late_leaves_the_conversation_to_its_successor(make):
    registry = make(busy="replace")
    first = start(registry, "Hel", Pause(), conversation="talk")
    second = start(registry, "Hel", Pause(), conversation="talk")
    ended(first)
    assert list(refusal(registry, conversation="talk", when_busy="reject").live) == [second.id]


def test_join_has_nothing_to_join_outside_of_a_conversation(make):
    registry = make(runs=1, busy="join")
    start(registry, Pause())
    assert refusal(registry).limit == "runs"


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("store_server", ["redis"], indirect=True)
def test_a_start_joins_the_conversation_s_run_of_another_process(make, store):
    here, there = make(busy="join"), make(another=True, busy="join")
    run = start(here, "Hel", Pause(), conversation="talk")
    assert start(there, conversation="talk").id == run.id
    assert there.live == []


# Starts


def test_starts_are_counted_in_a_window_and_refusals_are_not(make, store):
    registry = make(starts=THRICE, runs=1)
    standings = []
    for _ in range(3):
        run = start(registry)
        standings += [(stands.name, stands.quota, stands.used) for stands in run.standing]
        ended(run)
    assert standings == [("starts", 3, 1), ("starts", 3, 2), ("starts", 3, 3)]
    refused = refusal(registry)
    assert refused.limit == "starts" and refused.live == []
    assert 0 < refused.retry_after <= DAY
    assert used(store, "starts") == 3


def test_a_window_ends(make):
    registry = make(starts=Quota(1, 1))
    ended(start(registry))

    def again() -> bool:
        try:
            ended(start(registry))
        except LimitReached:
            return False
        return True

    eventually(again)


def test_of_a_hundred_starts_at_once_as_many_pass_as_may(make, store):
    registry = make(starts=Quota(7, DAY))
    got = together(100, lambda n: start(registry, key=f"key:of {n}"))
    admitted = [run for run in got if not isinstance(run, LimitReached)]
    assert len(admitted) == 7
    ended(*admitted)


def test_a_standing_that_nobody_has_touched_is_unused(store):
    quotas = {"starts": THRICE, "tokens": None}
    (stands,) = standing(store, "user:nobody", quotas)
    assert (stands.name, stands.quota, stands.used, stands.window) == ("starts", 3, 0, DAY * 1000)
    assert 0 < stands.reset <= DAY * 1000
    assert standing(store, "user:nobody", {"tokens": None}) == []
    assert standing(store, OWNER, {"starts": replace(THRICE, seconds=1)})[0].reset <= 1000
