"""A server that ends its workers without a word takes no client's answer for complete.

Here it is the application that does not hear the word: it has put a handler of its own before gunicorn's. What becomes
of the others is in `deploys`. The clients speak HTTP/1.0, as nginx does to what is behind it: there an orderly close
is how a response ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_llmstream.testing import ModelServer, Schedule
from tests.servers.client import QUESTION
from tests.servers.serving import GUNICORN, Server, serve

COMMAND = GUNICORN.format("tests.servers.deploys.app:create_app(deaf=True)").replace("()", "") + " -w 1 -k gevent"


@pytest.fixture
def server(upstream: ModelServer, tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own."""
    with serve("deaf", tmp_path, COMMAND, OPENAI_BASE_URL=upstream.base_url) as server:
        yield server
    upstream.wait_for(lambda upstream: upstream.active == 0)


def end_its_worker(server: Server) -> None:
    """As an operator does, or gunicorn itself after so many requests."""
    (worker,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGTERM)


def reload(server: Server) -> None:
    """As after a new version has been installed."""
    os.kill(server.pid, signal.SIGHUP)


@pytest.mark.parametrize("end", [end_its_worker, reload])
def test_a_stream_in_the_midst_of_its_answer_is_reset(server: Server, upstream: ModelServer, end):
    upstream.schedule = Schedule(tokens=3, stall_after=1)
    with (
        server.ask("POST", "/api/lasting", json=QUESTION, version="1.0") as first,
        server.ask("GET", "/api/lasting?message=Hi", version="1.0") as second,
    ):
        for answer in (first, second):
            assert answer.token() == "w1 "
        end(server)
        for answer in (first, second):
            answer.read()
            assert answer.ending == "reset"
            assert b'"done"' not in answer.body and b'"error"' not in answer.body


def test_one_that_has_its_end_is_ended_properly(server: Server):
    with server.ask("POST", "/api/lasting", json=QUESTION, version="1.0") as answer:
        assert answer.text() == "Hello, world!"
