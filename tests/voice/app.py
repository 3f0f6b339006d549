"""The application under test, over real sockets: what it hears and speaks with is scripted, and its model is a server.

Each edition is an application of its own under a prefix, with limits of its own.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from typing import Any

from flask import Flask, Response, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_llmstream import LLMStream
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.providers.spoken import Synthesizer, Transcriber, VoiceActivity
from flask_llmstream.runtime import current
from flask_llmstream.voices import Voice
from tests.voice.desk import Loudness, Monotone, Script

EDITIONS: dict[str, dict[str, Any]] = {
    "": {},
    "/quiet": {"LLMSTREAM_TIMEOUTS": {"quiet": 0.5}},
    "/short": {"LLMSTREAM_TIMEOUTS": {"call": 0.5}},
    "/pinged": {"LLMSTREAM_TIMEOUTS": {"ping": 0.2}},
}


class Parrot(Script):
    """All that users say is the same."""

    def begin(self, *, language: str | None = None) -> Any:
        self.lines = ["tell me"]
        self.heard.clear()
        return super().begin(language=language)


def voice() -> Voice:
    return Voice(transcriber=Parrot(), synthesizer=Monotone(), activity=Loudness())


def real_voice() -> Voice:
    """The one that needs no network."""
    from flask_llmstream.providers.espeak import Espeak
    from flask_llmstream.providers.pocketsphinx import PocketSphinx
    from flask_llmstream.providers.silero import Silero

    transcriber: Transcriber = PocketSphinx()
    synthesizer: Synthesizer = Espeak()
    activity: VoiceActivity = Silero()
    return Voice(transcriber=transcriber, synthesizer=synthesizer, activity=activity)


def make_edition(prefix: str) -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="only a test", LLMSTREAM_RETRIES=0, LLMSTREAM_ALLOWED_ORIGINS="https://friend.test")
    app.config.from_mapping(EDITIONS[prefix])
    app.config.from_prefixed_env()
    real = os.environ.get("VOICE") == "real"
    llm = LLMStream(
        model=OpenAI("test-model"),
        identify=lambda: None if request.headers.get("X-User") == "nobody" else request.headers.get("X-User", "ann"),
        voice=real_voice() if real else voice(),
    )
    llm.init_app(app)

    @app.after_request
    def tell_who(response: Response) -> Response:
        response.headers["X-Worker"] = str(os.getpid())
        return response

    @app.get("/state")
    def state() -> dict[str, Any]:
        record = llm.record(app)
        return {
            "pid": os.getpid(),
            "sessions": len(record.sessions),
            "open": len(record.open),
            "live": len(record.registry.live),
            "watched": len(current().watcher),
        }

    @app.get("/strands")
    def count_strands() -> dict[str, int]:
        return {"strands": strands()}

    return app


def strands() -> int:
    """Threads, or greenlets where those are greenlets, that have something to do."""
    if not current().cooperative:
        return threading.active_count()
    from greenlet import greenlet

    gc.collect()
    return sum(isinstance(thing, greenlet) and not thing.dead for thing in gc.get_objects())


def create_app() -> Flask:
    """All editions in one."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    app = make_edition("")
    others = {prefix: make_edition(prefix).wsgi_app for prefix in EDITIONS if prefix}
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, others)  # type: ignore[method-assign]
    return app
