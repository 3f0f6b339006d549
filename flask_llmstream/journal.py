"""Where logs are kept beyond the memory of the process that writes them.

A journal is one more reader of each log: it follows with a cursor of its own, and takes what is new when it likes.
Without Redis there is nobody who would read it, and the null journal keeps nothing.
"""

from __future__ import annotations

from typing import Protocol

from .log import Log


class Journal(Protocol):
    """Keeps logs where other processes, and later ones, find them."""

    def follow(self, run_id: str, log: Log) -> None:
        """Begin to keep the log of a run that starts here."""

    def end(self, run_id: str, terminal: bytes) -> bool:
        """Keep the run's last event; whether it is durable now."""

    def find(self, run_id: str) -> Log | None:
        """The log of a run that some other process writes or wrote; None where there is none."""


class NullJournal:
    """One process, and its memory: nothing is kept or found, and nothing more durable was promised."""

    def follow(self, run_id: str, log: Log) -> None:
        pass

    def end(self, run_id: str, terminal: bytes) -> bool:
        return True

    def find(self, run_id: str) -> Log | None:
        return None
