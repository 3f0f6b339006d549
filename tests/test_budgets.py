"""Token budgets: what a run may come to is reserved when it starts, and what it came to is settled when it ends."""

from __future__ import annotations

import pytest

from flask_llmstream.admission import LEAST_ANSWER, Allowance, Quota
from flask_llmstream.errors import LimitReached, UpstreamForbidden
from flask_llmstream.events import Usage
from flask_llmstream.ledger import Ledger
from tests.admission import DAY, ended, refusal, registries, start, together
from tests.admission import used as used_of
from tests.orders import about_of, claim_of
from tests.puppet import PATIENCE, Pause, eventually

BUDGET = Quota(10_000, DAY)


@pytest.fixture
def make(store):
    with registries(store) as make:
        yield make


def used(store):
    return used_of(store, "tokens")


def test_a_start_reserves_what_it_may_come_to_and_the_end_settles_what_it_did(make, store):
    registry = make(tokens=BUDGET)
    pause = Pause()
    run = start(registry, "Hel", pause, prompt=50, max_tokens=1000, usage=Usage(60, 20))
    assert used(store) == 1050 == run.standing[0].used
    pause.go_on()
    ended(run)
    eventually(lambda: used(store) == 80)


@pytest.mark.parametrize(
    ("lines", "costs"),
    [((UpstreamForbidden(),), 0), (("Hel", UpstreamForbidden()), 1), ((ZeroDivisionError(),), 0)],
    ids=["refused", "broken", "a function's own fault"],
)
def test_what_did_not_come_to_pass_is_given_back(make, store, lines, costs):
    registry = make(tokens=BUDGET)
    ended(start(registry, *lines, prompt=50))
    eventually(lambda: used(store) == costs)


def test_a_stop_is_settled_by_an_estimate(make, store):
    registry = make(tokens=BUDGET)
    run = start(registry, "Hel", "lo", pause := Pause(), prompt=50)
    assert pause.reached.wait(PATIENCE)
    registry.stop(run)
    ended(run)
    eventually(lambda: used(store) == 2)


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("store_server", ["redis"], indirect=True)
def test_a_crash_is_settled_by_whoever_closes_the_run(make, store):
    registry = make(tokens=BUDGET)
    killed = Ledger(store, retention=600, lease=0.001)
    about = about_of(claim_of("left"), prompt=50)
    killed.admit("left", about, b'{"status":"queued"}', Allowance(tokens=BUDGET), max_tokens=1000)
    killed.frames.append([("left", 1, 1, [b'{"token":"Hel"}', b'{"token":"lo"}'], 1.0)])
    assert used(store) == 1050

    def settled() -> bool:
        registry._reap("left")  # which changes nothing before the lease has lapsed
        return used(store) == 52

    eventually(settled)


def test_where_less_is_left_than_the_answer_may_have_it_gets_what_is_left(make, store):
    registry = make(tokens=Quota(1500, DAY))
    first = start(registry, "Hel", Pause(), prompt=100, max_tokens=900)
    second = start(registry, "Hel", pause := Pause(), prompt=100, max_tokens=900)
    assert pause.reached.wait(PATIENCE)
    assert (first.model.settings.max_tokens, second.model.settings.max_tokens) == (900, 400)
    assert second.model.provider.calls[0].max_tokens == 400
    assert second.standing[0].used == 1500


def test_a_stub_is_refused(make):
    registry = make(tokens=Quota(1000 + LEAST_ANSWER - 1, DAY))
    ended(start(registry, usage=Usage(500, 500)))
    eventually(lambda: not registry.live)
    refused = refusal(registry, max_tokens=LEAST_ANSWER + 1)
    assert refused.limit == "tokens"
    assert 0 < refused.retry_after <= DAY
    ended(start(registry, max_tokens=10))  # what asks for less gets it


def test_what_others_have_reserved_may_be_back_soon(make):
    registry = make(tokens=Quota(1000, DAY))
    run = start(registry, "Hel", Pause(), max_tokens=900)
    assert refusal(registry).retry_after == 2
    registry.stop(run)
    ended(run)
    ended(start(registry))


def test_what_never_fits_is_not_asked_to_come_back(make):
    refused = refusal(make(tokens=Quota(1000, DAY)), prompt=1000)
    assert refused.limit == "tokens" and refused.retry_after is None
    assert "at any time" in refused.detail


def test_a_function_that_asks_more_than_once_can_go_beyond_and_pays_for_it(make, store):
    registry = make(tokens=BUDGET)
    ended(start(registry, usage=Usage(9000, 9000)))
    eventually(lambda: used(store) == 18_000)
    assert refusal(registry).standing[0].used == 18_000


def test_an_answer_to_a_start_that_was_lost_is_given_once_more(store):
    """The connection broke after Redis had carried it out, and redis-py tried again."""
    ledger = Ledger(store, retention=600, lease=60)
    about = about_of(claim_of("one"), prompt=100)
    for _ in range(2):
        verdict = ledger.admit("one", about, b'{"status":"queued"}', Allowance(tokens=Quota(600, DAY)), max_tokens=900)
        assert (verdict.verdict, verdict.run, verdict.max_tokens) == ("admitted", "one", 500)
    assert used(store) == 600


def test_of_a_hundred_at_once_the_budget_is_never_overdrawn(make, store):
    registry = make(tokens=BUDGET)
    got = together(100, lambda n: start(registry, Pause(), prompt=500, max_tokens=1500, key=f"key:of {n}"))
    assert sum(not isinstance(run, LimitReached) for run in got) == 5
    assert used(store) == BUDGET.n
