"""What the example's page does where a visitor has as many answers in progress as they may have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, expect

from flask_llmstream.testing import Schedule
from tests.browser.chat_page import ChatPage, halfway
from tests.browser.conftest import example_app

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture
def one_at_a_time(context: BrowserContext, model_server, model) -> Iterator[ChatPage]:
    """The page of an application where a visitor may have one answer at a time."""
    with example_app(
        OPENAI_BASE_URL=model_server.base_url, OPENAI_MODEL="scripted", FLASK_LLMSTREAM_MAX_RUNS_PER_USER="1"
    ) as example:
        chat = ChatPage(context.new_page(), example.url)
        chat.open()
        yield chat
        assert not chat.complaints


def refused(chat: ChatPage) -> None:
    chat.ask("First")
    expect(chat.text).to_have_text("w1 w2 w3")
    chat.new.click()
    chat.ask("Second")
    chat.ends("failed")
    expect(chat.answer.locator(".failure")).to_contain_text("You have as many answers in progress")


def test_where_another_answer_is_in_the_way_it_can_be_shown(one_at_a_time, model):
    chat = one_at_a_time
    model.schedule, gate = halfway()
    refused(chat)
    chat.page.get_by_role("button", name="Show that answer").click()
    expect(chat.questions).to_have_text(["First"])
    expect(chat.text).to_have_text("w1 w2 w3")
    gate.release()
    chat.ends()
    expect(chat.text).to_have_text("w1 w2 w3 w4 w5 w6")


def test_where_another_answer_is_in_the_way_it_can_be_stopped(one_at_a_time, model):
    chat = one_at_a_time
    model.schedule, _ = halfway()
    before = model.cancelled
    refused(chat)
    model.schedule = Schedule(tokens="Now")
    chat.page.get_by_role("button", name="Stop it, and ask again").click()
    expect(chat.text).to_have_text("Now")
    chat.ends()
    expect(chat.questions).to_have_text(["Second"])
    model.wait_for(lambda server: server.cancelled == before + 1)
    expect(chat.conversations).to_have_text(["Second", "First"])


def test_a_question_that_was_refused_stays_while_another_tab_asks(one_at_a_time, context, model):
    chat = one_at_a_time
    chat.ask("Hello")
    chat.ends()
    second = ChatPage(context.new_page(), chat.url)
    second.visit(chat.page.url)
    expect(second.answers).to_have_count(1)
    model.schedule, gate = halfway()
    second.new.click()
    second.ask("Elsewhere")
    expect(second.text).to_have_text("w1 w2 w3")
    chat.ask("Refused")
    chat.ends("failed")
    gate.release()
    second.ends()
    model.schedule = Schedule(tokens="Other")
    second.conversations.filter(has_text="Hello").click()
    second.ask("Asked")
    second.ends()
    expect(chat.questions).to_have_text(["Hello", "Asked", "Refused"])
    chat.page.get_by_role("button", name="Retry").click()
    chat.ends()
    for page in (chat, second):
        expect(page.questions).to_have_text(["Hello", "Asked", "Refused"])
    assert [message["content"] for message in model.requests[-1].body["messages"]][2:] == ["Asked", "Other", "Refused"]
