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
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any, Literal

import msgspec

from .audience import Audience
from .cursor import Cursor
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
)
from .log import Log
from .models import BoundModel, Meter
from .runtime import Task
from .store import Claim
from .timing import Timing

State = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

logger = logging.getLogger("flask_llmstream")

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What was asked for.

    :param feature: the feature's name.
    :param owner: whose run it is.
    :param user: what the application knows its owner by.
    :param input: what the schema made of the request.
    :param view_args: the values in the URL.
    :param context: what the application's `context` hook returned.
    """

    feature: str
    owner: str
    user: Any
    input: Any
    view_args: Mapping[str, Any] = field(default_factory=dict)
    context: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run's function ended."""

    state: State
    result: Any = None
    error: LLMStreamError | None = None
    finish_reason: FinishReason | None = None


class Run:
    """A piece of model work: what an application's function is given, and what `run_ended` brings.

    :param order: what was asked for.
    :param claim: the run's idempotency key.
    :param log: where its events go.
    :param app_context: opens an application context of its own; what is opened inside it, such as a database
        session, is given back at its end.
    """

    model: BoundModel
    """The language model, bound to what this run may use of it."""
    audience: Audience
    task: Task | None

    def __init__(
        self,
        run_id: str,
        order: Order,
        claim: Claim,
        log: Log,
        app_context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.id = run_id
        self.owner = order.owner
        self.feature = order.feature
        self.user = order.user
        self.input = order.input
        self.view_args = order.view_args
        self.context = order.context
        self.claim = claim
        self.log = log
        self.app_context = app_context
        self.attempt = 1
        self.created_at = time()
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.timing = Timing(monotonic())
        self.meter = Meter(self.answer_begins)
        self.answering = False
        self.outcome: Outcome | None = None
        self.terminal: bytes | None = None
        self._phase: Phase = "queued"
        self._lock = threading.Lock()
        log.append(Status("queued").encode())

    @property
    def state(self) -> State:
        """Where it stands; it has ended when its terminal event is out."""
        if self.log.ended and self.outcome is not None:
            return self.outcome.state
        return "queued" if self.started_at is None else "in_progress"

    @property
    def cancelled(self) -> bool:
        """Whether it is to stop. A function that works for long without yielding looks at this."""
        return self.meter.cancelled

    @property
    def text(self) -> str:
        """The answer's text so far."""
        text: list[str] = []
        for payload in self.log.entries:
            if payload.startswith(b'{"token"'):
                text.append(_decode(payload)["token"])
            elif payload.startswith(b'{"restarted"'):
                text.clear()
        return "".join(text)

    @property
    def usage(self) -> Usage | None:
        """What its model calls have consumed."""
        return self.meter.usage

    @property
    def ended(self) -> bool:
        """Whether its terminal event is out."""
        return self.log.ended

    @property
    def cursor(self) -> Cursor:
        """Its last event."""
        return Cursor(self.id, self.log.epoch, len(self.log))

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
        elif kind not in (Progress, Data):
            if self.timing.first is None:
                self.timing.first = monotonic()
            if kind is Tool and self._phase != "tool":
                self._enter("tool")
        self.log.append(event.encode())
        if not self.answering and kind is not Status:
            self.answer_begins()

    def answer_begins(self) -> None:
        """From here on the answer is an open stream: an error can no longer become its HTTP status."""
        if not self.answering:
            self.answering = True
            self.log.ring()

    def settle(self, outcome: Outcome) -> bool:
        """Decide how the run ends; whether this caller was the one to decide it."""
        with self._lock:
            if self.outcome is not None:
                return False
            self.outcome = outcome
        self.timing.ended = monotonic()
        self.ended_at = time()
        try:
            self.terminal = self._make_terminal(outcome).encode()
        except NOT_JSON as error:  # the extensions of an application's own error
            self.outcome = Outcome(state="failed", error=InvalidOutput())
            self.terminal = self._make_terminal(self.outcome).encode()
            logger.error("run %s of %s ended by an error that JSON cannot hold: %s", self.id, self.feature, error)
        return True

    def close(self) -> None:
        """Make the end known to all readers."""
        assert self.terminal is not None, "a run is settled before it is closed"
        self.audience.close()
        self.log.end(self.terminal)

    def let_go(self) -> None:
        """Keep only what can still be asked for: the rest was the function's, and that of those who hear of its end."""
        self.input = self.context = self.task = None
        self.__dict__.pop("model", None)

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
        return Done(
            done=True,
            tokens=tokens,
            cancelled=outcome.state == "cancelled",
            finish_reason=outcome.finish_reason,
            usage=usage,
            result=outcome.result,
            queue_ms=timing.queue_ms,
            ttft_ms=timing.ttft_ms,
            total_ms=timing.total_ms,
            tokens_per_second=timing.tokens_per_second,
        )
