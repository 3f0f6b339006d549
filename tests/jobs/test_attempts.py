"""How often a job is tried: again after what may pass, not after mistakes; what is void then, and what is not."""

import threading
from contextlib import closing, suppress

import pytest
from flask import current_app
from marshmallow import Schema, ValidationError, fields, post_load, validates

from flask_llmstream import attempts, errors, registry, run_ended
from flask_llmstream.errors import RunCancelled
from flask_llmstream.events import Usage
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.runtime import current, threads
from flask_llmstream.testing import ModelServer, Schedule
from flask_llmstream.writer import BACKOFF, BACKOFF_MOST, pause_before_retry
from tests.conversation import events
from tests.jobs.house import ending, submit
from tests.puppet import PATIENCE, Pause, Puppet, eventually

BUSY = errors.UpstreamRateLimited()
FAULT = errors.UpstreamUnavailable()


def answering(llm, **options):
    """A job in which the model answers."""

    @llm.job("/api/analyze", **options)
    def analyze(run):
        return run.model.stream([])


BODY = {"messages": [{"role": "user", "content": "Hello?"}]}


def performed(house, model, declare=answering, **config):
    """How a job ends."""
    client = house.open(declare, model, **config)
    url = submit(client, "/api/analyze", BODY)
    return ending(client, url), events(client.get(f"{url}/events"))


# Once more


@pytest.mark.parametrize("fault", [BUSY, FAULT, errors.UpstreamTruncated(), errors.UpstreamUnreachable()])
def test_a_passing_fault_of_the_model_s_is_no_reason_to_fail(house, soon, fault):
    run, heard = performed(house, Puppet(["Hel", fault], ["Good ", "bye"]))
    assert (run["status"], run["attempt"], run["text"], run["error"]) == ("completed", 2, "Good bye", None)
    again = heard.index({"restarted": 2})  # of what is void then, a reader elsewhere may not hear all
    assert "".join(event.get("token", "") for event in heard[:again]) in ("Hel", "")
    *said, done = heard[again + 1 :]
    assert said == [
        {"status": "queued"},
        {"status": "thinking"},
        {"status": "writing"},
        {"token": "Good "},
        {"token": "bye"},
    ]
    assert done["done"] is True


def test_a_stop_that_comes_while_it_is_passed_on_is_not_lost(house, soon, monkeypatch):
    client = house.open(answering, Puppet([BUSY], ["Hello"]))
    backlog, here = house.performer._attempts.backlog, house.record.registry
    again = backlog.again

    def stopped_meanwhile(run_id, *given, **more):
        said = again(run_id, *given, **more)
        here.stop(here.find(run_id, None))
        return said

    monkeypatch.setattr(backlog, "again", stopped_meanwhile)
    assert ending(client, submit(client, "/api/analyze", BODY))["status"] == "cancelled"


class Known(Schema):
    """A schema that asks the application, as one does that looks something up in its database."""

    name = fields.String(required=True)

    @validates("name")
    def _is_known(self, name, **_):
        if name not in current_app.extensions:
            raise ValidationError("Not known.")


def test_its_input_is_read_again_in_the_application_s_context(house, soon):
    client = house.open(lambda llm: answering(llm, input=Known), Puppet([BUSY], ["Hello"]))
    assert client.post("/api/analyze", json={"name": "ftp"}).status_code == 422
    run = ending(client, submit(client, "/api/analyze", {"name": "llmstream"}))
    assert (run["status"], run["attempt"], run["error"]) == ("completed", 2, None)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_is_tried_again_over_the_wire(house, soon, status):
    with ModelServer() as server, closing(OpenAI("m", base_url=server.base_url)) as model:
        server.then(Schedule(status=status), Schedule(tokens=2))
        run, _ = performed(house, model)
        assert (run["status"], run["attempt"]) == ("completed", 2)
        assert len(server.requests) == 2


def test_it_is_tried_so_often_and_then_fails_as_it_did_last(house, soon):
    model = Puppet([BUSY], [BUSY], ["Hel", FAULT])
    run, heard = performed(house, model)
    assert (run["status"], run["attempt"], run["text"]) == ("failed", 3, "Hel")
    assert run["error"]["type"].endswith(":upstream-unavailable")
    assert [event["restarted"] for event in heard if "restarted" in event] == [2, 3]
    assert len(model.calls) == 3


def test_one_attempt_is_one(house, soon):
    model = Puppet([BUSY])
    run, _ = performed(house, model, lambda llm: answering(llm, attempts=1))
    assert (run["status"], run["attempt"], len(model.calls)) == ("failed", 1, 1)


def test_it_waits_as_a_queued_run_meanwhile(house, monkeypatch):
    monkeypatch.setattr("flask_llmstream.writer.BACKOFF", 1000.0)
    client = house.open(answering, Puppet(["Hel", BUSY]))
    url = submit(client, "/api/analyze", BODY)
    eventually(lambda: client.get(url).json["attempt"] == 2)
    run = client.get(url).json
    assert (run["status"], run["text"], run["progress"]) == ("queued", "", None)
    assert client.get("/api/runs").json["data"][0]["status"] == "queued"
    response = client.post(f"{url}/cancel")
    assert (response.status_code, response.json["status"], response.json["attempt"]) == (200, "cancelled", 2)


def test_whoever_waits_for_a_job_is_told_of_its_last_attempt(house, soon):
    client = house.open(answering, Puppet([BUSY], ["Hello"], usage=Usage(3, 2)))
    run = client.post("/api/analyze", json=BODY, headers={"Prefer": "wait=10"}).json
    assert (run["status"], run["attempt"], run["text"]) == ("completed", 2, "Hello")
    assert run["ended_at"] and run["expires_at"] and run["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


def test_a_status_that_is_waited_for_is_of_the_last_attempt(house, soon):
    pause = Pause()
    client = house.open(answering, Puppet([pause, BUSY], ["Hello"], usage=Usage(3, 2)))
    url = submit(client, "/api/analyze", BODY)
    assert pause.reached.wait(PATIENCE)
    threading.Timer(0.05, pause.go_on).start()
    run = client.get(f"{url}?wait=10").json
    assert (run["status"], run["attempt"]) == ("completed", 2)
    assert run["ended_at"] and run["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


def test_a_run_can_be_found_at_any_time_between_two_attempts(house, soon):
    """Also while the input of the next one is made of what was sent, which may take a while."""
    found, url, pause = [], "", Pause()

    class Slow(Schema):
        @post_load
        def look(self, data, **more):
            found.append(client.get(url).status_code if url else None)
            return data

    client = house.open(lambda llm: answering(llm, input=Slow), Puppet([pause, BUSY], [BUSY], ["Hello"]))
    url = submit(client, "/api/analyze")
    assert pause.reached.wait(PATIENCE)
    found.clear()
    pause.go_on()
    assert ending(client, url)["attempt"] == 3
    assert found == [200, 200]


@pytest.mark.skipif(current().cooperative, reason="greenlets are always to be had")
def test_one_that_finds_no_thread_is_tried_again(in_process, soon, monkeypatch, caplog):
    """And stands in nobody's way meanwhile."""
    start, refused = threads.start_thread, []

    def refuse(work, name):
        if name == "llmstream-run" and len(refused) < 2:
            refused.append(name)
            raise RuntimeError("can't start new thread")
        start(work, name)

    client = in_process.open(answering, CONCURRENCY=1)
    monkeypatch.setattr(threads, "start_thread", refuse)
    urls = [submit(client, "/api/analyze", BODY | {"max_tokens": n}) for n in (1, 2, 3)]
    runs = [ending(client, url) for url in urls]
    assert [run["status"] for run in runs] == ["completed"] * 3
    assert sum(run["attempt"] for run in runs) == 5
    assert caplog.text.count("of analyze could not be begun") == 2


# Not again


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a mistake"),
        errors.UpstreamForbidden(),
        errors.ContentFiltered(),
        errors.Aborted("No.", status=409),
        errors.InvalidAnswer(errors={}, attempts=3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_would_only_fail_again_is_not_tried_again(house, soon, error):
    model = Puppet([error])
    run, heard = performed(house, model)
    assert (run["status"], run["attempt"], len(model.calls)) == ("failed", 1, 1)
    assert not [event for event in heard if "restarted" in event]


def test_an_application_names_its_own_exceptions_that_may_pass(house, soon):
    model = Puppet([ZeroDivisionError()], [KeyError()], ["Hello"])
    run, _ = performed(house, model, lambda llm: answering(llm, retry_on=[ArithmeticError, LookupError]))
    assert (run["status"], run["attempt"], run["text"]) == ("completed", 3, "Hello")


def test_one_exception_may_be_named_alone(house, soon):
    run, _ = performed(house, Puppet([KeyError()], ["Hello"]), lambda llm: answering(llm, retry_on=LookupError))
    assert (run["status"], run["attempt"]) == ("completed", 2)


def test_an_error_of_the_package_s_may_be_named_as_well(house, soon):
    model = Puppet([errors.UpstreamForbidden()], ["Hello"])
    run, _ = performed(house, model, lambda llm: answering(llm, retry_on=[errors.UpstreamForbidden]))
    assert (run["status"], run["attempt"]) == ("completed", 2)
    assert not errors.UpstreamForbidden.retryable


def test_one_that_is_stopped_is_not_tried_again(house, soon):
    pause = Pause()
    model = Puppet(["Hel", pause, BUSY])
    client = house.open(answering, model)
    url = submit(client, "/api/analyze", BODY)
    assert pause.reached.wait(PATIENCE)
    assert client.post(f"{url}/cancel").json["status"] == "cancelled"
    assert ending(client, url)["attempt"] == 1 and len(model.calls) == 1


def test_one_that_is_deleted_while_it_waits_for_its_next_attempt_is_gone(house, monkeypatch):
    monkeypatch.setattr("flask_llmstream.writer.BACKOFF", 0.3)
    model = Puppet([BUSY], ["Hello"])
    client = house.open(answering, model)
    url = submit(client, "/api/analyze", BODY)
    eventually(lambda: client.get(url).json["attempt"] == 2)
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    store = house.record.registry.ledger.store
    eventually(lambda: store.command("EXISTS", store.key("run", url.rsplit("/", 1)[1])) == 0)
    eventually(lambda: not house.performer.live)


# Time-outs


def test_one_that_takes_too_long_fails(house, soon):
    model = Puppet(["Hel", Pause()])
    run, _ = performed(house, model, lambda llm: answering(llm, timeout=0.2))
    assert (run["status"], run["text"], run["attempt"]) == ("failed", "Hel", 1)
    assert run["error"]["type"].endswith(":run-timeout") and run["error"]["status"] == 504
    assert "0.2 s" in run["error"]["detail"]


def test_a_function_that_does_not_listen_is_closed_all_the_same(house, monkeypatch):
    monkeypatch.setattr(registry, "INTERRUPTED_WITHIN", 0.05)
    over = threading.Event()

    def declare(llm):
        @llm.job("/api/analyze", timeout=0.05)
        def deaf(run):
            while not over.is_set():
                with suppress(RunCancelled):
                    over.wait(PATIENCE)

    run, _ = performed(house, None, declare)
    assert run["error"]["type"].endswith(":run-timeout")
    over.set()


def test_each_attempt_has_its_own_time(house, soon):
    pauses = [Pause(), Pause()]
    model = Puppet([pauses[0], BUSY], [pauses[1], "Hello"])
    client = house.open(lambda llm: answering(llm, timeout=1.0), model)
    url = submit(client, "/api/analyze", BODY)
    for pause in pauses:
        assert pause.reached.wait(PATIENCE)
        threading.Timer(0.6, pause.go_on).start()
    assert ending(client, url)["status"] == "completed"


def test_a_timer_of_one_that_has_ended_in_time_does_nothing(house):
    client = house.open(lambda llm: answering(llm, timeout=0.3), Puppet(["Hello"]))
    interrupted = []
    house.performer._attempts._moves = attempts.replace(
        house.performer._attempts._moves, interrupt=lambda run, error: interrupted.append(run)
    )
    url = submit(client, "/api/analyze", BODY)
    assert ending(client, url)["status"] == "completed"
    threading.Event().wait(0.5)
    assert interrupted == []


# The application and the accounts


def test_the_application_is_told_once(house, soon):
    told = []

    def hear(sender, run, text, state, usage):
        told.append((run.id, state, text, usage, run.attempt))

    with run_ended.connected_to(hear):
        run, _ = performed(house, Puppet(["Hel", BUSY], ["Bye"], usage=Usage(3, 1)))
        eventually(lambda: told)
    ((run_id, state, text, _, attempt),) = told
    assert (run_id, state, text, attempt) == (run["id"], "completed", "Bye", 2)


def test_what_failed_attempts_have_used_is_on_the_accounts(house, soon):
    """The fault came after the call: what it had used by then was reported."""

    def declare(llm):
        @llm.job("/api/analyze")
        def analyze(run):
            yield from run.model.stream([])
            if run.attempt < 3:
                raise FAULT

    run, _ = performed(house, Puppet(["Hello"], usage=Usage(10, 5)), declare, TOKEN_BUDGET="5000/hour")
    assert (run["status"], run["attempt"]) == ("completed", 3)
    assert run["usage"] == {"prompt_tokens": 30, "completion_tokens": 15}
    client = house.app.test_client()
    usage = client.get("/api/usage").json
    total = usage["total"]
    assert (total["runs"], total["prompt_tokens"], total["completion_tokens"]) == (1, 30, 15)
    (tokens,) = usage["quotas"]
    assert tokens["used"] == 45


def test_a_large_result_is_that_of_the_last_attempt(house, soon):
    def declare(llm):
        @llm.job("/api/analyze")
        def analyze(run):
            if run.attempt == 1:
                raise FAULT
            return ["whale"] * 20_000

    run, heard = performed(house, None, declare)
    assert run["result"] == ["whale"] * 20_000 and "result" not in heard[-1]
    client = house.app.test_client()
    assert client.delete(run["links"]["self"]).status_code == 204
    store = house.record.registry.ledger.store
    assert store.command("KEYS", store.key("result", "*")) == []


def test_it_counts_as_one_start(house, soon):
    performed(house, Puppet([BUSY], [BUSY], ["Hello"]), STARTS_PER_USER="5/hour")
    (starts,) = house.app.test_client().get("/api/usage").json["quotas"]
    assert starts["used"] == 1


def test_the_slot_is_held_from_attempt_to_attempt(house, monkeypatch):
    monkeypatch.setattr("flask_llmstream.writer.BACKOFF", 1000.0)
    client = house.open(answering, Puppet([BUSY]), MAX_RUNS_PER_USER=1)
    url = submit(client, "/api/analyze", BODY)
    eventually(lambda: client.get(url).json["attempt"] == 2)
    assert client.post("/api/analyze", json={"messages": [{"role": "user", "content": "x"}]}).status_code == 429
    client.post(f"{url}/cancel")


def test_what_the_queue_has_twice_is_performed_once(house):
    pause = Pause()
    model = Puppet(["Hel", pause, "lo"])
    client = house.open(answering, model)
    url = submit(client, "/api/analyze", BODY)
    assert pause.reached.wait(PATIENCE)
    assert house.performer.perform(url.rsplit("/", 1)[1], 1) is None
    pause.go_on()
    assert ending(client, url)["text"] == "Hello" and len(model.calls) == 1
    assert house.performer.perform(url.rsplit("/", 1)[1], 1) is None


# Backoff


def test_pauses_grow_up_to_a_limit_and_come_after_what_was_asked_for():
    for failures in range(12):
        most = min(BACKOFF * 2**failures, BACKOFF_MOST)
        pauses = [pause_before_retry(FAULT, failures) for _ in range(50)]
        assert most / 2 <= min(pauses) and max(pauses) <= most and len(set(pauses)) > 1
    asked = errors.UpstreamRateLimited(retry_after=20)
    assert 20 < pause_before_retry(asked, 0) <= 20 + BACKOFF
