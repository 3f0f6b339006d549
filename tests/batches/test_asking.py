"""What a client asks of a batch, and what it is answered: POST, status, list, results."""

from __future__ import annotations

import json
import threading
from functools import wraps

import pytest
from flask import abort

from flask_llmstream import LLMStream, Run, batches
from flask_llmstream.batch import MOST_INPUTS
from tests.batches.sorting import LARGE, NDJSON, OTHER, ending, keys, numbers, page, results, start, upload
from tests.conversation import KEY, problem
from tests.puppet import eventually


def test_an_array_of_inputs(sorting):
    client = sorting.open()
    response = client.post("/api/batches", json={"feature": "double", "inputs": numbers(3)})
    assert response.status_code == 202
    assert response.headers["Retry-After"] == "2"
    batch, url = response.json, response.headers["Location"]
    assert url == f"/api/batches/{batch['id']}"
    assert batch["status"] in ("queued", "in_progress")
    assert batch | {"object": "batch", "feature": "double", "ended_at": None, "error": None} == batch
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    assert batch["links"] == {"self": url, "results": f"{url}/results", "cancel": f"{url}/cancel"}
    ended = ending(client, url)
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert ended["created_at"] <= ended["started_at"] <= ended["ended_at"]
    assert results(client, url) == {n: {"status": "completed", "result": {"twice": 2 * n}} for n in range(3)}


def test_inputs_a_line_each(sorting):
    """Empty lines are none, and what is no JSON fails alone, as does what does not fit the schema."""
    client = sorting.open()
    response = upload(client, b'{"n": 1}\n\n{"n": \n {"n": 2} \r\n42\n\xff\n{"n": "x"}\n{"n":3}')
    assert response.status_code == 202, response.text
    url = response.headers["Location"]
    assert ending(client, url)["request_counts"] == {"total": 7, "completed": 3, "failed": 4}
    lines = results(client, url)
    assert {n for n, line in lines.items() if line["status"] == "completed"} == {0, 2, 6}
    assert [lines[n]["error"]["status"] for n in (1, 3, 4, 5)] == [422] * 4
    assert lines[5]["error"]["errors"] == {"n": ["Not a valid integer."]}
    assert set(sorting.done) == {1, 2, 3}


def test_as_many_as_there_may_be(sorting):
    """One more is refused, and nothing of it is kept."""
    client = sorting.open()
    line = b'{"n": "no number"}\n'
    response = upload(client, line * (MOST_INPUTS + 1))
    assert "10000 inputs at most" in problem(response)["detail"]
    assert keys(sorting.house, "batch:", "run:") == []
    url = upload(client, line * MOST_INPUTS).headers["Location"]
    assert ending(client, url, timeout=60)["request_counts"] == {"total": 10_000, "completed": 0, "failed": 10_000}
    assert len(results(client, url)) == MOST_INPUTS


@pytest.mark.parametrize("kind", ["application/ndjson", "application/jsonl"])
def test_lines_go_by_other_names_too(sorting, kind):
    client = sorting.open()
    url = client.post("/api/batches?feature=double", data=b'{"n": 4}\n', content_type=kind).headers["Location"]
    ending(client, url)
    assert results(client, url)[0]["result"] == {"twice": 8}


def test_an_array_may_be_the_whole_body(sorting):
    client = sorting.open()
    url = client.post("/api/batches?feature=double", json=numbers(2)).headers["Location"]
    ending(client, url)
    assert results(client, url)[1]["result"] == {"twice": 2}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (7, "must be a JSON object, or an array"),
        ([], "feature: Missing data"),
        ({}, "feature: Missing data"),
        ({"feature": "double"}, "inputs: Missing data"),
        ({"feature": "double", "inputs": {}}, "inputs: Not a valid list."),
        ({"feature": "double", "inputs": []}, "at least one"),
        ({"inputs": [{}]}, "feature: Missing data"),
        ({"feature": "double", "inputs": [{}], "rate": {"requests": 0}}, "rate.requests"),
        ({"feature": "double", "inputs": [{}], "rate": {"tokens": "many"}}, "rate.tokens"),
        ({"feature": "double", "inputs": [{}], "rate": {"files": 3}}, "rate.files"),
        ({"feature": "double", "inputs": [{}], "concurrency": 0}, "concurrency"),
        ({"feature": "double", "inputs": [{}], "speed": 7}, "speed"),
    ],
    ids=str,
)
def test_what_is_no_order(sorting, body, says):
    client = sorting.open()
    refused = problem(client.post("/api/batches", json=body))
    assert refused["status"] == 422
    assert says in refused["detail"]
    assert keys(sorting.house, "batch:", "run:") == []


@pytest.mark.parametrize(
    "query", ["", "feature=double&requests=0", "feature=double&tokens=x", "feature=double&files=1", "feature=nothing"]
)
def test_what_is_no_order_in_an_address(sorting, query):
    client = sorting.open()
    assert problem(upload(client, b'{"n": 1}\n', query))["status"] == 422
    assert upload(client, b"\n \n").status_code == 422


@pytest.mark.parametrize("feature", ["stream_chat", "chat", "batch", "webhook", "nothing", "read", "translate"])
def test_what_no_batch_is_made_of(sorting, feature):
    """A stream, a part of the package, what needs a file, and what takes a part of its input from the address."""
    client = sorting.open()
    refused = problem(client.post("/api/batches", json={"feature": feature, "inputs": [{"n": 1}]}))
    assert refused["errors"] == {"feature": ["Must be one of: divide, double, enlarge, tell."]}


def test_what_is_neither_json_nor_lines(sorting):
    client = sorting.open()
    assert problem(client.post("/api/batches", data=b"n=1"))["status"] == 415
    assert problem(client.post("/api/batches", data=b"{", content_type="application/json"))["status"] == 400


def test_a_body_beyond_what_the_application_takes(sorting):
    client = sorting.open()
    sorting.house.app.config["MAX_CONTENT_LENGTH"] = 1000
    assert problem(upload(client, b'{"n": 1}\n' * 1000))["status"] == 413
    assert problem(client.post("/api/batches", json={"feature": "double", "inputs": numbers(1000)}))["status"] == 413
    assert keys(sorting.house, "batch:") == []


def test_an_input_that_is_longer_than_a_request_of_its_feature_may_be(sorting):
    client = sorting.open(MAX_INPUT=100)
    long = {"n": 1, "padding": "x" * 70_000}
    assert problem(client.post("/api/double", json=long))["status"] == 413
    for refused in (
        client.post("/api/batches", json={"feature": "double", "inputs": [{"n": 0}, long]}),
        upload(client, b'{"n": 0}\n' + json.dumps(long).encode()),
    ):
        assert problem(refused)["status"] == 413
    assert keys(sorting.house, "batch:") == []
    assert client.post("/api/batches", json={"feature": "double", "inputs": numbers(30)}).status_code == 202


@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
def test_what_guards_a_feature_guards_its_batches(house, lines):
    """Its own decorators; nothing of what was sent is kept."""

    def guarded(view):
        @wraps(view)
        def guard(**view_args):
            return abort(403)

        return guard

    def declare(llm: LLMStream) -> None:
        @llm.job("/api/secret", decorators=[guarded])
        def secret(run: Run) -> str:
            return "secret"

    client = house.open(declare)
    if lines:
        response = upload(client, b"{}\n", "feature=secret")
    else:
        response = client.post("/api/batches", json={"feature": "secret", "inputs": [{}]})
    assert response.status_code == 403
    assert keys(house, "batch:", "run:") == []


def test_a_repeat_joins(sorting):
    """What it has uploaded is not kept a second time; the same key with other inputs is a mistake."""
    client = sorting.open()
    body, headers = {"feature": "double", "inputs": numbers(2)}, {"Idempotency-Key": KEY}
    first = client.post("/api/batches", json=body, headers=headers)
    again = client.post("/api/batches", json=body, headers=headers)
    assert again.json["id"] == first.json["id"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    other = client.post("/api/batches", json=body | {"inputs": numbers(3)}, headers=headers)
    assert problem(other)["type"].endswith("key-reused")
    paced = client.post("/api/batches", json=body | {"concurrency": 1}, headers=headers)
    assert problem(paced)["type"].endswith("key-reused")
    ending(client, first.headers["Location"])
    assert client.post("/api/batches", json=body, headers=headers).json["status"] == "completed"
    assert len({name.split(":")[1] for name in keys(sorting.house, "batch:")}) == 1
    assert sorting.done == {0: 1, 1: 1}


def test_of_others_nobody_knows(sorting):
    client = sorting.open()
    url = start(client, numbers(1))
    ending(client, url)
    for method, path in (("GET", url), ("GET", f"{url}/results"), ("POST", f"{url}/cancel"), ("DELETE", url)):
        assert client.open(path, method=method, headers=OTHER).status_code == 404
    assert client.get("/api/batches", headers=OTHER).json == {"data": []}
    assert [batch["id"] for batch in client.get("/api/batches").json["data"]] == [url.rsplit("/", 1)[1]]


def test_another_run_is_no_batch(sorting):
    client = sorting.open()
    run = client.post("/api/double", json={"n": 1}).json
    assert client.get(f"/api/batches/{run['id']}").status_code == 404
    assert client.delete(f"/api/batches/{run['id']}").status_code == 404
    assert client.get("/api/batches").json == {"data": []}


def test_polls_that_wait_hear_of_what_is_new(sorting):
    client = sorting.open()
    url = start(client, numbers(3))
    ended = ending(client, url)
    response = client.get(url)
    assert response.json == ended
    assert "Retry-After" not in response.headers
    tag = {"If-None-Match": response.headers["ETag"]}
    assert client.get(f"{url}?wait=30", headers=tag).status_code == 304
    assert client.get(f"{url}?wait=31").status_code == 400


def test_results_a_page_at_a_time(sorting):
    client = sorting.open()
    url = start(client, numbers(5))
    ending(client, url)
    seen, after = [], 0
    while True:
        lines, response = page(client, url, after=after, limit=2)
        seen += lines
        assert response.headers["X-Cursor"] == str(after + len(lines))
        if "Link" not in response.headers:
            break
        link, _, relation = response.headers["Link"].partition("; ")
        assert relation == 'rel="next"'
        assert f"after={after + len(lines)}" in link
        after += len(lines)
    assert sorted(line["index"] for line in seen) == [0, 1, 2, 3, 4]
    for query in ("after=-1", "after=x", "limit=0", "limit=x", "after=1e3"):
        assert client.get(f"{url}/results?{query}").status_code == 400


def test_results_come_in_pieces_of_so_many_bytes(sorting, monkeypatch):
    monkeypatch.setattr(batches, "READ", 2)
    monkeypatch.setattr(batches, "MOST_RESULT_BYTES", 2 * LARGE)
    client = sorting.open()
    url = start(client, numbers(5), "enlarge")
    ending(client, url)
    sizes, after, more = [], 0, True
    while more:
        lines, response = page(client, url, after=after)
        after += len(lines)
        sizes.append(len(lines))
        assert response.headers["X-Cursor"] == str(after)
        more = "Link" in response.headers
    assert sizes == [2, 2, 1]


def test_results_while_it_goes_on(sorting):
    """There is a next page as long as more may come."""
    sorting.gate = threading.Event()
    client = sorting.open()
    url = start(client, [{"n": "x"}, {"n": 1}])
    eventually(lambda: page(client, url)[0])
    [line], response = page(client, url)
    assert line["index"] == 0
    assert "after=1" in response.headers["Link"]
    status = client.get(url).json
    assert (status["status"], status["request_counts"]["failed"]) == ("in_progress", 1)
    sorting.gate.set()
    ending(client, url)
    [line], response = page(client, url, after=1)
    assert line["index"] == 1
    assert "Link" not in response.headers


def test_a_batch_is_a_run(sorting):
    """Among one's runs; its events tell how far it is, and how it ended."""
    client = sorting.open()
    url = start(client, numbers(2))
    ending(client, url)
    run = client.get(url.replace("batches", "runs")).json
    assert run | {"feature": "batch", "status": "completed"} == run
    assert run["result"] == {"total": 2, "completed": 2, "failed": 0}
    assert [one["feature"] for one in client.get("/api/runs").json["data"]] == ["batch"]


def test_lines_are_what_they_say(sorting):
    client = sorting.open()
    url = start(client, numbers(1))
    ending(client, url)
    response = client.get(f"{url}/results")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.content_type == NDJSON
    assert json.loads(response.data) == {"index": 0, "status": "completed", "result": {"twice": 0}}
