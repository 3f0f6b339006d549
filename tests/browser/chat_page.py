"""The example's chat page as a visitor has it before them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, Request, expect

from flask_llmstream.testing import Gate, Schedule
from tests.browser.tab import Tab


def halfway(tokens: int = 6, at: int = 3) -> tuple[Schedule, Gate]:
    """An answer that waits after some of its tokens until the test lets it go on."""
    gate = Gate()
    return Schedule(tokens=tokens, gates={at: gate}), gate


class ChatPage(Tab):
    """The page in a browser's tab; `starts` are the requests that started a run."""

    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url)
        self.starts: list[Request] = []
        self.question = page.get_by_label("Your message")
        self.send = page.get_by_role("button", name="Send", exact=True)
        self.questions = page.locator("article.question p")
        self.answers = page.locator("article.answer")
        self.conversations = page.locator("#chats .title")
        self.answering = page.locator("#chats li", has=page.locator(".answering:not([hidden])")).locator(".title")
        self.new = page.get_by_role("button", name="New chat")
        page.on("request", self._look_for_starts)

    def open(self) -> None:
        self.page.goto(f"{self.url}/")
        expect(self.page.get_by_role("heading", name="What would you like to read?")).to_be_visible()
        expect(self.question).to_be_focused()

    @property
    def said(self) -> list[dict[str, Any]]:
        """What was sent to start runs."""
        return [json.loads(request.post_data or "") for request in self.starts]

    def ask(self, question: str) -> None:
        self.question.fill(question)
        self.question.press("Enter")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.answers.last

    @property
    def text(self) -> Locator:
        """The text of the last answer."""
        return self.answer.locator(".text")

    def ends(self, state: str = "done") -> None:
        """Wait until the last answer has ended, in this state."""
        expect(self.answer).to_have_attribute("data-state", state)
        expect(self.stop).to_be_hidden()

    def _look_for_starts(self, request: Request) -> None:
        if request.method == "POST" and urlsplit(request.url).path.endswith("/stream"):
            self.starts.append(request)
