"""Gunicorn masters whose workers are told to go, and what readers see of it."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from flask_llmstream.testing import ModelServer
from tests.redis_server import RedisServer
from tests.servers import serving
from tests.servers.client import Answer
from tests.servers.serving import GUNICORN, Server

KINDS = {"gevent": "-k gevent --worker-connections 100", "gthread": "-k gthread --threads 12"}
GRACE = 30
SHORT = 5
"""Seconds of grace, for runs that outlast it."""
CLOSING = SHORT / 2
"""Seconds after which these are closed."""
QUICKLY = 10
"""Seconds within which a process ends that waits for nothing; well below the grace, even on a busy machine."""


class Start(Protocol):
    def __call__(self, kind: str = ..., *, redis: RedisServer | None = ..., **options: int | str) -> Server: ...


def gunicorn(
    directory: Path, upstream: ModelServer, kind: str, redis: RedisServer | None = None, **options: int | str
) -> AbstractContextManager[Server]:
    """A master; options are gunicorn's own."""
    given = {"workers": 1, "graceful_timeout": GRACE} | options
    words = [f"--{option.replace('_', '-')} {value}" for option, value in given.items()]
    command = " ".join([GUNICORN.format("tests.servers.deploys.app:create_app"), KINDS[kind], *words])
    environment = {"OPENAI_BASE_URL": upstream.base_url}
    if redis is not None:
        environment["FLASK_LLMSTREAM_REDIS_URL"] = json.dumps(redis.url)
    return serving.serve(kind, directory, command, **environment)


def workers(server: Server) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def term_worker(server: Server) -> None:
    """As an operator does."""
    os.kill(workers(server)[0], signal.SIGTERM)


def term_master(server: Server) -> None:
    """As the service manager does."""
    os.kill(server.pid, signal.SIGTERM)


def reload(server: Server) -> None:
    """As after a new version has been installed."""
    os.kill(server.pid, signal.SIGHUP)


def await_fresh_worker(server: Server) -> None:
    """One that is about to start takes no notice of a signal, and its master would wait for it as long as it may."""
    server.do("/state", "GET")


def sent_away(answer: Answer) -> list[str]:
    """The rest of a stream that ends by a reset, without a terminal event, behind the word when to come back."""
    tokens = [event["token"] for event in answer.events() if "token" in event]
    assert answer.ending == "reset"
    assert b'"done"' not in answer.body and b'"error"' not in answer.body
    _, last = re.findall(rb"^retry: (\d+)$", answer.body, re.MULTILINE)
    assert 2000 <= int(last) <= 4000
    return tokens


def last_id(answer: Answer) -> str:
    return re.findall(rb"^id: (.+)$", answer.body, re.MULTILINE)[-1].decode()


def resume(server: Server, answer: Answer) -> Answer:
    return server.get(f"{answer.location}/events", Last_Event_ID=last_id(answer))


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def interrupted(terminal: dict[str, Any]) -> bool:
    return terminal.get("problem", {}).get("type", "").endswith("run-interrupted")
