"""The page that analyses documents: a real browser, the example as a process, a model's server behind it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from io import BytesIO

import pytest
from playwright.sync_api import expect

from flask_llmstream.testing import Gate, Schedule
from tests.browser.file_page import AnalyzePage
from tests.example.pdf import locked, pdf

pytestmark = pytest.mark.needs("chromium")

DIGEST = {"summary": "It is about <b>hills</b>.", "key_points": ["Hills are high.", "Valleys are not."]}
LONG = [f"Page {number} tells of hills. " + "They are high and green. " * 80 for number in range(1, 31)]
"""Some 60,000 characters: six parts."""


@pytest.fixture
def analyze(context, example, model) -> Iterator[AnalyzePage]:
    """The page, opened; it may have no error that nobody caught, and break no rule of its policy."""
    model.schedule = Schedule(json=DIGEST)
    page = AnalyzePage(context.new_page(), example.url)
    page.open()
    yield page
    assert not page.complaints
    assert not page.foreign


def held() -> tuple[Schedule, Gate]:
    """A digest that does not come until the test lets it."""
    gate = Gate()
    return Schedule(json=DIGEST, gates={"headers": gate}), gate


def archive() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("text.txt", "Hello")
    return out.getvalue()


def shows_the_outcome(analyze: AnalyzePage, pages: int) -> None:
    expect(analyze.summary).to_have_text("It is about <b>hills</b>.")
    expect(analyze.points).to_have_text(DIGEST["key_points"])
    expect(analyze.figures).to_have_text(re.compile(rf"^{pages} pages? · [\d,]+ tokens$"))
    expect(analyze.bar).to_be_hidden()
    expect(analyze.stop).to_be_hidden()


@pytest.mark.parametrize(
    ("name", "content", "pages"),
    [
        ("hills.pdf", pdf(["Hills.", "Valleys.", "Rivers."]), 3),
        ("hills.md", b"# Hills\n\nThey are high.", 1),
        ("hills.txt", "Hügel\fTäler".encode(), 2),
    ],
)
def test_a_file_becomes_a_summary_and_its_key_points(analyze, model, name, content, pages):
    analyze.submit(name, content)
    shows_the_outcome(analyze, pages)
    expect(analyze.title).to_have_text(name)
    expect(analyze.announcer).to_have_text(f"Done. {DIGEST['summary']}")
    assert len(model.requests) == 1


def test_200_pages_are_analysed(analyze, model):
    analyze.submit("book.pdf", pdf([f"Page {n}. " + "Hills are high. " * 120 for n in range(1, 201)]))
    shows_the_outcome(analyze, 200)
    assert len(model.requests) > 30


def test_four_parts_are_read_at_a_time(analyze, model):
    model.schedule, gate = held()
    analyze.submit("long.pdf", pdf(LONG))
    model.wait_for(lambda server: server.active == 4)
    expect(analyze.bar).to_be_visible()
    expect(analyze.stop).to_be_visible()
    assert len(model.requests) == 4
    gate.release()
    shows_the_outcome(analyze, 30)
    assert len(model.requests) == 7


def test_progress_is_told_part_by_part(analyze, model):
    held_back, gate = held()
    model.then(*[Schedule(json=DIGEST)] * 3)
    model.schedule = held_back
    analyze.submit("long.pdf", pdf(LONG))
    expect(analyze.doing).to_have_text("Part 3 of 6…")
    assert analyze.bar.evaluate("bar => bar.value") == pytest.approx(0.45)
    gate.release()
    shows_the_outcome(analyze, 30)


def test_a_reload_in_the_middle_loses_nothing(analyze, model):
    held_back, gate = held()
    model.then(Schedule(json=DIGEST))
    model.schedule = held_back
    analyze.submit("long.pdf", pdf(LONG))
    expect(analyze.doing).to_have_text("Part 1 of 6…")
    analyze.page.reload()
    expect(analyze.title).to_have_text("long.pdf")
    expect(analyze.doing).to_have_text("Part 1 of 6…")
    expect(analyze.listed("long.pdf")).to_contain_text("in progress")
    gate.release()
    shows_the_outcome(analyze, 30)
    assert len(model.requests) == 7
    analyze.page.reload()
    shows_the_outcome(analyze, 30)
    assert len(model.requests) == 7


def test_the_page_may_be_closed_meanwhile(analyze, context, model):
    model.schedule, gate = held()
    analyze.submit("hills.md", b"# Hills")
    expect(analyze.listed("hills.md")).to_be_visible()
    model.wait_for(lambda server: server.active == 1)
    analyze.page.close()
    gate.release()
    model.wait_for(lambda server: server.active == 0)
    later = AnalyzePage(context.new_page(), analyze.url)
    later.open()
    later.listed("hills.md").first.click()
    shows_the_outcome(later, 1)


def test_earlier_analyses_are_listed_the_latest_first(analyze):
    analyze.submit("one.md", b"# One")
    shows_the_outcome(analyze, 1)
    analyze.submit("two.md", b"# Two")
    expect(analyze.title).to_have_text("two.md")
    shows_the_outcome(analyze, 1)
    expect(analyze.earlier.locator(".name")).to_have_text(["two.md", "one.md"])
    analyze.listed("one.md").click()
    expect(analyze.title).to_have_text("one.md")
    expect(analyze.listed("one.md")).to_have_attribute("aria-current", "true")
    shows_the_outcome(analyze, 1)
    analyze.page.go_back()
    expect(analyze.title).to_have_text("two.md")


def test_another_tab_lists_what_this_one_has_started(analyze, context, model):
    other = AnalyzePage(context.new_page(), analyze.url)
    other.open()
    model.schedule, gate = held()
    analyze.submit("hills.md", b"# Hills")
    expect(other.earlier).to_have_count(1)
    gate.release()
    shows_the_outcome(analyze, 1)


def test_stop_ends_it_here_and_at_the_model(analyze, model):
    model.schedule, _ = held()
    analyze.submit("long.pdf", pdf(LONG))
    model.wait_for(lambda server: server.active == 4)
    before = model.cancelled
    analyze.stop.click()
    expect(analyze.failure).to_contain_text("It was stopped.")
    model.wait_for(lambda server: server.cancelled == before + 4)
    expect(analyze.listed("long.pdf")).to_contain_text("stopped")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.pdf", b"", "This file is empty"),
        ("picture.png", b"\x89PNG\r\n\x1a\n", "Only PDF, Markdown and text files are read here"),
    ],
)
def test_what_can_be_seen_before_is_not_sent(analyze, model, name, content, sentence):
    analyze.choose(name, content)
    expect(analyze.refused).to_contain_text(sentence)
    expect(analyze.send).to_be_disabled()
    expect(analyze.earlier).to_have_count(0)
    analyze.submit("hills.md", b"# Hills")
    expect(analyze.refused).to_be_hidden()
    shows_the_outcome(analyze, 1)


def test_a_file_that_is_too_large_is_not_sent_either(analyze, tmp_path):
    large = tmp_path / "large.pdf"
    with large.open("wb") as file:
        file.truncate(100 << 20)
    analyze.file.set_input_files(large)
    expect(analyze.refused).to_contain_text("too large: it has 100 MB, and at most 32 MB are taken")
    expect(analyze.send).to_be_disabled()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("archive.pdf", archive()),
        ("picture.pdf", b"\x89PNG\r\n\x1a\n" + b"\0" * 100),
        ("binary.txt", bytes(range(256))),
    ],
)
def test_what_is_not_what_its_name_says_is_explained(analyze, model, name, content):
    analyze.submit(name, content)
    expect(analyze.refused).to_be_visible()
    expect(analyze.refused).to_contain_text(re.compile("PDF|text"))
    expect(analyze.send).to_be_enabled()
    assert not model.requests


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"%PDF-1.7\nand then nothing of a PDF", "This PDF cannot be read: it is damaged"),
        (locked(pdf(["Hello"]), "secret"), "protected by a password. Save it without one"),
        (pdf(["", ""]), "There is no text in this file. If it was scanned"),
    ],
)
def test_what_cannot_be_read_is_explained(analyze, model, content, sentence):
    analyze.submit("document.pdf", content)
    expect(analyze.failure).to_contain_text(sentence)
    expect(analyze.listed("document.pdf")).to_contain_text("failed")
    analyze.page.reload()
    expect(analyze.failure).to_contain_text(sentence)
    assert not model.requests


def test_a_model_that_fails_is_explained(analyze, model):
    model.schedule = Schedule(status=400)
    analyze.submit("hills.md", b"# Hills")
    expect(analyze.failure).to_contain_text("The language model's server could not use the request")


def test_the_keyboard_is_enough(analyze):
    analyze.file.focus()
    analyze.choose("hills.md", b"# Hills")
    expect(analyze.send).to_be_focused()
    analyze.page.keyboard.press("Enter")
    shows_the_outcome(analyze, 1)
    analyze.page.keyboard.press("Tab")
    expect(analyze.listed("hills.md")).to_be_focused()


def test_a_file_may_be_dropped(analyze):
    expect(analyze.page.locator("[data-sample]").first).to_be_enabled()  # by now the script is there
    analyze.page.evaluate(
        """() => {
          const dropped = new DataTransfer();
          dropped.items.add(new File(["# Hills"], "hills.md"));
          const drop = new DragEvent("drop", { dataTransfer: dropped, bubbles: true });
          document.querySelector(".drop").dispatchEvent(drop);
        }"""
    )
    expect(analyze.page.locator("#chosen")).to_have_text("hills.md · 7 bytes")
    analyze.send.click()
    shows_the_outcome(analyze, 1)


def test_what_is_no_analysis_is_said(analyze):
    analyze.visit("/analyze#nothing")
    analyze.page.reload()
    expect(analyze.refused).to_be_visible()
    expect(analyze.outcome).to_be_hidden()
