"""Plain threads: `flask run`, gunicorn's gthread, pytest."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from ..errors import RunCancelled
from .timers import Timers
from .watcher import Watcher, system_epoll


class ThreadBell:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        self._event.set()

    def wait(self, timeout: float | None = None) -> None:
        self._event.wait(timeout)
        self._event.clear()


class ThreadTask:
    """A thread can't be interrupted: the run's flag and the closed socket of its model are what stops it."""

    def __init__(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self._work = work
        self._done = done

    def start(self) -> None:
        start_thread(self._run, "llmstream-run")

    def shelter(self) -> None:
        pass

    def interrupt(self) -> None:
        pass

    def _run(self) -> None:
        try:
            with suppress(RunCancelled):
                self._work()
        finally:
            self._done()


class ThreadPacemaker:
    def __init__(self, seconds: float, beat: Callable[[], None], end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._beat = beat
        self._end = end
        self._stopped = threading.Event()
        start_thread(self._run, "llmstream-leases")

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while True:
            self._beat()
            if self._stopped.wait(self._seconds):
                break
        self._end()


class ThreadPoller:
    """A thread in epoll's wait; an eventfd in the same set tells it to leave."""

    def __init__(self) -> None:
        self._leave: int | None = None

    def start(self, epoll: Any, news: Callable[[], None]) -> None:
        leave = os.eventfd(0)
        try:
            start_thread(lambda: self._loop(epoll, news, leave), "llmstream-watcher")
        except BaseException:
            os.close(leave)
            raise
        self._leave = leave

    def stop(self) -> None:
        if self._leave is not None:
            os.eventfd_write(self._leave, 1)
            self._leave = None

    @staticmethod
    def _loop(epoll: Any, news: Callable[[], None], leave: int) -> None:
        # epoll's descriptor is itself pollable: so the set stays the watcher's own, and two loops that overlap
        # (one told to leave, the next just started) don't take each other's wake-up.
        poll = select.poll()
        poll.register(epoll.fileno(), select.POLLIN)
        poll.register(leave, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if leave in ready:
                os.close(leave)
                return
            news()


class Threads:
    cooperative = False

    def __init__(self) -> None:
        self.timers = Timers(lambda loop: start_thread(loop, "llmstream-timers"), ThreadBell)
        self.watcher = Watcher(system_epoll(), ThreadPoller())

    def task(self, work: Callable[[], None], done: Callable[[], None]) -> ThreadTask:
        return ThreadTask(work, done)

    def keep(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="llmstream-drain", daemon=False).start()

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def bell(self) -> ThreadBell:
        return ThreadBell()

    def pacemaker(self, seconds: float, beat: Callable[[], None], end: Callable[[], None]) -> ThreadPacemaker:
        return ThreadPacemaker(seconds, beat, end)

    def hand_over(self, action: Callable[[], None]) -> None:
        start_thread(action, "llmstream-leases")


def start_thread(work: Callable[[], None], name: str) -> None:
    # A daemon: a process that is told to go does not wait for a model.
    threading.Thread(target=work, name=name, daemon=True).start()
