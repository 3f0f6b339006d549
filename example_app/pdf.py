"""Prints the text of a PDF, a page a line as JSON: a program of its own, since its files come from anybody.

Whatever such a file makes the parser do, it ends with this process, which has bounds of time and memory, and nobody
else's work waits for it.
"""

from __future__ import annotations

import json
import logging
import resource
import sys

from pypdf import PdfReader
from pypdf.errors import LimitReachedError

MEMORY = 1 << 30
"""Bytes."""
CPU = 60
"""Seconds."""
UNREADABLE = "This PDF cannot be read: it is damaged, or no PDF at all."
LOCKED = "This PDF is protected by a password. Save it without one, and send that."
TOO_MUCH = "This PDF takes more memory or time to read than there is for one file."


def main(path: str, most_pages: int) -> None:
    """Print each page's text, or one object with an ``error``."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
    logging.disable()  # it tells of each oddity that it mends
    try:
        say_pages(path, most_pages)
    except (MemoryError, LimitReachedError):
        say({"error": TOO_MUCH})
    except Exception:  # a parser that meets what it does not expect raises anything
        say({"error": UNREADABLE})


def say_pages(path: str, most_pages: int) -> None:
    document = PdfReader(path)
    if document.is_encrypted and not document.decrypt(""):
        say({"error": LOCKED})
        return
    pages = len(document.pages)
    if pages > most_pages:
        say({"error": f"This PDF has {pages} pages, and more than {most_pages} are not taken."})
        return
    for page in document.pages:
        # A font may say that its glyphs are halves of characters, or none.
        text = page.extract_text().encode("utf-8", "replace").decode().replace("\0", "")
        say({"text": text, "of": pages})


def say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
