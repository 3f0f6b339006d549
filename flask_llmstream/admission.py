"""What an owner may have, and what becomes of a start: the words in which the ledger is asked and answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import msgspec

from .errors import LimitReached

LEAST_ANSWER = 256
"""Tokens. Where a budget leaves fewer for an answer that may have more, there is none: a stub serves nobody."""
TRY_AGAIN = 2.0
"""Seconds after which a start may be tried again that was refused because others are live."""
REFUSALS = {
    "runs": "You have as many answers in progress as you may have at a time. Stop one, or wait for one to end.",
    "conversation": "This conversation is being answered. Stop that answer, or wait for its end.",
    "starts": "You have asked for as many answers as you may at a time. Try again later.",
    "tokens": "What is left of your tokens does not suffice for this. Try again later.",
}
TOO_LONG = "This is longer than your tokens suffice for at any time."

WhenBusy = Literal["reject", "replace", "join"]


@dataclass(frozen=True, slots=True)
class Quota:
    """So much in a window of time; windows are aligned, so that a day begins at midnight UTC.

    :param seconds: length of the window.
    """

    n: int
    seconds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """What an owner may have.

    :param runs: live runs at a time; None for any number.
    :param busy: what becomes of a start beyond that, or in a conversation that is being answered.
    :param starts: runs started in a window.
    :param tokens: tokens used in a window.
    """

    runs: int | None = None
    busy: WhenBusy = "reject"
    starts: Quota | None = None
    tokens: Quota | None = None


class Standing(msgspec.Struct, frozen=True):
    """How one of an owner's quotas stands.

    :param window: with `reset`, milliseconds: its length, and what is left of it.
    """

    name: str
    quota: int
    window: float
    used: int
    reset: float


class Verdict(msgspec.Struct, frozen=True):
    """What became of a start.

    :param limit: which limit a busy owner has reached.
    :param retry: milliseconds after which it is no longer reached, where that is known.
    :param live: the owner's live runs.
    :param max_tokens: what an admitted run's answer may have: no more than its owner's budget leaves.
    :param replaced: the runs that were stopped for its sake.
    """

    verdict: Literal["admitted", "known", "joined", "busy"]
    run: str = ""
    fingerprint: str = ""
    limit: str = ""
    retry: float | None = None
    live: list[str] = []
    max_tokens: int = 0
    replaced: list[str] = []
    standing: list[Standing] = []


def refusal(verdict: Verdict, allowance: Allowance, needed: int) -> LimitReached:
    """Why a start is refused, and when it may be tried again.

    :param needed: the least tokens that it takes.
    """
    detail = REFUSALS[verdict.limit]
    retry_after: float | None = TRY_AGAIN if verdict.retry is None else ceil(verdict.retry / 1000)
    if verdict.limit == "tokens" and allowance.tokens is not None and needed > allowance.tokens.n:
        detail, retry_after = TOO_LONG, None
    return LimitReached(verdict.limit, detail, retry_after=retry_after, live=verdict.live, standing=verdict.standing)
