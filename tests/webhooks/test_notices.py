"""Receivers are told of the ends of jobs: once, signed, until they have heard, and never of more than they may know."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import standardwebhooks
from marshmallow import Schema, fields

from flask_llmstream import LLMStream, Progress, Run, notices, writer
from flask_llmstream.errors import ConfigurationError
from flask_llmstream.events import Usage
from flask_llmstream.run import RESULT_APART
from tests.conversation import problem
from tests.jobs.house import House, ending, submit
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage
from tests.webhooks.receiver import OK, SECRET, Receiver, receiver, status

HEARS = {"WEBHOOK_SECRETS": [SECRET], "WEBHOOK_HOSTS": ["127.0.0.1"], "MAX_RUNS_PER_USER": None}
FAULT = status("500 Internal Server Error")


class Task(Schema):
    name = fields.String(load_default="")


def url_of(server: Receiver, path: str = "/hooks") -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def working(**options: Any) -> Callable[[LLMStream], None]:
    """Declares a job that returns its input's name.

    :param options: its own.
    """

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/work", input=Task, **options)
        def work(run: Run) -> str:
            return str(run.input["name"])

    return declare


def one_after_the_other(*answers: bytes) -> Callable[[socket.socket], None]:
    """Answers the first request so, the second so, and all further ones as the last."""
    left = list(answers)
    return lambda sock: sock.sendall(left.pop(0) if len(left) > 1 else left[0])


def heard(server: Receiver, n: int = 1) -> list[dict[str, Any]]:
    """What a receiver has been told, each of it signed."""
    eventually(lambda: len(server.requests) >= n, timeout=3 * PATIENCE)
    assert len(server.requests) == n
    reference = standardwebhooks.Webhook(SECRET)
    return [reference.verify(body, dict(headers)) for _, headers, body in server.requests]


def paths(server: Receiver) -> list[str]:
    return [line.split()[1] for line, _, _ in server.requests]


def quiet(house: Any) -> None:
    """Wait until no delivery goes on."""
    store = house.record.store
    eventually(lambda: not store.command("KEYS", "llmstream:live:*") and not house.performer.live)


@pytest.fixture
def soon(monkeypatch):
    """What is tried again is so at once."""
    monkeypatch.setattr(writer, "BACKOFF", 0.02)


def test_the_receiver_of_a_job(house):
    with receiver() as server:
        client = house.open(working(webhook=url_of(server, "/of-the-job")), WEBHOOK_URL=url_of(server), **HEARS)
        url = submit(client, "/api/work", {"name": "swordfish"})
        run = ending(client, url)
        [event] = heard(server)
        assert paths(server) == ["/of-the-job"]
        quiet(house)
    assert event["type"] == "run.completed"
    assert event["data"] == {
        "id": run["id"],
        "feature": "work",
        "status": "completed",
        "attempt": 1,
        "created_at": run["created_at"],
        "ended_at": event["data"]["ended_at"],
        "result": "swordfish",
        "result_size": None,
        "usage": None,
        "error": None,
    }


def test_the_receiver_of_an_application(house):
    with receiver() as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        ending(client, submit(client, "/api/work"))
        heard(server)
        quiet(house)


def test_the_receiver_of_a_run(house):
    """A function says which; where it says none, it is the application's."""
    with receiver() as server:
        place = {"ann": url_of(server, "/ann"), "bob": None}
        client = house.open(working(webhook=lambda run: place[run.user]), WEBHOOK_URL=url_of(server, "/all"), **HEARS)
        submit(client, "/api/work")
        heard(server)
        submit(client, "/api/work", headers={"X-User": "bob"})
        heard(server, 2)
        assert paths(server) == ["/ann", "/all"]
        quiet(house)


def test_what_the_function_for_it_may_use(house):
    """The application's context, and the run's input, for a run that ends as for one that was left."""
    from flask import current_app

    with receiver() as server:

        def of(run: Any) -> str:
            assert current_app.name == "stage"
            return url_of(server, f"/{run.input['name']}")

        client = house.open(working(webhook=of), **HEARS)
        submit(client, "/api/work", {"name": "swordfish"})
        heard(server)
        assert paths(server) == ["/swordfish"]
        quiet(house)


def test_of_streams_and_replies_nobody_is_told(house):
    def declare(llm: LLMStream) -> None:
        working()(llm)

        @llm.reply("/api/tell", max_tokens=50)
        def tell(run: Run) -> Any:
            return run.model.stream(run.input.messages)

    with receiver() as server:
        client = house.open(declare, WEBHOOK_URL=url_of(server), **HEARS)
        question = {"messages": [{"role": "user", "content": "?"}]}
        assert client.post("/api/tell", json=question).json == {"text": "Hello"}
        assert client.post("/api/chat/stream", json=question).text.endswith("\n\n")
        submit(client, "/api/work")
        [event] = heard(server)
        quiet(house)
    assert event["data"]["feature"] == "work"


def test_a_job_that_fails_says_no_more_than_its_problem(house):
    """Neither where nor with what it failed, nor what it was asked."""

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/work", input=Task)
        def work(run: Run) -> None:
            yield Progress(0.5, "swordfish: half")
            yield "said swordfish"
            raise ValueError(f"the password is not {run.input['name']}")

    with receiver() as server:
        client = house.open(declare, WEBHOOK_URL=url_of(server), **HEARS)
        run = ending(client, submit(client, "/api/work", {"name": "swordfish"}))
        [event] = heard(server)
        quiet(house)
        [(_, _, body)] = server.requests
    assert (event["type"], event["data"]["status"]) == ("run.failed", "failed")
    assert event["data"]["error"] == run["error"]
    for secret in (b"swordfish", b"Traceback", b"ValueError", b"password", b".py"):
        assert secret not in body


def test_a_job_that_is_cancelled(house):
    pause = Pause()

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/ask")
        def ask(run: Run) -> Any:
            return run.model.stream(run.input.messages)

    with receiver() as server:
        client = house.open(declare, Puppet(["Hel", pause, "lo"]), WEBHOOK_URL=url_of(server), **HEARS)
        url = submit(client, "/api/ask", {"messages": [{"role": "user", "content": "?"}]})
        assert pause.reached.wait(PATIENCE)
        client.post(f"{url}/cancel")
        [event] = heard(server)
        quiet(house)
    assert (event["type"], event["data"]["result"], event["data"]["error"]) == ("run.cancelled", None, None)


@pytest.mark.needs("redis-server")
def test_one_that_is_cancelled_before_its_turn(redis_server):
    """Nobody has performed it: whoever cancels it tells of it."""
    with receiver() as server, ExitStack() as stack:
        house = House(redis_server, stack)
        client = house.open(working(), working=False, WEBHOOK_URL=url_of(server), **HEARS)
        url = submit(client, "/api/work")
        assert client.post(f"{url}/cancel").json["status"] == "cancelled"
        with house.hands.at_work():
            [event] = heard(server)
            quiet(house)
    assert event["type"] == "run.cancelled"


def test_of_one_that_is_deleted_nobody_is_told(house):
    pause = Pause()

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/ask")
        def ask(run: Run) -> Any:
            return run.model.stream(run.input.messages)

    with receiver() as server:
        client = house.open(declare, Puppet(["Hel", pause], ["Hello"]), WEBHOOK_URL=url_of(server), **HEARS)
        body = {"messages": [{"role": "user", "content": "?"}]}
        url = submit(client, "/api/ask", body)
        assert pause.reached.wait(PATIENCE)
        assert client.delete(url).status_code == 204
        quiet(house)
        kept = submit(client, "/api/ask", body)
        [event] = heard(server)
        quiet(house)
    assert event["data"]["id"] == kept.rsplit("/", 1)[1]


def test_a_large_result_is_not_sent(house):
    def declare(llm: LLMStream) -> None:
        @llm.job("/api/work", input=Task)
        def work(run: Run) -> str:
            return "x" * RESULT_APART

    with receiver() as server:
        client = house.open(declare, WEBHOOK_URL=url_of(server), **HEARS)
        ending(client, submit(client, "/api/work"))
        [event] = heard(server)
        quiet(house)
    assert (event["data"]["result"], event["data"]["result_size"]) == (None, RESULT_APART + 2)


def test_a_receiver_that_fails_is_told_again(house, soon):
    """The same event, under the same id, with a signature of its own."""
    with receiver(one_after_the_other(FAULT, FAULT, OK)) as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        ending(client, submit(client, "/api/work"))
        events = heard(server, 3)
        quiet(house)
        assert len(server.requests) == 3
    assert events[0] == events[1] == events[2]
    assert len({headers["webhook-id"] for _, headers, _ in server.requests}) == 1


def test_not_before_the_receiver_wants_to_hear(house, soon):
    busy = status("429 Too Many Requests", "Retry-After: 1")
    with receiver(one_after_the_other(busy, OK)) as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        ending(client, submit(client, "/api/work"))
        heard(server)
        began = time.monotonic()
        heard(server, 2)
        assert time.monotonic() - began > 0.8
        quiet(house)


def test_a_receiver_that_is_gone_is_told_no_more(house, soon):
    with receiver(status("410 Gone")) as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        ending(client, submit(client, "/api/work"))
        heard(server)
        quiet(house)
        assert len(server.requests) == 1


def test_a_receiver_that_never_hears(house, soon, monkeypatch):
    """There is an end to it, and the job's own has nothing to do with that."""
    monkeypatch.setattr(notices, "ATTEMPTS", 3)
    with receiver(FAULT) as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        assert ending(client, submit(client, "/api/work"))["status"] == "completed"
        heard(server, 3)
        quiet(house)
        assert len(server.requests) == 3


def test_nothing_is_sent_into_our_own_network(house, caplog):
    """Unless the application allows it: the job is done all the same."""
    with receiver() as server:
        client = house.open(working(webhook=lambda run: url_of(server)), **HEARS | {"WEBHOOK_HOSTS": []})
        assert ending(client, submit(client, "/api/work"))["status"] == "completed"
        eventually(lambda: [line for line in caplog.messages if "of webhook failed" in line])
        quiet(house)
        assert server.requests == []


@pytest.mark.parametrize("answer", ["nowhere", 7, ZeroDivisionError()], ids=str)
def test_a_function_that_names_no_receiver(house, caplog, answer):
    """That is none of the job's faults."""

    def of(run: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = house.open(working(webhook=of), **HEARS)
    run = ending(client, submit(client, "/api/work"))
    assert (run["status"], run["error"]) == ("completed", None)
    eventually(lambda: [line for line in caplog.messages if "webhook" in line])
    quiet(house)


def test_nobody_waits_for_a_receiver(house):
    """The clients hear of the end, however long it takes to answer."""
    over = threading.Event()

    def slowly(sock: socket.socket) -> None:
        over.wait(PATIENCE)
        sock.sendall(OK)

    with receiver(slowly) as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        began = time.monotonic()
        response = client.post("/api/work", json={}, headers={"Prefer": "wait=10"})
        assert (response.status_code, response.json["status"]) == (200, "completed")
        assert time.monotonic() - began < 3
        heard(server)
        over.set()
        quiet(house)


def test_a_delivery_is_nobodys_run(house):
    """It is not listed or found, costs nothing, and takes no one's slot."""
    over = threading.Event()

    def slowly(sock: socket.socket) -> None:
        over.wait(PATIENCE)
        sock.sendall(OK)

    limits = {"MAX_RUNS_PER_USER": 1, "STARTS_PER_USER": "2/day", "TOKEN_BUDGET": "30000/day"}
    with receiver(slowly) as server:
        client = house.open(working(), Puppet(usage=Usage(1, 1)), WEBHOOK_URL=url_of(server), **HEARS | limits)
        url = submit(client, "/api/work", {"name": "x" * 60_000})
        ending(client, url)
        heard(server)
        names = house.record.store.command("KEYS", "llmstream:run:*")
        ids = {name.decode().rsplit(":", 1)[1] for name in names}
        assert len(ids) == 2
        [delivery] = ids - {url.rsplit("/", 1)[1]}
        for user in ("ann", f"webhook:{url.rsplit('/', 1)[1]}"):
            for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")):
                refused = client.open(f"/api/runs/{delivery}{path}", method=method, headers={"X-User": user})
                assert problem(refused)["status"] == 404
        assert len(client.get("/api/runs").json["data"]) == 1
        ending(client, submit(client, "/api/work", {"name": "second"}))
        usage = client.get("/api/usage").json
        over.set()
        heard(server, 2)
        quiet(house)
    assert usage["total"]["runs"] == 2
    assert [quota["remaining"] for quota in usage["quotas"] if quota["name"] == "starts"] == [0]
    assert len(house.record.store.command("KEYS", "llmstream:usage:*")) == 1


def test_each_end_is_told_once(house):
    """However often it is announced: by a process that was cut off, and by the one that closed the run for it."""
    with receiver() as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        url = submit(client, "/api/work")
        ending(client, url)
        heard(server)
        quiet(house)
        run = house.record.registry.find(url.rsplit("/", 1)[1], None)
        for _ in range(3):
            notices.announce(house.record, run)
        quiet(house)
        assert len(server.requests) == 1


def test_the_end_of_a_batch_is_told_once_for_all_of_it(house):
    with receiver() as server:
        client = house.open(working(webhook=url_of(server)), **HEARS)
        order = {"feature": "work", "inputs": [{"name": "a"}, {"name": 7}, {"name": "c"}]}
        batch = client.post("/api/batches", json=order).json
        [event] = heard(server)
        quiet(house)
        assert len(server.requests) == 1
    assert (event["type"], event["data"]["id"]) == ("run.completed", batch["id"])
    assert event["data"]["feature"] == "batch"
    assert event["data"]["result"] == {"total": 3, "completed": 2, "failed": 1}


def test_a_receiver_of_the_applications_hears_of_batches_too(house):
    with receiver() as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        client.post("/api/batches", json={"feature": "work", "inputs": [{}]})
        [event] = heard(server)
        quiet(house)
    assert event["data"]["feature"] == "batch"


def test_what_is_sent_is_json_without_spaces(house):
    with receiver() as server:
        client = house.open(working(), WEBHOOK_URL=url_of(server), **HEARS)
        submit(client, "/api/work", {"name": "Grüße"})
        [event] = heard(server)
        quiet(house)
        [(line, headers, body)] = server.requests
    assert line == "POST /hooks HTTP/1.1"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == event


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"WEBHOOK_URL": "https://hooks.example"}, "LLMSTREAM_WEBHOOK_URL needs LLMSTREAM_WEBHOOK_SECRETS"),
        ({"WEBHOOK_SECRETS": ["secret"]}, "LLMSTREAM_WEBHOOK_SECRETS: a webhook's secret is whsec_"),
        ({"WEBHOOK_HOSTS": ["https://inside"]}, "LLMSTREAM_WEBHOOK_HOSTS: each is a host's name"),
        (
            {"WEBHOOK_URL": "ftp://hooks.example", "WEBHOOK_SECRETS": [SECRET]},
            "LLMSTREAM_WEBHOOK_URL is 'ftp://hooks.example'. The URL of a webhook is https://host/path",
        ),
    ],
)
def test_a_configuration_that_cannot_be_meant(config, says):
    with pytest.raises(ConfigurationError) as refused, stage(**config):
        pass
    assert says in refused.value.detail


@pytest.mark.parametrize(
    ("webhook", "config", "says"),
    [
        ("https://hooks.example", {}, "work: webhook= needs LLMSTREAM_WEBHOOK_SECRETS"),
        (lambda run: None, {}, "work: webhook= needs LLMSTREAM_WEBHOOK_SECRETS"),
        ("hooks.example", {"WEBHOOK_SECRETS": [SECRET]}, "work: webhook= is 'hooks.example'"),
    ],
)
def test_a_job_that_cannot_be_meant(webhook, config, says):
    with stage(**config) as (_, llm), pytest.raises(ConfigurationError) as refused:
        working(webhook=webhook)(llm)
    assert says in refused.value.detail
