"""The example's chat page: one visitor, a real browser, the example as a process, a model's server behind it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from flask_llmstream.testing import Gate, Schedule
from tests.browser.chat_page import ChatPage, halfway
from tests.line import Line, Reset

pytestmark = pytest.mark.needs("chromium")


def test_an_answer_grows_while_it_is_written(chat, model):
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    expect(chat.answer).to_have_attribute("aria-busy", "true")
    expect(chat.stop).to_be_visible()
    expect(chat.send).to_be_disabled()
    expect(chat.announcer).to_be_empty()
    gate.release()
    chat.ends()
    expect(chat.text).to_have_text("w1 w2 w3 w4 w5 w6")
    expect(chat.answer).to_have_attribute("aria-busy", "false")
    expect(chat.announcer).to_have_text("w1 w2 w3 w4 w5 w6")
    figures = chat.answer.locator(".figures").inner_text()
    assert re.fullmatch(r"first token \d+\.\d\d s · \d+ tokens/s · 6 tokens", figures)


def test_figures_are_shown_while_it_is_written(chat, model):
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(chat.answer.locator(".figures")).to_have_text(re.compile(r"^first token \d+\.\d\d s.*3 tokens$"))
    gate.release()
    chat.ends()


def test_before_the_first_word_the_page_says_that_the_model_thinks(chat, model):
    model.schedule, gate = halfway(at=0)
    chat.ask("Hello")
    waiting = chat.answer.locator(".waiting")
    expect(waiting).to_have_text("Thinking…")
    gate.release()
    chat.ends()
    expect(waiting).to_be_hidden()


def test_a_long_silence_is_not_hidden(chat, model):
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    expect(chat.answer.locator(".waiting")).to_have_text("Waiting for more…")
    gate.release()
    chat.ends()
    expect(chat.answer.locator(".waiting")).to_be_hidden()


def test_the_model_gets_the_whole_conversation(chat, model):
    chat.ask("One")
    chat.ends()
    chat.ask("Two")
    expect(chat.answers).to_have_count(2)
    chat.ends()
    assert model.requests[-1].body["messages"] == [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Hello, world!"},
        {"role": "user", "content": "Two"},
    ]
    expect(chat.page.get_by_role("button", name="Regenerate")).to_have_count(1)


def test_the_visitor_may_name_a_model(chat, model):
    chat.page.get_by_label("Model").fill("large")
    chat.ask("Hello")
    chat.ends()
    assert model.requests[-1].body["model"] == "large"


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_ends_the_answer_here_and_at_the_model(chat, model, way):
    model.schedule, _ = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    before = model.cancelled
    if way == "button":
        chat.stop.click()
    else:
        chat.page.keyboard.press("Escape")
    chat.ends("stopped")
    model.wait_for(lambda server: server.cancelled == before + 1)
    expect(chat.text).to_have_text("w1 w2 w3")
    expect(chat.answer.locator(".figures")).to_have_text(re.compile("^Stopped · "))
    expect(chat.question).to_be_focused()


def test_an_answer_that_was_stopped_is_part_of_the_conversation(chat, model):
    model.then(Schedule(tokens=("Half", " an"), stall_after=2), Schedule(tokens="More"))
    chat.ask("Hello")
    expect(chat.text).to_have_text("Half an")
    chat.page.keyboard.press("Escape")
    chat.ends("stopped")
    chat.ask("Go on")
    expect(chat.text).to_have_text("More")
    chat.ends()
    assert [message["content"] for message in model.requests[-1].body["messages"]] == ["Hello", "Half an", "Go on"]


def test_the_keyboard_is_enough(chat, model):
    keyboard = chat.page.keyboard
    keyboard.type("First")
    keyboard.press("Shift+Enter")
    keyboard.type("second")
    expect(chat.question).to_have_value("First\nsecond")
    assert not chat.starts
    keyboard.press("Enter")
    chat.ends()
    expect(chat.question).to_have_value("")
    expect(chat.question).to_be_focused()
    assert model.requests[-1].body["messages"] == [{"role": "user", "content": "First\nsecond"}]
    keyboard.press("Shift+Tab")
    expect(chat.page.get_by_role("button", name="Regenerate")).to_be_focused()
    keyboard.press("Enter")
    chat.ends()
    expect(chat.question).to_be_focused()
    assert len(model.requests) == 2


def test_nothing_but_blanks_is_not_sent(chat, model):
    chat.ask("  ")
    expect(chat.send).to_be_disabled()
    chat.ask("Hello")
    chat.ends()
    assert len(model.requests) == 1


@pytest.mark.parametrize("way", ["double click", "two Enters"])
def test_sending_twice_starts_one_run(chat, model, way):
    model.schedule, gate = halfway()
    chat.question.fill("Hello")
    if way == "double click":
        chat.send.dblclick()
    else:
        chat.page.keyboard.press("Enter")
        chat.page.keyboard.press("Enter")
    expect(chat.text).to_have_text("w1 w2 w3")
    gate.release()
    chat.ends()
    expect(chat.answers).to_have_count(1)
    assert len(chat.starts) == len(model.requests) == 1


def test_a_failure_before_the_first_word_can_be_retried(chat, model):
    model.then(Schedule(status=401))
    chat.ask("Hello")
    chat.ends("failed")
    failure = chat.answer.locator(".failure")
    expect(failure).to_contain_text("The language model's server did not accept this application's key.")
    expect(chat.announcer).to_contain_text("The answer failed.")
    failure.get_by_role("button", name="Retry").click()
    chat.ends()
    expect(chat.answers).to_have_count(1)
    expect(chat.text).to_have_text("Hello, world!")
    first, second = [request.headers["idempotency-key"] for request in chat.starts]
    assert first != second
    assert chat.said[1] == chat.said[0] | {"parent": None}


def test_a_failure_midway_keeps_what_was_read(chat, model):
    model.then(Schedule(tokens=6, cut_after=3, cut="close"))
    chat.ask("Hello")
    chat.ends("failed")
    expect(chat.text).to_have_text("w1 w2 w3")
    expect(chat.answer.locator(".failure")).to_contain_text("The language model's answer broke off.")
    chat.page.get_by_role("button", name="Retry").click()
    chat.ends()
    expect(chat.text).to_have_text("Hello, world!")
    assert [message["role"] for message in model.requests[-1].body["messages"]] == ["user"]


def test_regenerate_replaces_the_answer(chat, model):
    chat.ask("Hello")
    chat.ends()
    model.schedule = Schedule(tokens="Another")
    chat.page.get_by_role("button", name="Regenerate").click()
    expect(chat.text).to_have_text("Another")
    chat.ends()
    expect(chat.answers).to_have_count(1)
    assert model.requests[-1].body["messages"] == [{"role": "user", "content": "Hello"}]


def test_an_answer_at_its_greatest_length_says_so(chat, model):
    model.schedule = Schedule(tokens=3, finish_reason="length")
    chat.ask("Hello")
    chat.ends()
    expect(chat.answer.locator(".figures")).to_contain_text("Cut off at the greatest length")


def test_reasoning_and_tools_are_shown(chat, model):
    call = {"id": "call_1", "name": "search", "arguments": '{"query": "<b>Oslo</b>"}'}
    model.schedule = Schedule(reasoning=("Let me", " think."), tokens="One moment.", tool_calls=[call])
    chat.ask("Hello")
    chat.ends()
    chat.page.get_by_text("Reasoning").click()
    expect(chat.answer.locator(".reasoning p")).to_have_text("Let me think.")
    expect(chat.answer.locator(".tools")).to_have_text(
        'The model asks for the tool search with {"query": "<b>Oslo</b>"}'
    )


def test_a_dropped_line_is_shown_and_mended(context, example, model):
    model.schedule, gate = halfway(tokens=40, at=20)
    with Line(example.address) as line:
        chat = ChatPage(context.new_page(), line.url)
        chat.open()
        chat.ask("Hello")
        expect(chat.text).to_contain_text("w20")
        line.fall()
        notice = chat.page.get_by_text("The line dropped. Reconnecting…")
        expect(notice).to_be_visible()
        expect(chat.announcer).to_have_text("The line dropped. Reconnecting.")
        line.rise()
        expect(notice).to_be_hidden()
        gate.release()
        chat.ends()
        expect(chat.text).to_have_text(model.schedule.text.strip())
    assert len(model.requests) == 1


def test_a_line_that_breaks_again_and_again_loses_and_doubles_nothing(context, example, model):
    model.schedule = Schedule(tokens=60, rate=100)
    with Line(example.address, Reset(after=1500), Reset(after=900), None) as line:
        chat = ChatPage(context.new_page(), line.url)
        chat.open()
        chat.ask("Hello")
        chat.ends()
        expect(chat.text).to_have_text(model.schedule.text.strip())
    assert len(model.requests) == 1


def test_an_answer_survives_a_reload_of_the_page(chat, model):
    model.schedule, gate = halfway()
    chat.ask("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    chat.page.reload()
    expect(chat.page.locator(".question p")).to_have_text("Hello")
    expect(chat.text).to_have_text("w1 w2 w3")
    gate.release()
    chat.ends()
    expect(chat.text).to_have_text("w1 w2 w3 w4 w5 w6")
    assert len(model.requests) == 1


def test_a_reload_before_the_answer_began_joins_it(chat, model):
    gate = Gate()
    model.schedule = Schedule(gates={"headers": gate})
    chat.ask("Hello")
    gate.wait()
    chat.page.reload()
    expect(chat.stop).to_be_visible()
    gate.release()
    chat.ends()
    expect(chat.text).to_have_text("Hello, world!")
    assert len(model.requests) == 1


def test_a_conversation_survives_a_reload_of_the_page(chat, model):
    model.then(Schedule(tokens="**One**"), Schedule(tokens=3, cut_after=2))
    chat.ask("First")
    chat.ends()
    chat.ask("Second")
    chat.ends("failed")
    chat.page.reload()
    expect(chat.page.locator(".question p")).to_have_text(["First", "Second"])
    expect(chat.answers.first.locator("strong")).to_have_text("One")
    expect(chat.answers.first.locator(".figures")).to_contain_text("1 token")
    chat.ends("failed")
    chat.page.get_by_role("button", name="Retry").click()
    chat.ends()
    assert [message["content"] for message in model.requests[-1].body["messages"]] == ["First", "**One**", "Second"]


def test_a_suggestion_is_asked_at_a_click(chat, model):
    chat.page.get_by_role("button", name="A piece of code").click()
    chat.ends()
    assert "Python" in model.requests[-1].body["messages"][0]["content"]
    expect(chat.question).to_be_focused()


def test_the_end_stays_in_sight_until_the_reader_leaves_it(chat, model):
    gate, more = Gate(), Gate()
    model.schedule = Schedule(tokens="line\n\n" * 120, gates={80: gate, 160: more})
    page = chat.page
    chat.ask("Hello")
    gate.wait()
    expect(chat.text.locator("p")).to_have_count(40)
    from_end = "document.documentElement.scrollHeight - innerHeight - scrollY"
    assert page.evaluate(from_end) <= 1
    latest = page.get_by_role("button", name="Latest")
    expect(latest).to_be_hidden()

    page.mouse.move(600, 300)
    page.mouse.wheel(0, -400)
    expect(latest).to_be_visible()
    left_at = page.evaluate("scrollY")
    gate.release()
    more.wait()
    expect(chat.text.locator("p")).to_have_count(80)
    assert page.evaluate("scrollY") == left_at

    latest.click()
    expect(latest).to_be_hidden()
    assert page.evaluate(from_end) <= 1
    more.release()
    chat.ends()
    assert page.evaluate(from_end) <= 1


def test_code_can_be_copied(chat, context, model):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    model.schedule = Schedule(tokens="Here:\n\n```python\nprint('<b>')\n```\n")
    chat.ask("Hello")
    chat.ends()
    code = chat.answer.locator("figure.code")
    expect(code.locator("figcaption span")).to_have_text("python")
    code.get_by_role("button", name="Copy").click()
    expect(code.get_by_role("button", name="Copied")).to_be_visible()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "print('<b>')\n"
    chat.answer.locator("[data-action=copy]").click()
    expect(chat.answer.locator("[data-action=copy]")).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == model.schedule.text


def test_a_phone_shows_wide_things_without_scrolling_sideways(chat, model):
    row = "|" + " extraordinarily wide |" * 8
    code = "x" * 300
    model.schedule = Schedule(tokens=f"{row}\n{'|---' * 8}|\n{row}\n\n```\n{code}\n```\n\n{code}\n")
    chat.page.set_viewport_size({"width": 360, "height": 740})
    chat.ask("y" * 200)
    chat.ends()
    expect(chat.answer.locator("table")).to_be_visible()
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert chat.page.evaluate("document.querySelector('.table').scrollWidth") > 360


def test_the_simulation_says_what_it_is(context, simulation):
    chat = ChatPage(context.new_page(), simulation.url)
    chat.open()
    expect(chat.page.locator(".badge")).to_have_text("simulation")
    chat.ask("/fail midway")
    chat.ends("failed")
    expect(chat.text).to_contain_text("This is a simulation")
    assert not chat.complaints
