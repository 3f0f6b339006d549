"""The model as a run sees it: bound to settings that the client can't raise, retried, metered, stoppable."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from .errors import LLMStreamError, RunCancelled
from .events import Event, FinishReason, Usage
from .providers import Call, Message, Model, Reply, Timeouts

log = logging.getLogger("flask_llmstream")

BACKOFF = 0.5
"""Seconds before the first retry, doubled for each further one, up to BACKOFF_MOST."""
BACKOFF_MOST = 8.0
RETRY_AFTER_MOST = 30.0
"""Seconds; a server that wants us to wait longer is refused right away instead."""
CHARACTERS_A_TOKEN = 4
"""For estimates only, where the provider could not report the usage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """What a run's model calls are bound to.

    :param model: the model's name; None leaves it to the provider.
    :param max_tokens: the most that one answer may have.
    :param retries: how often a call that failed before its first token is repeated.
    """

    model: str | None = None
    max_tokens: int
    temperature: float | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: int = 2


class Meter:
    """What the model calls of one run have come to, and the one that is going on.

    :param accepted: called when the model's server has taken a request.
    """

    def __init__(self, accepted: Callable[[], None] = lambda: None) -> None:
        self.accepted = accepted
        self.usage: Usage | None = None
        self.by_model: dict[str, Usage] = {}
        self.finish_reason: FinishReason | None = None
        self.cancelled = False
        self._calls: set[Call] = set()
        self._stopped = threading.Event()

    def begin(self, call: Call) -> None:
        """Count a call in.

        :raises RunCancelled: the run was stopped before.
        """
        self._calls.add(call)
        if self.cancelled:
            self._calls.discard(call)
            raise RunCancelled

    def end(self, call: Call, tokens: int, model: str) -> None:
        """Count a call out, and what it consumed.

        :param model: the model that answered.
        :param tokens: how many tokens of it arrived, in case the provider did not report its usage.
        """
        self._calls.discard(call)
        self.finish_reason = call.finish_reason
        usage = call.usage
        if usage is None and (tokens or (call.taken and self.cancelled)):
            prompt = sum(len(str(message.get("content", ""))) for message in call.messages) // CHARACTERS_A_TOKEN
            usage = Usage(prompt, tokens, estimated=True)
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage + usage
            before = self.by_model.get(model)
            self.by_model[model] = usage if before is None else before + usage

    def cancel(self) -> None:
        """End all calls, and all waits between them. Idempotent; callable from any thread."""
        self.cancelled = True
        self._stopped.set()
        for call in list(self._calls):
            call.cancel()

    def pause(self, seconds: float) -> None:
        """Wait, unless the run is stopped.

        :raises RunCancelled: it was.
        """
        if self._stopped.wait(seconds):
            raise RunCancelled


class BoundModel:
    """A provider's model, for one run.

    :param provider: what answers.
    :param settings: the bounds.
    :param meter: where it is counted.
    """

    def __init__(self, provider: Model, settings: ModelSettings, meter: Meter) -> None:
        self.provider = provider
        self.settings = settings
        self._meter = meter

    @property
    def name(self) -> str:
        """The model that answers."""
        return self.settings.model or self.provider.name

    def stream(self, messages: Sequence[Message], **options: Any) -> Generator[Event]:
        """Yield the answer to `messages` as it arrives.

        :param messages: as in OpenAI's chat completions: mappings with ``role`` and ``content``.
        :param options: ``model``, ``temperature`` and ``max_tokens`` (at most what the run is bound to); anything
            else goes to the provider as it is, such as ``tools``.
        :raises LLMStreamError: the model did not deliver.
        """
        repeats = 0
        while True:
            call = self._begin(messages, options)
            tokens = 0
            try:
                with closing(self.provider.stream(call)) as events:
                    for event in events:
                        tokens += 1
                        yield event
                return
            except LLMStreamError as error:
                if tokens:
                    raise
                pause = self._backoff(error, repeats)
            finally:
                self._meter.end(call, tokens, call.model or self.provider.name)
            self._meter.pause(pause)
            repeats += 1

    def reply(self, messages: Sequence[Message], **options: Any) -> Reply:
        """The whole answer to `messages` at once; parameters and errors as in `stream`."""
        repeats = 0
        while True:
            call = self._begin(messages, options)
            tokens = 0
            try:
                reply = self.provider.reply(call)
                tokens = max(1, len(reply.text) // CHARACTERS_A_TOKEN)
                return reply
            except LLMStreamError as error:
                pause = self._backoff(error, repeats)
            finally:
                self._meter.end(call, tokens, call.model or self.provider.name)
            self._meter.pause(pause)
            repeats += 1

    def _begin(self, messages: Sequence[Message], options: dict[str, Any]) -> Call:
        bound = self.settings
        more = dict(options)
        call = Call(
            messages=messages,
            model=more.pop("model", bound.model),
            max_tokens=min(more.pop("max_tokens", None) or bound.max_tokens, bound.max_tokens),
            temperature=more.pop("temperature", bound.temperature),
            options=more,
            timeouts=bound.timeouts,
            on_accepted=self._meter.accepted,
        )
        self._meter.begin(call)
        return call

    def _backoff(self, error: LLMStreamError, repeats: int) -> float:
        """Seconds to wait before the next attempt: exponential with full jitter, or what the server asked for.

        :raises LLMStreamError: the error, if there shall be no further attempt.
        """
        asked = error.retry_after or 0.0
        if not error.retryable or repeats >= self.settings.retries or asked > RETRY_AFTER_MOST:
            raise error
        log.info("%s; attempt %d follows", error.diagnosis or error, repeats + 2)
        # Also on top of what was asked for, or all that were refused together come back together.
        return asked + random.uniform(0, min(BACKOFF * 2**repeats, BACKOFF_MOST))
