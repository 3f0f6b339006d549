"""What a model's server says, put into words that a log can hold and times that one can wait."""

from __future__ import annotations

import pytest

from flask_llmstream.providers.failures import DIAGNOSIS_MOST, redact, retry_after
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import ModelServer, Schedule
from tests.conversation import ask, problem
from tests.puppet import stage

LINES = "no model\r\nERROR root: forged\x0b\x1c\x85\u2028more"


def test_a_server_s_text_is_one_line_of_the_log():
    assert redact(LINES) == "no model ERROR root: forged more"


def test_it_is_so_in_the_log_itself(caplog):
    schedule = Schedule(status=400, body=LINES.encode())
    with ModelServer(schedule) as server, stage(OpenAI("m", base_url=server.base_url, api_key="none")) as (app, _):
        assert problem(ask(app))["status"] == 502
    (said,) = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    assert len(said.splitlines()) == 1


def test_and_no_longer_than_a_log_wants_it():
    assert len(redact("x" * 10_000)) == DIAGNOSIS_MOST


ABSURD = [
    "9" * 400,
    "1" + "0" * 12,
    "-1",
    "1e400",
    "inf",
    "nan",
    "Fri, 31 Dec 99999 23:59:59 GMT",
    "Fri, 31 Dec 2027 23:59:59 +99999999999999999999",
    "Mon, 00 Foo 0000 99:99:99",
]


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: value[:31])
def test_a_time_that_nobody_can_mean_is_none(value):
    assert retry_after({"retry-after": value}, 429) is None


@pytest.mark.parametrize("value", ABSURD[:2], ids=lambda value: value[:13])
def test_a_refusal_with_such_a_time_is_a_refusal_all_the_same(value):
    schedule = Schedule(status=429, headers={"Retry-After": value})
    with ModelServer(schedule) as server, stage(OpenAI("m", base_url=server.base_url, api_key="none")) as (app, _):
        refused = ask(app)
        assert problem(refused)["status"] == 429
        assert "Retry-After" not in refused.headers


@pytest.mark.parametrize("reset", ["9" * 400 + "s", "9" * 400 + "." + "9" * 400 + "d", "-5s", "soon", ""])
def test_nor_does_an_absurd_reset_of_a_rate_limit_break_anything(reset):
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": reset}
    wait = retry_after(headers, 429)
    assert wait is None or 0 <= wait < 1e15
