"""The application of each process of a cluster: features that differ in what happens once nobody reads them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from flask import Flask, request

from flask_llmstream import LLMStream, Run, run_ended
from flask_llmstream.anyrun import AnyRun
from flask_llmstream.leases import LEASE, SharedLeases
from flask_llmstream.providers.openai import OpenAI
from tests.servers.app import held

SLOTS = 3
BUDGET = 100_000
GRACE = 1.0

llm = LLMStream(model=OpenAI("test-model"), identify=lambda: request.headers.get("X-User", "somebody"))


@llm.stream("/api/lasting", orphan_grace=None)
def lasting(run: Run) -> Any:
    """Goes on with nobody reading it."""
    return run.model.stream(run.input.messages)


@llm.stream("/api/brief", orphan_grace=GRACE)
def brief(run: Run) -> Any:
    return run.model.stream(run.input.messages)


def create_app() -> Flask:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="for tests",
        LLMSTREAM_RETRIES=0,
        LLMSTREAM_MAX_RUNS_PER_USER=SLOTS,
        LLMSTREAM_TOKEN_BUDGET=f"{BUDGET}/day",
    )
    app.config.from_prefixed_env()
    llm.init_app(app)
    record = llm.record(app)
    told = Path(os.environ["TOLD"])

    @run_ended.connect_via(app)
    def tell(sender: Flask, run: AnyRun, state: str, text: str, **more: Any) -> None:
        with told.open("a") as file:  # a short line, so that those of several processes do not mix
            file.write(f"{run.id} {state} {len(text)}\n")

    app.extensions["told"] = tell  # the signal does not keep it alive

    @app.get("/state")
    def state() -> dict[str, Any]:
        leases = record.registry._leases
        assert isinstance(leases, SharedLeases)
        return held(record) | {
            "pid": os.getpid(),
            "mirrors": len(record.registry.mirrors),
            "judges": 0 < leases._in_touch_since < leases._in_touch - LEASE,
        }

    return app
