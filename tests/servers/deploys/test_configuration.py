"""The configuration of gunicorn that the documentation gives to copy."""

from __future__ import annotations

import json
import os
import runpy
import time
from pathlib import Path

import pytest
from gunicorn.config import KNOWN_SETTINGS

from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.redis_server import RedisServer
from tests.servers import serving
from tests.servers.deploys.masters import (
    gone,
    reload,
    resume,
    sent_away,
    workers,
)
from tests.servers.serving import TROUBLE, until

CONFIGURATION = serving.ROOT / "docs" / "gunicorn.conf.py"


def test_the_configuration_to_copy_has_no_setting_that_gunicorn_does_not_know():
    given = runpy.run_path(str(CONFIGURATION))
    known = {setting.name for setting in KNOWN_SETTINGS}
    assert {name for name in given if not name.startswith("__") and name != "os"} <= known
    assert given["workers"] == 1 or "FLASK_LLMSTREAM_REDIS_URL" in os.environ


@pytest.mark.needs("redis-server")
def test_gunicorn_with_the_configuration_to_copy(redis_server: RedisServer, upstream: ModelServer, tmp_path: Path):
    """It serves, and a reload loses nothing."""
    command = f"-m gunicorn tests.servers.deploys.app:create_app() -c {CONFIGURATION} -b 127.0.0.1:0"
    environment = {"OPENAI_BASE_URL": upstream.base_url, "FLASK_LLMSTREAM_REDIS_URL": json.dumps(redis_server.url)}
    with serving.serve("copied", tmp_path, command, **environment) as server:
        until(lambda: len(workers(server)) == os.cpu_count())
        gate = Gate()
        upstream.schedule = Schedule(tokens=4, gates={2: gate})
        with server.post("/api/lasting") as first:
            assert first.token() == "w1 "
            leaving = workers(server)
            reload(server)
            sent_away(first)
        time.sleep(2.0)
        with resume(server, first) as second:
            gate.release()
            assert second.text() == "w3 w4 "
        until(lambda: gone(leaving))
        assert not TROUBLE.findall(server.news())
