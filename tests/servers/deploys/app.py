"""The application of a worker that is told to go: features that differ in what becomes of a run which nobody reads."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from flask import Flask, request

from flask_llmstream import LLMStream, Run
from flask_llmstream.errors import RunCancelled
from flask_llmstream.providers.openai import OpenAI

llm = LLMStream(model=OpenAI("test-model"), identify=lambda: request.headers.get("X-User", "somebody"))


@llm.stream("/api/lasting", orphan_grace=None)
def lasting(run: Run) -> Any:
    """Goes on with nobody reading it."""
    return run.model.stream(run.input.messages)


@llm.stream("/api/fleeting", orphan_grace=0)
def fleeting(run: Run) -> Any:
    """Is stopped as soon as nobody reads it."""
    return run.model.stream(run.input.messages)


@llm.stream("/api/stubborn", orphan_grace=None)
def stubborn(run: Run) -> Iterator[str]:
    """Does not let itself be stopped."""
    yield "one"
    while True:
        with suppress(RunCancelled):
            time.sleep(60)


def create_app(*, deaf: bool = False) -> Flask:
    """The application.

    :param deaf: put a signal handler before gunicorn's, behind which the worker is not to be found.
    """
    if deaf:
        theirs: Any = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda number, frame: theirs(number, frame))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    app = Flask(__name__)
    app.config.update(SECRET_KEY="for tests", LLMSTREAM_RETRIES=0)
    app.config.from_prefixed_env()
    llm.init_app(app)
    record = llm.record(app)

    @app.get("/state")
    def state() -> dict[str, Any]:
        return {"pid": os.getpid(), "live": len(record.registry.live), "open": len(record.open)}

    return app
