"""A document becomes a summary and its key points: part by part, and then of all parts one."""

from __future__ import annotations

import io
import json
import re

import pytest

from example_app.analysis import PART, together
from flask_llmstream.testing import Gate, Schedule
from tests.example.pdf import locked, pdf
from tests.puppet import eventually

START = "/api/analyze/start"
DIGEST = {"summary": "It is about hills.", "key_points": ["Hills are high.", "Valleys are not."]}
LONG = "\f".join(f"Page {number}. " + "Hills are high. " * 125 for number in range(1, 31))
"""Some 60,000 characters on 30 pages: six parts."""


def send(client, content, name="hills.md", wait=30):
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    content = content.encode() if isinstance(content, str) else content
    return client.post(START, data={"file": (io.BytesIO(content), name)}, headers=headers)


def digests(model, **how):
    model.schedule = Schedule(json=DIGEST, **how)


def task(request):
    return request.body["messages"][0]["content"]


def text(request):
    return request.body["messages"][-1]["content"]


def events(client, run_id):
    stream = client.get(f"/api/runs/{run_id}/events").text
    return [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]


def test_a_document_becomes_a_summary_and_its_key_points(client, model):
    digests(model)
    response = send(client, "# Hills\n\nThey are high.")
    assert response.status_code == 200
    assert response.json["status"] == "completed"
    assert response.json["result"] == DIGEST | {"pages": 1}
    assert text(model.requests[-1]) == "# Hills\n\nThey are high."


def test_the_answer_comes_at_once_and_the_result_under_the_job_s_own_address(client, model):
    digests(model)
    response = send(client, pdf(["Hills.", "Valleys."]), "hills.pdf", wait=None)
    assert response.status_code == 202
    address = response.headers["Location"]
    assert address == f"/api/analyze/{response.json['id']}"
    eventually(lambda: client.get(address).json["status"] == "completed")
    assert client.get(address).json["result"] == DIGEST | {"pages": 2}
    assert client.get(f"/api/status/{response.json['id']}").json == client.get(address).json


def test_parts_are_read_and_then_brought_together(client, model):
    digests(model)
    response = send(client, LONG, "hills.txt")
    assert response.json["result"] == DIGEST | {"pages": 30}
    assert len(model.requests) == 7
    parts = {re.search(r"pages (\d+ to \d+) of a document", task(request))[1] for request in model.requests[:6]}
    assert parts == {f"{first} to {first + 4}" for first in range(1, 31, 5)}
    assert text(model.requests[6]).count("It is about hills.\n- Hills are high.\n- Valleys are not.") == 6


def test_parts_stay_in_their_order_whichever_is_first(client, model):
    gate = Gate()
    model.then(Schedule(json=DIGEST | {"summary": "Late."}, gates={"headers": gate}))
    digests(model)
    response = send(client, "\f".join("x" * PART for _ in range(3)), "x.txt", wait=None)
    model.wait_for(lambda server: server.completed == 2)
    gate.release()
    eventually(lambda: client.get(response.headers["Location"]).json["status"] == "completed")
    late = int(re.search(r"page (\d+) of a document", task(model.requests[0]))[1])
    said = [digest.partition("\n")[0] for digest in text(model.requests[-1]).split("\n\n")]
    assert [n for n, first_line in enumerate(said, 1) if first_line == "Late."] == [late]


def test_progress_is_told(client, model):
    digests(model)
    told = events(client, send(client, LONG).json["id"])
    progress = [(event["progress"], event["message"]) for event in told if "progress" in event]
    assert [message for _, message in progress] == [
        "reading page 25 of 30",
        *(f"part {n} of 6" for n in range(1, 7)),
        "bringing 6 parts together",
        "done",
    ]
    fractions = [fraction for fraction, _ in progress]
    assert fractions == sorted(fractions)
    assert {"data": {"document": "hills.md"}} in told


def test_four_calls_are_made_at_a_time_and_a_stop_ends_them_all(client, model):
    digests(model, gates={"headers": Gate()})
    response = send(client, LONG, wait=None)
    model.wait_for(lambda server: server.active == 4)
    before = model.cancelled
    client.post(f"/api/runs/{response.json['id']}/cancel")
    model.wait_for(lambda server: server.cancelled == before + 4)
    eventually(lambda: client.get(response.headers["Location"]).json["status"] == "cancelled")
    assert len(model.requests) == 4


def test_one_part_that_fails_ends_it(client, model):
    model.then(Schedule(status=400))
    digests(model)
    response = send(client, LONG)
    assert response.json["status"] == "failed"
    assert response.json["error"]["type"].endswith("upstream-refused")


def test_an_answer_of_another_form_is_asked_for_again(client, model):
    model.then(Schedule(json={"summary": "", "key_points": []}))
    digests(model)
    assert send(client, "# Hills").json["result"] == DIGEST | {"pages": 1}
    assert len(model.requests) == 2


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (b"%PDF-1.7\nand then nothing of a PDF", "hills.pdf", "This PDF cannot be read"),
        (locked(pdf(["Hello"]), "secret"), "hills.pdf", "protected by a password"),
        (pdf([""]), "hills.pdf", "There is no text"),
        (b"\n \n", "hills.txt", "There is no text"),
    ],
)
def test_what_cannot_be_read_is_said_once(client, model, content, name, sentence):
    response = send(client, content, name)
    assert response.json["status"] == "failed"
    assert response.json["attempt"] == 1
    assert response.json["error"]["status"] == 422
    assert sentence in response.json["error"]["detail"]
    assert not model.requests


@pytest.mark.parametrize(
    ("content", "name", "status"),
    [(b"", "empty.md", 422), (b"PK\x03\x04" + b"\0" * 100, "zip.pdf", 415), (b"\x89PNG\r\n\x1a\n", "a.png", 415)],
)
def test_what_is_no_document_is_not_taken(client, model, content, name, status):
    response = send(client, content, name)
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    assert client.get("/api/runs?feature=analyze").json["data"] == []


def test_a_file_that_is_too_large_is_not_taken(client):
    response = send(client, b"a" * ((32 << 20) + 1), "long.txt")
    assert response.status_code == 413
    assert "32 M" in response.json["detail"]
    response.request.environ["wsgi.input"].close()  # a file of the test client's


def test_a_visitor_s_preferences_are_heeded(client, model):
    digests(model)
    known = client.get("/api/settings").headers["ETag"]
    wanted = {"instructions": "I am a geologist.", "language": "de", "model": "large", "temperature": 0.3}
    client.put("/api/settings", json=wanted, headers={"If-Match": known})
    send(client, LONG)
    for request in model.requests:
        assert task(request).endswith("\n\nI am a geologist.\n\nWrite in German.")
        assert (request.body["model"], request.body["temperature"]) == ("large", 0.3)


def test_long_digests_are_brought_together_three_by_three():
    long = [{"summary": "x" * 5000, "key_points": ["y" * 5000]} for _ in range(7)]
    texts = together(long)
    assert len(texts) == 3
    assert all(len(text) <= PART for text in texts)
