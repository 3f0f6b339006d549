"""The example with Redis: jobs are done by a worker, in a process of its own, which imports the same application."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.puppet import eventually

pytestmark = pytest.mark.needs("redis-server")

DIGEST = {"summary": "Es geht um Hügel.", "key_points": ["Sie sind hoch."]}
PATIENCE = 60.0
"""Seconds: a worker has to start first."""


@contextmanager
def worker() -> Iterator[None]:
    """`flask --app example_app llmstream worker`, as the README has it."""
    with subprocess.Popen([sys.executable, "-m", "flask", "--app", "example_app", "llmstream", "worker"]) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.fixture
def client(make_app, model, monkeypatch, redis_server):
    monkeypatch.setenv("FLASK_LLMSTREAM_REDIS_URL", redis_server.url)
    client = make_app().test_client()
    client.get("/")
    return client


def start(client, text):
    return client.post("/api/analyze/start", data={"file": (io.BytesIO(text.encode()), "hills.txt")}).json["id"]


def status(client, run_id):
    return client.get(f"/api/analyze/{run_id}").json


def test_a_worker_analyses_as_the_visitor_prefers(client, model):
    known = client.get("/api/settings").headers["ETag"]
    client.put("/api/settings", json={"language": "de", "temperature": 0.2}, headers={"If-Match": known})
    model.schedule = Schedule(json=DIGEST)
    run_id = start(client, "\f".join("Hills are high. " * 200 for _ in range(8)))
    assert status(client, run_id)["status"] == "queued"
    with worker():
        eventually(lambda: status(client, run_id)["status"] == "completed", timeout=PATIENCE)
    assert status(client, run_id)["result"] == DIGEST | {"pages": 8}
    assert len(model.requests) == 4
    for request in model.requests:
        assert request.body["messages"][0]["content"].endswith("Write in German.")
        assert request.body["temperature"] == 0.2


def test_what_cannot_be_read_fails_there_once(client, model):
    run_id = start(client, " ")
    with worker():
        eventually(lambda: status(client, run_id)["status"] == "failed", timeout=PATIENCE)
    assert status(client, run_id)["attempt"] == 1
    assert "There is no text in this file" in status(client, run_id)["error"]["detail"]


def test_a_stop_ends_all_its_calls(client, model):
    model.schedule = Schedule(json=DIGEST, gates={"headers": Gate()})
    before = model.cancelled
    run_id = start(client, "\f".join("x" * 12_000 for _ in range(6)))
    with worker():
        model.wait_for(lambda server: server.active == 4, timeout=PATIENCE)
        client.post(f"/api/runs/{run_id}/cancel")
        model.wait_for(lambda server: server.cancelled == before + 4, timeout=PATIENCE)
        eventually(lambda: status(client, run_id)["status"] == "cancelled", timeout=PATIENCE)
    assert len(model.requests) == 4
