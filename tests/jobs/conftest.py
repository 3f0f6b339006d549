from __future__ import annotations

from contextlib import ExitStack

import pytest

from flask_llmstream import writer
from tests.jobs.house import House


@pytest.fixture
def house(request, store_server):
    """Opens applications with jobs: over the embedded store and over a Redis."""
    server = None if store_server is None else request.getfixturevalue("redis_server")
    with ExitStack() as stack:
        yield House(server, stack)


@pytest.fixture
def in_process():
    """The same without Redis, where the web process performs them."""
    with ExitStack() as stack:
        yield House(None, stack)


@pytest.fixture
def workshop(redis_server):
    """The same over a Redis, where other processes may perform what one has admitted."""
    with ExitStack() as stack:
        yield House(redis_server, stack)


@pytest.fixture
def soon(monkeypatch):
    """What is tried again is so at once."""
    monkeypatch.setattr(writer, "BACKOFF", 0.02)
