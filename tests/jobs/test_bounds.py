"""What bounds a job, and what it leaves: slots, quotas and budgets, results, the end of its process."""

import datetime

import pytest
from marshmallow import Schema, fields, validate

from flask_llmstream.admission import LEAST_ANSWER
from flask_llmstream.errors import ShuttingDown
from flask_llmstream.run import RESULT_APART
from tests.conversation import KEY, problem
from tests.jobs.house import WAITING, ending, submit
from tests.puppet import Pause, Puppet, eventually

OTHER = {"X-User": "bob"}


class Document(Schema):
    title = fields.String(required=True)
    pages = fields.Integer(load_default=1)


def answering(llm):
    """Jobs with a model and without."""

    @llm.job("/api/analyze", input=Document, status="/api/analyze/<run_id>")
    def analyze(run):
        return run.model.stream([])

    @llm.job("/api/other", input=Document)
    def other(run):
        return run.input["title"]


BODY = {"title": "Moby Dick"}


@pytest.fixture
def pause():
    return Pause()


# Slots, quotas, budget


def test_jobs_that_wait_hold_a_slot(house, pause):
    client = house.open(answering, Puppet([pause]), working=False, CONCURRENCY=1, MAX_RUNS_PER_USER=2)
    urls = [submit(client, "/api/analyze", BODY | {"pages": page}) for page in (1, 2)]
    refused = client.post("/api/analyze", json=BODY | {"pages": 3})
    assert refused.status_code == 429
    said = problem(refused)
    assert said["limit"] == "runs"
    assert [run["id"] for run in said["live"]] == [url.rsplit("/", 1)[1] for url in urls]
    assert client.post("/api/analyze", json=BODY, headers=OTHER).status_code == 202
    cancelled = urls[1].replace("/analyze/", "/runs/")
    assert client.post(f"{cancelled}/cancel").json["status"] == "cancelled"
    assert client.post("/api/analyze", json=BODY | {"pages": 3}).status_code == 202
    pause.go_on()


def test_a_job_holds_its_slot_when_nobody_has_looked_after_it_for_long(house, pause):
    client = house.open(answering, Puppet([pause]), working=False, CONCURRENCY=1, MAX_RUNS_PER_USER=2)
    for page in (1, 2):
        run_id = submit(client, "/api/analyze", BODY | {"pages": page}).rsplit("/", 1)[1]
    store = house.record.registry.ledger.store
    assert store.command("ZADD", store.key("leases"), "XX", "CH", WAITING + 1, run_id) == 1
    assert problem(client.post("/api/analyze", json=BODY | {"pages": 3}))["limit"] == "runs"
    pause.go_on()


def test_starts_are_counted_and_told(house):
    client = house.open(answering, STARTS_PER_USER="2/hour")
    headers = {"Idempotency-Key": KEY}
    first = client.post("/api/other", json=BODY, headers=headers)
    assert first.headers["RateLimit"].startswith('"starts";r=1;')
    assert "RateLimit" not in client.post("/api/other", json=BODY, headers=headers).headers  # which costs nothing
    submit(client, "/api/other", BODY | {"pages": 2})
    refused = client.post("/api/other", json=BODY | {"pages": 3})
    assert int(refused.headers["Retry-After"]) > 0
    assert problem(refused)["limit"] == "starts"


def test_what_the_budget_leaves_bounds_the_model_of_who_performs_it(house, pause):
    asked = []

    def declare(llm):
        @llm.job("/api/measure", input=Document, max_tokens=900)
        def measure(run):
            asked.append(run.model.settings.max_tokens)
            yield from run.model.stream([])

    client = house.open(declare, Puppet([pause]), TOKEN_BUDGET="1300/hour")
    submit(client, "/api/measure", BODY)
    eventually(lambda: asked == [900])
    submit(client, "/api/measure", BODY | {"pages": 2})
    eventually(lambda: len(asked) == 2)
    assert LEAST_ANSWER <= asked[1] < 400
    pause.go_on()


def test_one_that_the_budget_does_not_allow_is_refused(house):
    client = house.open(answering, TOKEN_BUDGET="10/hour", MAX_TOKENS=500)
    refused = client.post("/api/analyze", json=BODY)
    assert refused.status_code == 429
    assert problem(refused)["limit"] == "tokens"


# Results


class Source(Schema):
    url = fields.String(required=True)
    rank = fields.Integer(dump_only=True)


class Verdict(Schema):
    sentiment = fields.String(required=True, validate=validate.OneOf(["positive", "negative"]))
    seen = fields.Date()
    sources = fields.List(fields.Nested(Source))
    length = fields.Integer(dump_only=True)


def judging(returned):
    def declare(llm):
        @llm.job("/api/judge", input=Document, result=Verdict)
        def judge(run):
            return returned()

    return declare


def test_a_result_is_as_its_schema_dumps_it(house):
    verdict = {"sentiment": "positive", "length": "8", "sources": [{"url": "a", "rank": 1}]}
    client = house.open(judging(lambda: verdict | {"seen": datetime.date(2026, 1, 2), "more": 1}))
    run = ending(client, submit(client, "/api/judge", BODY))
    assert run["result"] == verdict | {"seen": "2026-01-02", "length": 8}


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda: None,
        lambda: 42,
        lambda: object(),
        lambda: {"verdict": "positive"},
        lambda: {"sentiment": "so so"},
        lambda: {"sentiment": "positive", "sources": [{"rank": 1}]},
    ],
    ids=["nothing", "a number", "an object", "other fields", "another value", "nonsense inside"],
)
def test_a_result_that_its_schema_is_not_for_fails_the_job(house, nonsense, caplog):
    client = house.open(judging(nonsense))
    run = ending(client, submit(client, "/api/judge", BODY))
    assert run["status"] == "failed" and run["error"]["type"].endswith(":invalid-output")
    assert run["attempt"] == 1
    assert "judge returned what its schema does not take" in caplog.text


LARGE = {"words": ["whale"] * 20_000}


def returning_much(llm):
    @llm.job("/api/copy", input=Document)
    def copy(run):
        yield "Done."
        return LARGE


def results(house):
    """The keys of results that are kept beside their logs."""
    store = house.record.registry.ledger.store
    return store.command("KEYS", store.key("result", "*"))


def test_a_large_result_is_kept_out_of_the_log_and_told_by_the_status(house):
    client = house.open(returning_much)
    url = submit(client, "/api/copy", BODY)
    assert ending(client, url)["result"] == LARGE
    with client.get(f"{url}/events") as stream:
        assert len(stream.data) < RESULT_APART / 10
        assert b'"result_size":' in stream.data and b'"result":' not in stream.data
    waited = client.post("/api/copy", json=BODY | {"pages": 2}, headers={"Prefer": "wait=10"})
    assert waited.json["result"] == LARGE
    assert len(results(house)) == 2
    assert client.get("/api/runs").json["data"][0]["status"] == "completed"


def test_a_large_result_goes_with_its_run(house):
    client = house.open(returning_much)
    url = submit(client, "/api/copy", BODY)
    ending(client, url)
    assert client.delete(url).status_code == 204
    assert results(house) == []


# The end of the process


def test_the_end_of_its_process_fails_what_waits_in_it_and_begins_nothing(house, pause, monkeypatch):
    """Without Redis; with it, what waits is anybody's."""
    model = Puppet([pause])
    client = house.open(answering, model, working=False, CONCURRENCY=1)
    urls = [submit(client, "/api/analyze", BODY | {"pages": page}) for page in (1, 2, 3)]
    registry = house.record.registry
    interrupt = registry.interrupt

    def interrupt_to_the_end(run):
        interrupt(run)
        eventually(lambda: run.ended)

    monkeypatch.setattr(registry, "interrupt", interrupt_to_the_end)
    registry.break_off()
    if house.hands:
        assert [client.get(url).json["status"] for url in urls] == ["queued"] * 3
        return
    for url in urls:
        run = ending(client, url)
        assert (run["status"], run["error"]["type"].rsplit(":", 1)[1]) == ("failed", "run-interrupted")
    assert not registry.busy and len(model.calls) == 1


def test_a_registry_that_is_closed_leaves_nothing_that_waits(house, pause):
    client = house.open(answering, Puppet([pause]), working=False, CONCURRENCY=1)
    for page in (1, 2, 3):
        submit(client, "/api/analyze", BODY | {"pages": page})
    registry = house.record.registry
    live = registry.live
    registry.close()
    eventually(lambda: all(run.ended for run in live))
    assert registry.live == [] and len(live) == (0 if house.hands else 3)


def test_a_process_that_is_about_to_end_starts_nothing(house, monkeypatch):
    """With Redis it does: others will perform it."""

    def told_to_go():
        raise ShuttingDown(retry_after=3.0)

    client = house.open(answering, working=False)
    monkeypatch.setattr(house.record.drain, "admit", told_to_go)
    response = client.post("/api/other", json=BODY)
    if house.hands:
        assert response.status_code == 202
        return
    assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
    assert problem(response)["type"].endswith(":shutting-down")
    assert client.get("/api/runs").json["data"] == [] and not house.performer.busy
