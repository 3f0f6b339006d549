"""The application under test: the same features in several editions, each of which is configured differently.

An edition is an application of its own, mounted under a prefix in the same process. ``/state`` shows what a process
holds, ``/go`` lets a function go on that waits for the test.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_llmstream import LLMStream, Run
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.record import Record
from flask_llmstream.runtime import current

EDITIONS: dict[str, dict[str, Any]] = {
    "": {},
    "/quick": {"LLMSTREAM_HEARTBEAT": 0.2, "LLMSTREAM_TIMEOUTS": {"write": 0.6}},
    "/small": {"LLMSTREAM_MAX_OPEN": 2},
    "/retrying": {"LLMSTREAM_RETRIES": 2},
}

llm = LLMStream(model=OpenAI("test-model"), identify=lambda: request.headers.get("X-User", "somebody"))
marks: list[str] = []
go = threading.Event()


@llm.stream("/api/patient", orphan_grace=30)
def patient(run: Run) -> Any:
    return run.model.stream(run.input.messages)


@llm.stream("/api/brief", orphan_grace=0.8)
def brief(run: Run) -> Any:
    return run.model.stream(run.input.messages)


@llm.stream("/api/endless", orphan_grace=None)
def endless(run: Run) -> Any:
    return run.model.stream(run.input.messages)


@llm.stream("/api/waiting")
def waiting(run: Run) -> Iterator[str]:
    """Waits in the midst of its work, where a stop is to reach it: nothing of the model's is open."""
    try:
        yield "one"
        marks.append("waits")
        while not go.is_set():
            time.sleep(0.01)
        yield "two"
        marks.append("was not stopped")
    except BaseException as error:
        marks.append(type(error).__name__)
        raise
    finally:
        marks.append("finally")


@llm.stream("/api/broken")
def broken(run: Run) -> Iterator[str]:
    """Fails before its first word, or after it."""
    if run.input.messages[0]["content"] == "late":
        yield "one"
        go.wait()
    raise RuntimeError("the secret is swordfish")


def make_edition(prefix: str) -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="for tests", LLMSTREAM_ORPHAN_GRACE=0, LLMSTREAM_RETRIES=0)
    app.config.from_mapping(EDITIONS[prefix])
    app.config.from_prefixed_env()
    llm.init_app(app)
    seen: list[dict[str, Any]] = []

    @app.after_request
    def remember(response: Response) -> Response:
        if request.path.startswith("/api/"):
            seen.append(
                {
                    "line": f"{request.method} {request.path}",
                    "status": response.status_code,
                    "cursor": request.headers.get("Last-Event-ID"),
                }
            )
        return response

    @app.get("/state")
    def state() -> dict[str, Any]:
        record = llm.record(current_app._get_current_object())  # type: ignore[attr-defined]
        return held(record) | {"marks": marks, "seen": seen}

    @app.post("/go")
    def let_go() -> str:
        go.set()
        return ""

    @app.post("/reset")
    def reset() -> str:
        """A new test begins."""
        go.clear()
        marks.clear()
        seen.clear()
        return ""

    @app.post("/break/<run_id>")
    def break_log(run_id: str) -> str:
        """Put something into a run's log that no codec can send: a mistake of ours in the midst of a stream."""
        run = llm.record(app).registry.find(run_id, None)
        run.log.entries.append(None)  # type: ignore[arg-type]
        run.log.ring()
        return ""

    @app.get("/")
    def page() -> str:
        return "<!doctype html><title>A page</title>"

    return app


def held(record: Record) -> dict[str, Any]:
    """What a process holds on behalf of one edition, and as a whole."""
    live = record.registry.live
    timers = current().timers._due
    return {
        "open": len(record.open),
        "limit": record.open.limit,
        "live": len(live),
        "stopping": sum(run.cancelled for run in live),
        "readers": sum(run.log.readers for run in live),
        "watched": len(current().watcher),
        "pulses": sum(timer.period is not None and timer.action is not None for _, _, timer in timers),
        "descriptors": descriptors(),
        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    }


def descriptors() -> int:
    """How many are open, but for connections to the model, which are kept for the next call."""
    model = urlsplit(os.environ["OPENAI_BASE_URL"]).port
    return sum(peer(int(name)) != model for name in os.listdir("/proc/self/fd"))


def peer(descriptor: int) -> int | None:
    """The port that a descriptor is connected to, if it is a connection."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            return connection.getpeername()[1] if connection.family == socket.AF_INET else None
    except OSError:  # it listens, or is closed by now
        return None


def create_app() -> Flask:
    """All editions in one."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    app = make_edition("")
    others = {prefix: make_edition(prefix).wsgi_app for prefix in EDITIONS if prefix}
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, others)  # type: ignore[method-assign]
    return app
