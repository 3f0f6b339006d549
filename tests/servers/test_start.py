"""What a process says and does when it starts, before anybody asks it anything."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from flask_llmstream.testing import ModelServer
from tests.servers.client import PATIENCE, QUESTION, ask
from tests.servers.serving import ROOT, listening, until

SITE = """
import logging
from flask import Flask
from flask_llmstream import LLMStream

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
app = Flask("site")
app.config.update(SECRET_KEY="for tests", LLMSTREAM_ALLOW_ANONYMOUS=True)
LLMStream(app)
"""
GUNICORN = "-m gunicorn site_under_test:app -b 127.0.0.1:0 --no-control-socket --graceful-timeout 1"
GTHREAD = f"{GUNICORN} -k gthread --threads 4"
GEVENT = f"{GUNICORN} -k gevent"
FLASK = "-m flask --app site_under_test run --port 0"
WORKERS_TOLD = "worker processes, and each knows its own runs only"
ONE_TOLD = "INFO flask_llmstream: runs live in the memory of this process"

WARMED = "/v1/models"
"""In the official client's log once its server has answered; before that the connection is not free."""


class Start:
    """A server that has been started, and the model's server that it was pointed at."""

    def __init__(self, upstream, process, log):
        self.upstream, self.log = upstream, log
        self.address = listening(process, log)

    def said(self, text):
        """How often the log has it."""
        return self.log.read_text().count(text)

    def answer(self):
        with ask(self.address, "POST", "/api/chat/stream", json=QUESTION, headers={"Connection": "close"}) as answer:
            assert answer.text() == "Hello, world!"


@pytest.fixture
def start(tmp_path):
    @contextmanager
    def start(command):
        (tmp_path / "site_under_test.py").write_text(SITE)
        log = tmp_path / "log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "OPENAI_"))}
        with ModelServer() as upstream, log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *command.split()],
                stdout=output,
                stderr=output,
                cwd=tmp_path,
                env=clean | {"OPENAI_BASE_URL": upstream.base_url, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            )
            try:
                yield Start(upstream, process, log)
            finally:
                process.terminate()
                process.wait(PATIENCE)

    return start


@pytest.mark.parametrize("command", [GEVENT, GTHREAD], ids=["gevent", "gthread"])
def test_a_worker_opens_a_connection_to_the_model_that_the_first_answer_takes(start, command):
    with start(command) as server:
        server.upstream.wait_for(lambda upstream: upstream.open_connections == 1, PATIENCE)
        assert server.upstream.requests == []
        until(lambda: server.said(ONE_TOLD) and server.said(WARMED))
        server.answer()
        assert server.upstream.connections == 1
        assert server.said(ONE_TOLD) == 1
        assert server.said("ERROR") == server.said("Traceback") == 0


@pytest.mark.parametrize("command", [GEVENT, GTHREAD], ids=["gevent", "gthread"])
def test_each_of_several_workers_complains(start, command):
    with start(f"{command} -w 2") as server:
        until(lambda: server.said(WORKERS_TOLD) == 2)
        assert server.said("ERROR flask_llmstream: 2 worker processes") == 2
        assert server.said(ONE_TOLD) == 0
        server.upstream.wait_for(lambda upstream: upstream.connections == 2, PATIENCE)


def test_workers_of_an_application_that_was_loaded_before_them_complain_when_they_are_first_asked(start):
    """With --preload the application starts in a process that is no worker, and knows nothing of their number."""
    with start(f"{GTHREAD} -w 2 --preload") as server:
        server.answer()
        until(lambda: server.said(WORKERS_TOLD) >= 1)


def test_the_development_server_says_it_too(start):
    with start(FLASK) as server:
        server.answer()
        until(lambda: server.said(ONE_TOLD) == 1)
        assert server.said("ERROR") == 0
