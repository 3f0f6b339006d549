"""The application of the test of relayed calls on a real server: the model's server is the test's."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import gevent
from flask import Flask, current_app, request

from flask_llmstream import LLMStream, Voice
from flask_llmstream.providers.openai_realtime import RealtimeModel
from flask_llmstream.providers.simulated import Simulated


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(SECRET_KEY="only a test", TESTING=True, LLMSTREAM_HEARTBEAT=1.0)
    model = RealtimeModel(api_key=os.environ["REALTIME_KEY"], base_url=os.environ["REALTIME_URL"])
    llm = LLMStream(
        app,
        model=Simulated(),
        voice=Voice(realtime=model),
        identify=lambda: request.headers.get("X-User"),
    )

    @app.get("/state")
    def state() -> dict[str, Any]:
        """What the process holds."""
        record = llm.record(current_app)
        return {
            "calls": len(record.sessions),
            "runs": len(list(record.registry.live)),
            "greenlets": sum(isinstance(one, gevent.Greenlet) and not one.dead for one in gc.get_objects()),
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    return app
