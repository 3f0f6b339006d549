"""A page of the example in a browser's tab."""

from __future__ import annotations

from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request


class Tab:
    """A tab with a page of the example's, or about to have one.

    `complaints` are uncaught errors and broken rules of the Content-Security-Policy, `foreign` the addresses on other
    hosts that were asked for anything.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.stop = page.get_by_role("button", name="Stop", exact=True)
        self.announcer = page.locator("#announcer[role=status]")
        page.on("pageerror", lambda error: self.complaints.append(error.message))
        page.on("console", self._listen)
        page.on("request", self._look)

    def visit(self, address: str) -> None:
        """Go to an address, or to one of the example's paths."""
        self.page.goto(address if "://" in address else self.url + address)

    def _listen(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or "Trusted" in message.text:
            self.complaints.append(message.text)

    def _look(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.foreign.append(request.url)
