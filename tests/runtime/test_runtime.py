"""The runtime of a process, over threads; and this whole folder once more, over greenlets.

What only greenlets can do, being interrupted, is in `greenlets.py`.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flask_llmstream import runtime
from flask_llmstream.errors import RunCancelled
from flask_llmstream.runtime import current
from tests.puppet import PATIENCE, eventually

GREENLETS = "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("threading")

if not GREENLETS:

    def test_all_of_this_over_greenlets():
        here = Path(__file__).parent
        tests = [str(path) for path in (*here.glob("test_*.py"), here / "greenlets.py")]
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib"]
        command = [sys.executable, "-m", "gevent.monkey", "--module", "pytest", *options, *tests]
        ran = subprocess.run(command, cwd=here.parents[1], capture_output=True, text=True, timeout=110)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_runtime_is_that_of_the_process():
    assert current().cooperative is GREENLETS
    assert current() is current()


def test_after_a_fork_it_is_another(monkeypatch):
    """Threads and greenlets stay behind."""
    parents = object()
    monkeypatch.setattr(runtime, "_current", (os.getpid() - 1, parents))
    assert current() is not parents
    assert current() is current()


# Bells


def test_a_ring_wakes_the_one_who_waits():
    bell = current().bell()
    waiter = threading.Thread(target=bell.wait)
    waiter.start()
    bell.ring()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()


def test_a_ring_is_kept_for_the_next_wait_and_several_are_one():
    bell = current().bell()
    bell.ring()
    bell.ring()
    bell.wait()
    second = threading.Thread(target=bell.wait)
    second.start()
    second.join(0.02)
    assert second.is_alive(), "one of the rings was still there"
    bell.ring()
    second.join(PATIENCE)
    assert not second.is_alive()


def test_a_wait_ends_after_its_time():
    current().bell().wait(0.001)


# Tasks


def test_done_comes_after_work():
    story = []
    task = current().task(lambda: story.append("work"), lambda: story.append("done"))
    assert story == []
    task.start()
    eventually(lambda: len(story) == 2)
    assert story == ["work", "done"]


@pytest.mark.parametrize("error", [RunCancelled, ZeroDivisionError])
def test_done_comes_however_work_ended(error, monkeypatch):
    complaints = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)
    story, before = [], set(threading.enumerate())

    def work():
        raise error

    current().task(work, lambda: story.append("done")).start()
    eventually(lambda: story)
    eventually(lambda: not any(thread.name == "llmstream-run" for thread in set(threading.enumerate()) - before))
    assert story == ["done"]
    assert bool(complaints) is (error is ZeroDivisionError and not GREENLETS)
