"""What is answered is what the document says, down to the last member and header."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from jsonschema import ValidationError

from tests.conversation import KEY, QUESTION
from tests.openapi.shop import Reader, operations, shop
from tests.puppet import eventually

PRODUCT = {"name": "A jumper", "price": 12.5, "sizes": [38, 40]}
CONFIG = {
    "LLMSTREAM_RETRIES": 0,
    "LLMSTREAM_STARTS_PER_USER": "1000/hour",
    "LLMSTREAM_PRICES": {"*": {"input": 1, "output": 2}},
}


@pytest.fixture
def app():
    with shop(**CONFIG) as (app, _):
        app.test_client_class = Reader
        yield app


@pytest.fixture
def client(app):
    return app.test_client()


def heard(client):
    return {f"{name.removeprefix('llmstream.')} {status}" for name, status in client.heard}


def manual(**more):
    return {"document": (io.BytesIO(b"Switch it on."), "manual.txt"), **more}


def test_streams_and_their_runs(client):
    asked = client.post("/api/chat/stream", json=QUESTION, headers={"Idempotency-Key": KEY})
    assert asked.data
    assert client.post("/api/chat/stream", json=QUESTION, headers={"Idempotency-Key": KEY}).data
    run = asked.headers["Location"]
    status = client.get(run)
    client.get(run, headers={"If-None-Match": status.headers["ETag"]})
    client.get(run.replace("runs", "status"), query_string={"wait": "x"})
    assert client.get(f"{run}/events").data
    client.get(f"{run}/events", query_string={"after": status.json["cursor"]})
    client.get("/api/runs", query_string={"feature": "chat"})
    client.get("/api/runs", query_string={"status": "dead"})
    client.post(f"{run}/cancel")
    client.delete(run)
    client.get(run)
    sse = {"Accept": "text/event-stream"}
    assert client.get("/api/chat/stream", query_string={"message": "/echo Hi"}, headers=sse).data
    client.get("/api/chat/stream", query_string={"message": "/echo Hi"})
    client.post("/api/7/advice", json={"messages": [{"role": "system", "content": "Be kind."}]})
    client.post("/api/7/advice", data="Be kind.")
    assert heard(client) == {
        "chat 200",
        "run 200",
        "run 304",
        "status 400",
        "events 200",
        "events 204",
        "runs 200",
        "runs 400",
        "cancel 200",
        "forget 204",
        "run 404",
        "chat-get 200",
        "chat-get 406",
        "advise 422",
        "advise 415",
    }


def test_a_stream_that_is_refused_by_the_model(client):
    client.post("/api/chat/stream", json={"messages": [{"role": "user", "content": "/fail"}]})
    client.post("/api/chat/stream", json={"messages": [{"role": "user", "content": "/fail limit"}]})
    client.post("/api/answer", json={"messages": [{"role": "user", "content": "/fail filter"}]})
    assert heard(client) == {"chat 502", "chat 429", "answer 422"}


def test_jobs(client):
    job = client.post("/api/7/products", json=PRODUCT, headers={"Prefer": "wait=20"})
    assert job.json["result"] == {"label": "sells", "reasons": []}
    client.get(job.headers["Location"])
    client.post("/api/7/products", json=PRODUCT)
    client.post("/api/7/products", json={"price": 0})
    client.post("/api/7/products", json=PRODUCT, headers={"Idempotency-Key": "short"})
    client.post("/api/manuals", data=manual(language="nb", pages="3"), headers={"Prefer": "wait=20"})
    client.post("/api/manuals", data=manual(language="tlh"))
    client.post("/api/manuals", data=manual(pictures=(io.BytesIO(b"no picture"), "a.png")))
    assert heard(client) == {
        "appraise 200",
        "appraise-status 200",
        "appraise 202",
        "appraise 400",
        "appraise 422",
        "translate 200",
        "translate 422",
        "translate 415",
    }


def test_replies(client):
    judged = client.post("/api/verdict", json=PRODUCT, headers={"Idempotency-Key": KEY})
    assert judged.json.keys() == {"label", "reasons"}
    assert client.post("/api/verdict", json=PRODUCT, headers={"Idempotency-Key": KEY}).json == judged.json
    client.post("/api/verdict", json=PRODUCT | {"name": "Boots"}, headers={"Idempotency-Key": KEY})
    client.post("/api/verdict", json=PRODUCT | {"name": "/fail schema always"})
    assert client.post("/api/answer", json=QUESTION).json == {"text": "Hello, you"}
    assert heard(client) == {"judge 200", "judge 422", "judge 502", "answer 200"}


def test_batches(client):
    batch = client.post("/api/batches", json={"feature": "judge", "inputs": [PRODUCT, {}]})
    address = batch.headers["Location"]
    eventually(lambda: client.get(address, query_string={"wait": 1}).json["status"] == "completed")
    client.get(f"{address}/results")
    client.get(f"{address}/results", query_string={"limit": 1})
    client.get(f"{address}/results", query_string={"limit": 0})
    client.get("/api/batches")
    client.post(f"{address}/cancel")
    client.delete(address)
    client.get(address)
    client.post("/api/batches", json={"feature": "chat", "inputs": [{}]})
    assert heard(client) == {
        "start_batch 202",
        "start_batch 422",
        "batch 200",
        "batch 404",
        "batch_results 200",
        "batch_results 400",
        "batches 200",
        "cancel_batch 200",
        "forget_batch 204",
    }


def test_conversations(client):
    begun = client.post("/api/conversations", json={"title": "Boots"}).json
    one = begun["links"]["self"]
    said = {"conversation": begun["id"], "message": "/echo Hello"}
    assert client.post("/api/answer", json=said).json == {"text": "Hello"}
    client.get("/api/conversations", query_string={"limit": 3})
    client.get("/api/conversations", query_string={"limit": 101})
    client.get(one)
    client.patch(one, json={"title": "Shoes"})
    client.patch(one, json={"titel": "Shoes"})
    client.get(f"{one}/export")
    client.get(f"{one}/export", query_string={"format": "markdown"})
    client.delete(one)
    client.get(one)
    client.post("/api/answer", json=said)
    assert heard(client) == {
        "begin_conversation 201",
        "answer 200",
        "conversations 200",
        "conversations 400",
        "conversation 200",
        "rename_conversation 200",
        "rename_conversation 422",
        "export_conversation 200",
        "delete_conversation 204",
        "conversation 404",
        "answer 404",
    }


def test_usage_feed_and_files(client):
    client.post("/api/answer", json=QUESTION)
    assert client.get("/api/usage").json["data"][0]["cost"]
    client.get("/api/usage", query_string={"from": "yesterday"})
    client.get("/api/openapi.json")
    for name in ("llmstream.js", "llmstream.d.ts", "llmstream/events.js"):
        with client.get(f"/api/{name}") as file:
            client.get(f"/api/{name}", headers={"If-None-Match": file.headers["ETag"]}).close()
    with client.get("/api/runs/events", headers={"Accept": "text/event-stream"}) as feed:
        assert next(iter(feed.response))
    assert heard(client) == {
        "answer 200",
        "usage 200",
        "usage 400",
        "openapi 200",
        "script 200",
        "script 304",
        "types 200",
        "types 304",
        "module 200",
        "module 304",
        "feed 200",
    }


def test_those_who_are_over_their_limits_or_nobody():
    with shop(LLMSTREAM_STARTS_PER_USER="1/hour") as (app, _):
        app.test_client_class = Reader
        client = app.test_client()
        client.post("/api/answer", json=QUESTION)
        for path, body in (("answer", QUESTION), ("chat/stream", QUESTION), ("7/products", PRODUCT)):
            client.post(f"/api/{path}", json=body)
        client.get("/api/usage")
        app.testing = False
        client.get("/api/runs")
    assert heard(client) == {"answer 200", "answer 429", "chat 429", "appraise 429", "usage 200", "runs 401"}


def test_all_operations_are_asked_above(app):
    source = Path(__file__).read_text()
    asked = set(re.findall(r'"([\w-]+) (?:20\d|4\d\d|50\d|304)"', source))
    assert asked == {name.removeprefix("llmstream.") for name in operations(app.test_client().document)} - {
        "advise-get"
    }


def test_an_answer_that_is_not_as_the_document_says_is_noticed(app, client):
    client.components["schemas"]["RunList"]["required"].append("more")
    with pytest.raises(ValidationError):
        client.get("/api/runs")
