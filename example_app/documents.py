"""Reads a text, Markdown or PDF file, and cuts its text into parts that a model can take."""

from __future__ import annotations

import codecs
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import pdf as pdf_program

MOST_PAGES = 2000
MOST_CHARACTERS = 5_000_000
PATIENCE = 120.0
"""Seconds for one file."""
EMPTY = "There is no text in this file. If it was scanned, its pages are pictures, which are not read."
NO_TEXT = "This file is neither a PDF nor text in UTF-8."
TOO_LONG = f"This file has more than {MOST_CHARACTERS:,} characters of text."
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BORDERS = ("\n\n", "\n", ". ", " ")
"""Where a text is best cut, the best first."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a document.

    :param of: how many there are.
    """

    text: str
    of: int


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a document that is no longer than was asked for.

    :param first: the number of the first page that it has text of, from 1.
    :param last: that of the last.
    """

    text: str
    first: int
    last: int

    @property
    def pages(self) -> str:
        return f"page {self.first}" if self.first == self.last else f"pages {self.first} to {self.last}"


def read(path: Path) -> Iterator[Page]:
    """The pages of a file, each as soon as it is read.

    :raises ValueError: it cannot be read; the sentence is for whoever sent it.
    """
    total, said_anything = 0, False
    for page in _pdf_pages(path) if is_pdf(path) else _text_pages(path):
        total += len(page.text)
        if total > MOST_CHARACTERS:
            raise ValueError(TOO_LONG)
        said_anything = said_anything or bool(page.text.strip())
        yield page
    if not said_anything:
        raise ValueError(EMPTY)


def text_of(path: Path) -> str:
    """All the text of a file.

    :raises ValueError: as above.
    """
    return "\n\n".join(page.text for page in read(path)).strip()


def is_pdf(path: Path) -> bool:
    """Whether it begins as a PDF does."""
    with path.open("rb") as file:
        return b"%PDF-" in file.read(1024)


def cut(pages: Sequence[str], size: int) -> list[Part]:
    """Cut a document into parts: whole pages where they fit, and never more than `size` characters.

    :param pages: the text of each.
    """
    parts: list[Part] = []
    for number, text in enumerate(pages, 1):
        for piece in _pieces(text.strip(), size):
            before = parts[-1] if parts else None
            if before is not None and len(before.text) + 2 + len(piece) <= size:
                parts[-1] = Part(f"{before.text}\n\n{piece}", before.first, number)
            else:
                parts.append(Part(piece, number, number))
    return parts


def _pieces(text: str, size: int) -> Iterator[str]:
    while len(text) > size:
        # Not in the first half, or a lone border at the beginning would make a tiny piece.
        found = (text.rfind(border, size // 2, size - len(border) + 1) + len(border) for border in BORDERS)
        at = next((place for place in found if place > size // 2), size)
        yield text[:at].strip()
        text = text[at:].strip()
    if text:
        yield text


def _text_pages(path: Path) -> Iterator[Page]:
    data = path.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise ValueError(NO_TEXT) from None
    if "\0" in text:
        raise ValueError(NO_TEXT)
    pages = re.sub(r"\r\n?", "\n", text).split("\f")
    if len(pages) > MOST_PAGES:
        raise ValueError(f"This file has {len(pages)} pages, and more than {MOST_PAGES} are not taken.")
    for page in pages:
        yield Page(page, len(pages))


def _pdf_pages(path: Path) -> Iterator[Page]:
    # By its path and isolated: it needs neither this package, which is slow to import, nor what the caller's
    # environment says to Python.
    command = [sys.executable, "-I", pdf_program.__file__, str(path), str(MOST_PAGES)]
    with _places(), _program(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                raise ValueError(said["error"])
            yield Page(said["text"], said["of"])
        if process.wait() != 0:
            raise ValueError(pdf_program.TOO_MUCH)


@cache
def _places() -> threading.BoundedSemaphore:
    """How many PDFs are read at a time: each takes a processor, and much memory.

    Made when it is first needed: under gunicorn's --preload gevent has not patched anything before that.
    """
    return threading.BoundedSemaphore(os.cpu_count() or 1)


@contextmanager
def _program(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, or with our patience."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        limit = threading.Timer(PATIENCE, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            limit.join()
            process.kill()
