"""A client that starts jobs, one after the other, on a connection that is kept."""

from __future__ import annotations

import http.client
import itertools
import json
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from benchmarks.servers import Server

NUMBERS = itertools.count()
LONGEST = 60
"""Seconds to wait for an answer."""


class Caller:
    """One connection to a server of the jobs' application."""

    def __init__(self, server: Server):
        self._connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=LONGEST)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def post(self, path: str, *, wait: int = 0) -> dict[str, Any]:
        """Start a job; with a wait, read how it ended, too.

        :param path: of its feature.
        :param wait: seconds for its end.
        """
        headers = {"Content-Type": "application/json"} | ({"Prefer": f"wait={wait}"} if wait else {})
        body = json.dumps({"number": next(NUMBERS)}).encode()
        return self._ask("POST", path, body, headers, expected=200 if wait else 202)

    def runs(self) -> list[dict[str, Any]]:
        """The last jobs that were started, the newest first: a hundred at most."""
        found: list[dict[str, Any]] = self._ask("GET", "/api/runs", None, {}, expected=200)["data"]
        return found

    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], *, expected: int
    ) -> dict[str, Any]:
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        said = response.read()
        if response.status != expected:
            raise SystemExit(f"{method} {path}: HTTP {response.status}: {said.decode()}")
        answer: dict[str, Any] = json.loads(said)
        return answer
