"""The example's pages, and the rules that browsers keep on them."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, render_template

from flask_llmstream import LLMStream

from . import preferences
from .classification import LONGEST
from .features import LARGEST

PAGES = {
    "index": "Chat",
    "talk": "Talk",
    "analyze": "Analyze",
    "extract": "Extract",
    "classify": "Classify",
    "settings": "Settings",
}
"""By their endpoints."""
# All of it from this server, nothing inline. Trusted Types: no script of the page can turn a text into markup
# but through the sanitiser.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
SUGGESTIONS = (
    ("Something to read", "Why are answers streamed?"),
    ("A piece of code", "Show me a small Python function"),
    ("A table", "Compare the ways to send an answer to a browser"),
    ("A plan", "How do I plan a small project?"),
)
SIMULATED_SUGGESTIONS = (
    ("Reasoning first", "/think What makes an answer feel fast?"),
    ("A failure midway", "/fail midway"),
)
REPORTS = {"report.md": "a short report"}
INVOICES = {"invoice.txt": "an invoice"}
SIMULATED_INVOICES = {"invoice-retried.txt": "one that is misread at first"}
"""Files in `static/samples`."""


def add_views(app: Flask, llm: LLMStream, *, simulated: bool, heard_here: bool) -> None:
    """Mount the pages.

    :param simulated: whether the answers are; the pages say so.
    :param heard_here: whether this machine hears and speaks by itself, as well as it can; likewise.
    """
    record = llm.record(app)

    def page(name: str, **values: Any) -> str:
        llm.visitor()  # a page that is about to start runs gives its anonymous visitor an identity
        return render_template(f"{name}.html", pages=PAGES, simulated=simulated, **values)

    @app.get("/")
    def index() -> str:
        return page(
            "chat",
            suggestions=SUGGESTIONS + SIMULATED_SUGGESTIONS if simulated else SUGGESTIONS,
            any_model=preferences.models(record) is None,
            longest_message=record.settings.max_message,
        )

    @app.get("/talk")
    def talk() -> str:
        return page("voice", heard_here=heard_here)

    @app.get("/analyze")
    def analyze() -> str:
        return page("analyze", largest=LARGEST, samples=REPORTS)

    @app.get("/extract")
    def extract() -> str:
        return page("extract", largest=LARGEST, samples=INVOICES | SIMULATED_INVOICES if simulated else INVOICES)

    @app.get("/classify")
    def classify() -> str:
        return page("classify", longest=LONGEST)

    @app.get("/settings")
    def settings() -> str:
        return page(
            "settings",
            models=preferences.models(record),
            voices=preferences.VOICES,
            languages=preferences.LANGUAGES,
            longest=preferences.LONGEST,
        )

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        return response
