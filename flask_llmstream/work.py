"""What a registry is given: the feature's side of a run, and what it calls in the application."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .admission import Allowance, WhenBusy
from .anyrun import AnyRun
from .ending import Save
from .mirror import Revive
from .models import ModelSettings
from .order import About, Claim, Order
from .providers import Model
from .run import Run
from .writer import Function


def _no_other(run: Run, feature: str, data: Any) -> Any:
    raise LookupError(f"there is no feature {feature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is to be done for an order.

    :param grace: seconds that the run goes on with no reader; None lets it finish.
    :param prompt: estimate of the tokens that go in.
    :param when_busy: what becomes of it where its owner has no slot; None leaves it to the application.
    :param allowance: what its owner may have; None leaves it to the application.
    :param queue: where it waits to be performed; None performs it at once, where it is admitted.
    :param attempts: how often it is tried, where it waits.
    :param repeatable: when it has failed by what may pass, a repeat of the request starts anew.
    :param light: it waits for other runs, and takes no worker's place.
    :param retention: seconds for which it is kept when it has ended; 0 for as long as runs usually are.
    :param timeout: seconds that one attempt may take; None sets no limit.
    :param retry_on: exceptions of the function's after which it is tried again.
    :param result_schema: what the result has to be.
    :param caller: calls another feature for a run.
    """

    function: Function
    provider: Model
    settings: ModelSettings
    grace: float | None
    prompt: int = 0
    when_busy: WhenBusy | None = None
    allowance: Allowance | None = None
    queue: str | None = None
    attempts: int = 1
    repeatable: bool = False
    light: bool = False
    retention: float = 0.0
    timeout: float | None = None
    retry_on: tuple[type[Exception], ...] = ()
    result_schema: Any = None
    caller: Callable[[Run, str, Any], Any] = _no_other

    def describe(self, order: Order, claim: Claim) -> About:
        """What is written down of it, and of the order."""
        return About.of(
            order,
            claim,
            prompt=self.prompt,
            model=self.settings.model or self.provider.name,
            queue=self.queue,
            attempts=self.attempts,
            repeatable=self.repeatable,
            light=self.light,
            retention=self.retention,
        )


def _nothing_to_resume(about: About) -> tuple[Order, Work]:
    raise LookupError(f"there is no feature {about.feature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Callbacks:
    """What a registry calls in the application.

    :param enter: opens the context in which application code runs.
    :param ended: tells the application of a run that ends.
    :param opened: called with a run that has been admitted, before its function begins; if it fails, the start does.
    :param save: keeps an answer with the conversation that it belongs to.
    :param released: called with a run of which no other attempt can follow.
    :param revive: makes a feature's input of what was sent.
    :param resume: what another process has admitted, and what is to be done for it.
    """

    enter: Callable[[], AbstractContextManager[Any]]
    ended: Callable[[AnyRun], None]
    opened: Callable[[AnyRun], None] = lambda run: None
    save: Save = lambda run, state, usage: None
    released: Callable[[AnyRun], None] = lambda run: None
    revive: Revive = lambda about: about.data
    resume: Callable[[About], tuple[Order, Work]] = _nothing_to_resume
