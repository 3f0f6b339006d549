"""The model as a run sees it: bound to settings that the client can't raise, retried, metered, stoppable.

Two things are tried again, in two layers that know nothing of each other. A call that its server did not answer (429,
5xx, no connection) is repeated as it was, after a pause. An answer that does not fit its shape is sent back with what
is wrong with it, as a further call; that one has the retries of any call.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

from .errors import AnswerCut, ContentFiltered, InvalidAnswer, LLMStreamError, RunCancelled
from .events import NOT_JSON, Event, FinishReason, Usage, encode
from .providers import CORRECTION, Call, Message, Model, Reply, Timeouts

log = logging.getLogger("flask_llmstream")

BACKOFF = 0.5
"""Seconds before the first retry, doubled for each further one, up to BACKOFF_MOST."""
BACKOFF_MOST = 8.0
RETRY_AFTER_MOST = 30.0
"""Seconds; a server that wants us to wait longer is refused right away instead."""
CHARACTERS_A_TOKEN = 4
"""For estimates only, where the provider could not report the usage."""
CORRECTION_MOST = 4000
"""Characters of what is wrong with an answer that the model gets to read."""


class Misfit(Exception):
    """An answer that does not fit its shape.

    :param errors: what is wrong with it, by field, as marshmallow has it.
    """

    def __init__(self, errors: Mapping[str, Any]) -> None:
        super().__init__(str(errors))
        self.errors = errors


class AnswerShape(Protocol):
    """The form that an answer shall have."""

    @property
    def name(self) -> str:
        """At most 64 of a-z, A-Z, 0-9, _ and -."""

    @property
    def json_schema(self) -> Mapping[str, Any]:
        """What the model's server holds the answer to."""

    def load(self, text: str) -> Any:
        """What an answer's text says.

        :raises Misfit: it is not of this shape.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """What a run's model calls are bound to.

    :param model: the model's name; None leaves it to the provider.
    :param max_tokens: the most that one answer may have.
    :param retries: how often a call that failed before its first token is repeated.
    :param attempts: how often the model may be asked for an answer of a certain shape, until one fits.
    """

    model: str | None = None
    max_tokens: int
    temperature: float | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: int = 2
    attempts: int = 3


class Meter:
    """What the model calls of one run have come to, and those that are going on, in however many threads.

    :param accepted: called when the model's server has taken a request.
    :param rejected: called with each answer that did not fit its shape, before the model is asked again: the number
        of the attempt, 1 for the first, and the errors by field.
    """

    def __init__(
        self,
        accepted: Callable[[], None] = lambda: None,
        rejected: Callable[[int, Mapping[str, Any]], None] = lambda attempt, errors: None,
    ) -> None:
        self.accepted = accepted
        self.rejected = rejected
        self.usage: Usage | None = None
        self.by_model: dict[str, Usage] = {}
        self.finish_reason: FinishReason | None = None
        self.cancelled = False
        self._calls: set[Call] = set()
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def begin(self, call: Call) -> None:
        """Count a call in.

        :raises RunCancelled: the run was stopped before.
        """
        with self._lock:
            if self.cancelled:
                raise RunCancelled
            self._calls.add(call)

    def end(self, call: Call, tokens: int, model: str) -> None:
        """Count a call out, and what it consumed.

        :param model: the model that answered.
        :param tokens: how many tokens of it arrived, in case the provider did not report its usage.
        """
        usage = call.usage
        if usage is None and (tokens or (call.taken and self.cancelled)):
            prompt = sum(len(str(message.get("content", ""))) for message in call.messages) // CHARACTERS_A_TOKEN
            usage = Usage(prompt, tokens, estimated=True)
        with self._lock:
            self._calls.discard(call)
            self.finish_reason = call.finish_reason
            if usage is not None:
                self._add(model, usage)

    def carry_over(self, used: Mapping[str, Usage]) -> None:
        """Count in what earlier attempts at the same run have consumed, by model."""
        with self._lock:
            for model, usage in used.items():
                self._add(model, usage)

    def cancel(self) -> None:
        """End all calls, and all waits between them. Idempotent; callable from any thread."""
        with self._lock:
            self.cancelled = True
            calls = list(self._calls)
        self._stopped.set()
        for call in calls:
            call.cancel()

    def pause(self, seconds: float) -> None:
        """Wait, unless the run is stopped.

        :raises RunCancelled: it was.
        """
        if self._stopped.wait(seconds):
            raise RunCancelled

    def _add(self, model: str, usage: Usage) -> None:
        self.usage = usage if self.usage is None else self.usage + usage
        before = self.by_model.get(model)
        self.by_model[model] = usage if before is None else before + usage


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

    @overload
    def reply(self, messages: Sequence[Message], shape: None = None, **options: Any) -> Reply: ...

    @overload
    def reply(
        self, messages: Sequence[Message], shape: AnswerShape, *, attempts: int | None = None, **options: Any
    ) -> Any: ...

    def reply(
        self,
        messages: Sequence[Message],
        shape: AnswerShape | None = None,
        *,
        attempts: int | None = None,
        **options: Any,
    ) -> Any:
        """The whole answer to `messages` at once: a `Reply` or, with a shape, what that makes of it.

        The shape's JSON schema goes to the server as ``response_format``, in the strict mode of structured outputs.
        Whatever comes back is validated; what does not fit goes back to the model with the errors. For a server
        without structured outputs give a ``response_format`` of its own, and describe the form in the messages.

        :param messages: as in `stream`.
        :param shape: the form that the answer shall have.
        :param attempts: how often the model may be asked until an answer fits; by default what the run is bound to.
        :param options: as in `stream`.
        :raises InvalidAnswer: none of so many answers fitted.
        :raises AnswerCut: the answer was cut at ``max_tokens`` before it was complete.
        :raises ContentFiltered: the model declined, or a filter cut the answer off.
        :raises LLMStreamError: the model did not deliver.
        """
        if shape is None:
            return self._whole(messages, options)[0]
        return self._shaped(messages, shape, self.settings.attempts if attempts is None else attempts, options)

    def _shaped(self, messages: Sequence[Message], shape: AnswerShape, attempts: int, options: dict[str, Any]) -> Any:
        form = {"name": shape.name, "strict": True, "schema": shape.json_schema}
        options = {"response_format": {"type": "json_schema", "json_schema": form}} | options
        asked, attempt = messages, 1
        while True:
            reply, call = self._whole(asked, options)
            if call.finish_reason == "content_filter":
                raise ContentFiltered
            try:
                return shape.load(reply.text)
            except Misfit as misfit:
                errors = misfit.errors
            if call.finish_reason == "length":
                raise AnswerCut(max_tokens=call.max_tokens)
            if attempt >= attempts:
                raise InvalidAnswer(errors=errors, attempts=attempt)
            log.info("the model's answer does not fit %s: %s; attempt %d follows", shape.name, errors, attempt + 1)
            self._meter.rejected(attempt, errors)
            # The last answer alone: each further one would make the question longer, and repeat the same mistakes.
            asked = [*messages, *_correction(reply.text, errors)]
            attempt += 1

    def _whole(self, messages: Sequence[Message], options: dict[str, Any]) -> tuple[Reply, Call]:
        repeats = 0
        while True:
            call = self._begin(messages, options)
            tokens = 0
            try:
                reply = self.provider.reply(call)
                tokens = max(1, len(reply.text) // CHARACTERS_A_TOKEN)
                return reply, call
            except LLMStreamError as error:
                pause = self._backoff(error, repeats)
            finally:
                self._meter.end(call, tokens, call.model or self.provider.name)
            self._meter.pause(pause)
            repeats += 1

    def _begin(self, messages: Sequence[Message], options: dict[str, Any]) -> Call:
        bound = self.settings
        more = {name: value for name, value in options.items() if value is not None}
        call = Call(
            messages=messages,
            model=more.pop("model", bound.model),
            max_tokens=min(more.pop("max_tokens", 0) or bound.max_tokens, bound.max_tokens),
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


def _correction(text: str, errors: Mapping[str, Any]) -> list[Message]:
    """What the model is told of its answer. An empty one is left out: some servers take no empty messages."""
    try:
        told = encode(errors).decode()
    except NOT_JSON:
        told = str(errors)
    answer: list[Message] = [{"role": "assistant", "content": text}] if text else []
    return [*answer, {"role": "user", "content": f"{CORRECTION}\n{told[:CORRECTION_MOST]}"}]
