"""A file becomes an invoice whose figures add up, or it is said why not."""

from __future__ import annotations

import io
import json

import pytest

from example_app.extraction import InvoiceOutput
from flask_llmstream.testing import Schedule
from tests.example.invoice import INVOICE, TEXT, WRONG
from tests.example.pdf import pdf


def send(client, content=None, name="invoice.pdf"):
    content = pdf([TEXT]) if content is None else content
    return client.post("/api/extract", data={"file": (io.BytesIO(content), name)})


def answers(*invoices):
    return [Schedule(json=invoice) for invoice in invoices]


def test_an_invoice_becomes_an_object(client, model):
    model.then(*answers(INVOICE))
    response = send(client)
    assert response.status_code == 200
    assert response.json == INVOICE
    asked = model.requests[-1].body
    assert "Invoice 2026-0417" in asked["messages"][-1]["content"]
    assert asked["response_format"]["type"] == "json_schema"


def test_figures_that_do_not_add_up_are_asked_for_again(client, model):
    model.then(*answers(WRONG, INVOICE))
    response = send(client)
    assert response.json == INVOICE
    told = model.requests[-1].body["messages"][-1]["content"]
    assert "with the tax of 22.80 to 142.80, and not to 142.00" in told
    events = client.get(f"{response.headers['Location']}/events").text
    data = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if '"rejected"' in line]
    assert [event["data"]["rejected"]["attempt"] for event in data] == [1]
    assert list(data[0]["data"]["rejected"]["errors"]) == ["total"]


def test_after_three_answers_that_do_not_it_is_said(client, model):
    model.then(*answers(WRONG, WRONG, WRONG))
    response = send(client)
    assert response.status_code == 502
    assert response.json["type"].endswith("invalid-answer")
    assert response.json["attempts"] == 3
    assert list(response.json["errors"]) == ["total"]


@pytest.mark.parametrize(
    ("content", "name", "status", "said"),
    [
        (b"", "empty.pdf", 422, "empty"),
        (b"PK\x03\x04" + b"\0" * 100, "archive.pdf", 415, "ZIP"),
        (b"%PDF-1.7 and no more", "broken.pdf", 422, "This PDF cannot be read"),
        (pdf([""]), "scan.pdf", 422, "There is no text in this file"),
        (b"x " * 20_000, "novel.txt", 422, "more text than an invoice"),
    ],
)
def test_files_that_are_none_are_refused(client, model, content, name, status, said):
    response = send(client, content, name)
    assert response.status_code == status
    assert response.mimetype == "application/problem+json"
    assert said in response.json["detail"]
    assert not model.requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total", 142.83),
        ("tax", 0),
        ("lines", []),
        ("currency", "€"),
        ("date", "2 March"),
        ("vendor", ""),
    ],
)
def test_what_is_no_invoice_does_not_fit(field, value):
    assert InvoiceOutput().validate(INVOICE | {field: value})


@pytest.mark.parametrize("total", [142.79, 142.8, 142.81])
def test_a_cent_that_was_lost_in_rounding_is_no_error(total):
    assert not InvoiceOutput().validate(INVOICE | {"total": total})
