"""The example's conversations: kept by the server, and the same on every page of a visitor's."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, expect

from flask_llmstream.testing import Schedule
from tests.browser.chat_page import ChatPage, halfway
from tests.browser.conftest import example_app

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture
def second(chat: ChatPage, context: BrowserContext) -> Iterator[ChatPage]:
    """Another tab of the same visitor's."""
    page = ChatPage(context.new_page(), chat.url)
    yield page
    assert not page.complaints


def test_only_the_new_message_is_sent(chat, model):
    chat.ask("One")
    chat.ends()
    chat.ask("Two")
    expect(chat.answers).to_have_count(2)
    chat.ends()
    one, two = chat.said
    assert one == {"conversation": chat.page.url.partition("#")[2], "message": "One"}
    assert two == one | {"message": "Two"}
    assert [message["content"] for message in model.requests[-1].body["messages"]] == ["One", "Hello, world!", "Two"]


def test_a_stopped_answer_is_marked_after_a_reload(chat, model):
    model.schedule, _ = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    chat.page.keyboard.press("Escape")
    chat.ends("stopped")
    chat.page.reload()
    chat.ends("stopped")
    expect(chat.text).to_have_text("w1 w2 w3")
    expect(chat.answer.locator(".figures")).to_have_text(re.compile("^Stopped"))
    expect(chat.page.get_by_role("button", name="Regenerate")).to_be_visible()


def test_an_answer_that_was_cut_short_is_marked_after_a_reload(chat, model):
    model.schedule = Schedule(tokens=3, finish_reason="length")
    chat.ask("Hello")
    chat.ends()
    chat.page.reload()
    chat.ends()
    expect(chat.answer.locator(".figures")).to_contain_text("Cut off at the greatest length")


def test_an_answer_that_never_began_is_marked_after_a_reload(chat, model):
    model.schedule = Schedule(status=401)
    chat.ask("Hello")
    chat.ends("failed")
    chat.page.reload()
    chat.ends("failed")
    expect(chat.answer.locator(".failure")).to_contain_text("There was no answer")


def test_another_device_shows_the_conversation(chat, browser, context, model):
    chat.ask("Hello")
    chat.ends()
    with browser.new_context(storage_state=context.storage_state()) as elsewhere:
        other = ChatPage(elsewhere.new_page(), chat.url)
        other.visit(chat.page.url)
        expect(other.questions).to_have_text("Hello")
        other.ends()
        expect(other.text).to_have_text("Hello, world!")
        expect(other.conversations).to_have_text(["Hello"])


def test_somebody_else_does_not_see_it(chat, browser, model):
    chat.ask("Hello")
    chat.ends()
    with browser.new_context() as elsewhere:
        other = ChatPage(elsewhere.new_page(), chat.url)
        other.visit(chat.page.url)
        expect(other.page.get_by_role("alert")).to_contain_text("This conversation is not here")
        expect(other.page.get_by_role("button", name="Try again")).to_be_hidden()
        expect(other.page.locator("article")).to_have_count(0)
        expect(other.page.get_by_text("None yet.")).to_be_visible()


def test_a_tab_that_is_opened_meanwhile_shows_the_running_answer(chat, second, model):
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    second.visit(chat.page.url)
    expect(second.questions).to_have_text("Hello")
    expect(second.text).to_have_text("w1 w2 w3")
    expect(second.stop).to_be_visible()
    gate.release()
    for page in (chat, second):
        page.ends()
        expect(page.text).to_have_text("w1 w2 w3 w4 w5 w6")
    assert len(model.requests) == 1


def test_a_tab_that_is_open_shows_what_another_asks(chat, second, model):
    chat.ask("One")
    chat.ends()
    second.visit(chat.page.url)
    expect(second.questions).to_have_text(["One"])
    first_answer = second.answers.first.element_handle()
    model.schedule, gate = halfway()
    chat.ask("Two")
    expect(second.questions).to_have_text(["One", "Two"])
    expect(second.text).to_have_text("w1 w2 w3")
    expect(second.send).to_be_disabled()
    gate.release()
    second.ends()
    expect(second.text).to_have_text("w1 w2 w3 w4 w5 w6")
    assert first_answer.is_visible(), "what was there already was drawn again"
    model.schedule = Schedule(tokens="Three")
    second.ask("And then?")
    expect(chat.text).to_have_text("Three")
    chat.ends()
    expect(chat.answers).to_have_count(3)


def test_one_tab_stops_what_another_has_asked(chat, second, model):
    model.schedule, _ = halfway()
    before = model.cancelled
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    second.visit(chat.page.url)
    expect(second.text).to_have_text("w1 w2 w3")
    second.stop.click()
    second.ends("stopped")
    chat.ends("stopped")
    model.wait_for(lambda server: server.cancelled == before + 1)


def test_every_tab_lists_a_new_conversation_and_says_where_an_answer_is_written(chat, second, model):
    second.open()
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(second.conversations).to_have_text(["Hello"])
    expect(second.answering).to_have_text(["Hello"])
    expect(second.page.locator("article")).to_have_count(0)
    gate.release()
    expect(second.answering).to_have_count(0)
    expect(second.conversations).to_have_text(["Hello"])


def test_a_new_chat_leaves_the_answer_going_on(chat, model):
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    chat.new.click()
    expect(chat.page.locator("article")).to_have_count(0)
    expect(chat.page.get_by_role("heading", name="What would you like to read?")).to_be_visible()
    expect(chat.stop).to_be_hidden()
    expect(chat.question).to_be_focused()
    model.schedule = Schedule(tokens="Fresh")
    chat.ask("Again")
    chat.ends()
    expect(chat.text).to_have_text("Fresh")
    assert model.requests[-1].body["messages"] == [{"role": "user", "content": "Again"}]
    chat.conversations.filter(has_text="Hello").click()
    expect(chat.text).to_have_text("w1 w2 w3")
    expect(chat.stop).to_be_visible()
    gate.release()
    chat.ends()
    expect(chat.text).to_have_text("w1 w2 w3 w4 w5 w6")
    expect(chat.questions).to_have_text(["Hello"])


def test_back_and_forward_go_from_one_conversation_to_another(chat, model):
    chat.ask("First")
    chat.ends()
    chat.new.click()
    chat.ask("Second")
    chat.ends()
    chat.page.go_back()
    expect(chat.new).to_be_hidden()
    chat.page.go_back()
    expect(chat.questions).to_have_text(["First"])
    expect(chat.page).to_have_title("First · Chat · Flask-LLMStream")
    expect(chat.page.locator("#chats [aria-current=page] .title")).to_have_text("First")
    chat.page.go_forward()
    chat.page.go_forward()
    expect(chat.questions).to_have_text(["Second"])


def test_the_latest_conversation_comes_first(chat, model):
    for text in ("First", "Second"):
        chat.ask(text)
        chat.ends()
        chat.new.click()
    expect(chat.conversations).to_have_text(["Second", "First"])
    chat.conversations.last.click()
    expect(chat.questions).to_have_text(["First"])
    chat.ask("More")
    expect(chat.conversations).to_have_text(["First", "Second"])
    chat.ends()


def test_a_conversation_can_be_renamed(chat, second, model):
    chat.ask("Hello")
    chat.ends()
    chat.page.get_by_role("button", name="Rename").click()
    title = chat.page.get_by_label("Title")
    expect(title).to_be_focused()
    expect(title).to_have_value("Hello")
    title.fill("Greetings")
    title.press("Enter")
    expect(chat.conversations).to_have_text(["Greetings"])
    expect(chat.page.get_by_role("button", name="Rename")).to_be_focused()
    expect(chat.page).to_have_title("Greetings · Chat · Flask-LLMStream")
    second.visit(chat.page.url)
    expect(second.conversations).to_have_text(["Greetings"])


def test_escape_ends_the_renaming_and_nothing_else(chat, model):
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    chat.page.get_by_role("button", name="Rename").click()
    chat.page.get_by_label("Title").fill("Greetings")
    chat.page.keyboard.press("Escape")
    expect(chat.conversations).to_have_text(["Hello"])
    expect(chat.page.get_by_label("Title")).to_be_hidden()
    gate.release()
    chat.ends()
    expect(chat.text).to_have_text("w1 w2 w3 w4 w5 w6")


def test_a_conversation_can_be_deleted(chat, model):
    model.schedule, _ = halfway()
    before = model.cancelled
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    chat.page.get_by_role("button", name="Delete").click()
    dialog = chat.page.get_by_role("dialog", name="Delete this conversation?")
    expect(dialog).to_contain_text("Hello")
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(chat.stop).to_be_visible()
    chat.page.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete").click()
    expect(chat.page.locator("article")).to_have_count(0)
    expect(chat.conversations).to_have_count(0)
    expect(chat.page.get_by_text("None yet.")).to_be_visible()
    assert chat.page.url == f"{chat.url}/"
    model.wait_for(lambda server: server.cancelled == before + 1)
    chat.page.reload()
    expect(chat.page.get_by_text("None yet.")).to_be_visible()


def test_a_conversation_can_be_exported(chat, model):
    chat.ask("Hello")
    chat.ends()
    with chat.page.expect_download() as download:
        chat.page.get_by_role("link", name="Export").click()
    assert download.value.suggested_filename.endswith(".md")
    text = download.value.path().read_text()
    assert "# Hello" in text and "Hello, world!" in text


def test_an_answer_that_was_regenerated_is_the_one_that_a_reload_shows(chat, second, model):
    chat.ask("One")
    chat.ends()
    chat.ask("Two")
    expect(chat.answers).to_have_count(2)
    chat.ends()
    second.visit(chat.page.url)
    expect(second.answers).to_have_count(2)
    model.schedule = Schedule(tokens="Another")
    chat.page.get_by_role("button", name="Regenerate").click()
    for page in (chat, second):
        expect(page.text).to_have_text("Another")
        page.ends()
        expect(page.questions).to_have_text(["One", "Two"])
    chat.page.reload()
    expect(chat.questions).to_have_text(["One", "Two"])
    expect(chat.text).to_have_text("Another")


def test_a_long_list_goes_on_at_a_click(chat, model):
    begin = """count => Promise.all(Array.from({length: count}, (_, i) => fetch('/api/conversations', {
        method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({title: `Talk ${i}`}),
    })))"""
    chat.page.evaluate(f"({begin})(35).then(() => 0)")
    chat.page.reload()
    expect(chat.conversations).to_have_count(30)
    chat.page.get_by_role("button", name="Older").click()
    expect(chat.conversations).to_have_count(35)
    expect(chat.page.get_by_role("button", name="Older")).to_be_hidden()
    assert len(set(chat.conversations.all_inner_texts())) == 35


def test_on_a_phone_the_list_lies_over_the_page(chat, model):
    chat.page.set_viewport_size({"width": 360, "height": 740})
    chat.ask("First")
    chat.ends()
    chat.new.click()
    model.schedule, gate = halfway()
    chat.ask("Second")
    expect(chat.text).to_have_text("w1 w2 w3")
    expect(chat.conversations.first).to_be_hidden()
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 360
    browse = chat.page.get_by_role("button", name="Conversations")
    browse.click()
    expect(chat.conversations).to_have_text(["Second", "First"])
    expect(chat.answering).to_have_text(["Second"])
    chat.page.keyboard.press("Escape")
    expect(chat.conversations.first).to_be_hidden()
    expect(chat.stop).to_be_visible()
    browse.click()
    chat.conversations.last.click()
    expect(chat.conversations.first).to_be_hidden()
    expect(chat.questions).to_have_text(["First"])
    gate.release()
    model.wait_for(lambda server: server.active == 0)


def test_a_server_that_cannot_be_reached_is_asked_again_at_a_click(chat, context, model):
    chat.ask("Hello")
    chat.ends()
    address = chat.page.url
    context.route("**/api/conversations/*", lambda route: route.abort())
    chat.page.reload()
    alert = chat.page.get_by_role("alert")
    expect(alert).to_contain_text("The server cannot be reached.")
    context.unroute("**/api/conversations/*")
    alert.get_by_role("button", name="Try again").click()
    expect(chat.text).to_have_text("Hello, world!")
    expect(alert).to_be_hidden()
    assert chat.page.url == address


@pytest.mark.needs("redis-server")
def test_processes_that_share_a_redis_are_one(context, redis_server, model_server, model):
    shared = {
        "OPENAI_BASE_URL": model_server.base_url,
        "OPENAI_MODEL": "scripted",
        "FLASK_LLMSTREAM_REDIS_URL": redis_server.url,
    }
    with example_app(**shared) as here, example_app(**shared) as there:
        chat, other = ChatPage(context.new_page(), here.url), ChatPage(context.new_page(), there.url)
        chat.open()
        other.open()
        model.schedule, gate = halfway()
        chat.ask("Hello")
        expect(chat.text).to_have_text("w1 w2 w3")
        other.conversations.click()
        expect(other.text).to_have_text("w1 w2 w3")
        gate.release()
        other.ends()
        expect(other.text).to_have_text("w1 w2 w3 w4 w5 w6")
        assert not chat.complaints and not other.complaints
    with example_app(**shared) as restarted:
        later = ChatPage(context.new_page(), restarted.url)
        later.visit(f"{restarted.url}/#{chat.page.url.partition('#')[2]}")
        expect(later.text).to_have_text("w1 w2 w3 w4 w5 w6")
