"""What a text has in it: its words, numbers, dates and times, in the spellings that people use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
MONTH = rf"(?P<month>{'|'.join(MONTHS)})[a-z]*\.?"
DATES = (
    re.compile(r"\b(?P<year>\d{4})[-/](?P<m>\d{1,2})[-/](?P<day>\d{1,2})(?!\d)"),
    re.compile(r"\b(?P<day>\d{1,2})\.\s?(?P<m>\d{1,2})\.\s?(?P<year>\d{4})\b"),
    re.compile(r"\b(?P<m>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})\b"),
    re.compile(rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th|\.)?\s+(?:of\s+)?{MONTH},?\s+(?P<year>\d{{4}})\b", re.IGNORECASE),
    re.compile(rf"\b{MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<year>\d{{4}})\b", re.IGNORECASE),
)
TIME = re.compile(r"(?<![\d:])(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![\d:])")
NUMBER = re.compile(r"(?<![\w.,-])-?\d{1,15}(?:[.,' ]\d{3}){0,4}(?:[.,]\d{1,10})?(?![\w-])")


def words(text: str) -> list[str]:
    """The words and currency signs, in lower case."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?|[€$£]", text.lower())


def normal(name: str) -> str:
    """A property's name as words: ``invoiceNumber`` and ``invoice_number`` are ``invoice number``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ")


def dates(text: str) -> Iterator[str]:
    """The dates in ISO 8601, as they come in the text. With slashes the month comes first, unless it can't be one."""
    found = []
    for spelling in DATES:
        for match in spelling.finditer(text):
            parts = match.groupdict()
            month = int(parts["m"]) if "m" in parts else MONTHS.index(parts["month"].lower()) + 1
            day = int(parts["day"])
            if month > 12:
                month, day = day, month
            try:
                found.append((match.start(), date(int(parts["year"]), month, day).isoformat()))
            except ValueError:
                continue
    yield from (iso for _, iso in sorted(found))


def times(text: str) -> Iterator[str]:
    """The times of day, with their seconds."""
    for match in TIME.finditer(text):
        yield f"{int(match['hour']):02}:{match['minute']}:{match['second'] or '00'}"


def numbers(text: str) -> Iterator[float]:
    """The numbers that are no part of a date, a time or a name; whole ones as integers."""
    for spelling in (*DATES, TIME):
        text = spelling.sub("  |  ", text)
    # A sign of currency or of percent belongs to its number, and leaves it one.
    for match in NUMBER.finditer(re.sub(r"[€$£¥%]|\b[A-Z]{3}(?=\d)", "  ", text)):
        yield _value(match[0])


def _value(written: str) -> float:
    """Both comma and point separate thousands as well as decimals: the last of them, unless it has three digits."""
    digits = written.replace("'", "").replace(" ", "")
    separators = [sign for sign in digits if sign in ",."]
    if separators:
        whole, _, part = digits.rpartition(separators[-1])
        grouped = len(part) == 3 and (separators[-1] == "," or len(separators) > 1) and len(set(separators)) == 1
        whole = whole.replace(",", "").replace(".", "")
        digits = whole + part if grouped else f"{whole}.{part}"
    number = float(digits)
    return int(number) if number.is_integer() and "." not in digits else number
