"""What all processes know of runs: whose they are, who writes them, which are live, how they ended.

Each step is one script of the store's, and may be repeated: a reply that was lost is asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import time
from typing import Any

import msgspec

from .admission import LEAST_ANSWER, Allowance, Verdict
from .events import Usage
from .frames import Frames, read_place
from .order import About, Claim
from .store import Store, digest

log = logging.getLogger("flask_llmstream")

LOOKED_AFTER = 60.0
"""Seconds after which it is looked whether a run that waits is still in its queue."""
LONGEST_RUN = 86400.0
"""Seconds that what is written of a run lives if nobody ends it."""
WITHDRAWN_FOR = 600.0
"""Seconds in which a start that was taken back is refused, should Redis come to it only then."""
USAGE_KEPT = 400 * 86400.0
"""Seconds."""
RECORD = (
    *("about", "epoch", "started_at", "ended_at", "last", "terminal"),
    *("stop", "gone", "waiting", "attempt", "used"),
)
"""What is read of a run's record."""
encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class Found:
    """A run's record.

    :param terminal: its last event, once it has ended; `last` is that event's epoch and number.
    :param stop: whether somebody has asked for its stop.
    :param waiting: whether it waits to be taken up.
    :param attempt: which attempt it is.
    :param used: what its model calls have consumed in earlier attempts, by model.
    """

    id: str
    about: About
    epoch: int
    started_at: float | None
    ended_at: float | None
    last: tuple[int, int] | None
    terminal: bytes | None
    stop: bool
    waiting: bool = False
    attempt: int = 1
    used: Mapping[str, Usage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends, for the ledger.

    :param epoch: the writer's.
    :param n: the number of the terminal event in `next_epoch`.
    :param kept: the number of the last event that the log in the store has.
    :param tail: the events that follow that one.
    :param lapsed: it is not the writer who says so: the run must have been left.
    :param started_at: when the run began; a short one may end before its journal has said so.
    :param usage: ``(model, measure, number)`` each, for the accounts.
    :param tokens: what is settled against the owner's budget.
    :param lasting: whether its idempotency key may outlive it.
    """

    epoch: int
    next_epoch: int
    n: int
    terminal: bytes
    state: str
    kept: int = 0
    tail: Sequence[bytes] = ()
    lapsed: bool = False
    started_at: float | None = None
    usage: Sequence[tuple[str, str, int]] = ()
    tokens: int = 0
    lasting: bool = True


UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
"""What is raised by a record that is none: by whoever else writes into Redis."""
read_about = msgspec.json.Decoder(About).decode
read_used = msgspec.json.Decoder(dict[str, Usage]).decode
_read_verdict = msgspec.json.Decoder(Verdict).decode


class Ledger:
    """The records of all runs.

    :param retention: seconds for which an ended run is kept.
    :param lease: seconds for which a run is its writer's without a further word.
    :param alone: whether this process has the store to itself, and need not write down what only others would read.
    """

    def __init__(self, store: Store, *, retention: float, lease: float, alone: bool = False) -> None:
        self.store = store
        self.frames = Frames(store)
        """Their logs."""
        self.alone = alone
        self.retention = retention
        self.lease = lease
        self._hold = ms(max(LONGEST_RUN, retention))

    def admit(self, run_id: str, about: About, first: bytes, allowance: Allowance, *, max_tokens: int = 0) -> Verdict:
        """Have a run be live, unless something is in its way.

        :param first: the first event of its log.
        :param max_tokens: that its answer may have.
        """
        ask = {
            "id": run_id,
            "fingerprint": about.fingerprint,
            "prefix": self.store.prefix,
            "process": self.store.process,
            "hold": self._hold,
            "lease": ms(self.lease if about.queue is None else LOOKED_AFTER),
            "waiting": about.queue is not None,
            "alone": self.alone,
            "conversation": about.conversation is not None,
            "busy": allowance.busy,
            "prompt": about.prompt,
            "max_tokens": max_tokens,
            "least": LEAST_ANSWER,
        }
        if allowance.runs is not None:
            ask["max_runs"] = allowance.runs
        for name, quota in (("starts", allowance.starts), ("tokens", allowance.tokens)):
            if quota is not None:
                ask[name] = [quota.n, quota.seconds * 1000]
        key, owner = self.store.key, digest(about.owner)
        keys = [
            *self._keys(run_id, about),
            key("starts", owner),
            key("tokens", owner),
        ]
        told = _started(run_id, about) if about.conversation is None else b""
        args = [encode(ask), encode(about), first, told]
        return _read_verdict(self.store.call("admit", keys, args))

    def tell(self, run_id: str, about: About) -> None:
        """Tell the owner's feed of a run in a conversation, which `admit` has left to be told."""
        self.store.call("tell", [self.store.key("feed", digest(about.owner))], [_started(run_id, about), self._hold])

    def finish(self, run_id: str, about: About, ending: Ending) -> tuple[str, int, bytes]:
        """Carry out the end of a run.

        :returns: ``ended`` or ``already``, with epoch and payload of the last event; or why it cannot be: ``leased``,
            ``fenced``, ``missing``.
        """
        ask = {
            "alone": self.alone,
            "conversation": about.conversation is not None,
            "id": run_id,
            "payer": about.payer or about.owner,
            "owner_digest": digest(about.owner),
            "epoch": ending.epoch,
            "next": ending.next_epoch,
            "lapsed": ending.lapsed,
            "kept": ending.kept,
            "tail": f"{ending.epoch}-{ending.kept + len(ending.tail)}",
            "last": f"{ending.next_epoch}-{ending.n}",
            "retention": ms(about.retention or self.retention),
            "hold": self._hold,
            "lasting": about.lasting and ending.lasting,
            "tokens": ending.tokens,
            "usage": ending.usage,
            "usage_kept": ms(USAGE_KEPT),
        }
        if ending.started_at is not None:
            ask["started_at"] = str(ending.started_at)
        key, owner, day = self.store.key, digest(about.owner), datetime.now(UTC).date().isoformat()
        keys = [
            *self._keys(run_id, about),
            key("tokens", owner),
            key("ended", run_id),
            key("usage", day, digest(about.payer or about.owner)),
            key("users", day),
        ]
        args = [encode(ask), b"\n".join(ending.tail), ending.terminal, _ended(run_id, about, ending.state)]
        verdict, last, terminal = self.store.call("finish", keys, args, urgent=True)
        return verdict.decode(), read_place(last)[0] if last else 0, terminal

    def restore(
        self,
        run_id: str,
        about: About,
        epoch: int,
        entries: Sequence[bytes],
        *,
        began: float | None = None,
        attempt: int = 1,
    ) -> None:
        """Put a live run back that Redis has lost, or a part of it.

        :param entries: its whole log in this epoch.
        :param began: when its function did, in seconds since 1970.
        """
        ask = {
            "id": run_id,
            "fingerprint": about.fingerprint,
            "epoch": epoch,
            "process": self.store.process,
            "hold": self._hold,
            "lease": ms(self.lease),
            "conversation": about.conversation is not None,
            "began": "" if began is None else str(began),
            "attempt": attempt,
        }
        args = [encode(ask), encode(about), f"{epoch}-{len(entries)}", b"\n".join(entries), _started(run_id, about)]
        self.store.call("restore", self._keys(run_id, about), args)

    def stop(self, run_id: str) -> bool:
        """Have a run's writer stop it; whether it has none yet, and is to be ended by who asks."""
        key = self.store.key
        return bool(self.store.call("stop", [key("run", run_id), key("leases")], [run_id, self.store.prefix]) == 2)

    def keep_result(self, run_id: str, about: About, epoch: int, result: bytes) -> None:
        """Keep a result that is too large for the log, before the run's end is told."""
        life = ms(2 * (about.retention or self.retention))
        self.store.command("SET", self.store.key("result", run_id, str(epoch)), result, "PX", life)

    def result(self, run_id: str, epoch: int) -> bytes | None:
        """A result that was kept beside the log."""
        result: bytes | None = self.store.command("GET", self.store.key("result", run_id, str(epoch)))
        return result

    def drop_result(self, run_id: str, epoch: int) -> None:
        """Keep a result no longer."""
        self.store.command("UNLINK", self.store.key("result", run_id, str(epoch)))

    def drop(self, run_id: str, epoch: int) -> None:
        """Have no more room taken by a run that has ended. That there was one is still known."""
        self.store.command("UNLINK", self.store.key("run", run_id), self.store.key("result", run_id, str(epoch)))

    def forget(self, run_id: str, about: About, epoch: int = 1) -> bool:
        """Drop every trace of a run; of one that is live, when it has stopped.

        :param epoch: its last one.
        :returns: whether it waits to be taken up, and is to be ended by who asks.
        """
        key, owner = self.store.key, digest(about.owner)
        keys = [
            self._key_record(about.claim),
            key("run", run_id),
            key("log", run_id),
            key("kept", owner),
            key("feed", owner),
            key("ended", run_id),
            key("leases"),
        ]
        told = encode({"forgotten": {"id": run_id}})
        self.store.command("UNLINK", self.store.key("result", run_id, str(epoch)))
        return bool(self.store.call("forget", keys, [run_id, self.store.prefix, told, self._hold]) == 2)

    def withdraw(self, run_id: str, about: About, terminal: bytes) -> None:
        """Take back a start that nobody waits for any more, whether it has been admitted, will be, or not.

        :param terminal: what those hear who have joined it meanwhile.
        """
        self.store.command("SET", self.store.key("withdrawn", run_id), 1, "PX", ms(WITHDRAWN_FOR))
        self.forget(run_id, about)
        self.finish(run_id, about, Ending(epoch=1, next_epoch=1, n=2, terminal=terminal, state="failed"))

    def find(self, run_id: str, *, forgotten: bool = False) -> Found | None:
        """The record of a run that is live or kept."""
        found = self.found([run_id], forgotten=forgotten)
        return found[0] if found else None

    def found(self, run_ids: Iterable[str], *, forgotten: bool = False) -> list[Found]:
        """The records of those of some runs that are live or kept.

        :param forgotten: whether those count that only their end will drop.
        """
        run_ids = list(run_ids)
        replies = self.store.commands(*(("HMGET", self.store.key("run", run_id), *RECORD) for run_id in run_ids))
        found = []
        for run_id, fields in zip(run_ids, replies, strict=True):
            about, gone = fields[0], fields[7]
            if about is None or (gone and not forgotten):
                continue
            try:
                found.append(_found(run_id, fields))
            except UNREADABLE as error:
                log.warning("the record of run %s cannot be read, and counts for nothing: %s", run_id, error)
        return found

    def live(self, owner: str) -> list[str]:
        """The ids of an owner's runs that are live, the oldest first; not of those that have to make room."""
        ids = self.store.command("ZRANGE", self.store.key("live", digest(owner)), 0, -1)
        return [run_id.decode() for run_id in ids]

    def kept(self, owner: str, *, most: int = -1) -> list[str]:
        """The ids of an owner's runs that are live or kept, the oldest first.

        :param most: of them, the newest.
        """
        key, now = self.store.key("kept", digest(owner)), int(time() * 1000)
        ids = self.store.command("ZRANGE", key, "+inf", now, "BYSCORE", "REV", "LIMIT", 0, most)
        return [run_id.decode() for run_id in reversed(ids)]

    def let_go(self, run_id: str) -> None:
        """Drop the lease of a run of which nothing else is left. Should its writer live, it puts all of it back."""
        self.store.command("ZREM", self.store.key("leases"), run_id)

    def was_owned_by(self, run_id: str, owner: str) -> bool:
        """Whether that was an owner's run, which has ended."""
        return bool(self.store.command("GET", self.store.key("ended", run_id)) == digest(owner).encode())

    def _key_record(self, claim: Claim) -> str:
        return self.store.key("key", digest(claim.owner, claim.key))

    def _keys(self, run_id: str, about: About) -> list[str]:
        """What the scripts that begin or end a run have in common, in their order."""
        key, owner = self.store.key, digest(about.owner)
        return [
            self._key_record(about.claim),
            key("run", run_id),
            key("log", run_id),
            key("leases"),
            key("live", owner),
            key("kept", owner),
            key("feed", owner),
            self._slot(about),
        ]

    def _slot(self, about: About) -> str:
        return self.store.key("talk", digest(about.owner, about.conversation or ""))


def _found(run_id: str, fields: Sequence[Any]) -> Found:
    about, epoch, started_at, ended_at, last, terminal, stop, _, waiting, attempt, used = fields
    return Found(
        run_id,
        read_about(about),
        int(epoch),
        float(started_at) if started_at else None,
        float(ended_at) / 1000 if ended_at else None,
        read_place(last) if last else None,
        terminal,
        stop is not None,
        waiting is not None,
        int(attempt or 1),
        read_used(used) if used else {},
    )


def _started(run_id: str, about: About) -> bytes:
    """What the feed says of a run that is live."""
    return _told("started", run_id, about, created_at=about.created_at)


def _ended(run_id: str, about: About, state: str) -> bytes:
    """What it says of one that has ended."""
    return _told("ended", run_id, about, status=state, ended_at=time())


def _told(what: str, run_id: str, about: About, **more: Any) -> bytes:
    told = {"id": run_id, "feature": about.feature, **more}
    if about.conversation is not None:
        told["conversation"] = about.conversation
    return encode({what: told})


def ms(seconds: float) -> int:
    """Seconds as the scripts have them."""
    return max(1, int(seconds * 1000))
