"""What the server of this process can carry, as far as it lets itself be known."""

import resource
import signal
import sys
from types import SimpleNamespace

import pytest

from flask_llmstream import server
from flask_llmstream.server import capacity, gunicorn_worker


@pytest.fixture
def be(monkeypatch):
    """Makes the process look like a gunicorn worker; without an argument like none."""
    descriptors = [10_000]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (descriptors[0], descriptors[0]))

    def pretend(*, cooperative=False, files=10_000, **settings):
        descriptors[0] = files
        monkeypatch.setattr(server, "current", lambda: SimpleNamespace(cooperative=cooperative))
        if settings:
            monkeypatch.setitem(sys.modules, "gunicorn", SimpleNamespace())
            worker = SimpleNamespace(cfg=SimpleNamespace(**settings), alive=True)
            handler = SimpleNamespace(__self__=worker)
        else:
            handler = signal.SIG_DFL
        monkeypatch.setattr(signal, "getsignal", lambda number: handler if number == signal.SIGTERM else None)

    return pretend


def test_greenlets_leave_a_fifth_of_their_connections_for_others(be):
    be(cooperative=True, worker_connections=1000)
    assert capacity() == 800


def test_threads_leave_two_for_status_and_cancel(be):
    be(threads=16)
    assert capacity() == 14


def test_each_stream_takes_two_descriptors(be):
    be(cooperative=True, worker_connections=10**6, files=1000)
    assert capacity() == 400
    be(files=1000)
    assert capacity() == 400


def test_without_a_limit_of_descriptors_the_other_holds(be):
    be(threads=10, files=resource.RLIM_INFINITY)
    assert capacity() == 8


@pytest.mark.parametrize("threads", [1, 2])
def test_at_least_one_stream_is_served(be, threads):
    be(threads=threads)
    assert capacity() == 1


def test_the_worker_is_known_by_its_signal_handlers(be):
    be(threads=4)
    assert gunicorn_worker().cfg.threads == 4


def test_outside_of_gunicorn_there_is_no_worker(be):
    be()
    assert gunicorn_worker() is None


@pytest.mark.parametrize("handler", [signal.SIG_DFL, None, "text".upper], ids=["default", "none", "another's"])
def test_a_signal_handler_of_another_kind_is_no_worker(be, monkeypatch, handler):
    be(files=1000, threads=4)
    monkeypatch.setattr(signal, "getsignal", lambda number: handler)
    assert gunicorn_worker() is None
    assert capacity() == 400
