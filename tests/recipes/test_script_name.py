"""An application below a path: its addresses come from `url_for`, so they carry the path."""

from __future__ import annotations

import httpx2
import pytest
from flask import url_for
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_llmstream import LLMStream
from tests.conversation import QUESTION, ask, instant, new_app, text


def frames(stream):
    """All of a stream but its opening, in which the time to wait before a reconnect is drawn anew."""
    return stream.split("\n\n")[1:]


def mounted(app):
    """Below a path of a larger application."""
    return DispatcherMiddleware(NotFound(), {"/shop": app}), {}


def behind_a_proxy(app):
    """Behind a proxy that takes the path away, and says so."""
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)
    return app, {"X-Forwarded-Prefix": "/shop"}


@pytest.mark.parametrize("place", [mounted, behind_a_proxy], ids=lambda place: place.__name__)
def test_location_and_links_carry_the_path(serve, place):
    app = new_app()
    llm = LLMStream(app, model=instant())

    @llm.stream("/api/<place>/greet")
    def greet(run):
        yield "Good morning"

    @app.get("/")
    def page():
        return {
            "chat": url_for("llmstream.chat"),
            "greet": url_for("llmstream.greet", place="Oslo"),
            "script": url_for("llmstream.script"),
        }

    application, headers = place(app)
    url = serve(application)
    with httpx2.Client(base_url=url, headers=headers) as client:

        def path(address):
            """What the server has at an address: the proxy takes the path away."""
            assert address.startswith("/shop/")
            return address.removeprefix("/shop") if headers else address

        page = client.get(path("/shop/")).json()
        assert page == {
            "chat": "/shop/api/chat/stream",
            "greet": "/shop/api/Oslo/greet",
            "script": "/shop/api/llmstream.js",
        }
        for start in (page["chat"], page["greet"]):
            answer = client.post(path(start), json=QUESTION)
            assert answer.status_code == 200, answer.text
            run = answer.headers["Location"]
            assert run.startswith("/shop/api/runs/")
            status = client.get(path(run)).json()
            assert status["status"] == "completed"
            assert status["links"] == {"self": run, "events": f"{run}/events", "cancel": f"{run}/cancel"}
            assert frames(client.get(path(status["links"]["events"])).text) == frames(answer.text)
            assert client.post(path(status["links"]["cancel"])).status_code == 200
        assert client.get(path(page["script"])).status_code == 200


def test_the_session_cookie_is_the_application_s_own():
    app = new_app(APPLICATION_ROOT="/shop")
    LLMStream(app, model=instant())
    answer = ask(app, environ_overrides={"SCRIPT_NAME": "/shop"})
    assert text(answer) == "Hello, you"
    assert answer.headers["Location"].startswith("/shop/api/runs/")
    assert "Path=/shop" in answer.headers["Set-Cookie"]
