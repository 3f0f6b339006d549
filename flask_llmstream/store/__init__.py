"""The one door to Redis: what all processes must agree on, each step an atomic script.

Without Redis the scripts run on an in-process emulation of it, so there is one way in which a run is admitted and
ended. The scripts lie beside this file, each headed by its KEYS and ARGV.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..runtime import Timer, current

PREFIX = "llmstream:"
SWEEP_EVERY = 60.0
"""Seconds between two sweeps of the embedded store."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A run's claim to an idempotency key.

    :param owner: whose key it is.
    :param key: what the client sent, or what stands for its request where it sent none.
    :param fingerprint: digest of the request; the same key with another one is a mistake.
    :param lasting: whether the key outlives the run's end, for as long as its log is kept.
    """

    owner: str
    key: str
    fingerprint: str
    lasting: bool

    @property
    def name(self) -> str:
        return PREFIX + "key:" + digest(self.owner, self.key)


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that has a key."""

    run_id: str
    fingerprint: str


class Store:
    """What is agreed on about runs.

    :param redis: a client for Redis, or for what behaves like it.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._admit = self._script("admit")
        self._finish = self._script("finish")
        self._forget = self._script("forget")

    def admit(self, run_id: str, claim: Claim, *, seconds: float) -> Holder:
        """Give the key to the run, or say who has it.

        :param seconds: how long the claim holds if nobody ends the run.
        """
        args = [run_id, claim.fingerprint, _milliseconds(seconds)]
        holder, fingerprint = self._admit(keys=[claim.name], args=args)
        return Holder(holder.decode(), fingerprint.decode())

    def finish(self, run_id: str, claim: Claim, *, retention: float) -> None:
        """Carry out the end of a run.

        :param retention: seconds for which its log is kept.
        """
        keep = _milliseconds(retention) if claim.lasting else 0
        # Whoever asks later is told that the run is no longer kept, for as long again as it was.
        args = [run_id, digest(claim.owner), _milliseconds(2 * retention), keep]
        self._finish(keys=[_tombstone(run_id), claim.name], args=args)

    def forget(self, run_id: str, claim: Claim) -> None:
        """Drop every trace of a run."""
        self._forget(keys=[_tombstone(run_id), claim.name], args=[run_id])

    def was_owned_by(self, run_id: str, owner: str) -> bool:
        """Whether that was an owner's run, which has ended."""
        return bool(self._redis.get(_tombstone(run_id)) == digest(owner).encode())

    def close(self) -> None:
        """Give back connections."""
        self._redis.close()

    def _script(self, name: str) -> Any:
        return self._redis.register_script(Path(__file__).with_name(f"{name}.lua").read_text("utf-8"))


class EmbeddedStore(Store):
    """The store of a single process, in its memory."""

    def __init__(self) -> None:
        from fakeredis import FakeRedis, FakeServer

        super().__init__(FakeRedis(server=FakeServer()))
        self._sweeper: Timer | None = None

    def admit(self, run_id: str, claim: Claim, *, seconds: float) -> Holder:
        if self._sweeper is None:
            self._sweeper = current().timers.after(SWEEP_EVERY, self.sweep)
        return super().admit(run_id, claim, seconds=seconds)

    def sweep(self) -> None:
        """Drop what has expired: the emulation only does so for keys that are asked for, and when it counts them."""
        self._sweeper = None
        if self._redis.dbsize():
            self._sweeper = current().timers.after(SWEEP_EVERY, self.sweep)

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        super().close()


def digest(*parts: str) -> str:
    """One short name for several strings, in which none of them can be read."""
    return sha256("\0".join(parts).encode()).hexdigest()[:32]


def _tombstone(run_id: str) -> str:
    return PREFIX + "ended:" + run_id


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
