from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import openai
import pytest

from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import ModelServer


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def model(server: ModelServer) -> Iterator[OpenAI]:
    with closing(OpenAI("m", base_url=server.base_url)) as model:
        yield model
    server.wait_for(lambda s: s.open_connections == 0)


@pytest.fixture(params=["our transport", "the client's own"])
def either(request: pytest.FixtureRequest, server: ModelServer) -> Iterator[OpenAI]:
    """The model over each of the two ways to its server."""
    if request.param == "our transport":
        with closing(OpenAI("m", base_url=server.base_url)) as model:
            yield model
    else:
        with openai.OpenAI(api_key="k", base_url=server.base_url) as client:
            yield OpenAI("m", client=client)
    server.wait_for(lambda s: s.open_connections == 0)


@pytest.fixture
def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
