"""What tests see of a ledger: it is read here in the words of Redis, beside the ledger's own."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from flask_llmstream.ledger import Ledger
from flask_llmstream.order import About
from flask_llmstream.store import digest
from tests.orders import KEY, OWNER, about_of, admit

ABOUT = about_of(KEY)
REAPED = b'{"error":"It was left."}'


def start(ledger: Ledger, run_id: str = "r1", about: About = ABOUT) -> None:
    assert admit(ledger, run_id, about).verdict == "admitted"


def lapse(ledger: Ledger, run_id: str = "r1") -> None:
    """Have its writer be silent for longer than a lease."""
    ledger.store.command("ZADD", ledger.store.key("leases"), 1, run_id)


def key(ledger: Ledger, *parts: str) -> str:
    return ledger.store.key(*parts)


def contents(ledger: Ledger) -> dict[str, Any]:
    """All that there is."""
    how = {
        b"hash": lambda name: ("HGETALL", name),
        b"stream": lambda name: ("XRANGE", name, "-", "+"),
        b"zset": lambda name: ("ZRANGE", name, 0, -1, "WITHSCORES"),
        b"set": lambda name: ("SMEMBERS", name),
        b"string": lambda name: ("GET", name),
    }
    store = ledger.store
    return {
        name: store.command(*how[store.command("TYPE", key(ledger, name))](key(ledger, name))) for name in keys(ledger)
    }


def keys(ledger: Ledger) -> list[str]:
    """The names of all that there is, without their prefix."""
    names = ledger.store.command("KEYS", "*")
    return sorted(name.decode().removeprefix(ledger.store.prefix) for name in names)


def lifetime(ledger: Ledger, *parts: str) -> float:
    """Seconds that something lives on; -1 for ever, -2 where it is gone."""
    left = ledger.store.command("PTTL", key(ledger, *parts))
    return left / 1000 if left > 0 else left


def everlasting(ledger: Ledger) -> list[str]:
    """What nobody would ever clear away."""
    return [name for name in keys(ledger) if lifetime(ledger, name) == -1 and name != "leases"]


def holds(ledger: Ledger, run_id: str = "r1", owner: str = OWNER) -> tuple[bool, bool]:
    """Whether a run has a lease, and a slot of its owner's."""
    store = ledger.store
    leased = store.command("ZSCORE", key(ledger, "leases"), run_id)
    live = store.command("ZSCORE", key(ledger, "live", digest(owner)), run_id)
    return leased is not None, live is not None


def events(ledger: Ledger, run_id: str = "r1") -> list[tuple[tuple[int, int], list[bytes], bool]]:
    """Its whole log: place of each frame, and what the frame holds."""
    return [((epoch, n), payloads, end) for epoch, n, payloads, end in ledger.frames.entries(run_id, 0, 0)[1]]


def told(ledger: Ledger, owner: str = OWNER) -> list[dict[str, Any]]:
    """What an owner's feed says."""
    entries = ledger.store.command("XRANGE", key(ledger, "feed", digest(owner)), "-", "+")
    return [json.loads(dict(fields)[b"e"]) for _, fields in entries]


def usage(ledger: Ledger, owner: str = OWNER) -> dict[str, int]:
    fields = ledger.store.command("HGETALL", key(ledger, "usage", datetime.now(UTC).date().isoformat(), digest(owner)))
    return {name.decode(): int(number) for name, number in fields.items()}


def leftovers(ledger: Ledger) -> list[str]:
    """All but the accounts and the feed, which are not the run's own."""
    return [name for name in keys(ledger) if not name.startswith(("usage:", "users:", "feed:"))]
