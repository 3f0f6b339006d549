"""What the pages offer to those who have no file at hand, and no model: it works with the simulation too."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.file_page import AnalyzePage, ExtractPage
from tests.browser.tab import Tab

pytestmark = pytest.mark.needs("chromium")


def test_a_report_is_analysed(context, simulation):
    analyze = AnalyzePage(context.new_page(), simulation.url)
    analyze.open()
    analyze.page.get_by_role("button", name="a short report").click()
    analyze.send.click()
    expect(analyze.summary).to_contain_text("Some nine thousand street trees")
    expect(analyze.points).to_have_count(6)
    expect(analyze.points.first).to_have_text("Streets under trees are up to twelve degrees cooler in July")
    assert not analyze.complaints


@pytest.mark.parametrize(("name", "refused"), [("an invoice", 0), ("one that is misread at first", 1)])
def test_invoices_are_read(context, simulation, name, refused):
    extract = ExtractPage(context.new_page(), simulation.url)
    extract.open()
    extract.page.get_by_role("button", name=name).click()
    extract.send.click()
    expect(extract.page.locator("tfoot td")).to_have_text(["€25.08", "€157.08"])
    expect(extract.rows).to_have_count(3)
    expect(extract.rejected).to_have_count(refused)
    assert not extract.complaints


@pytest.mark.parametrize(
    ("text", "sentiment"),
    [("I love it.", "Positive"), ("It is terrible.", "Negative"), ("It is a box.", "Neutral")],
)
def test_texts_are_classified(context, simulation, text, sentiment):
    tab = Tab(context.new_page(), simulation.url)
    tab.visit("/classify")
    tab.page.get_by_label("Text").fill(text)
    tab.page.get_by_role("button", name="Classify").click()
    expect(tab.page.locator(".sentiment")).to_have_text(sentiment)
    assert not tab.complaints
