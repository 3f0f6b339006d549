"""A chat page on Flask-LLMStream: the example to try, and to copy from.

It needs no key: without `OPENAI_API_KEY` and `OPENAI_BASE_URL` in the environment a simulation answers. It needs no
Redis: with `FLASK_LLMSTREAM_REDIS_URL` several processes can serve it, and conversations outlive them.
"""

from __future__ import annotations

import secrets

from flask import Flask, Response, render_template

from flask_llmstream import LLMStream
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.providers.simulated import Simulated
from flask_llmstream.store import connect

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
SECRET_KEY = "example:secret_key"
"""Where Redis has it."""
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


def create_app() -> Flask:
    """The application; `FLASK_…` in the environment sets what this function does not."""
    openai = OpenAI()
    app = Flask(__name__)
    app.config.from_mapping(
        SESSION_COOKIE_SAMESITE="Lax",
        LLMSTREAM_ALLOW_ANONYMOUS=True,
        LLMSTREAM_MODELS="*" if openai.base_url else None,  # one's own server costs what it costs
    )
    app.config.from_prefixed_env()
    app.config["SECRET_KEY"] = app.config["SECRET_KEY"] or secret_key(app.config.get("LLMSTREAM_REDIS_URL"))
    llm = LLMStream(app, model=openai if openai.configured else Simulated())
    settings = llm.record(app).settings

    @app.get("/")
    def index() -> str:
        llm.visitor()  # a page that is about to start runs gives its anonymous visitor an identity
        return render_template(
            "chat.html",
            simulated=not openai.configured,
            suggestions=SUGGESTIONS if openai.configured else SUGGESTIONS + SIMULATED_SUGGESTIONS,
            any_model=settings.models is not None and "*" in settings.models,
            longest_message=settings.max_message,
        )

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", "same-origin")
        return response

    return app


def secret_key(redis_url: str | None) -> str:
    """What visitors' sessions are signed with, where none is configured: they end with the process, or with Redis."""
    drawn = secrets.token_hex()
    if redis_url is None:
        return drawn
    with connect(redis_url) as redis:
        redis.set(SECRET_KEY, drawn, nx=True)  # the first process decides, for all of them
        return str(redis.get(SECRET_KEY).decode())
