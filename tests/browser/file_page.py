"""The example's pages that take a file."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from tests.browser.tab import Tab


class FilePage(Tab):
    """One of them: a form, and below it what is being done, what came of it or what went wrong.

    :param path: where it is.
    """

    def __init__(self, page: Page, url: str, path: str) -> None:
        super().__init__(page, url)
        self.path = path
        self.file = page.locator("#file")
        self.send = page.locator("#send")
        self.title = page.locator("#work h3")
        self.doing = page.locator("#doing")
        self.bar = page.get_by_role("progressbar")
        self.outcome = page.locator("#work .outcome")
        self.failure = page.locator("#work .failure")
        self.refused = page.locator("#refused")

    def open(self) -> None:
        self.visit(self.path)
        expect(self.send).to_be_disabled()

    def choose(self, name: str, content: bytes) -> None:
        self.file.set_input_files({"name": name, "mimeType": "", "buffer": content})

    def submit(self, name: str, content: bytes) -> None:
        self.choose(name, content)
        self.send.click()


class AnalyzePage(FilePage):
    """The one that analyses a document."""

    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url, "/analyze")
        self.summary = page.locator(".summary")
        self.points = page.locator(".points li")
        self.figures = page.locator(".figures")
        self.earlier = page.locator(".runs a")

    def listed(self, name: str) -> Locator:
        """An earlier analysis."""
        return self.earlier.filter(has_text=name)


class ExtractPage(FilePage):
    """The one that reads an invoice."""

    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url, "/extract")
        self.rows = page.locator("tbody tr")
        self.facts = page.locator(".facts dd")
        self.rejected = page.locator(".rejected li")
