"""Tells the type of a file by what is in it: a client's word for it, and the file's name, may say anything."""

from __future__ import annotations

import codecs
import re
from pathlib import Path, PurePosixPath

UNKNOWN = "application/octet-stream"
NAMES = {
    "application/pdf": "PDF",
    "text/plain": "text",
    "text/markdown": "Markdown",
    "text/csv": "CSV",
    "text/html": "HTML",
    "application/json": "JSON",
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/webp": "WebP",
    "application/zip": "ZIP",
}
"""The media types that are told apart, and what a person calls them."""
SIGNATURES = {
    "application/pdf": re.compile(rb"(?:\xef\xbb\xbf)?\s*%PDF-"),
    "application/zip": re.compile(rb"PK(?:\x03\x04|\x05\x06|\x07\x08)"),
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
"""What files of a type begin with. A ZIP may be an office document too: that is for the application to find out."""
TEXTS = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".csv": "text/csv",
    ".htm": "text/html",
    ".html": "text/html",
    ".json": "application/json",
}
"""Types of text, which a name's ending tells; any other text is plain."""
HEAD = 1024
"""Bytes in which a signature is looked for."""
CHUNK = 65536
"""Bytes that are decoded at a time."""


def sniff(path: Path, name: str) -> str:
    """The media type of a file; `UNKNOWN` where it is neither text nor anything in `NAMES`.

    :param name: what its owner calls it; among texts, its ending decides.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    for kind, signature in SIGNATURES.items():
        if signature.match(head):
            return kind
    if not _is_text(path, encoding(head)):
        return UNKNOWN
    return TEXTS.get(PurePosixPath(name.lower()).suffix, "text/plain")


def encoding(head: bytes) -> str:
    """How a text that begins so is encoded: UTF-16 says so by its first bytes, anything else is UTF-8."""
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _is_text(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with path.open("rb") as file:
        try:
            while chunk := file.read(CHUNK):
                if "\0" in decoder.decode(chunk):
                    return False
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True
