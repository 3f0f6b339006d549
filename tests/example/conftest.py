from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from example_app import create_app
from flask_llmstream.testing import ModelServer, Schedule


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "FLASK_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_model_server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def model(shared_model_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> ModelServer:
    """The model's server, which applications find in the environment."""
    shared_model_server.reset()
    shared_model_server.schedule = Schedule()
    monkeypatch.setenv("OPENAI_BASE_URL", shared_model_server.base_url)
    monkeypatch.setenv("OPENAI_MODEL", "scripted")
    return shared_model_server


@pytest.fixture
def make_app() -> Iterator[Callable[[], Flask]]:
    """Makes the example application, and closes it after the test."""
    made: list[Flask] = []

    def make() -> Flask:
        made.append(create_app())
        return made[-1]

    yield make
    for app in made:
        app.extensions["llmstream"]["llmstream"].close()


@pytest.fixture
def client(model: ModelServer, make_app: Callable[[], Flask]) -> FlaskClient:
    """A visitor of the example application, in front of the model's server."""
    client = make_app().test_client()
    client.get("/")
    return client
