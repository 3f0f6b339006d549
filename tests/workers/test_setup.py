"""A worker that cannot work says in one sentence why."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from flask_llmstream import worker
from tests.puppet import stage
from tests.servers.serving import ROOT
from tests.workers.site import APP, COMMANDS, QUEUES

BARE = "tests.workers.app:create_bare_app"
NOWHERE = "redis://127.0.0.1:1/0"


def refused(kind: str, tmp_path, *, app: str = APP, **environment: str) -> str:
    """What a worker says that ends at once."""
    command = COMMANDS[kind].format(app=app, url=environment.get("URL", NOWHERE), queues=QUEUES[kind])
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env={"PATH": "/usr/bin", "FLASK_APP": app, "NOTES": str(tmp_path / "notes"), **environment},
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_without_redis(tmp_path):
    """There is nothing to share: the jobs are done by whoever is asked for them."""
    assert "LLMSTREAM_REDIS_URL" in refused("flask", tmp_path)


def test_without_the_extension(tmp_path):
    assert "No such command 'llmstream'" in refused("flask", tmp_path, app=BARE)


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize(
    ("app", "said"),
    [(APP, "LLMSTREAM_REDIS_URL"), (BARE, "no LLMStream"), ("", "FLASK_APP"), ("nowhere:app", "nowhere")],
)
@pytest.mark.parametrize("kind", ["threads", "fork"])
def test_started_by_rq(redis_server, tmp_path, kind, app, said):
    assert said in refused(kind, tmp_path, app=app, URL=redis_server.url)


@pytest.mark.needs("redis-server")
def test_a_process_that_is_patched_does_not_fork(redis_server, tmp_path):
    COMMANDS["patched fork"] = COMMANDS["greenlets"].replace(".Worker", ".ForkWorker")
    QUEUES["patched fork"] = "llmstream"
    try:
        assert "gevent" in refused("patched fork", tmp_path, URL=redis_server.url)
    finally:
        del COMMANDS["patched fork"], QUEUES["patched fork"]


def test_rq_without_redis(tmp_path):
    """RQ's own words."""
    assert "127.0.0.1:1" in refused("threads", tmp_path)


@pytest.mark.needs("redis-server")
def test_a_queue_in_which_nothing_waits_is_told_of(redis_server, caplog):
    """A name that is spelled wrong would have the worker wait for ever."""
    with stage(REDIS_URL=redis_server.url) as (app, llm):
        llm.job("/api/work", queue="slow")(lambda run: None)
        performer = worker.prepare(app, ["default", "slow", "slwo"], concurrency=1, grace=0)
        performer.connection.close()
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "no job of this application waits in the queue slwo")


@pytest.mark.needs("redis-server")
def test_it_waits_for_redis(own, own_redis):
    """It can be started before Redis is, and says once that it waits."""
    location = own.submit()
    own_redis.stop()
    with own.worker(ready=False) as worker:
        worker.await_log("waits for Redis")
        own_redis.start()
        own.await_run(location, status="completed")
        assert worker.log.count("waits for Redis") == 1
    own_redis.stop()
    with own.worker(ready=False) as worker:
        worker.await_log("waits for Redis")
        worker.tell(signal.SIGTERM)
        worker.wait(5)
    own_redis.start()
