"""The logs of runs where all processes find them, and who reads them there.

A log is a stream of frames, each of some events: its id is the epoch of the writer, and the number of the last event.
On a channel of the same name each frame is published, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from .store import Store

Frame = tuple[str, int, int, Sequence[bytes], float | None]
"""Run, epoch, number of the event that it goes on from, events, and when the run began if that is news."""

_encode = msgspec.json.encode


class Frames:
    """The logs of all runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def append(self, frames: Sequence[Frame]) -> list[int]:
        """Add to the logs of several runs.

        :returns: for each: 1; 0 where the store has lost what the frame goes on from; -1 where it has the frame, or the
            events of a newer writer.
        """
        keys, about, args = [], [], []
        log, record = self._store.key("log", ""), self._store.key("run", "")
        for run_id, epoch, kept, payloads, began in frames:
            keys.append(log + run_id)
            news = () if began is None else (record + run_id, str(began))
            about.append((epoch, kept, kept + len(payloads), *news))
            args.append(b"\n".join(payloads))
        refused = self._store.call("append", keys, [_encode(about), *args])
        said = [1] * len(keys)
        for place, verdict in zip(refused[::2], refused[1::2], strict=True):
            said[place - 1] = verdict
        return said

    def entries(self, run_id: str, epoch: int, n: int) -> tuple[bool, list[tuple[int, int, list[bytes], bool]]]:
        """The frames of a run's log behind an event.

        :returns: whether the log is there, and for each frame its epoch, the number of its last event, its events, and
            whether they end the run.
        """
        log = self._store.key("log", run_id)
        exists, entries = self._store.commands(("EXISTS", log), ("XRANGE", log, f"({epoch}-{n}", "+"))
        frames = []
        for place, fields in entries:
            at_epoch, at_n = read_place(place)
            content = _fields(fields)
            frames.append((at_epoch, at_n, content[b"e"].split(b"\n"), b"end" in content))
        return bool(exists), frames

    def channel(self, run_id: str) -> str:
        """Where the frames of a run's log are published."""
        return self._store.key("log", run_id)

    def touch(self, run_id: str) -> None:
        """Have it known that somebody has just read a run of another process."""
        self._store.call("touch", [self._store.key("run", run_id)], [])

    def elsewhere(self, run_id: str) -> float | None:
        """How many seconds ago other processes' readers were last seen to read a run; None if never."""
        log, record = self._store.key("log", run_id), self._store.key("run", run_id)
        readers, seen, now = self._store.commands(("PUBSUB", "NUMSUB", log), ("HGET", record, "seen"), ("TIME",))
        if readers[1]:
            return 0.0
        return None if seen is None else _seconds(now) - float(seen) / 1000


def read_frame(message: bytes) -> tuple[int, int, list[bytes]]:
    """What is published of a log: epoch, number of the last event, events."""
    place, _, frame = message.partition(b" ")
    epoch, n = read_place(place)
    return epoch, n, frame.split(b"\n")


def read_place(text: bytes) -> tuple[int, int]:
    """Epoch and number of an event, in the words of the store."""
    epoch, _, n = text.partition(b"-")
    return int(epoch), int(n)


def _fields(fields: Any) -> Mapping[bytes, bytes]:
    return fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))


def _seconds(now: Any) -> float:
    return float(now[0]) + float(now[1]) / 1e6
