"""How the inputs of a batch are carried out: so many at a time, at a rate, each once, and none beyond its end."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest

from flask_llmstream import LLMStream, Run, driver, status
from flask_llmstream.events import Usage
from flask_llmstream.writer import BACKOFF
from tests.batches.sorting import LARGE, Item, Sorting, ending, keys, numbers, page, results, start
from tests.jobs.house import House
from tests.puppet import PATIENCE, Pause, Puppet, eventually


@pytest.fixture
def gate(sorting):
    """What all wait for until the test opens it."""
    sorting.gate = threading.Event()
    yield sorting.gate
    sorting.gate.set()


def nothing_but_results(sorting: Sorting) -> bool:
    """Whether of what was carried out nothing is left but the batch's own run and its results."""
    record = sorting.house.record
    runs = keys(sorting.house, "run:")
    left = keys(sorting.house, "log:", "key:", "result:", "feed:", "kept:", "live:", "starts:", "tokens:", "ended:")
    beside = {"log": 1, "key": 1, "feed": 1, "kept": 1, "ended": 1}  # what the batch's own run and its owner have
    found = {kind: sum(name.startswith(kind) for name in left) for kind in beside}
    kinds = [name.split(":")[2] for name in keys(sorting.house, "batch:")]
    return (
        len(runs) == 1
        and all(found[kind] <= most for kind, most in beside.items())
        and len(left) == sum(found.values())
        and kinds == ["counts", "done", "results"]
        and record.store.command("ZCARD", record.store.key("leases")) == 0
    )


def test_so_many_at_a_time(sorting, gate):
    client = sorting.open()
    url = start(client, numbers(20), concurrency=3)
    eventually(lambda: sorting.at_work == 3)
    time.sleep(0.1)  # in which no fourth begins
    assert sorting.at_work == 3
    gate.set()
    assert ending(client, url)["request_counts"]["completed"] == 20
    assert sorting.most_at_work == 3


def test_the_one_place_of_a_process_is_not_the_drivers(house):
    """It waits for others, who could otherwise never begin."""
    sorting = Sorting(house)
    client = sorting.open(CONCURRENCY=1)
    url = start(client, numbers(5))
    assert ending(client, url)["status"] == "completed"
    if house.server is None:
        assert sorting.most_at_work == 1


def test_nothing_of_its_parts_is_left(sorting):
    client = sorting.open(model=Puppet(usage=Usage(2, 3)))
    url = start(client, [*numbers(30), {"n": "x"}])
    assert ending(client, url)["request_counts"] == {"total": 31, "completed": 30, "failed": 1}
    eventually(lambda: nothing_but_results(sorting))
    assert sorting.done == dict.fromkeys(range(30), 1)


def test_a_deleted_one_leaves_nothing(sorting):
    client = sorting.open()
    url = start(client, numbers(3))
    ending(client, url)
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    eventually(lambda: not keys(sorting.house, "batch:", "run:", "log:", "key:", "ended:"))


def test_one_that_is_deleted_as_it_goes_on_leaves_nothing(sorting):
    pause = Pause()
    client = sorting.open(model=Puppet(["", pause, "late"]))
    url = start(client, [{"messages": [{"role": "user", "content": "?"}]}] * 3, "tell")
    assert pause.reached.wait(PATIENCE)
    assert client.delete(url).status_code == 204
    eventually(lambda: not keys(sorting.house, "batch:", "run:", "log:", "key:", "live:", "tokens:"))


def test_a_run_that_is_deleted_under_its_other_name_leaves_nothing(sorting):
    """A batch is a run, and may be deleted as one."""
    client = sorting.open()
    url = start(client, numbers(3))
    ending(client, url)
    assert client.delete(url.replace("batches", "runs")).status_code == 204
    eventually(lambda: not keys(sorting.house, "batch:", "run:"))


def test_cancel_stops_what_goes_on(sorting):
    """The model's connections are closed; what has a result keeps it, and the rest is never begun."""
    pause = Pause()
    model = Puppet(["one"], ["two", pause])
    client = sorting.open(model=model)
    ask = {"messages": [{"role": "user", "content": "?"}]}
    url = start(client, [ask] * 10, "tell", concurrency=1)
    assert pause.reached.wait(PATIENCE)
    eventually(lambda: client.get(url).json["request_counts"]["completed"] == 1)
    began = time.monotonic()
    response = client.post(f"{url}/cancel")
    assert (response.status_code, response.json["status"]) == (200, "cancelled")
    assert time.monotonic() - began < 1.5
    eventually(lambda: model.calls[1].cancelled)
    eventually(lambda: nothing_but_results(sorting))
    assert len(model.calls) == 2
    status = client.get(url).json
    assert (status["status"], status["request_counts"]) == ("cancelled", {"total": 10, "completed": 1, "failed": 0})
    assert results(client, url) == {0: {"status": "completed", "result": {"text": "one"}}}
    assert client.post(f"{url}/cancel").json["status"] == "cancelled"


def test_a_driver_that_does_not_stop_at_once_is_not_waited_for(sorting, gate, monkeypatch):
    monkeypatch.setattr(status, "STOP_WITHIN", 0.0)
    client = sorting.open()
    url = start(client, numbers(2))
    eventually(lambda: sorting.at_work == 2)
    response = client.post(f"{url}/cancel")
    assert (response.status_code, response.json["object"]) == (202, "batch")
    gate.set()
    assert ending(client, url)["status"] == "cancelled"


def test_a_rate_of_requests(sorting, monkeypatch):
    """So many begin in each window of time, and all of them are done in the end."""
    monkeypatch.setattr(driver, "MINUTE", 1)
    client = sorting.open()
    began = time.monotonic()
    url = start(client, numbers(12), rate={"requests": 4})
    assert ending(client, url)["request_counts"]["completed"] == 12
    assert 1 < time.monotonic() - began < 10
    assert sorting.done == dict.fromkeys(range(12), 1)


def test_a_rate_of_tokens(sorting, monkeypatch):
    """What is used counts, and while it goes on, what it may come to."""
    monkeypatch.setattr(driver, "MINUTE", 1)
    client = sorting.open(model=Puppet(usage=Usage(10, 40)))
    ask = {"messages": [{"role": "user", "content": "?"}]}
    began = time.monotonic()
    url = start(client, [ask] * 6, "tell", rate={"tokens": 120})
    assert ending(client, url)["request_counts"]["completed"] == 6
    assert time.monotonic() - began > 1  # not more than two in a second
    assert client.get(url).json["usage"] == {"prompt_tokens": 60, "completion_tokens": 240}


def test_what_no_rate_has_room_for(sorting):
    client = sorting.open()
    ask = {"messages": [{"role": "user", "content": "?"}]}
    url = start(client, [ask], "tell", rate={"tokens": 10})
    assert ending(client, url)["request_counts"]["failed"] == 1
    assert results(client, url)[0]["error"] | {"status": 429, "limit": "tokens"} == results(client, url)[0]["error"]


def test_it_is_its_owner_who_pays(sorting):
    """Once for each input, as if they had asked one by one; a batch as such is none."""
    client = sorting.open(model=Puppet(usage=Usage(10, 40)), TOKEN_BUDGET="100000/day")
    ask = {"messages": [{"role": "user", "content": "?"}]}
    url = start(client, [ask] * 4, "tell")
    ending(client, url)
    usage = client.get("/api/usage").json
    assert usage["total"] | {"runs": 4, "prompt_tokens": 40, "completion_tokens": 160} == usage["total"]
    [tokens] = [quota for quota in usage["quotas"] if quota["name"] == "tokens"]
    assert tokens["remaining"] == 100_000 - 200


def test_it_waits_for_its_owners_budget(sorting):
    """What goes on counts as all that it may come to, and what has ended as what it has."""
    client = sorting.open(model=Puppet(usage=Usage(10, 40)), TOKEN_BUDGET="200/second")
    ask = {"messages": [{"role": "user", "content": "?"}]}
    began = time.monotonic()
    url = start(client, [ask] * 15, "tell")
    assert ending(client, url)["request_counts"]["completed"] == 15
    assert time.monotonic() - began > 2  # 750 tokens in all, of 200 a second


def test_what_a_budget_never_suffices_for(sorting):
    client = sorting.open(TOKEN_BUDGET="40/day")
    ask = {"messages": [{"role": "user", "content": "?"}]}
    url = start(client, [ask], "tell")
    assert ending(client, url)["request_counts"]["failed"] == 1
    assert results(client, url)[0]["error"]["limit"] == "tokens"


def test_plain_text_is_an_object(sorting):
    client = sorting.open()
    url = start(client, [{"messages": [{"role": "user", "content": "?"}]}], "tell")
    ending(client, url)
    assert results(client, url) == {0: {"status": "completed", "result": {"text": "Hello"}}}


def test_an_answer_that_is_cut_is_none(sorting):
    client = sorting.open(model=Puppet(finish_reason="length"))
    url = start(client, [{"messages": [{"role": "user", "content": "?"}]}], "tell")
    assert ending(client, url)["request_counts"]["failed"] == 1
    assert results(client, url)[0]["error"]["type"].endswith("answer-cut")


def test_large_results(sorting):
    client = sorting.open()
    url = start(client, numbers(3), "enlarge")
    ending(client, url)
    assert [line["result"] for line in results(client, url).values()] == ["x" * LARGE] * 3
    assert len(page(client, url, limit=1)[0]) == 1
    eventually(lambda: nothing_but_results(sorting))


def test_what_fails_says_why(sorting):
    client = sorting.open()
    url = start(client, numbers(2), "divide")
    assert ending(client, url)["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    lines = results(client, url)
    assert lines[1] == {"status": "completed", "result": 1.0}
    assert lines[0]["error"]["type"].endswith("feature-failed")
    assert "ZeroDivisionError" not in str(lines)


def test_no_input_continues_a_conversation(sorting):
    client = sorting.open()
    url = start(client, [{"conversation": "c1", "message": "And then?"}], "tell")
    ending(client, url)
    assert list(results(client, url)[0]["error"]["errors"]) == ["conversation"]


def test_a_schema_that_fails_takes_no_other_input_with_it(house):
    class Brittle(Item):
        def load(self, data, **more):
            if data["n"] == 1:
                raise ArithmeticError("the application's own mistake")
            return super().load(data, **more)

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/count", input=Brittle)
        def count(run: Run) -> int:
            return run.input["n"]

    client = house.open(declare, MAX_RUNS_PER_USER=None)
    url = start(client, numbers(3), "count")
    assert ending(client, url)["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert results(client, url)[1]["error"]["type"].endswith("feature-failed")


def test_what_may_pass_is_tried_again(house):
    """By the input's own attempts, as if it had been asked for alone."""
    failures = {1: 1, 2: 5}

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/count", input=Item, attempts=2, retry_on=[OSError])
        def count(run: Run) -> int:
            n = run.input["n"]
            if failures.get(n, 0):
                failures[n] -= 1
                raise OSError
            return n

    assert BACKOFF < 3
    client = house.open(declare, MAX_RUNS_PER_USER=None)
    url = start(client, numbers(3), "count")
    assert ending(client, url)["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert failures == {1: 0, 2: 3}


def test_parts_are_nobodys_to_reach(sorting, gate):
    """Neither their owner lists them, nor is one of them found under its id."""
    client = sorting.open()
    url = start(client, numbers(1))
    eventually(lambda: sorting.at_work == 1)
    ids = [name.removeprefix("run:") for name in keys(sorting.house, "run:")]
    assert len(ids) == 2
    assert [run["id"] for run in client.get("/api/runs").json["data"]] == [url.rsplit("/", 1)[1]]
    found = {client.get(f"/api/runs/{run_id}").status_code for run_id in ids}
    assert found == {200, 404}
    gate.set()
    ending(client, url)


def test_the_context_of_the_request_is_that_of_each_input(house):
    seen = []

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/note", input=Item)
        def note(run: Run) -> None:
            seen.append((run.user, run.context, run.owner == "user:ann"))

    client = house.open(declare, hooks={"context": lambda: {"tenant": 7}}, MAX_RUNS_PER_USER=None)
    url = start(client, numbers(2), "note")
    ending(client, url)
    assert seen == [("ann", {"tenant": 7}, False)] * 2


def test_a_batch_takes_one_of_its_owners_slots(sorting, gate):
    client = sorting.open(MAX_RUNS_PER_USER=1)
    url = start(client, numbers(5))
    eventually(lambda: sorting.at_work == 5)
    refused = client.post("/api/batches", json={"feature": "double", "inputs": numbers(6)})
    assert refused.status_code == 429
    assert len({name.split(":")[1] for name in keys(sorting.house, "batch:")}) == 1
    gate.set()
    assert ending(client, url)["status"] == "completed"


def test_progress_is_told_without_filling_the_log(sorting):
    client = sorting.open(MAX_LOG=1024)
    url = start(client, numbers(50), concurrency=1)
    assert ending(client, url)["status"] == "completed"


@pytest.mark.needs("redis-server")
def test_an_input_that_is_in_no_queue_any_more(redis_server):
    """A worker was killed that had just taken it from there: whoever drives next puts it back, and no second time."""
    with ExitStack() as stack:
        sorting = Sorting(House(redis_server, stack))
        client = sorting.house.open(sorting.declare, working=False, MAX_RUNS_PER_USER=None)
        hands, record = sorting.house.hands, sorting.house.record
        url = client.post("/api/double", json={"n": 1}).headers["Location"]
        run = record.registry.find(url.rsplit("/", 1)[1], None)
        redis_server.client().delete(hands.QUEUE)
        for _ in range(2):
            record.registry.look_after(run)
        assert hands.waiting() == [f"{run.id}-1"]
        hands.take()
        ending(client, url)
        assert sorting.done == {1: 1}
