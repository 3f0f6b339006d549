"""The settings page: what is saved there holds in the chat and for files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from flask_llmstream.testing import Schedule
from tests.browser.chat_page import ChatPage
from tests.browser.file_page import AnalyzePage
from tests.browser.tab import Tab

pytestmark = pytest.mark.needs("chromium")


class SettingsPage(Tab):
    """The page, opened."""

    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url)
        self.model = page.get_by_label("Model")
        self.temperature = page.get_by_label("Temperature")
        self.instructions = page.get_by_label("Instructions")
        self.language = page.get_by_label("Language")
        self.voice = page.get_by_label("Voice")
        self.saved = page.locator("#saved")
        self.failure = page.get_by_role("alert")
        self.visit("/settings")
        expect(self.button).to_be_enabled()

    @property
    def button(self):
        return self.page.get_by_role("button", name="Save")

    def save(self) -> None:
        self.button.click()
        expect(self.saved).to_have_text("Saved.")


@pytest.fixture
def settings(context, example, model) -> Iterator[SettingsPage]:
    page = SettingsPage(context.new_page(), example.url)
    yield page
    assert not page.complaints
    assert not page.foreign


def fill(settings: SettingsPage) -> None:
    settings.model.fill("large")
    settings.temperature.fill("0.5")
    settings.instructions.fill("Be brief.")
    settings.language.select_option(label="German")
    settings.voice.select_option("Echo")
    settings.save()


def test_what_is_saved_is_there_after_a_reload(settings):
    fill(settings)
    settings.page.reload()
    expect(settings.model).to_have_value("large")
    expect(settings.temperature).to_have_value("0.5")
    expect(settings.instructions).to_have_value("Be brief.")
    expect(settings.language).to_have_value("de")
    expect(settings.voice).to_have_value("echo")


def asked_as_wanted(request: dict) -> None:
    assert request["messages"][0]["role"] == "system"
    assert request["messages"][0]["content"].endswith("Be brief.\n\nWrite in German.")
    assert (request["model"], request["temperature"]) == ("large", 0.5)


def test_it_holds_in_the_chat(settings, context, model):
    fill(settings)
    chat = ChatPage(settings.page, settings.url)
    chat.open()
    chat.ask("Hello")
    chat.ends()
    asked_as_wanted(model.requests[-1].body)


def test_it_holds_for_documents(settings, model):
    fill(settings)
    model.schedule = Schedule(json={"summary": "Hügel.", "key_points": []})
    analyze = AnalyzePage(settings.page, settings.url)
    analyze.open()
    analyze.submit("hills.md", b"# Hills")
    expect(analyze.summary).to_have_text("Hügel.")
    asked_as_wanted(model.requests[-1].body)


def test_a_page_that_is_behind_is_told_so(settings, context):
    other = SettingsPage(context.new_page(), settings.url)
    other.language.select_option(label="French")
    other.save()
    settings.language.select_option(label="German")
    settings.button.click()
    expect(settings.failure).to_contain_text("Another page has changed the settings.")
    expect(settings.language).to_have_value("de")
    settings.page.get_by_role("button", name="Show what they are now").click()
    expect(settings.language).to_have_value("fr")
    expect(settings.failure).to_be_hidden()
    settings.language.select_option(label="German")
    settings.save()


def test_what_is_wrong_is_said_where_it_is(settings):
    settings.temperature.fill("3")
    settings.button.click()
    expect(settings.page.locator("#temperature-error")).to_have_text("Must be from 0 to 2.")
    expect(settings.temperature).to_be_focused()
    expect(settings.temperature).to_have_attribute("aria-invalid", "true")
    settings.temperature.fill("1")
    settings.save()
    expect(settings.page.locator("#temperature-error")).to_be_empty()


def test_a_server_that_is_away_is_said(settings, context):
    context.set_offline(True)
    settings.instructions.fill("Be brief.")
    settings.button.click()
    expect(settings.failure).to_contain_text("The server cannot be reached.")
    context.set_offline(False)
    settings.save()
