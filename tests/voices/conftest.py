"""A model server, and a realtime model that it answers; other tests here have servers of their own."""

from contextlib import closing

import pytest

from flask_llmstream.providers.openai_realtime import RealtimeModel
from flask_llmstream.testing import ModelServer, Script
from tests.voices.realtime_calls import KEY


@pytest.fixture(scope="module")
def running():
    with ModelServer(key=KEY) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    running.reset()
    running.realtime.schedule = Script()
    return running


@pytest.fixture
def model(server):
    with closing(RealtimeModel(base_url=server.base_url, api_key=KEY)) as model:
        yield model
