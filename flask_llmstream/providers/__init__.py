"""Where language models come from: the interface that each provider fills."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..events import Event, FinishReason, Usage

Message = Mapping[str, Any]

CORRECTION = (
    "That answer does not fit the JSON schema. Give all of it again, as JSON alone, with these mistakes corrected:"
)
"""How a message begins that sends an answer back to the model; the errors follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """How long a model may take, in seconds; None waits for ever.

    :param connect: to open a connection.
    :param first_token: from the request to the first piece of the answer.
    :param idle: between two pieces.
    :param total: from the request to the end of the answer.
    """

    connect: float | None = 5.0
    first_token: float | None = 60.0
    idle: float | None = 30.0
    total: float | None = 600.0


@dataclass(kw_only=True, slots=True, eq=False)
class Call:
    """One request to a model: what is asked for, and what the provider reports while it answers.

    The provider calls `accepted` once the model's server has taken the request (its 2xx headers are in),
    and sets `usage` and `finish_reason` as it learns them. While it blocks on a socket it keeps in `abort`
    a function that makes that read fail at once, callable from any thread; before it blocks for the first
    time it looks at `cancelled`.
    """

    messages: Sequence[Message]
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    timeouts: Timeouts = field(default_factory=Timeouts)
    on_accepted: Callable[[], None] = lambda: None

    taken: bool = False
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    abort: Callable[[], None] | None = None
    cancelled: bool = False

    def accepted(self) -> None:
        """Report that the model's server has taken the request: from here on it costs."""
        self.taken = True
        self.on_accepted()

    def cancel(self) -> None:
        """Make the provider leave, also while it waits for the model. Idempotent; callable from any thread."""
        self.cancelled = True
        abort = self.abort  # looked at once: the provider may be leaving by itself
        if abort is not None:
            abort()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A whole answer.

    :param tool_calls: as in the event `Tool`.
    """

    text: str
    tool_calls: Sequence[Mapping[str, Any]] = ()


class Model(Protocol):
    """A language model, shared by all runs of a process. Methods block, and are called from many threads or
    greenlets at once.

    A provider makes one attempt: it raises a `LLMStreamError` (`UpstreamError` and its kinds, or
    `ContentFiltered`), whose `retryable` and `retry_after` say whether the caller may try again.
    """

    @property
    def name(self) -> str:
        """The model that a call gets which names none."""

    def stream(self, call: Call) -> Generator[Event]:
        """Yield the answer as `Token`, `Reasoning` and `Tool` events, each as soon as it has arrived.

        Closing the generator early ends the request.
        """

    def reply(self, call: Call) -> Reply:
        """The whole answer at once."""

    def warm(self) -> None:
        """Open a connection before the first run needs it. Failure is no error."""

    def close(self) -> None:
        """Give back connections."""
