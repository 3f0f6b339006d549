"""Runs that no application has asked for: what tests of the machinery below Flask begin with."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from flask_llmstream.admission import Allowance, Verdict
from flask_llmstream.audience import Audience
from flask_llmstream.ledger import Ending, Ledger
from flask_llmstream.log import Log
from flask_llmstream.models import ModelSettings
from flask_llmstream.order import About, Claim, Order
from flask_llmstream.run import Run
from flask_llmstream.runtime import current
from flask_llmstream.work import Work
from tests.puppet import Puppet

OWNER = "user:ann"
QUEUED = b'{"status":"queued"}'
DONE = b'{"done":true,"tokens":1}'
KEY = Claim(OWNER, "key:1", "print", lasting=True)
CLICK = Claim(OWNER, "same:print", "print", lasting=False)
UNLIMITED = Allowance()
MODEL = "house"


def claim_of(run_id: str, *, owner: str = OWNER) -> Claim:
    """A claim that no other run has."""
    return Claim(owner, f"key:{run_id}", "print", lasting=True)


def about_of(claim: Claim, **more: Any) -> About:
    """What a run's record says of it."""
    given: dict[str, Any] = {"feature": "chat", "user": "ann", "created_at": time.time(), "model": MODEL, "prompt": 3}
    return About(owner=claim.owner, key=claim.key, fingerprint=claim.fingerprint, lasting=claim.lasting, **given | more)


def admit(ledger: Ledger, run_id: str, about: About | None = None, allowance: Allowance = UNLIMITED) -> Verdict:
    """A start that goes to the ledger alone."""
    return ledger.admit(run_id, about or about_of(claim_of(run_id)), QUEUED, allowance)


def ending(*tail: bytes, kept: int = 1, epoch: int = 1, next_epoch: int | None = None, **more: Any) -> Ending:
    """How a run ends whose log has `kept` events in the store, and `tail` besides."""
    given: dict[str, Any] = {"terminal": DONE, "state": "completed", "n": kept + len(tail) + 1}
    return Ending(epoch=epoch, next_epoch=next_epoch or epoch, kept=kept, tail=tail, **given | more)


def left_by_its_writer(**more: Any) -> Ending:
    """How somebody else ends a run."""
    return ending(kept=0, epoch=1, next_epoch=2, n=1, lapsed=True, **more)


def make_run(
    run_id: str = "r1", *, claim: Claim | None = None, limit: int = 10**6, log: Log | None = None, **order: Any
) -> Run:
    """A run that nobody has started, so that a test can say what it says."""
    claim = claim or claim_of(run_id)
    given: dict[str, Any] = {"feature": "chat", "owner": claim.owner, "user": "ann", "input": {"q": 1}}
    run = Run(run_id, Order(**given | order), about_of(claim), Log(limit) if log is None else log, nullcontext)
    run.audience = Audience(None, lambda: None)
    run.task = current().task(lambda: None, lambda: None)
    return run


def answer(run: Run) -> Any:
    """The function of a feature that lets the model answer."""
    return run.model.stream(run.input)


def work(*lines: Any, function: Any = answer, grace: float | None = None, **more: Any) -> Work:
    """What is to be done for an order: the model says these lines."""
    settings = ModelSettings(max_tokens=10, retries=0)
    return Work(function=function, provider=Puppet(lines or ["Hel", "lo"]), settings=settings, grace=grace, **more)
