"""The leak check itself: it must see what it is there for."""

from __future__ import annotations

import http.client
import subprocess
import threading
from urllib.parse import urlsplit

import pytest
from flask import Flask

from flask_llmstream import LLMStream
from flask_llmstream.journal import SharedJournal
from flask_llmstream.leases import SharedLeases
from flask_llmstream.ledger import Ledger
from flask_llmstream.mirror import Mirrors
from flask_llmstream.providers.simulated import Simulated
from flask_llmstream.store import RedisStore
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests import leaks
from tests.orders import admit, make_run


@pytest.fixture
def before():
    return leaks.alive()


def test_sees_a_thread(before):
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="left-over")
    thread.start()
    assert leaks.left_behind(before, patience=0) == {"thread left-over"}
    gate.set()
    thread.join()
    assert not leaks.left_behind(before)


def test_sees_a_process(before):
    with subprocess.Popen(["sleep", "60"]) as process:
        assert any(f"process {process.pid} " in leak for leak in leaks.left_behind(before, patience=0))
        process.kill()
    assert not leaks.left_behind(before)


def test_sees_a_request_to_the_model(before):
    gate = Gate()
    with ModelServer(Schedule(gates={0: gate})) as server:
        address = urlsplit(server.base_url)
        connection = http.client.HTTPConnection(address.hostname, address.port)
        connection.request("POST", f"{address.path}/chat/completions", b'{"messages": [], "stream": true}')
        gate.wait(timeout=5)
        assert any("1 requests" in leak for leak in leaks.left_behind(before, patience=0))
        connection.close()
        gate.release()
    assert not leaks.left_behind(before)


@pytest.mark.needs("redis-server")
def test_sees_what_is_kept_up_for_other_processes(redis_server):
    before = leaks.alive()
    store = RedisStore(redis_server.url, "llmstream:")
    ledger, heard = Ledger(store, retention=600, lease=60), []
    leases = SharedLeases(store, lambda *news: heard.append(news), heard.append)
    journal, mirrors = SharedJournal(ledger.frames, heard.append), Mirrors(ledger, heard.append, refresh=60)
    run = make_run("r1")
    admit(ledger, "r1", run.about)
    leases.hold(run)
    journal.follow(run)
    mirror = mirrors.find("r1")
    mirror.join()
    leaked = leaks.left_behind(before, patience=0)
    assert {leak for leak in leaked if not leak.startswith("thread llmstream-run")} == {
        "leases that are still renewed",
        "run r1, which is still journalled",
        "run r1, which is still read",
        "the connection of subscriptions",
    }
    mirror.leave()
    journal.release("r1")
    leases.close()
    store.close()
    assert not leaks.left_behind(before)


def test_sees_a_run_and_its_place(before):
    app = Flask(__name__)
    app.config.update(TESTING=True, SECRET_KEY="test")
    llm = LLMStream(app, model=Simulated())
    gate = threading.Event()

    @llm.stream("/slow")
    def slow(run):
        yield "one"
        gate.wait()

    response = app.test_client().post("/slow", json={"messages": [{"role": "user", "content": "Hello"}]})
    leaked = leaks.left_behind(before, patience=0)
    assert any(leak.startswith("run ") for leak in leaked)
    assert any(leak.startswith("1 open responses") for leak in leaked)
    gate.set()
    response.close()
    assert not leaks.left_behind(before)
