"""What owners have used is entered in their accounts at every end, and reckoned at the prices that are configured."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal

import pytest

from flask_llmstream.admission import Allowance, Quota
from flask_llmstream.errors import ConfigurationError, UpstreamForbidden
from flask_llmstream.events import Usage
from flask_llmstream.ledger import Ledger
from flask_llmstream.usage import DAYS_KEPT, Accounts, Entry, amount, by_owner_and_model, cost, standing, today, total
from flask_llmstream.values import prices
from tests.conversation import ask, events, problem
from tests.orders import QUEUED, about_of, admit, claim_of, ending, left_by_its_writer
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage

PRICES = {
    "house": {"input": "0.25", "cached": 0.025, "output": 2},
    "*": {"input": 1, "output": 10},
}
USAGE = Usage(1000, 200, cached_tokens=400)
COST = "0.00056"  # (600 * 0.25 + 400 * 0.025 + 200 * 2) / 1,000,000


def question(number):
    return {"messages": [{"role": "user", "content": f"Question {number}"}]}


def house(*acts, usage=USAGE):
    puppet = Puppet(*acts, usage=usage)
    puppet.name = "house"
    return puppet


@pytest.fixture
def redis(request, store_server):
    """The configuration with and without Redis."""
    return {} if store_server is None else {"REDIS_URL": request.getfixturevalue("redis_server").url}


def account(app, query="", **headers):
    response = app.test_client().get(f"/api/usage{query}", headers=headers)
    assert response.status_code == 200, response.text
    return response.json


# What is entered


def test_what_was_used_is_told_by_day_and_model(redis):
    with stage(house(), PRICES=PRICES, **redis) as (app, llm):
        llm.stream("/api/other")(lambda run: run.model.stream(run.input.messages, model="other"))
        for n in range(2):
            events(ask(app, body=question(n)))
        events(ask(app, "/api/other"))
        said = account(app)
    day = today().isoformat()
    assert said["data"] == [
        {
            "day": day,
            "model": "house",
            "runs": 3,
            "prompt_tokens": 2000,
            "cached_tokens": 800,
            "completion_tokens": 400,
            "cost": "0.00112",
        },
        {
            "day": day,
            "model": "other",
            "runs": 0,
            "prompt_tokens": 1000,
            "cached_tokens": 400,
            "completion_tokens": 200,
            "cost": "0.003",
        },
    ]
    assert said["total"] == {
        "runs": 3,
        "prompt_tokens": 3000,
        "cached_tokens": 1200,
        "completion_tokens": 600,
        "cost": "0.00412",
    }


def test_it_is_one_s_own_alone(redis):
    with stage(house(), **redis) as (app, _):
        events(ask(app))
        assert account(app, **{"X-User": "bob"})["data"] == []
        assert account(app)["total"]["runs"] == 1


def test_a_stop_and_a_failure_are_entered_too(redis):
    pause = Pause()
    with stage(house(["Hel", pause], ["Hel", UpstreamForbidden()], [UpstreamForbidden()]), **redis) as (app, _):
        with ask(app, body=question(1)) as stopped:
            assert pause.reached.wait(PATIENCE)
            app.test_client().post(stopped.headers["Location"] + "/cancel")
            events(stopped)
        events(ask(app, body=question(2)))
        assert ask(app, body=question(3)).status_code == 502
        said = account(app)["total"]
    assert (said["runs"], said["completion_tokens"]) == (3, 2)
    assert said["prompt_tokens"] > 0


def test_a_repeated_end_is_entered_once(store):
    ledger = Ledger(store, retention=600, lease=60)
    about = about_of(claim_of("one"))
    admit(ledger, "one", about)
    for _ in range(2):
        ledger.finish("one", about, ending(usage=[("house", "runs", 1), ("house", "prompt", 7)]))
    (entry,) = Accounts(store, {}).of(about.owner, today(), today())
    assert (entry.runs, entry.prompt_tokens) == (1, 7)


def test_a_writer_that_was_given_up_too_early_says_what_was_really_used(store):
    """It was cut off from Redis and wrote on; meanwhile another process closed its run, and could only estimate."""
    ledger = Ledger(store, retention=600, lease=0.001)
    about = about_of(claim_of("one"), prompt=50)
    budget = Quota(10_000, 86_400)
    ledger.admit("one", about, QUEUED, Allowance(tokens=budget), max_tokens=1000)

    def finish(end, prompt, completion):
        usage = [("house", "runs", 1), ("house", "prompt", prompt), ("house", "completion", completion)]
        said, _, _ = ledger.finish("one", about, end(usage=usage, tokens=prompt + completion))
        (entry,) = Accounts(store, {}).of(about.owner, today(), today()) or [Entry()]
        (stands,) = standing(store, about.owner, {"tokens": budget})
        return said, entry.runs, entry.prompt_tokens, entry.completion_tokens, stands.used

    eventually(lambda: finish(left_by_its_writer, 50, 2) == ("ended", 1, 50, 2, 52))
    assert finish(left_by_its_writer, 50, 2) == ("already", 1, 50, 2, 52)
    for _ in range(2):
        assert finish(ending, 60, 700) == ("already", 1, 60, 700, 760)


def test_names_of_models_may_have_any_character(store):
    ledger = Ledger(store, retention=600, lease=60)
    about = about_of(claim_of("one"))
    admit(ledger, "one", about)
    name = 'a model, "größer" / v2'
    ledger.finish("one", about, ending(usage=[(name, "runs", 1)]))
    assert [entry.model for entry in Accounts(store, {}).all(today(), today())] == [name]


# What it costs


def test_a_run_says_what_it_cost(redis):
    with stage(house(), PRICES=PRICES, **redis) as (app, llm):
        llm.stream("/api/free")(lambda run: "nothing was asked")
        response = ask(app)
        events(response)
        client = app.test_client()
        assert client.get(response.headers["Location"]).json["cost"] == COST
        assert client.get("/api/runs").json["data"][0]["cost"] == COST
        free = ask(app, "/api/free")
        events(free)
        assert client.get(free.headers["Location"]).json["cost"] is None


def test_a_run_that_asked_several_models_says_what_each_took(redis):
    """Any process can say what it cost: it is in the run's last event."""

    def both(run):
        yield from run.model.stream(run.input.messages)
        yield from run.model.stream(run.input.messages, model="dear")

    with stage(house(), PRICES=PRICES, **redis) as (app, llm):
        llm.stream("/api/both")(both)
        response = ask(app, "/api/both")
        usage = events(response)[-1]["usage"]
        alone = {"prompt_tokens": 1000, "completion_tokens": 200, "cached_tokens": 400}
        assert usage["models"] == {"house": alone, "dear": alone}
        assert usage["prompt_tokens"] == 2000
        run = app.test_client().get(response.headers["Location"]).json
        assert run["usage"] == usage
        assert run["cost"] == amount(Decimal(COST) + Decimal("0.003"))
        assert account(app)["total"]["cost"] == run["cost"]


def test_without_a_price_there_is_no_cost():
    with stage(house(), PRICES={"another": PRICES["*"]}) as (app, _):
        response = ask(app)
        events(response)
        assert app.test_client().get(response.headers["Location"]).json["cost"] is None
        said = account(app)
    assert said["data"][0]["cost"] is said["total"]["cost"] is None


@pytest.mark.parametrize(
    ("usage", "costs"),
    [
        ({}, "0"),
        ({"unknown": Usage(0, 0)}, "0"),
        ({"unknown": Usage(1, 0)}, None),
        ({"house": Usage(1_000_000, 0)}, "0.25"),
        ({"house": Usage(0, 1)}, "0.000002"),
        ({"house": Usage(1, 0)}, "0.00000025"),
        ({"house": Usage(10**12, 10**12)}, "2250000"),
        ({"house": Usage(100, 0, cached_tokens=300)}, "0.0000075"),
    ],
    ids=str,
)
def test_costs_are_exact(usage, costs):
    assert amount(cost(prices({"house": PRICES["house"]}), usage)) == costs


def test_cached_tokens_cost_what_others_do_unless_said_otherwise():
    assert cost(prices(PRICES), {"any": Usage(10, 0, cached_tokens=10)}) == Decimal("0.00001")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("0.25", "must be a mapping from models"),
        ({"m": 2}, "must be a mapping whose prices have input, output and perhaps cached, which 'm' has not"),
        ({"m": {"input": 2}}, "must be a mapping whose prices have input"),
        ({"m": {"input": 2, "output": 3, "reasoning": 4}}, "must be a mapping whose prices have input"),
        ({"m": {"input": "much", "output": 3}}, "must be a mapping whose prices are numbers from 0"),
        ({"m": {"input": -1, "output": 3}}, "must be a mapping whose prices are numbers from 0"),
        ({"m": {"input": True, "output": 3}}, "must be a mapping whose prices are numbers from 0"),
        ({"m": {"input": "NaN", "output": 3}}, "must be a mapping whose prices are numbers from 0"),
    ],
    ids=str,
)
def test_wrong_prices_are_refused_with_a_sentence(given, sentence):
    with pytest.raises(ConfigurationError) as refused, stage(PRICES=given):
        pass
    assert str(refused.value).startswith(f"LLMSTREAM_PRICES {sentence}")


# Which days


def test_a_month_is_the_default_and_other_days_can_be_asked_for():
    with stage() as (app, _):
        said = account(app)
        assert (said["from"], said["to"]) == (today().replace(day=1).isoformat(), today().isoformat())
        said = account(app, "?to=2024-02-29")
        assert (said["from"], said["to"], said["data"]) == ("2024-02-01", "2024-02-29", [])
        events(ask(app))
        tomorrow = (today() + timedelta(1)).isoformat()
        assert account(app, f"?from={tomorrow}&to={tomorrow}")["data"] == []
        assert account(app, f"?from=0001-01-01&to={tomorrow}")["total"]["runs"] == 1


@pytest.mark.parametrize("query", ["from=yesterday", "to=2026-02-30", "from=2026-11-02&to=2026-11-01", "from=20261101"])
def test_what_is_no_day_is_refused(query):
    with stage() as (app, _):
        assert problem(app.test_client().get(f"/api/usage?{query}"))["status"] == 400


def test_no_more_days_are_read_than_are_kept(store, monkeypatch):
    asked = []
    commands = store.commands
    monkeypatch.setattr(store, "commands", lambda *given: asked.append(len(given)) or commands(*given))
    assert Accounts(store, {}).all(date.min, date.max) == []
    assert asked == [DAYS_KEPT + 2]


def test_whoever_nobody_knows_yet_has_used_nothing():
    from flask import Flask

    from flask_llmstream import LLMStream

    app = Flask("anonymous")
    app.config.update(TESTING=True, SECRET_KEY="only a test", LLMSTREAM_STARTS_PER_USER="5/minute")
    llm = LLMStream(app, model=Puppet())
    said = account(app)
    assert said["data"] == [] and said["quotas"][0]["remaining"] == 5
    llm.record(app).close()


def test_a_foreign_page_and_a_stranger_see_nothing():
    with stage(hooks={"identify": lambda: None}) as (app, _):
        assert problem(app.test_client().get("/api/usage"))["status"] == 401
    with stage() as (app, _):
        foreign = app.test_client().get("/api/usage", headers={"Origin": "https://evil.example"})
        assert problem(foreign)["status"] == 403


def test_what_is_left_of_the_quotas_stands_there_too(redis):
    with stage(house(), STARTS_PER_USER="3/day", TOKEN_BUDGET="9000/day", **redis) as (app, _):
        response = ask(app)
        events(response)
        starts, tokens = account(app)["quotas"]
    assert (starts["name"], starts["used"], starts["remaining"]) == ("starts", 1, 2)
    assert (tokens["name"], tokens["used"], tokens["remaining"]) == ("tokens", 1200, 7800)


@pytest.mark.needs("redis-server")
def test_a_run_that_was_left_is_entered_by_whoever_closes_it(redis_server):
    """What the model said before its process was killed is counted, as an estimate."""
    with stage(house(), REDIS_URL=redis_server.url) as (app, llm):
        registry = llm.record(app).registry
        killed = Ledger(registry.ledger.store, retention=600, lease=0.001)
        about = about_of(claim_of("left"), prompt=50)
        admit(killed, "left", about)
        killed.frames.append([("left", 1, 1, [b'{"token":"Hel"}', b'{"token":"lo"}'], 1.0)])

        def entered():
            registry._reap("left")
            return account(app)["total"]["runs"]

        eventually(entered)
        (entry,) = account(app)["data"]
    assert (entry["model"], entry["runs"], entry["prompt_tokens"], entry["completion_tokens"]) == ("house", 1, 50, 2)


def test_sums():
    entries = [
        Entry(day="2026-11-01", owner="user:a", model="m", runs=1, prompt_tokens=5, cost=Decimal(1)),
        Entry(day="2026-11-02", owner="user:a", model="m", runs=2, completion_tokens=6, cost=Decimal(2)),
        Entry(day="2026-11-02", owner="user:b", model="m", runs=4, cached_tokens=7, cost=None),
    ]
    first, second = by_owner_and_model(entries)
    assert (first.day, first.owner, first.runs, first.prompt_tokens, first.cost) == ("", "user:a", 3, 5, Decimal(3))
    assert (second.owner, second.runs, second.cost) == ("user:b", 4, None)
    assert (total(entries).runs, total(entries).cost, total([]).cost) == (7, None, Decimal(0))
