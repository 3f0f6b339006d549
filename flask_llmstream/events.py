"""What a run can say: frozen events, each with one JSON form, in which the field's name is the key.

`Token("Hel")` is ``{"token": "Hel"}`` in SSE data, in WebSocket frames and in the log alike. They are msgspec
structs, frozen dataclasses in all but name: making and encoding one costs a tenth of what the standard library
takes, and this happens once for each token.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Phase = Literal["queued", "thinking", "tool", "writing"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "log_full"]


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Anything that a run's log can hold."""

    def encode(self) -> bytes:
        """The event's JSON form, UTF-8."""
        return encode(self)


class Token(Event, frozen=True, gc=False):
    """A piece of the answer's text."""

    token: str


class Status(Event, frozen=True, gc=False):
    """What the run is doing while no text arrives."""

    status: Phase


class Reasoning(Event, frozen=True, gc=False):
    """A piece of the model's reasoning, where the provider shows it."""

    reasoning: str


class Tool(Event, frozen=True):
    """A tool that the model calls: ``{"id", "name", "arguments"}``, arguments as the JSON text that it wrote."""

    tool: dict[str, Any]


class Progress(Event, frozen=True):
    """How far the work is.

    :param progress: a fraction from 0 to 1.
    :param message: what is being done, for a person.
    """

    progress: float
    message: str | None = None


class Data(Event, frozen=True):
    """Anything of the application's own that is JSON."""

    data: Any


class Restarted(Event, frozen=True):
    """A new writer has taken over: the text before this is void.

    :param restarted: the number of the attempt that begins, 2 for the first repeat.
    """

    restarted: int


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the model consumed, in tokens.

    :param cached_tokens: how many of the prompt's tokens were read from the provider's cache.
    :param reasoning_tokens: how many of the completion's tokens were reasoning.
    :param estimated: the provider did not report it (after a stop it can't), so it was counted here.
    :param models: what each model consumed, where it was not the run's own model alone.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    models: dict[str, Usage] = {}

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
        )


class Terminal(Event, frozen=True):
    """The last event of a run. Each run has exactly one."""


class Done(Terminal, frozen=True, kw_only=True):
    """The run ended without an error: completed, cut short by a limit, or stopped.

    :param tokens: how many tokens the answer has.
    :param cancelled: it was stopped.
    :param heard: what its user has heard of the answer, where it was spoken and cut short.
    :param result: what the function returned, where it returned a value.
    :param result_size: bytes of the result, where it is too large to be an event: the run's status has it.
    :param queue_ms: milliseconds from the request to the function's start.
    :param ttft_ms: milliseconds from the request to the first token, reasoning or tool call; None without one.
    :param total_ms: milliseconds from the request to the end.
    :param tokens_per_second: tokens of the answer over the time from the first to the last.
    :param durable: whether the end is kept where other processes find it; false where Redis could not be reached, and
        what they find may differ.
    """

    done: Literal[True]
    tokens: int
    cancelled: bool = False
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    heard: str | None = None
    result: Any = None
    result_size: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    tokens_per_second: float | None = None
    durable: bool = True


class Failed(Terminal, frozen=True, kw_only=True):
    """The run ended by an error.

    :param error: a sentence for a person.
    :param problem: the problem details (RFC 9457).
    :param durable: as above.
    """

    error: str
    problem: dict[str, Any]
    tokens: int = 0
    usage: Usage | None = None
    total_ms: float | None = None
    durable: bool = True


encode = msgspec.json.Encoder().encode
NOT_JSON = (TypeError, ValueError, RecursionError)
"""What `encode` raises for a value that JSON cannot hold; a lone surrogate in a string is a ValueError."""
