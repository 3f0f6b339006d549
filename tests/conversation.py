"""A client's side of an application under test: what it asks, and what it hears."""

from __future__ import annotations

import json
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_llmstream.providers.simulated import Simulated

QUESTION = {"messages": [{"role": "user", "content": "/echo Hello, you"}]}
KEY = "8f14e45f-ceea-467f-a0e6-3d1f2b7c9a10"


def instant() -> Simulated:
    """A model that does not keep anybody waiting."""
    return Simulated(first_token=0, rate=float("inf"))


def new_app(**config: Any) -> Flask:
    """An application in testing mode, where visitors may be anonymous."""
    app = Flask(__name__)
    app.config.update(TESTING=True, SECRET_KEY="only a test")
    app.config.update(config)
    return app


def ask(asker: Flask | FlaskClient, url: str = "/api/chat/stream", body: Any = QUESTION, **more: Any) -> TestResponse:
    """Post a question; each call with an application is another visitor's."""
    client = asker.test_client() if isinstance(asker, Flask) else asker
    return client.post(url, json=body, **more)


def events(response: TestResponse) -> list[dict[str, Any]]:
    """All events of an answer, which ends with exactly one terminal."""
    with response:
        assert response.status_code == 200, response.text
        heard = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert ["done" in event or "error" in event for event in heard] == [False] * (len(heard) - 1) + [True]
    return heard


def text(response: TestResponse) -> str:
    """The text of an answer."""
    return "".join(event.get("token", "") for event in events(response))


def result(response: TestResponse) -> Any:
    """What the function returned."""
    return events(response)[-1]["result"]


def problem(response: TestResponse) -> dict[str, Any]:
    """The problem details of a refusal."""
    with response:
        assert response.content_type == "application/problem+json", response.text
        said: dict[str, Any] = json.loads(response.data)
        assert said["status"] == response.status_code
        return said
