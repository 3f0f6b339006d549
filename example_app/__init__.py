"""Pages on Flask-LLMStream, from a chat to the analysis of a document: the example to try, and to copy from.

It needs no key: without `OPENAI_API_KEY` and `OPENAI_BASE_URL` in the environment a simulation answers. It needs no
Redis: with `FLASK_LLMSTREAM_REDIS_URL` several processes can serve it, `flask --app example_app llmstream worker`
does its jobs, and what visitors have outlives them all.
"""

from __future__ import annotations

import secrets

from flask import Flask

from flask_llmstream import LLMStream, Voice
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.providers.simulated import Simulated
from flask_llmstream.store import connect

from . import features, pages, preferences, speech

SECRET_KEY = "example:secret_key"
"""Where Redis has it."""


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
    heard_here = not openai.configured or openai.base_url is not None  # one's own server may have no ears
    llm = LLMStream(
        app,
        model=openai if openai.configured else Simulated(),
        context=lambda: preferences.taken_along(llm),
        voice=speech.offline() if heard_here else Voice(),
    )
    features.declare(llm)
    preferences.add_views(app, llm)
    pages.add_views(app, llm, simulated=not openai.configured, heard_here=heard_here)
    return app


def secret_key(redis_url: str | None) -> str:
    """What visitors' sessions are signed with, where none is configured: they end with the process, or with Redis."""
    drawn = secrets.token_hex()
    if redis_url is None:
        return drawn
    with connect(redis_url) as redis:
        redis.set(SECRET_KEY, drawn, nx=True)  # the first process decides, for all of them
        return str(redis.get(SECRET_KEY).decode())
