"""Flask-WTF: its protection of the whole application, and how the extension's views are exempt from it."""

from __future__ import annotations

import pytest
from flask_wtf import CSRFProtect
from flask_wtf.csrf import generate_csrf

from flask_llmstream import LLMStream
from tests.conversation import ask, instant, new_app, problem, text


@pytest.fixture
def llm():
    llm = LLMStream(model=instant())
    llm.stream("/api/greet")(greet)
    return llm


def greet(run):
    yield "Good morning"


def test_without_an_exemption_json_posts_are_answered_with_400(llm):
    app = new_app()
    CSRFProtect(app)
    llm.init_app(app)
    for url in ("/api/chat/stream", "/api/greet"):
        refused = ask(app, url)
        assert refused.status_code == 400
        assert "The CSRF token is missing" in refused.text


def test_exempting_the_blueprint_opens_all_its_views(llm):
    csrf = CSRFProtect()
    app = new_app()
    csrf.init_app(app)
    llm.init_app(app)
    csrf.exempt(app.blueprints["llmstream"])

    client = app.test_client()
    assert text(ask(client)) == "Hello, you"
    answer = ask(client, "/api/greet")
    assert text(answer) == "Good morning"
    assert client.post(f"{answer.headers['Location']}/cancel").status_code == 200
    assert client.delete(answer.headers["Location"]).status_code == 204


def test_the_rest_of_the_application_stays_protected(llm):
    csrf = CSRFProtect()
    app = new_app()
    app.add_url_rule("/form", "form", lambda: "posted", methods=["POST"])
    csrf.init_app(app)
    llm.init_app(app)
    csrf.exempt(app.blueprints["llmstream"])
    assert app.test_client().post("/form", data={"a": 1}).status_code == 400


def test_an_exempt_view_cannot_be_reached_by_another_site_s_form(llm):
    csrf = CSRFProtect()
    app = new_app()
    csrf.init_app(app)
    llm.init_app(app)
    csrf.exempt(app.blueprints["llmstream"])
    client = app.test_client()
    evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    body = '{"messages": [{"role": "user", "content": "Hi"}]}'
    # What a form, or a request without a preflight, can send.
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert problem(client.post("/api/greet", data=body, content_type=media_type))["status"] == 415
        assert problem(client.post("/api/greet", data=body, content_type=media_type, headers=evil))["status"] == 403
    assert problem(ask(client, "/api/greet", headers=evil))["status"] == 403
    answer = ask(client, "/api/greet")
    text(answer)
    assert client.post(f"{answer.headers['Location']}/cancel", headers=evil).status_code == 403


def test_a_page_may_send_the_token_instead(llm):
    app = new_app()
    CSRFProtect(app)
    llm.init_app(app)
    app.add_url_rule("/", "page", lambda: generate_csrf())
    client = app.test_client()
    assert text(ask(client, headers={"X-CSRFToken": client.get("/").text})) == "Hello, you"
