"""An application with jobs that cost as little as they can, so that what is measured is the way to them and back."""

from __future__ import annotations

import time

from flask import Flask
from marshmallow import Schema, fields

from flask_llmstream import LLMStream, Run

PARKED = "parked"
"""A queue that no worker knows. What is in it is moved to the queue of the worker whose turn it is, in one step."""
ERRANDS = "errands"
"""A queue of which a worker takes what comes, at once."""
LASTS = 3.0
"""Seconds that a job waits for."""


class Numbered(Schema):
    """An input that no other job has: equal ones would rightly be one job."""

    number = fields.Integer(required=True)


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    llm = LLMStream(app, identify=lambda: "benchmark")
    llm.job("/nothing", input=Numbered, queue=PARKED)(nothing)
    llm.job("/sleep", input=Numbered, queue=PARKED)(sleep)
    llm.job("/ask", input=Numbered, queue=PARKED)(ask)
    llm.job("/errand", input=Numbered, queue=ERRANDS)(errand)
    return app


def nothing(run: Run) -> int:
    return int(run.input["number"])


def sleep(run: Run) -> int:
    time.sleep(LASTS)
    return int(run.input["number"])


def ask(run: Run) -> str:
    return run.model.reply([{"role": "user", "content": f"Question {run.input['number']}?"}]).text


def errand(run: Run) -> int:
    return int(run.input["number"])
