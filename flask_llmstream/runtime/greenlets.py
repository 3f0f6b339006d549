"""Greenlets, where gevent has patched the standard library. The only module that imports gevent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import gevent
from gevent import monkey
from gevent.hub import Waiter

from ..errors import RunCancelled
from .timers import Timers
from .watcher import Watcher

THROUGH_WITHIN = 2.0
"""Seconds that the end of a pacemaker is waited for."""


class GreenletBell:
    """For one that waits, and for ringers in its own thread: less than an event can do, at half of its price.

    A reader is woken for each token. A waiter that is switched to after it has been given up ignores that.
    """

    __slots__ = ("_loop", "_rung", "_waiter")

    def __init__(self) -> None:
        self._loop = gevent.get_hub().loop
        self._rung = False
        self._waiter: Waiter[None] | None = None

    def ring(self) -> None:
        self._rung = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._loop.run_callback(waiter.switch, None)

    def wait(self, timeout: float | None = None) -> None:
        if not self._rung:
            waiter: Waiter[None] = Waiter()
            self._waiter = waiter
            timer = None
            if timeout is not None:
                timer = self._loop.timer(timeout)
                timer.start(waiter.switch, None)
            try:
                waiter.get()
            finally:
                self._waiter = None
                if timer is not None:
                    timer.close()
        self._rung = False


class GreenletTask:
    """A greenlet that can be interrupted once, from the start of its work until that takes shelter."""

    def __init__(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self._work = work
        self._begun = False
        self._interrupted = False
        self._sheltered = False
        self._whole = 0
        self._missed = False
        self._loop = gevent.get_hub().loop
        self._greenlet = gevent.Greenlet(self._run)
        self._greenlet.llmstream_task = self  # type: ignore[attr-defined]
        # In a greenlet of its own, which no interruption of the work can reach.
        self._greenlet.link(lambda _: done())

    def start(self) -> None:
        self._greenlet.start()

    def shelter(self) -> None:
        self._sheltered = True

    def interrupt(self) -> None:
        if self._interrupted:
            return  # a second exception would strike the clean-up after the first
        self._interrupted = True
        if self._begun:
            # A greenlet that has not begun has nothing to unwind, and its killing would be reported as a crash.
            self._loop.run_callback_threadsafe(self._strike)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Be interrupted behind this section, and not inside."""
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1
            if self._missed and not (self._whole or self._sheltered):
                self._missed = False
                raise RunCancelled

    def _strike(self) -> None:
        if self._whole:
            self._missed = True
        elif not (self._sheltered or self._greenlet.dead):
            self._greenlet.throw(RunCancelled)

    def _run(self) -> None:
        self._begun = True
        try:
            if not self._interrupted:
                self._work()
        except RunCancelled:
            pass


class GreenletPacemaker:
    """A thread as Python had them before they were greenlets. What it waits for runs in a loop of its own."""

    def __init__(self, seconds: float, beat: Callable[[], None], end: Callable[[], None]) -> None:
        self._seconds = seconds
        self._beat = beat
        self._end = end
        self._stopped = False
        lock = monkey.get_original("_thread", "allocate_lock")
        self._going, self._through = lock(), lock()
        self._going.acquire()
        self._through.acquire()
        monkey.get_original("_thread", "start_new_thread")(self._run, ())

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._going.release()
            # A thread that is still in gevent's code while the interpreter ends takes the process down with it.
            self._through.acquire(timeout=THROUGH_WITHIN)

    def _run(self) -> None:
        try:
            while True:
                self._beat()
                if self._going.acquire(timeout=self._seconds):
                    break
            self._end()
            gevent.get_hub().destroy()
        finally:
            self._through.release()


class HubPoller:
    """Has gevent's own loop watch the epoll descriptor."""

    def __init__(self) -> None:
        self._io: Any = None

    def start(self, epoll: Any, news: Callable[[], None]) -> None:
        self._io = gevent.get_hub().loop.io(epoll.fileno(), 1)
        self._io.start(news)

    def stop(self) -> None:
        if self._io is not None:
            self._io.stop()
            self._io.close()
            self._io = None


class Greenlets:
    cooperative = True

    def __init__(self) -> None:
        self._loop = gevent.get_hub().loop
        self.timers = Timers(gevent.spawn, GreenletBell)
        self.watcher = Watcher(_epoll(), HubPoller())

    def task(self, work: Callable[[], None], done: Callable[[], None]) -> GreenletTask:
        return GreenletTask(work, done)

    def keep(self, work: Callable[[], None]) -> None:
        # A greenlet too, by now; but one that the interpreter, whose shutdown gevent patches, knows as a thread.
        threading.Thread(target=work, name="llmstream-drain", daemon=False).start()

    def whole(self) -> AbstractContextManager[None]:
        task = getattr(gevent.getcurrent(), "llmstream_task", None)
        return nullcontext() if task is None else task.whole()

    def bell(self) -> GreenletBell:
        return GreenletBell()

    def pacemaker(self, seconds: float, beat: Callable[[], None], end: Callable[[], None]) -> GreenletPacemaker:
        return GreenletPacemaker(seconds, beat, end)

    def hand_over(self, action: Callable[[], None]) -> None:
        self._loop.run_callback_threadsafe(gevent.spawn, action)


def _epoll() -> Callable[[], Any] | None:
    try:
        # Patching removes it from `select`, since waiting on it would block the hub. Its descriptor does not.
        return monkey.get_original("select", "epoll")  # type: ignore[no-any-return]
    except AttributeError:
        return None
