from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from flask_llmstream.testing import ModelServer, Schedule
from tests.servers import serving
from tests.servers.serving import TROUBLE, Server

ANSWER = "One two three. Four five six. Seven eight nine."
APP = "tests.voice.app:create_app"
GUNICORN = f"-m gunicorn {APP}() -b 127.0.0.1:0 --no-control-socket"
PATIENT = 20
"""Seconds."""
COMMANDS = {
    "gevent": f"{GUNICORN} -w 1 --graceful-timeout 1 -k gevent --worker-connections 400",
    "gthread": f"{GUNICORN} -w 1 --graceful-timeout 1 -k gthread --threads 12",
    "flask": f"-m flask --app {APP} run --port 0",
    "patient": f"{GUNICORN} -w 1 --graceful-timeout {PATIENT} -k gevent",
    "deployed": f"{GUNICORN} -w 2 --graceful-timeout 10 -k gevent --worker-connections 400",
}

Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer(Schedule(tokens=ANSWER), key=serving.KEY) as model:
        yield model


@pytest.fixture(scope="module")
def serve(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Starts a server of a kind, with the model that all of them ask."""

    @contextmanager
    def serve(kind: str, **environment: str) -> Iterator[Server]:
        directory: Path = tmp_path_factory.mktemp(kind)
        environment = {"OPENAI_BASE_URL": model.base_url} | environment
        with serving.serve(kind, directory, COMMANDS[kind], **environment) as server:
            yield server

    return serve


@pytest.fixture(scope="module")
def running(serve: Serve) -> Iterator[Server]:
    with serve("gevent") as server:
        yield server


@pytest.fixture
def server(running: Server, model: ModelServer) -> Iterator[Server]:
    """A gunicorn with gevent, which each test leaves empty, and its log without trouble that the test has not read."""
    model.reset()
    model.schedule = Schedule(tokens=ANSWER)
    running.news()
    yield running
    running.await_state(sessions=0, open=0, live=0, watched=0)
    trouble = TROUBLE.findall(running.news())
    assert not trouble, f"the server's log has {trouble}"
