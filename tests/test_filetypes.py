"""What is in a file decides what it is."""

from __future__ import annotations

import io
import zipfile

import pytest

from flask_llmstream.filetypes import CHUNK, UNKNOWN, sniff


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("report.pdf", b"%PDF-1.7")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a.pdf", "application/pdf"),
        (b"\xef\xbb\xbf\r\n%PDF-1.4", "a.txt", "application/pdf"),
        (archive(), "a.pdf", "application/zip"),
        (b"PK\x05\x06" + bytes(18), "empty.zip", "application/zip"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a.jpg", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a", "image/jpeg"),
        (b"GIF89a\1\0\1\0", "a.txt", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "a.webp", UNKNOWN),
        (b"Hello", "a", "text/plain"),
        (b"Hello", "a.pdf", "text/plain"),
        (b"The header is %PDF-1.7.", "a.md", "text/markdown"),
        (b"# Hello", "A.MARKDOWN", "text/markdown"),
        (b"a,b\n1,2\n", "a.csv", "text/csv"),
        (b"<p>Hello", "a.html", "text/html"),
        (b"{}", "a.json", "application/json"),
        ("Grüße".encode(), "a.txt", "text/plain"),
        ("\ufeffGrüße".encode(), "a.txt", "text/plain"),
        ("Grüße".encode("utf-16"), "a.txt", "text/plain"),
        ("Grüße".encode("latin-1"), "a.txt", UNKNOWN),
        ("Grüße".encode("utf-16-le"), "a.txt", UNKNOWN),
        ("Grü".encode()[:-1], "a.txt", UNKNOWN),
        (b"text\0", "a.txt", UNKNOWN),
        ("\ufeffte\0xt".encode("utf-16-le"), "a.txt", UNKNOWN),
        (b"\x7fELF\2\1\1\0", "a.md", UNKNOWN),
        (b"a" * CHUNK + b"\0", "a.txt", UNKNOWN),
    ],
    ids=lambda value: repr(value)[:24] if isinstance(value, bytes) else str(value),
)
def test_a_type(tmp_path, content, name, kind):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sniff(path, name) == kind


def test_a_letter_may_lie_across_two_reads(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a" * (CHUNK - 1) + "ü".encode() * 10)
    assert sniff(path, "a.txt") == "text/plain"
