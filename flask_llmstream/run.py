"""One run: what was asked, its state, its log, and its single end.

States and moves:

    queued ──> in_progress ──> completed | incomplete | failed | cancelled
       └─────────────────────> (the same, for a run that never began)

`begin` makes the first move. `settle` decides the end and `close` makes it known; only one caller can settle, and
whoever comes second is told so and changes nothing. Until then the writer alone adds to the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic, time
from typing import Any

import msgspec

from .anyrun import AnyRun, State
from .audience import Audience
from .errors import InvalidOutput, LLMStreamError
from .events import (
    NOT_JSON,
    Data,
    Done,
    Event,
    Failed,
    FinishReason,
    Phase,
    Progress,
    Status,
    Terminal,
    Token,
    Tool,
    Usage,
    encode,
)
from .log import Log
from .models import BoundModel, Meter
from .order import About, Order
from .runtime import Task, Timer
from .timing import Timing

logger = logging.getLogger("flask_llmstream")

QUEUED = Status("queued").encode()
RESULT_APART = 65_536
"""Bytes of a result that is kept beside the log: readers of the log are not to get it each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run's function ended."""

    state: State
    result: Any = None
    error: LLMStreamError | None = None
    finish_reason: FinishReason | None = None


class Run(AnyRun):
    """A piece of model work: what an application's function is given, and what `run_ended` brings.

    :param order: what was asked for.
    :param about: what other processes are told of it.
    :param log: where its events go.
    :param app_context: opens an application context of its own; what is opened inside it, such as a database
        session, is given back at its end.
    :param attempt: which attempt it is; the log of a later one has been begun by whoever had it tried again.
    """

    model: BoundModel
    """The language model, bound to what this run may use of it."""
    result_schema: Any = None
    """What its result has to be, where its feature says so."""
    audience: Audience
    task: Task | None
    deadline: Timer | None = None
    """What ends it when it has taken too long."""
    caller: Callable[[Run, str, Any], Any]
    """Calls another feature."""
    heard: str | None = None
    heard_so_far: Callable[[], str] | None = None
    """What its user has heard of the text by now, while it is spoken."""

    def __init__(
        self,
        run_id: str,
        order: Order,
        about: About,
        log: Log,
        app_context: Callable[[], AbstractContextManager[Any]],
        *,
        attempt: int = 1,
    ) -> None:
        self.id = run_id
        self.owner = order.owner
        self.feature = order.feature
        self.user = order.user
        self.input = order.input
        self.view_args = order.view_args
        self.data = order.data
        self.context = order.context
        self.conversation = order.conversation
        self.about = about
        self.log = log
        self.app_context = app_context
        self.attempt = attempt
        self.created_at = about.created_at
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.timing = Timing(monotonic() - max(0.0, time() - about.created_at))
        self.meter = Meter(self.answer_begins, self._tell_of_rejected)
        self._answering = False
        self.outcome: Outcome | None = None
        self.terminal: bytes | None = None
        self.result_apart: bytes | None = None
        """Its result, where that is too large for the log."""
        self.superseded = False
        """Whether another process has decided how it ended."""
        self.broken: LLMStreamError | None = None
        """Why it is stopped, where that is not because somebody wants it to."""
        self.forgotten = False
        self.failures = 0
        """The attempts at it that have failed."""
        self._over = False
        self.passed_on = False
        """Whether another attempt follows this one, here or elsewhere."""
        self._phase: Phase = "queued"
        self._lock = threading.Lock()
        self.foreword = 1 if attempt == 1 else 2
        """How many events its log begins with that were written by whoever admitted it, or had it tried again."""
        if attempt == 1 and not log.entries:
            log.append(QUEUED)

    @property
    def decided(self) -> State | None:
        if self.log.ended:
            return self.state
        return None if self.outcome is None else self.outcome.state

    def call(self, feature: str, data: Any) -> Any:
        """Perform another feature as a part of this run: with its model budget, its time, its stop.

        :param feature: the other's name.
        :param data: its input, as a client would send it.
        :returns: the other's result; its text, where it has none.
        :raises LLMStreamError: the input is not valid, or the other failed.
        """
        return self.caller(self, feature, data)

    @property
    def cancelled(self) -> bool:
        """Whether it is to stop. A function that works for long without yielding looks at this."""
        return self.meter.cancelled

    @property
    def usage(self) -> Usage | None:
        usage, by_model = self.meter.usage, self.meter.by_model
        if usage is None or by_model.keys() == {self.about.model}:
            return usage
        return msgspec.structs.replace(usage, models=dict(by_model))

    @property
    def result(self) -> Any:
        return None if self.outcome is None else self.outcome.result

    @property
    def answering(self) -> bool:
        return self._answering

    @property
    def error(self) -> LLMStreamError | None:
        return self.outcome.error if self.outcome is not None else None

    def join(self) -> None:
        self.audience.join()

    def leave(self) -> None:
        self.audience.leave()

    def begin(self) -> None:
        """The writer has begun."""
        self.started_at = time()
        self.timing.started = monotonic()
        self._enter("thinking")

    def say(self, event: Event) -> None:
        """Add an event to the log. The terminal is none of these.

        :raises LogFull: the log has reached its limit.
        """
        kind = type(event)
        if kind is Token:
            now = monotonic()
            if self._phase != "writing":
                self._enter("writing")
            if self.timing.first is None:
                self.timing.first = now
            self.timing.tokens += 1
            self.timing.last = now
        elif kind is Status:
            self._phase = event.status  # type: ignore[attr-defined]
        elif kind is Progress:
            event = within_bounds(event)  # type: ignore[arg-type]
        elif kind is not Data:
            if self.timing.first is None:
                self.timing.first = monotonic()
            if kind is Tool and self._phase != "tool":
                self._enter("tool")
        self.log.append(event.encode())
        if not self._answering and kind is not Status:
            self.answer_begins()

    def answer_begins(self) -> None:
        """From here on the answer is an open stream: an error can no longer become its HTTP status."""
        if not self._answering:
            self._answering = True
            self.log.ring()

    def is_over(self) -> bool:
        """Claim to say what follows on this attempt; whether this caller is the first to do so."""
        with self._lock:
            first, self._over = not self._over, True
        return first

    def settle(self, outcome: Outcome) -> bool:
        """Decide how the run ends; whether this caller was the one to decide it."""
        with self._lock:
            if self.outcome is not None:
                return False
            self.outcome = outcome
        self.timing.ended = monotonic()
        self.ended_at = time()
        try:
            self._ending = self._make_terminal(outcome)
            self.terminal = self._ending.encode()
        except NOT_JSON as error:  # the extensions of an application's own error
            self.result_apart = None
            self.outcome = Outcome(state="failed", error=InvalidOutput())
            self._ending = self._make_terminal(self.outcome)
            self.terminal = self._ending.encode()
            logger.error("run %s of %s ended by an error that JSON cannot hold: %s", self.id, self.feature, error)
        return True

    def close(self, *, durable: bool = True) -> None:
        """Make the end known to all readers.

        :param durable: whether it is kept where other processes find it.
        """
        assert self.terminal is not None, "a run is settled before it is closed"
        self.audience.close()
        self.log.end(self.terminal if durable else msgspec.structs.replace(self._ending, durable=False).encode())

    def close_as(self, epoch: int, terminal: bytes) -> None:
        """Make known how it ended: another process has decided that it did, and it is not for this one to differ.

        :param epoch: the other's.
        """
        self.superseded = True
        self.audience.close()
        self.log.take_over(epoch)
        self.log.end(terminal)

    def let_go(self) -> None:
        """Keep only what can still be asked for: the rest was the function's, and that of those who hear of its end."""
        self.input = self.data = self.context = self.task = None
        for name in ("model", "caller", "result_schema"):
            self.__dict__.pop(name, None)

    def _tell_of_rejected(self, attempt: int, errors: Mapping[str, Any]) -> None:
        if not self.cancelled:  # else it may have ended, whatever its function waits for
            self.say(Data({"rejected": {"attempt": attempt, "errors": errors}}))

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self.log.append(Status(phase).encode())

    def _make_terminal(self, outcome: Outcome) -> Terminal:
        usage = self.usage
        tokens = usage.completion_tokens if usage is not None else self.timing.tokens
        timing = self.timing
        if outcome.error is not None:
            problem = outcome.error.problem()
            return Failed(
                error=outcome.error.detail, problem=problem, tokens=tokens, usage=usage, total_ms=timing.total_ms
            )
        result = None if outcome.result is None else encode(outcome.result)
        if result is not None and len(result) > RESULT_APART:
            self.result_apart = result
        return Done(
            done=True,
            tokens=tokens,
            cancelled=outcome.state == "cancelled",
            finish_reason=outcome.finish_reason,
            usage=usage,
            heard=self.heard,
            result=outcome.result if self.result_apart is None else None,
            result_size=None if self.result_apart is None else len(self.result_apart),
            queue_ms=timing.queue_ms,
            ttft_ms=timing.ttft_ms,
            total_ms=timing.total_ms,
            tokens_per_second=timing.tokens_per_second,
        )


def within_bounds(event: Progress) -> Progress:
    """Progress from 0 to 1, whatever a function has reckoned."""
    fraction = min(max(event.progress, 0.0), 1.0)
    return event if fraction == event.progress else Progress(fraction, event.message)
