"""An application with features for batches, and a client's side of its batches."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

from flask.testing import FlaskClient
from marshmallow import Schema, fields
from werkzeug.test import TestResponse

from flask_llmstream import LLMStream, Run
from flask_llmstream.uploads import File
from tests.jobs.house import ENDED, House
from tests.puppet import PATIENCE, Puppet, eventually

NDJSON = "application/x-ndjson"
OTHER = {"X-User": "bob"}
LARGE = 100_000


class Item(Schema):
    n = fields.Integer(required=True, strict=True)


class Paper(Schema):
    paper = File(types=["text/plain"], required=True)


class Sorting:
    """:param house: where its application is opened."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.done: Counter[int] = Counter()
        """How often each number was worked on."""
        self.at_work = 0
        self.most_at_work = 0
        self.gate: threading.Event | None = None
        """What all wait for, where it is there."""
        self._lock = threading.Lock()

    def open(self, model: Any = None, **config: Any) -> FlaskClient:
        """A client, who is ann."""
        config = {"MAX_RUNS_PER_USER": None} | config
        return self.house.open(self.declare, model or Puppet(), **config)

    def declare(self, llm: LLMStream) -> None:
        """What the application can do."""

        @llm.job("/api/double", input=Item)
        def double(run: Run) -> dict[str, int]:
            n = run.input["n"]
            with self._lock:
                self.done[n] += 1
                self.at_work += 1
                self.most_at_work = max(self.most_at_work, self.at_work)
            try:
                if self.gate is not None:
                    assert self.gate.wait(PATIENCE)
            finally:
                with self._lock:
                    self.at_work -= 1
            return {"twice": 2 * n}

        @llm.reply("/api/tell", max_tokens=50)
        def tell(run: Run) -> Any:
            return run.model.stream(run.input.messages)

        @llm.job("/api/enlarge", input=Item)
        def enlarge(run: Run) -> str:
            return "x" * LARGE

        @llm.job("/api/divide", input=Item)
        def divide(run: Run) -> float:
            return 1 / run.input["n"]

        @llm.job("/api/read", input=Paper)
        def read(run: Run) -> str:
            return "read"

        @llm.job("/api/<language>/translate", input=Item)
        def translate(run: Run) -> str:
            return str(run.view_args["language"])


def start(client: FlaskClient, inputs: Any, feature: str = "double", **more: Any) -> str:
    """Start a batch, and where it is.

    :param more: what is asked for besides.
    """
    response = client.post("/api/batches", json={"feature": feature, "inputs": inputs} | more)
    assert response.status_code == 202, response.text
    return str(response.headers["Location"])


def upload(client: FlaskClient, lines: bytes, query: str = "feature=double", **headers: str) -> TestResponse:
    return client.post(f"/api/batches?{query}", data=lines, content_type=NDJSON, headers=headers)


def numbers(n: int) -> list[dict[str, int]]:
    return [{"n": i} for i in range(n)]


def ending(client: FlaskClient, url: str, *, timeout: float = 6 * PATIENCE) -> dict[str, Any]:
    """How a batch ends."""
    eventually(lambda: client.get(url, query_string={"wait": 1}).json["status"] in ENDED, timeout=timeout)
    found: dict[str, Any] = client.get(url).json
    return found


def page(client: FlaskClient, url: str, **query: Any) -> tuple[list[dict[str, Any]], TestResponse]:
    """Some lines of the results, and the response that they came in."""
    response = client.get(f"{url}/results", query_string=query)
    assert (response.status_code, response.content_type) == (200, NDJSON), response.text
    return [json.loads(line) for line in response.text.splitlines()], response


def results(client: FlaskClient, url: str) -> dict[int, dict[str, Any]]:
    """All results by index, of which each is there once."""
    found, after = [], 0
    while lines := page(client, url, after=after)[0]:
        found += lines
        after += len(lines)
    by_index = {line.pop("index"): line for line in found}
    assert len(by_index) == len(found)
    return by_index


def keys(house: House, *beginnings: str) -> list[str]:
    """What is in the store, by the beginnings of names."""
    names = (name.decode().removeprefix("llmstream:") for name in house.record.store.command("KEYS", "llmstream:*"))
    return sorted(name for name in names if name.startswith(beginnings))
