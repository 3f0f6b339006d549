"""Work in child processes: they are started at need, shared by all calls, and replaced when they die.

Each piece of work has a connection of its own to one of the children: so nobody waits for anybody else's answer, under
gevent its wait is one that others use, and what the child keeps for it goes when the connection is closed.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import ConfigurationError, Overloaded
from . import child as program

EXTRA = "pip install 'flask-llmstream[voice]'"
END_WITHIN = 2.0
"""Seconds that a child may take to end by itself."""
PATIENCE = 10.0
"""Seconds that a child may take for an answer. Then it is taken for dead."""

log = logging.getLogger("flask_llmstream")


def demand(module: str, what: str) -> None:
    """Make sure that a module of the extra is installed.

    :raises ConfigurationError: it is not.
    """
    if not is_installed(module):
        raise ConfigurationError(f"{what} is not installed: {EXTRA}", diagnosis=f"there is no module {module}")


def is_installed(module: str) -> bool:
    return find_spec(module) is not None


@dataclass(eq=False, slots=True)
class Child:
    """A child process.

    :param control: where connections are handed to it.
    :param load: how many it has.
    """

    process: subprocess.Popen[bytes]
    control: socket.socket
    load: int = 0


class Connection:
    """A connection to one of the children.

    :param socket: a stream, which waits `PATIENCE` for an answer.
    """

    def __init__(self, children: Children, child: Child, socket: socket.socket) -> None:
        self.socket = socket
        self._children = children
        self._child = child
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int:
        """The child's process."""
        return self._child.process.pid

    def wait(self) -> None:
        """Have its socket wait again, where it was made not to."""
        self.socket.settimeout(PATIENCE)

    def close(self) -> bool:
        """Give it back. Idempotent.

        :returns: whether it was not closed before.
        """
        with self._lock:
            was_closed, self._closed = self._closed, True
        if not was_closed:
            self.socket.close()
            self._children.release(self._child)
        return not was_closed

    def give_up(self) -> None:
        """Give it back, and its child up: it does not answer."""
        if self.close():
            self._children.discard(self._child)


class Children:
    """The child processes for one kind of work.

    :param work: which one; as in `child.conversations`.
    :param options: its options, as JSON can hold them.
    :param processes: how many children there may be.
    :param each: how many connections one may have; None for any number.
    """

    def __init__(
        self, work: str, options: Mapping[str, Any] | None = None, *, processes: int, each: int | None = None
    ) -> None:
        self.processes = processes
        self.each = each
        self._order = {"work": work, **(options or {})}
        self._children: list[Child] = []
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def connect(self) -> Connection:
        """A connection to the child that has the fewest. One that has just been started may still be loading.

        :raises Overloaded: each has as many as it may, or none can be started.
        """
        child = self._least()
        ours, theirs = socket.socketpair()
        # A child that has just died takes nothing, which shows at the first use of the connection.
        with theirs, suppress(OSError):
            socket.send_fds(child.control, [b"\1"], [theirs.fileno()])
        ours.settimeout(PATIENCE)
        return Connection(self, child, ours)

    def warm(self, count: int) -> None:
        """Start children until there are so many, and don't wait for what they load."""
        with suppress(Overloaded), self._lock:
            while len(self._alive()) < min(count, self.processes):
                self._start()

    def close(self) -> None:
        """End the children. A later connection starts new ones."""
        with self._lock:
            children, self._children = self._alive(), []
        for child in children:
            child.control.close()
        for child in children:
            self._see_end(child)

    def release(self, child: Child) -> None:
        """A child has a connection less. For connections."""
        with self._lock:
            child.load -= 1

    def discard(self, child: Child) -> None:
        """End a child that does not answer. Idempotent."""
        with self._lock:
            if child not in self._children:
                return
            self._children.remove(child)
        log.warning("A child process for %r no longer answers, and is replaced.", self._order["work"])
        child.control.close()
        child.process.kill()
        child.process.wait()

    def _least(self) -> Child:
        with self._lock:
            children = self._alive()
            child = min(children, key=lambda child: child.load, default=None)
            if child is None or (child.load and len(children) < self.processes):
                child = self._start()
            elif self.each is not None and child.load >= self.each:
                raise Overloaded(
                    "Too many people speak at the moment.",
                    retry_after=1,
                    diagnosis=f"all {self.processes} child processes for {self._order['work']!r} are busy",
                )
            child.load += 1
            return child

    def _alive(self) -> list[Child]:
        """The children of this process: a fork leaves those of its parent alone."""
        if self._pid != os.getpid():
            for child in self._children:
                child.control.close()
                child.process.returncode = 0  # else it is missed
            self._children, self._pid = [], os.getpid()
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            child.control.close()
        return self._children

    def _start(self) -> Child:
        ours, theirs = socket.socketpair()
        # By its path, and with -P: beside it lie modules of the names of libraries.
        command = [sys.executable, "-P", program.__file__]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            with theirs:
                process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment)
        except OSError as error:
            ours.close()
            raise Overloaded(diagnosis=f"a child process cannot be started: {error}") from error
        with suppress(OSError):  # it has died already, which shows at the first use
            ours.sendall(json.dumps({**self._order, "parent": os.getpid()}).encode() + b"\n")
        child = Child(process, ours)
        self._children.append(child)
        return child

    @staticmethod
    def _see_end(child: Child) -> None:
        try:
            child.process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
