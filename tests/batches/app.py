"""The application of web processes and workers that share batches: what begins, and who drives, is written down."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flask import Flask, request
from marshmallow import Schema, fields

from flask_llmstream import LLMStream, Run, driver, leases, registry
from flask_llmstream.anyrun import AnyRun
from flask_llmstream.batch import NAME
from flask_llmstream.providers.simulated import Simulated
from tests.workers.app import note

llm = LLMStream(model=Simulated(), identify=lambda: request.headers.get("X-User", "somebody"))


class Item(Schema):
    n = fields.Integer(required=True)


def receiver(run: AnyRun) -> str | None:
    return os.environ.get("RECEIVER")


@llm.job("/api/count", input=Item, webhook=receiver)
def count(run: Run) -> int:
    """Takes a moment, in which its worker may be killed."""
    note("counted", run.input["n"], os.getpid())
    time.sleep(float(os.environ.get("MOMENT", "0.01")))
    return int(run.input["n"])


@llm.job("/api/last", input=Item, webhook=receiver, attempts=1)
def last(run: Run) -> Iterator[str]:
    """Goes on until its worker is killed, and has no further attempt."""
    note("counted", run.input["n"], os.getpid())
    yield "still here"
    time.sleep(60)


def create_app() -> Flask:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if "LEASE" in os.environ:
        registry.LEASE = leases.LEASE = driver.LEASE = float(os.environ["LEASE"])  # type: ignore[attr-defined]
        leases.RENEWED_EVERY, leases.OUT_OF_TOUCH = leases.LEASE / 4, leases.LEASE / 2
    app = Flask(__name__)
    app.config.update(SECRET_KEY="for tests", LLMSTREAM_MAX_RUNS_PER_USER=None)
    app.config.update(LLMSTREAM_WEBHOOK_SECRETS=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    app.config.update(LLMSTREAM_WEBHOOK_HOSTS=["127.0.0.1"])
    app.config.from_prefixed_env()
    llm.init_app(app)
    inner: Any = llm.record(app).inner
    drive = inner[NAME].function

    def drive_and_say_so(run: Run) -> Any:
        note("drives", run.id, run.attempt, os.getpid())
        return drive(run)

    inner[NAME] = replace(inner[NAME], function=drive_and_say_so)

    @app.get("/state")
    def state() -> dict[str, Any]:
        return {"pid": os.getpid()}

    return app
