from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import Browser, Page

from tests.client.server import ScriptedServer
from tests.puppet import eventually


def serve() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        with suppress(AssertionError):  # what a page has just sent is under way
            eventually(lambda: not left(server))
        server.shutdown()
        thread.join()
    assert not server.unexpected, "requests that nothing was put down for"
    assert not left(server), f"requests that did not come: {left(server)}"


def left(server: ScriptedServer) -> list[str]:
    return [line for line, answers in server.answers.items() if answers]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    yield from serve()


@pytest.fixture
def foreign() -> Iterator[ScriptedServer]:
    """A server of another origin."""
    yield from serve()


@pytest.fixture
def blank(browser: Browser) -> Iterator[Page]:
    """A page that has loaded nothing yet; it may have no error that nobody caught."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(error.message))
    page.errors = errors  # type: ignore[attr-defined]
    yield page
    context.close()
    assert not errors, f"uncaught in the page: {errors}"


@pytest.fixture
def page(blank: Page, server: ScriptedServer) -> Page:
    """A page with the client loaded."""
    return opened(blank, server.url)


def opened(page: Page, url: str) -> Page:
    page.goto(f"{url}/")
    page.wait_for_function("window.ready")
    return page
