"""Files become pages, and pages parts."""

from __future__ import annotations

import time
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_app import documents
from example_app.documents import Part, cut, read, text_of
from tests.example.pdf import garbled, locked, pdf


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_the_pages_of_a_pdf_are_read_in_order(file):
    file.write_bytes(pdf(["The first (and best) page.", "Zweite: äöü €", "Third."]))
    pages = list(read(file))
    assert [page.text.strip() for page in pages] == ["The first (and best) page.", "Zweite: äöü €", "Third."]
    assert {page.of for page in pages} == {3}


def test_200_pages_are_read_in_seconds(file):
    file.write_bytes(pdf([f"Page {number}. " + "Words fill it. " * 150 for number in range(1, 201)]))
    began = time.monotonic()
    pages = list(read(file))
    assert len(pages) == 200
    assert pages[-1].text.startswith("Page 200.")
    assert time.monotonic() - began < 20


def test_a_page_is_there_before_the_next_is_read(file):
    file.write_bytes(pdf(["One.", *["Two."] * 500]))
    pages = read(file)
    assert next(pages).text.strip() == "One."
    pages.close()  # which waits for nothing


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "There is no text"),
        (b" \n\t\n", "There is no text"),
        (pdf(["", ""]), "There is no text in this file. If it was scanned"),
        (b"%PDF-1.7\nand then nothing of a PDF", "cannot be read: it is damaged"),
        (pdf(["Hello"])[:300], "cannot be read: it is damaged"),
        (locked(pdf(["Hello"]), "secret"), "is protected by a password"),
        (b"caf\xe9", "neither a PDF nor text in UTF-8"),
        (b"text\0text", "neither a PDF nor text in UTF-8"),
    ],
    ids=["nothing", "blanks", "scanned", "no PDF", "cut", "locked", "Latin-1", "binary"],
)
def test_what_cannot_be_read_is_said(file, data, sentence):
    file.write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        list(read(file))


def test_an_archive_is_no_text(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "Hello " * 1000)
    with pytest.raises(ValueError, match="neither a PDF nor text"):
        list(read(file))


def test_a_pdf_that_anybody_may_open_is_read_though_it_is_encrypted(file):
    file.write_bytes(locked(pdf(["Hello"]), ""))
    assert text_of(file) == "Hello"


def test_what_a_font_says_of_its_letters_becomes_text_that_can_be_sent(file):
    file.write_bytes(garbled(pdf(["ABC"])))
    assert text_of(file) == "?C"


def test_a_pdf_with_too_many_pages_is_not_read(file, monkeypatch):
    monkeypatch.setattr(documents, "MOST_PAGES", 2)
    file.write_bytes(pdf(["One"] * 3))
    with pytest.raises(ValueError, match="This PDF has 3 pages, and more than 2 are not taken"):
        list(read(file))
    file.write_bytes(b"One\fTwo\fThree")
    with pytest.raises(ValueError, match="This file has 3 pages, and more than 2 are not taken"):
        list(read(file))


def test_a_text_that_is_too_long_is_not_read(file, monkeypatch):
    monkeypatch.setattr(documents, "MOST_CHARACTERS", 100)
    file.write_text("One\f" + "x" * 100)
    with pytest.raises(ValueError, match="characters of text"):
        list(read(file))


def test_a_pdf_that_takes_too_long_is_given_up(file, monkeypatch):
    monkeypatch.setattr(documents, "PATIENCE", 0.01)
    file.write_bytes(pdf(["Hello"] * 500))
    with pytest.raises(ValueError, match="more memory or time"):
        list(read(file))


def test_a_pdf_that_unpacks_to_gigabytes_does_no_harm(file):
    bomb = zlib.compress(b"\0" * 1024, 9)
    for _ in range(3):
        bomb = zlib.compress(bomb * 500, 9)
    good = pdf(["Hello"])
    stream = b"<< /Length %d /Filter [%s] >>\nstream\n" % (len(bomb), b"/FlateDecode " * 4) + bomb
    at = good.index(b"<< /Length")
    file.write_bytes(good[:at] + stream + good[good.index(b"\nendstream") :])
    with pytest.raises(ValueError):
        list(read(file))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_by_its_byte_order_mark(file, encoding):
    file.write_bytes("Größe\r\nZeile\rEnde".encode(encoding))
    assert text_of(file) == "Größe\nZeile\nEnde"


def test_form_feeds_end_a_text_s_pages(file):
    file.write_text("One\fTwo\fThree")
    assert [page.text for page in read(file)] == ["One", "Two", "Three"]


def test_parts_are_of_whole_pages_where_they_fit():
    assert cut(["aaaa", "bbbb", "cccc"], 10) == [Part("aaaa\n\nbbbb", 1, 2), Part("cccc", 3, 3)]
    assert [part.pages for part in cut(["aaaa", "bbbb", "cccc"], 10)] == ["pages 1 to 2", "page 3"]


def test_a_long_page_is_cut_where_a_paragraph_ends():
    first, second = "One sentence. Another.", "A second paragraph."
    assert [part.text for part in cut([f"{first}\n\n{second}"], 30)] == [first, second]


def test_a_long_paragraph_is_cut_where_a_sentence_ends():
    assert [part.text for part in cut(["One sentence here. Another one here."], 25)] == [
        "One sentence here.",
        "Another one here.",
    ]


def test_empty_pages_are_in_no_part():
    assert cut(["", " ", "text", ""], 10) == [Part("text", 3, 3)]


@given(st.lists(st.text(st.sampled_from("ab .\n"), max_size=80), max_size=8), st.integers(4, 40))
def test_no_part_is_too_long_and_no_word_is_lost(pages, size):
    parts = cut(pages, size)
    assert all(0 < len(part.text) <= size for part in parts)
    assert "".join("".join(part.text for part in parts).split()) == "".join("".join(pages).split())


def test_the_program_is_told_nothing_of_the_environment(file, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    file.write_bytes(pdf(["Hello"]))
    assert text_of(file) == "Hello"
