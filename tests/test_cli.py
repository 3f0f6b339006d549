"""`flask llmstream`: what the operator is told."""

from __future__ import annotations

import csv
import json
from datetime import timedelta
from decimal import Decimal

import pytest

from flask_llmstream import LLMStream
from flask_llmstream.events import Usage
from flask_llmstream.usage import today
from tests.conversation import ask, events
from tests.puppet import Puppet, stage

PRICES = {"house": {"input": 1, "output": 10}}


@pytest.fixture
def app(redis_server):
    """An application that two users have asked, one of them twice."""
    puppet = Puppet(usage=Usage(1000, 200))
    puppet.name = "house"
    with stage(puppet, REDIS_URL=redis_server.url, PRICES=PRICES) as (app, _):
        for user in ("ann", "bob", "ann"):
            events(ask(app, headers={"X-User": user}))
        yield app


def run(app, *words):
    ran = app.test_cli_runner().invoke(args=["llmstream", "usage", *words])
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.mark.needs("redis-server")
def test_a_table_has_a_line_for_each_user_and_model(app):
    assert run(app) == (
        "owner     model  runs  prompt  cached  completion   cost\n"
        "user:ann  house     2    2000       0         400  0.006\n"
        "user:bob  house     1    1000       0         200  0.003\n"
        "total               3    3000       0         600  0.009\n"
    )


@pytest.mark.needs("redis-server")
def test_json_has_the_same_with_exact_costs(app):
    said = json.loads(run(app, "--format", "json"))
    assert [(line["owner"], line["runs"], Decimal(line["cost"])) for line in said["data"]] == [
        ("user:ann", 2, Decimal("0.006")),
        ("user:bob", 1, Decimal("0.003")),
    ]
    assert said["total"]["prompt_tokens"] == 3000


@pytest.mark.needs("redis-server")
def test_csv_has_a_head_and_no_sum(app):
    lines = list(csv.DictReader(run(app, "--format", "csv", "--daily").splitlines()))
    assert [(line["day"], line["owner"], line["completion_tokens"]) for line in lines] == [
        (today().isoformat(), "user:ann", "400"),
        (today().isoformat(), "user:bob", "200"),
    ]


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("user", ["bob", "user:bob"])
def test_one_user_alone(app, user):
    assert [line.split()[0] for line in run(app, "--user", user).splitlines()] == ["owner", "user:bob", "total"]
    assert run(app, "--user", "carl") == "Nothing was used.\n"


@pytest.mark.needs("redis-server")
def test_other_days(app):
    day = (today() - timedelta(1)).isoformat()
    assert run(app, "--from", day, "--to", day) == "Nothing was used.\n"
    assert run(app, "--from", day, "--daily").startswith("day ")
    assert json.loads(run(app, "--from", day, "--to", day, "--format", "json"))["data"] == []


@pytest.mark.needs("redis-server")
def test_what_has_no_price_has_a_dash(app):
    app.extensions["llmstream"]["llmstream"].settings.prices.clear()
    assert run(app, "--user", "bob").splitlines()[1].endswith(" -")


def test_it_is_registered_once_for_all_objects():
    with stage() as (app, _):
        other = LLMStream(app, model=Puppet(), url_prefix="/llm")
        assert [name for name in app.cli.commands if name == "llmstream"] == ["llmstream"]
        assert "usage" in app.test_cli_runner().invoke(args=["llmstream", "--help"]).output
        other.record(app).close()


def test_without_redis_the_accounts_are_elsewhere():
    with stage() as (app, _):
        ran = app.test_cli_runner().invoke(args=["llmstream", "usage"])
        assert ran.exit_code == 2
        assert "LLMSTREAM_REDIS_URL" in ran.output


def test_a_redis_that_is_away_is_no_traceback():
    with stage(REDIS_URL="redis://127.0.0.1:1/0") as (app, _):
        ran = app.test_cli_runner().invoke(args=["llmstream", "usage"])
        assert (ran.exit_code, ran.output.startswith("Error: Redis")) == (1, True)
