"""The page that reads invoices: a real browser, the example as a process, a model's server behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from flask_llmstream.testing import Gate, Schedule
from tests.browser.file_page import ExtractPage
from tests.example.invoice import INVOICE, TEXT, WRONG
from tests.example.pdf import pdf

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture
def extract(context, example, model) -> Iterator[ExtractPage]:
    """The page, opened; it may have no error that nobody caught, and break no rule of its policy."""
    page = ExtractPage(context.new_page(), example.url)
    page.open()
    yield page
    assert not page.complaints
    assert not page.foreign


def test_an_invoice_is_shown(extract, model):
    model.schedule = Schedule(json=INVOICE)
    extract.submit("invoice.pdf", pdf([TEXT]))
    expect(extract.facts).to_have_text(["Nordwind Ltd", "2026-0417", "2026-03-02", "EUR"])
    expect(extract.rows).to_have_text(["Cable, 3 m4€7.50€30.00", "Fitting1.5€60.00€90.00"])
    expect(extract.page.locator("tfoot td")).to_have_text(["€22.80", "€142.80"])
    expect(extract.rejected).to_have_count(0)
    expect(extract.stop).to_be_hidden()
    expect(extract.announcer).to_have_text("Done.")


def test_answers_that_were_refused_are_shown_as_they_come(extract, model):
    gate = Gate()
    model.then(Schedule(json=WRONG))
    model.schedule = Schedule(json=INVOICE, gates={"headers": gate})
    extract.submit("invoice.pdf", pdf([TEXT]))
    expect(extract.rejected).to_have_text(
        ["total: The lines come to 120.00, with the tax of 22.80 to 142.80, and not to 142.00."]
    )
    expect(extract.doing).to_have_text("Reading again, attempt 2…")
    gate.release()
    expect(extract.rows).to_have_count(2)
    expect(extract.rejected).to_have_count(1)


def test_after_the_last_attempt_it_is_said_what_was_wrong(extract, model):
    model.schedule = Schedule(json=WRONG)
    extract.submit("invoice.pdf", pdf([TEXT]))
    expect(extract.failure).to_contain_text("total: The lines come to 120.00")
    expect(extract.rejected).to_have_count(2)
    expect(extract.outcome).to_be_hidden()
    expect(extract.send).to_be_enabled()


def test_stop_ends_it_here_and_at_the_model(extract, model):
    gate = Gate()
    model.then(Schedule(json=WRONG))
    model.schedule = Schedule(json=INVOICE, gates={"headers": gate})
    before = model.cancelled
    extract.submit("invoice.pdf", pdf([TEXT]))
    expect(extract.rejected).to_have_count(1)
    extract.stop.click()
    expect(extract.failure).to_have_text("It was stopped.")
    model.wait_for(lambda server: server.cancelled == before + 1)
    expect(extract.send).to_be_enabled()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"%PDF-1.7\nno PDF", "This PDF cannot be read"), (b"PK\x03\x04" + b"\0" * 100, "PDF")],
)
def test_bad_files_are_explained(extract, model, content, sentence):
    extract.submit("invoice.pdf", content)
    expect(extract.failure).to_contain_text(sentence)
    assert not model.requests
