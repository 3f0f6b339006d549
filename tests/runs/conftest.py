"""A run that goes on, and one that has ended, each with a client whose it is; and a client without any."""

from __future__ import annotations

import pytest

from flask_llmstream.events import Usage
from tests.conversation import ask, events
from tests.puppet import PATIENCE, Pause, Puppet, follow, stage


@pytest.fixture
def pause():
    return Pause()


@pytest.fixture
def live(pause):
    """A client, and where its run is, which says "Hel" and then waits."""
    with stage(Puppet(["Hel", pause, "lo"], usage=Usage(3, 2))) as (app, _):
        client = app.test_client()
        with ask(client) as response:
            heard = follow(response)
            while next(heard) != {"token": "Hel"}:
                pass
            assert pause.reached.wait(PATIENCE)
            yield client, response.headers["Location"]


@pytest.fixture
def ended():
    """A client, and where its run is, which has ended."""
    with stage(Puppet(usage=Usage(3, 2))) as (app, _):
        client = app.test_client()
        response = ask(client)
        events(response)
        yield client, response.headers["Location"]


@pytest.fixture
def app():
    """An application with short heartbeats, and at the end nobody who reads."""
    with stage(HEARTBEAT=0.1) as (app, llm):
        yield app
        record = llm.record(app)
        assert len(record.open) == len(record.feeds) == 0


@pytest.fixture
def client(app):
    return app.test_client()
