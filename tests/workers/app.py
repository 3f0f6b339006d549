"""The application of web processes and workers: jobs that talk to a model, that compute, and that go wrong.

What begins and what has ended is written down in a file that all processes share.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Flask, request
from marshmallow import Schema, fields

from flask_llmstream import LLMStream, Run, backlog, leases, ledger, registry, run_ended, worker
from flask_llmstream.anyrun import AnyRun
from flask_llmstream.providers.openai import OpenAI

SHORT_LEASE = 2.0
"""Seconds, where a test waits for a lease to lapse and it is not the length that matters."""
SHORT_LOOK = 1.0
"""Seconds after which it is looked whether a job is still in its queue."""
TIMEOUT = 0.5
"""Seconds that `/api/brief` may take."""


def visitor() -> str:
    return request.headers.get("X-User", "somebody")


llm = LLMStream(model=OpenAI("test-model"), identify=visitor)
other = LLMStream(model=OpenAI("test-model"), identify=visitor, url_prefix="/other")


class Task(Schema):
    """:param name: what it is called in the file."""

    seconds = fields.Float(load_default=0.0)
    name = fields.String(load_default="")


def note(*words: object) -> None:
    """Write down a line, so short that those of several processes do not mix."""
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def begins(run: Run) -> None:
    note("began", run.id, run.attempt, os.getpid(), getattr(run.input, "get", {}.get)("name", ""))


@llm.job("/api/tell")
def tell(run: Run) -> Iterator[str]:
    """Says what the model says."""
    begins(run)
    yield from run.model.stream(run.input.messages)


@llm.job("/api/brief", timeout=TIMEOUT)
def brief(run: Run) -> Iterator[str]:
    begins(run)
    yield from run.model.stream(run.input.messages)


@llm.job("/api/hurried", queue="urgent", input=Task)
def hurried(run: Run) -> str:
    begins(run)
    return "done"


@llm.job("/api/calm", input=Task)
def calm(run: Run) -> str:
    begins(run)
    return "done"


@llm.job("/api/spin", input=Task, queue="spinning")
def spin(run: Run) -> int:
    """Computes where others wait, and lets nobody else have a turn."""
    return compute(run)


@llm.job("/api/compute", input=Task, queue="cpu", attempts=2, timeout=60)
def compute(run: Run) -> int:
    """Computes in a process of its own; where it is stopped it has to see for itself."""
    begins(run)
    rounds, until = 0, time.monotonic() + run.input["seconds"]
    while time.monotonic() < until and not run.cancelled:
        hashlib.sha256(bytes(1000)).digest()
        rounds += 1
    return rounds


@llm.job("/api/endless", input=Task, queue="cpu", attempts=1, timeout=TIMEOUT)
def endless(run: Run) -> int:
    """Sees nothing."""
    begins(run)
    while True:
        hashlib.sha256(bytes(1000)).digest()


@llm.job("/api/deaf", input=Task, queue="cpu", attempts=1, timeout=60)
def deaf(run: Run) -> int:
    """The same, for long."""
    return endless(run)


@llm.job("/api/deadly", input=Task, attempts=2)
def deadly(run: Run) -> Iterator[str]:
    """Takes its process with it."""
    begins(run)
    yield "still here"
    time.sleep(0.2)  # so that it is read elsewhere
    os.kill(os.getpid(), signal.SIGKILL)


@other.job("/other/tell")
def tell_there(run: Run) -> Iterator[str]:
    """A job of the other extension's."""
    begins(run)
    yield from run.model.stream(run.input.messages)


def create_app() -> Flask:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    if "LEASE" in os.environ:
        registry.LEASE = leases.LEASE = float(os.environ["LEASE"])  # type: ignore[attr-defined]
        leases.RENEWED_EVERY, leases.OUT_OF_TOUCH = leases.LEASE / 4, leases.LEASE / 2
    if "LOOKED_AFTER" in os.environ:
        backlog.LOOKED_AFTER = ledger.LOOKED_AFTER = float(os.environ["LOOKED_AFTER"])  # type: ignore[attr-defined]
    if "BEATS_EVERY" in os.environ:
        worker.BEATS_EVERY = float(os.environ["BEATS_EVERY"])
    app = Flask(__name__)
    app.config.update(SECRET_KEY="for tests", LLMSTREAM_RETRIES=0, LLMSTREAM_MAX_RUNS_PER_USER=None)
    app.config.from_prefixed_env()
    llm.init_app(app)
    other.init_app(app)

    @run_ended.connect_via(app)
    def ended(sender: Flask, run: AnyRun, state: str, text: str, **more: Any) -> None:
        note("ended", run.id, state, os.getpid(), len(text))

    app.extensions["ended"] = ended  # the signal does not keep it alive

    @app.get("/state")
    def state() -> dict[str, Any]:
        touch = llm.record(app).registry._leases
        assert isinstance(touch, leases.SharedLeases)
        return {
            "pid": os.getpid(),
            "judges": 0 < touch._in_touch_since < touch._in_touch - leases.LEASE,
        }

    return app


def create_bare_app() -> Flask:
    """An application that has nothing to do with any of this."""
    return Flask(__name__)
