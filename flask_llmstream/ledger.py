"""What all processes know of runs: whose they are, who writes them, which are live, how they ended.

Each step is one script of the store's, and may be repeated: a reply that was lost is asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import time
from typing import Any

import msgspec

from .admission import LEAST_ANSWER, Allowance, Verdict
from .order import About, Claim
from .store import Store, digest

LONGEST_RUN = 86400.0
"""Seconds that what is written of a run lives if nobody ends it."""
WITHDRAWN_FOR = 600.0
"""Seconds in which a start that was taken back is refused, should Redis come to it only then."""
USAGE_KEPT = 400 * 86400.0
"""Seconds."""
END_PATIENCE = 0.5
"""Seconds to wait for a connection that is free, where readers wait for the end of a run."""
encode = msgspec.json.Encoder(enc_hook=str).encode


@dataclass(frozen=True, slots=True)
class Found:
    """A run's record.

    :param terminal: its last event, once it has ended; `last` is that event's epoch and number.
    :param stop: whether somebody has asked for its stop.
    """

    id: str
    about: About
    epoch: int
    started_at: float | None
    ended_at: float | None
    last: tuple[int, int] | None
    terminal: bytes | None
    stop: bool


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


Frame = tuple[str, int, int, Sequence[bytes], float | None]
"""Run, epoch, number of the event that it goes on from, events, and when the run began if that is news."""

_read_about = msgspec.json.Decoder(About).decode
_read_verdict = msgspec.json.Decoder(Verdict).decode


class Ledger:
    """The records of all runs.

    :param retention: seconds for which an ended run is kept.
    :param lease: seconds for which a run is its writer's without a further word.
    :param alone: whether this process has the store to itself, and need not write down what only others would read.
    """

    def __init__(self, store: Store, *, retention: float, lease: float, alone: bool = False) -> None:
        self.store = store
        self._alone = alone
        self.retention = retention
        self.lease = lease
        self._hold = _ms(max(LONGEST_RUN, retention))

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
            "lease": _ms(self.lease),
            "alone": self._alone,
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

    def finish(
        self, run_id: str, about: About, ending: Ending, *, patience: float = END_PATIENCE
    ) -> tuple[str, int, bytes]:
        """Carry out the end of a run.

        :param patience: seconds to wait for a connection that is free.
        :returns: ``ended`` or ``already``, with epoch and payload of the last event; or why it cannot be: ``leased``,
            ``fenced``, ``missing``.
        """
        ask = {
            "alone": self._alone,
            "conversation": about.conversation is not None,
            "id": run_id,
            "owner": about.owner,
            "owner_digest": digest(about.owner),
            "epoch": ending.epoch,
            "next": ending.next_epoch,
            "lapsed": ending.lapsed,
            "kept": ending.kept,
            "tail": f"{ending.epoch}-{ending.kept + len(ending.tail)}",
            "last": f"{ending.next_epoch}-{ending.n}",
            "retention": _ms(self.retention),
            "hold": self._hold,
            "lasting": about.lasting,
            "tokens": ending.tokens,
            "usage": ending.usage,
            "usage_kept": _ms(USAGE_KEPT),
        }
        if ending.started_at is not None:
            ask["started_at"] = str(ending.started_at)
        told = {"id": run_id, "feature": about.feature, "status": ending.state, "ended_at": time()}
        if about.conversation is not None:
            told["conversation"] = about.conversation
        key, owner, day = self.store.key, digest(about.owner), datetime.now(UTC).date().isoformat()
        keys = [
            *self._keys(run_id, about),
            key("tokens", owner),
            key("ended", run_id),
            key("usage", day, owner),
            key("users", day),
        ]
        args = [encode(ask), b"\n".join(ending.tail), ending.terminal, encode({"ended": told})]
        verdict, last, terminal = self.store.call("finish", keys, args, patience=patience)
        return verdict.decode(), _place(last)[0] if last else 0, terminal

    def restore(
        self, run_id: str, about: About, epoch: int, entries: Sequence[bytes], *, began: float | None = None
    ) -> None:
        """Put a live run back that Redis has lost, or a part of it.

        :param entries: its whole log.
        :param began: when its function did, in seconds since 1970.
        """
        ask = {
            "id": run_id,
            "fingerprint": about.fingerprint,
            "epoch": epoch,
            "process": self.store.process,
            "hold": self._hold,
            "lease": _ms(self.lease),
            "conversation": about.conversation is not None,
            "began": "" if began is None else str(began),
        }
        args = [encode(ask), encode(about), f"{epoch}-{len(entries)}", b"\n".join(entries), _started(run_id, about)]
        self.store.call("restore", self._keys(run_id, about), args)

    def append(self, frames: Sequence[Frame]) -> list[int]:
        """Add to the logs of several runs.

        :returns: for each: 1; 0 where the store has lost what the frame goes on from; -1 where it has the frame, or the
            events of a newer writer.
        """
        keys, about, args = [], [], []
        log, record = self.store.key("log", ""), self.store.key("run", "")
        for run_id, epoch, kept, payloads, began in frames:
            keys.append(log + run_id)
            news = () if began is None else (record + run_id, str(began))
            about.append((epoch, kept, kept + len(payloads), *news))
            args.append(b"\n".join(payloads))
        refused = self.store.call("append", keys, [encode(about), *args])
        said = [1] * len(keys)
        for place, verdict in zip(refused[::2], refused[1::2], strict=True):
            said[place - 1] = verdict
        return said

    def stop(self, run_id: str) -> None:
        """Have a run's writer stop it."""
        self.store.call("stop", [self.store.key("run", run_id)], [run_id, self.store.prefix])

    def forget(self, run_id: str, about: About) -> None:
        """Drop every trace of a run; of one that is live, when it has stopped."""
        key, owner = self.store.key, digest(about.owner)
        keys = [
            self._key_record(about.claim),
            key("run", run_id),
            key("log", run_id),
            key("kept", owner),
            key("feed", owner),
            key("ended", run_id),
        ]
        told = encode({"forgotten": {"id": run_id}})
        self.store.call("forget", keys, [run_id, self.store.prefix, told, self._hold])

    def withdraw(self, run_id: str, about: About, terminal: bytes) -> None:
        """Take back a start that nobody waits for any more, whether it has been admitted, will be, or not.

        :param terminal: what those hear who have joined it meanwhile.
        """
        self.store.command("SET", self.store.key("withdrawn", run_id), 1, "PX", _ms(WITHDRAWN_FOR))
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
        names = ("about", "epoch", "started_at", "ended_at", "last", "terminal", "stop", "gone")
        run_ids = list(run_ids)
        replies = self.store.commands(*(("HMGET", self.store.key("run", run_id), *names) for run_id in run_ids))
        found = []
        for run_id, fields in zip(run_ids, replies, strict=True):
            about, epoch, started_at, ended_at, last, terminal, stop, gone = fields
            if about is None or (gone and not forgotten):
                continue
            found.append(
                Found(
                    run_id,
                    _read_about(about),
                    int(epoch),
                    float(started_at) if started_at else None,
                    float(ended_at) / 1000 if ended_at else None,
                    _place(last) if last else None,
                    terminal,
                    stop is not None,
                )
            )
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

    def entries(self, run_id: str, epoch: int, n: int) -> tuple[bool, list[tuple[int, int, list[bytes], bool]]]:
        """The frames of a run's log behind an event.

        :returns: whether the log is there, and for each frame its epoch, the number of its last event, its events, and
            whether they end the run.
        """
        log = self.store.key("log", run_id)
        exists, entries = self.store.commands(("EXISTS", log), ("XRANGE", log, f"({epoch}-{n}", "+"))
        frames = []
        for place, fields in entries:
            at_epoch, at_n = _place(place)
            content = _fields(fields)
            frames.append((at_epoch, at_n, content[b"e"].split(b"\n"), b"end" in content))
        return bool(exists), frames

    def elsewhere(self, run_id: str) -> float | None:
        """How many seconds ago other processes' readers were last seen to read a run; None if never."""
        log, record = self.store.key("log", run_id), self.store.key("run", run_id)
        readers, seen, now = self.store.commands(("PUBSUB", "NUMSUB", log), ("HGET", record, "seen"), ("TIME",))
        if readers[1]:
            return 0.0
        return None if seen is None else _seconds(now) - float(seen) / 1000

    def touch(self, run_id: str) -> None:
        """Have it known that somebody has just read a run of another process."""
        self.store.call("touch", [self.store.key("run", run_id)], [])

    def channel(self, run_id: str) -> str:
        """Where the frames of a run's log are published."""
        return self.store.key("log", run_id)

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


def read_frame(message: bytes) -> tuple[int, int, list[bytes]]:
    """What is published of a log: epoch, number of the last event, events."""
    place, _, frame = message.partition(b" ")
    epoch, n = _place(place)
    return epoch, n, frame.split(b"\n")


def _started(run_id: str, about: About) -> bytes:
    """What the feed says of a run that is live."""
    told = {"id": run_id, "feature": about.feature, "created_at": about.created_at}
    if about.conversation is not None:
        told["conversation"] = about.conversation
    return encode({"started": told})


def _place(text: bytes) -> tuple[int, int]:
    epoch, _, n = text.partition(b"-")
    return int(epoch), int(n)


def _fields(fields: Any) -> Mapping[bytes, bytes]:
    return fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))


def _seconds(now: Any) -> float:
    return float(now[0]) + float(now[1]) / 1e6


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
