from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from flask_llmstream.testing import ModelServer, Schedule
from tests import contexts
from tests.browser.chat_page import ChatPage
from tests.contexts import SharedContext

expect.set_options(timeout=20_000)  # a line that dropped is mended within some seconds


@dataclass(frozen=True)
class Example:
    """The example application, as a process of its own.

    :param url: where its page is, without a slash at the end.
    """

    url: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


@contextmanager
def example_app(**environment: str) -> Iterator[Example]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "FLASK_"))}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-m", "example_app", "--no-browser", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=clean | environment,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://[\d.:]+", said)
            if found is None:
                process.wait()
                log.seek(0)
                raise AssertionError(f"the example application did not start: {said}{log.read()}")
            yield Example(found.group())
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def model_server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="session")
def example(model_server: ModelServer) -> Iterator[Example]:
    """The example application, in front of the model server."""
    with example_app(OPENAI_BASE_URL=model_server.base_url, OPENAI_MODEL="scripted") as example:
        yield example


@pytest.fixture(scope="session")
def simulation() -> Iterator[Example]:
    """The example application with no model configured."""
    with example_app() as example:
        yield example


@pytest.fixture
def model(model_server: ModelServer) -> Iterator[ModelServer]:
    """The model server, knowing of nothing that came before this test."""
    model_server.reset()
    model_server.schedule = Schedule()
    yield model_server
    model_server.wait_for(lambda server: server.active == 0, timeout=30)


@pytest.fixture(scope="module")
def shared_context(browser: Browser) -> Iterator[SharedContext]:
    with contexts.shared(browser, viewport={"width": 1280, "height": 800}) as context:
        yield context


@pytest.fixture
def context(shared_context: SharedContext) -> Iterator[BrowserContext]:
    with shared_context.lend() as context:
        context.set_default_timeout(20_000)
        yield context


@pytest.fixture
def chat(context: BrowserContext, example: Example, model: ModelServer) -> Iterator[ChatPage]:
    """The chat page, opened; it may have no error that nobody caught, and break no rule of its policy."""
    chat = ChatPage(context.new_page(), example.url)
    chat.open()
    yield chat
    assert not chat.complaints
