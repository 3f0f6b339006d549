"""Writes small PDFs, good ones and bad ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import wrap

from pypdf import PdfReader, PdfWriter

WIDTH = 85
"""Characters of a line."""


def pdf(pages: Sequence[str]) -> bytes:
    """A document with this text, a page each (ISO 32000-1, section 7)."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, text in enumerate(pages):
        shown = "\n".join(f"({_escaped(line)}) Tj T*" for line in _lines(text))
        stream = f"BT /F1 10 Tf 12 TL 50 780 Td\n{shown}\nET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * number} 0 R >>",
            f"<< /Length {len(stream.encode('cp1252'))} >>\nstream\n{stream}\nendstream",
        ]
    return _file(objects)


def locked(document: bytes, password: str) -> bytes:
    """The same, readable for those who have a password."""
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(document)))
    writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def garbled(document: bytes) -> bytes:
    """The same, with a font that says its A is half a character, and its B none (ISO 32000-1, section 9.10.3)."""
    mapping = (
        b"begincmap\n1 begincodespacerange <00> <ff> endcodespacerange\n2 beginbfchar <41> <D800> <42> <0000> endbfchar"
    )
    stream = b"999 0 obj\n<< /Length %d >>\nstream\n%b\nendstream\nendobj\n" % (len(mapping), mapping)
    start, table, end = document.partition(b"xref\n0")
    font = b"/Encoding /WinAnsiEncoding"
    return start.replace(font, font + b" /ToUnicode 999 0 R") + stream + table + end


def _lines(text: str) -> list[str]:
    return [line for paragraph in text.split("\n") for line in wrap(paragraph, WIDTH) or [""]]


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _file(objects: Sequence[str]) -> bytes:
    out = io.BytesIO(b"%PDF-1.4\n")
    out.seek(0, io.SEEK_END)
    places = []
    for number, written in enumerate(objects, 1):
        places.append(out.tell())
        out.write(f"{number} 0 obj\n{written}\nendobj\n".encode("cp1252"))
    table = out.tell()
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    out.writelines(f"{place:010} 00000 n \n".encode() for place in places)
    out.write(f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode())
    return out.getvalue()
