"""Where runs are found in an application."""

from __future__ import annotations

import secrets

from flask import url_for

from .record import Record

ENDPOINTS = {"self": "run", "events": "events", "cancel": "cancel"}


class Links:
    """The addresses of runs, as `url_for` makes them in this request. They can be asked for after it, too."""

    def __init__(self, record: Record) -> None:
        mark = secrets.token_urlsafe(16)
        self._around = {
            name: url_for(f"{record.name}.{endpoint}", run_id=mark).partition(mark)
            for name, endpoint in ENDPOINTS.items()
        }

    def to(self, run_id: str) -> dict[str, str]:
        """The addresses of one run."""
        return {name: f"{before}{run_id}{behind}" for name, (before, _, behind) in self._around.items()}
