"""The end of this process, as far as its server announces it. Real servers announce it in `servers/deploys`."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest

from flask_llmstream import LLMStream, drain
from flask_llmstream.drain import Drain
from flask_llmstream.errors import ShuttingDown
from flask_llmstream.limits import OpenResponses
from tests.puppet import eventually, stage

GRACE = 0.8


class Worker:
    """What gunicorn shows of one of its workers."""

    def __init__(self, file) -> None:
        self.alive = True
        self.ppid = os.getppid()
        self.nr = 1
        self.max_requests = sys.maxsize
        self.hooks = []
        self.cfg = SimpleNamespace(
            workers=1, threads=8, graceful_timeout=GRACE, worker_int=self.hooks.append, set=self._set
        )
        self.tmp = file

    def handle_exit(self, number, frame):
        self.alive = False

    def _set(self, name, value):
        setattr(self.cfg, name, value)

    def last_sign(self):
        return os.fstat(self.tmp.fileno()).st_mtime


class Runs:
    def __init__(self) -> None:
        self.busy = False
        self.broken_off = None

    def break_off(self):
        self.broken_off = time.monotonic()
        self.busy = False


class Readers:
    def __init__(self) -> None:
        self.busy = False
        self.sent_away = None

    def send_away(self):
        self.sent_away = time.monotonic()
        self.busy = False


@pytest.fixture
def worker(monkeypatch):
    """This process is a gunicorn worker."""
    with tempfile.TemporaryFile() as file:
        worker = Worker(file)
        handlers = {signal.SIGTERM: worker.handle_exit}
        monkeypatch.setitem(sys.modules, "gunicorn", SimpleNamespace())
        monkeypatch.setattr(signal, "getsignal", handlers.get)
        monkeypatch.setattr(drain, "POLLED_EVERY", 0.01)
        yield worker


@pytest.fixture
def runs():
    return Runs()


@pytest.fixture
def readers():
    return Readers()


@pytest.fixture
def draining(runs, readers):
    """Makes a drain that carries both."""

    def make(*, elsewhere=True):
        made = Drain(elsewhere=elsewhere)
        made.carry(runs=runs)
        made.carry(readers=readers)
        return made

    return make


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == "llmstream-drain"]


def test_other_servers_announce_nothing(runs):
    end = Drain()
    end.carry(runs=runs)
    runs.busy = True
    end.admit()
    end.watch()
    assert not watchers()


def test_it_watches_only_while_something_is_live(worker, draining, runs, readers):
    end = draining()
    runs.busy = readers.busy = True
    end.watch()
    end.watch()
    assert len(watchers()) == 1
    runs.busy = False
    time.sleep(0.05)
    assert watchers()
    readers.busy = False
    eventually(lambda: not watchers())
    runs.busy = True
    end.watch()
    assert watchers()
    runs.busy = False
    eventually(lambda: not watchers())


def test_the_process_waits_for_what_watches(worker, draining, runs):
    end = draining()
    runs.busy = True
    end.watch()
    assert not watchers()[0].daemon
    runs.busy = False
    eventually(lambda: not watchers())


def test_nothing_is_begun_in_a_worker_that_is_told_to_go(worker):
    end = Drain()
    end.admit()
    worker.alive = False
    with pytest.raises(ShuttingDown) as refusal:
        end.admit()
    assert 2 <= refusal.value.retry_after <= 4
    assert refusal.value.status == 503


def test_nor_in_one_whose_master_is_gone(worker):
    worker.ppid = 1 if worker.ppid != 1 else 2
    with pytest.raises(ShuttingDown):
        Drain().admit()


def test_the_request_after_which_a_worker_goes_is_served(worker):
    worker.alive = False
    worker.max_requests = worker.nr = 7
    Drain().admit()
    worker.nr += 1
    with pytest.raises(ShuttingDown):
        Drain().admit()


def test_readers_are_sent_away_at_once_and_runs_go_on(worker, draining, runs, readers):
    end = draining()
    runs.busy = readers.busy = True
    end.watch()
    assert end.awaited == 0
    worker.alive = False
    eventually(lambda: readers.sent_away)
    assert end.sending_away
    assert 9 < end.awaited <= drain.BACK_WITHIN
    assert runs.broken_off is None
    runs.busy = False
    eventually(lambda: not watchers())
    assert runs.broken_off is not None


def test_readers_whom_nobody_else_could_serve_stay_while_runs_go_on(worker, draining, runs, readers):
    end = draining(elsewhere=False)
    runs.busy = readers.busy = True
    end.watch()
    worker.alive = False
    time.sleep(0.05)
    assert readers.sent_away is None
    runs.busy = False
    eventually(lambda: readers.sent_away)
    eventually(lambda: not watchers())


@pytest.mark.parametrize(("workers", "sent_away"), [(1, False), (2, True)])
def test_a_lone_worker_is_replaced_only_when_it_has_gone(worker, draining, runs, readers, workers, sent_away):
    worker.cfg.workers = workers
    worker.max_requests = worker.nr
    end = draining()
    runs.busy = readers.busy = True
    end.watch()
    worker.alive = False
    if sent_away:
        eventually(lambda: readers.sent_away)
    else:
        time.sleep(0.05)
        assert readers.sent_away is None
    runs.busy = False
    eventually(lambda: not watchers())


def test_what_outlasts_the_grace_is_broken_off_before_its_end(worker, draining, runs):
    end = draining()
    runs.busy = True
    end.watch()
    told = time.monotonic()
    worker.alive = False
    eventually(lambda: not watchers())
    assert GRACE / 2 <= runs.broken_off - told < GRACE


def test_the_margin_before_the_end_grows_with_the_grace(worker, draining, runs, monkeypatch):
    monkeypatch.setattr(drain, "MARGIN", 0.05)
    worker.cfg.graceful_timeout = 1.0
    runs.busy = True
    end = draining()
    end.watch()
    told = time.monotonic()
    worker.alive = False
    eventually(lambda: not watchers())
    assert 0.9 <= runs.broken_off - told < 1.0


def test_what_does_not_end_holds_the_process_no_longer_than_the_grace(worker, draining, runs):
    runs.break_off = lambda: None
    end = draining()
    runs.busy = True
    end.watch()
    told = time.monotonic()
    worker.alive = False
    eventually(lambda: not watchers())
    assert GRACE <= time.monotonic() - told < 3 * GRACE


def test_one_that_is_to_go_at_once_breaks_off_at_once(worker, draining, runs):
    worker.cfg.graceful_timeout = 60
    end = draining()
    runs.busy = True
    end.watch()
    eventually(lambda: worker.cfg.worker_int != worker.hooks.append)
    worker.alive = False
    worker.cfg.worker_int(worker)
    assert runs.broken_off is not None
    assert worker.hooks == [worker]
    eventually(lambda: not watchers())


def test_the_hook_for_that_is_set_once(worker, draining, runs):
    end = draining()
    for _ in range(3):
        runs.busy = True
        end.watch()
        runs.busy = False
        eventually(lambda: not watchers())
    worker.cfg.worker_int(worker)
    assert worker.hooks == [worker]


def test_the_master_gets_signs_of_life_while_runs_go_on(worker, draining, runs):
    os.utime(worker.tmp.fileno(), (0, 0))
    end = draining()
    runs.busy = True
    end.watch()
    time.sleep(0.05)
    assert worker.last_sign() == 0  # that is the worker's own business as long as it serves
    worker.alive = False
    eventually(lambda: worker.last_sign() > 0)
    runs.busy = False
    eventually(lambda: not watchers())


def test_it_can_begin_to_watch_when_the_worker_has_closed_its_file(worker, draining, runs):
    worker.tmp.close()
    worker.alive = False
    end = draining()
    runs.busy = True
    end.watch()
    eventually(lambda: runs.broken_off)
    eventually(lambda: not watchers())


def test_one_that_cannot_watch_tries_again_with_the_next(worker, draining, runs, monkeypatch, caplog):
    """As where a process has no descriptor left."""

    def fail(descriptor):
        raise OSError(errno.EMFILE, "too many open files")

    end = draining()
    runs.busy = True
    with monkeypatch.context() as away:
        away.setattr(os, "dup", fail)
        end.watch()
        eventually(lambda: not watchers())
    assert "could not be brought to its end" in caplog.text
    end.watch()
    worker.alive = False
    eventually(lambda: runs.broken_off is not None)


def test_a_run_that_begins_in_the_last_moment_is_seen(worker, draining, runs, readers):
    """It was let in before the worker was told, and is live only after all else has ended."""
    end = draining()
    readers.busy = True
    late = threading.Event()

    def send_away():
        runs.busy = True
        end.watch()
        readers.busy = False
        late.set()

    readers.send_away = send_away
    end.watch()
    worker.alive = False
    assert late.wait(5)
    eventually(lambda: runs.broken_off)
    runs.busy = False
    eventually(lambda: not watchers())


def test_whoever_begins_to_read_while_others_are_sent_away_is_sent_away_too(worker):
    class Response:
        sent_away = 0

        def pulse(self, beat):
            pass

        def send_away(self):
            self.sent_away += 1
            responses.let_go(self)

    end = Drain(elsewhere=True)
    responses = OpenResponses(5, heartbeat=5, drain=end)
    first, second = Response(), Response()
    responses.look_after(first)
    assert responses.busy and not first.sent_away
    worker.alive = False
    eventually(lambda: first.sent_away)
    eventually(lambda: not watchers())
    responses.look_after(second)
    assert second.sent_away
    eventually(lambda: not watchers())


def test_a_start_is_refused_whatever_its_transport(worker):
    with stage() as (app, _):
        client = app.test_client()
        worker.alive = False
        refused = client.post("/api/chat/stream", json={"messages": [{"role": "user", "content": "Hi"}]})
        assert refused.status_code == 503
        assert refused.json["type"].endswith("shutting-down")
        assert 2 <= int(refused.headers["Retry-After"]) <= 5
        passing = client.get("/api/chat/stream?message=Hi", headers={"Accept": "text/event-stream"}, buffered=False)
        assert passing.status_code == 200
        assert next(passing.response).startswith(b"retry: ")
        passing.close()


def test_all_prefixes_of_an_application_end_together():
    with stage() as (app, llm):
        other = LLMStream(app, url_prefix="/other", identify=lambda: "ann")
        assert other.record(app).drain is llm.record(app).drain
        assert other.record(app).open is llm.record(app).open
        other.record(app).close()
