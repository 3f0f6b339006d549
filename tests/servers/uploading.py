"""An application that takes files, served by a process of its own; ``/state`` shows what the process holds."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flask import Flask, request
from marshmallow import Schema

from flask_llmstream.config import Settings
from flask_llmstream.problems import with_problems
from flask_llmstream.requests import request_input
from flask_llmstream.schemas import load
from flask_llmstream.uploads import File, Folder

LIMIT = 64 * 2**20


class Document(Schema):
    file = File(required=True, types=("application/pdf", "text/plain"), max_size=LIMIT)


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    settings = Settings.from_config(app.config)
    folder = Folder(Path(settings.uploads), settings.max_upload)
    record: Any = SimpleNamespace(settings=settings, uploads=folder)
    schema = folder.bind(Document())

    @app.post("/upload")
    @with_problems
    def upload() -> dict[str, Any]:
        data = request_input(request, record, schema)
        file = load(schema, data)["file"]
        try:
            return {"size": file.size, "digest": file.digest, "on_disk": file.path.stat().st_size}
        finally:
            folder.discard(data)

    @app.get("/state")
    def state() -> dict[str, Any]:
        files = []
        with suppress(FileNotFoundError):  # removed this very moment, or none has been there yet
            for path in folder.path.iterdir():
                files.append(path.stat().st_size)
        status = Path("/proc/self/status").read_text()
        peak = re.search(r"VmHWM:\s*(\d+) kB", status)
        return {"files": files, "peak": int(peak[1]) * 1024 if peak else 0}

    return app
