"""What all pages of the example have in common, and the smallest of them."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from flask_llmstream.testing import Schedule
from tests.browser.tab import Tab

pytestmark = pytest.mark.needs("chromium")

PAGES = {
    "Chat": "/",
    "Talk": "/talk",
    "Analyze": "/analyze",
    "Extract": "/extract",
    "Classify": "/classify",
    "Settings": "/settings",
}


@pytest.fixture
def tab(context, example, model):
    tab = Tab(context.new_page(), example.url)
    yield tab
    assert not tab.complaints
    assert not tab.foreign


def test_each_page_leads_to_each_other_and_says_which_it_is(tab):
    tab.visit("/")
    places = tab.page.get_by_role("navigation", name="Pages")
    for name, path in PAGES.items():
        places.get_by_role("link", name=name).click()
        expect(tab.page).to_have_url(tab.url + path)
        expect(places.locator("[aria-current=page]")).to_have_text(name)
        expect(tab.page).to_have_title(f"{name} · Flask-LLMStream")


@pytest.mark.parametrize("path", PAGES.values())
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_its_width(tab, path, scheme):
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.set_viewport_size({"width": 360, "height": 740})
    tab.visit(path)
    expect(tab.page.locator("main h2:visible").first).to_be_in_viewport()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("sentiment", ["positive", "negative", "neutral"])
def test_a_text_is_classified(tab, model, sentiment):
    model.schedule = Schedule(json={"sentiment": sentiment})
    tab.visit("/classify")
    send = tab.page.get_by_role("button", name="Classify")
    expect(send).to_be_disabled()
    tab.page.get_by_label("Text").fill("The driver was lovely.")
    send.click()
    expect(tab.page.locator(".sentiment")).to_have_text(sentiment.capitalize())
    expect(tab.announcer).to_have_text(f"It sounds {sentiment}.")


def test_a_text_that_cannot_be_classified_is_explained(tab, model):
    model.schedule = Schedule(status=400)
    tab.visit("/classify")
    tab.page.get_by_label("Text").fill("The driver was lovely.")
    tab.page.get_by_role("button", name="Classify").click()
    expect(tab.page.locator("#work .failure")).to_contain_text("The language model's server")
