"""A browser's context that tests use one after another, each as if it were new: to make one takes half a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Frame, Page


class SharedContext:
    """A context, and what is to be taken back after each test.

    :param settings: as for `Browser.new_context`.
    """

    def __init__(self, browser: Browser, **settings: Any) -> None:
        self._context = browser.new_context(**settings)
        self._anchor = self._context.new_page()  # keeps the process of its pages, and reaches what they have stored
        self._storage = self._context.new_cdp_session(self._anchor)
        self._origins: set[str] = set()
        self._context.on("page", self._watch)

    @contextmanager
    def lend(self) -> Iterator[BrowserContext]:
        """The context for one test. Its pages are closed afterwards, and nothing of theirs is kept."""
        try:
            yield self._context
        finally:
            for page in self._context.pages:
                if page is not self._anchor:
                    page.close()
            self._context.set_offline(False)
            self._context.unroute_all()
            self._context.clear_permissions()
            self._context.clear_cookies()
            for origin in self._origins:
                self._storage.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "all"})
            self._origins.clear()

    def close(self) -> None:
        self._context.close()

    def _watch(self, page: Page) -> None:
        page.on("framenavigated", self._note)

    def _note(self, frame: Frame) -> None:
        address = urlsplit(frame.url)
        if address.scheme in ("http", "https"):
            self._origins.add(f"{address.scheme}://{address.netloc}")


@contextmanager
def shared(browser: Browser, **settings: Any) -> Iterator[SharedContext]:
    """A context for the tests of a file."""
    context = SharedContext(browser, **settings)
    try:
        yield context
    finally:
        context.close()
