"""What an application declares: a function, the rule under which it is reached, and how its work is carried out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from marshmallow import Schema

from .admission import WhenBusy
from .anyrun import AnyRun
from .errors import ConfigurationError
from .schemas import ChatInput
from .shapes import Shape
from .uploads import File, nests_files
from .values import count, one_of, optional, positive_seconds, seconds
from .voices import Voice
from .writer import Function

View = Callable[..., Any]
Decorator = Callable[[View], View]
WebhookURL = str | Callable[[AnyRun], str | None] | None

INHERIT: Any = object()
"""Stands for what the configuration says, where None means something of its own."""
QUEUE = re.compile(r"[a-z0-9_-]{1,64}\Z")
CAPTURED = re.compile(r"<(?:[^:<>]+:)?([^<>]+)>")
"""What a rule captures."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """An application's function and the rule under which it is reached.

    :param schema: what its input must be.
    :param decorators: view decorators for its view.
    :param roles: the roles that a client's messages may have.
    :param max_tokens: the most tokens of one answer; None leaves it to the configuration.
    :param when_busy: what becomes of a start where its user has no slot; None leaves it to the configuration.
    """

    METHODS: ClassVar[tuple[str, ...]] = ("POST",)

    name: str
    rule: str
    function: Function
    schema: type[Schema] = ChatInput
    decorators: Sequence[Decorator] = ()
    methods: Sequence[str] = ("POST",)
    roles: Sequence[str] = ("user", "assistant")
    max_tokens: int | None = None
    when_busy: WhenBusy | None = None

    def __post_init__(self) -> None:
        schema: object = self.schema
        if not (inspect.isclass(schema) and issubclass(schema, Schema)):
            raise ConfigurationError(f"{self.name}: input= takes a marshmallow Schema class, not {schema!r}.")
        if inspect.iscoroutinefunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ConfigurationError(f"{self.name} is async: features are ordinary functions, which may block.")
        unknown = set(self.methods) - set(self.METHODS)
        if unknown or not self.methods:
            taken = " and ".join(self.METHODS)
            raise ConfigurationError(f"{self.name}: it answers {taken}, not {', '.join(sorted(unknown))}.")
        if isinstance(self.roles, str) or not self.roles:
            raise ConfigurationError(f"{self.name}: roles= takes a list of names, not {self.roles!r}.")
        if nests_files(self.schema):
            raise ConfigurationError(f"{self.name}: a File stands at the top of the schema, and not in a nested one.")
        self._check("max_tokens", optional(count))
        self._check("when_busy", optional(one_of("reject", "replace", "join")))

    def _check(self, name: str, check: Callable[[Any], Any]) -> None:
        value = getattr(self, name)
        try:
            check(value)
        except ValueError as error:
            raise ConfigurationError(f"{self.name}: {name}= takes {error}, not {value!r}.") from None


@dataclass(frozen=True, kw_only=True)
class StreamFeature(Feature):
    """A feature whose answer a user watches grow.

    :param orphan_grace: seconds that it goes on with no reader; None lets it finish.
    """

    METHODS: ClassVar[tuple[str, ...]] = ("GET", "POST")

    methods: Sequence[str] = METHODS
    orphan_grace: Any = INHERIT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orphan_grace is not INHERIT:
            self._check("orphan_grace", optional(seconds))
        if any(isinstance(field, File) for field in self.schema._declared_fields.values()):
            raise ConfigurationError(f"{self.name}: a stream takes no files. Declare a job or a reply for them.")


@dataclass(frozen=True, kw_only=True)
class VoiceFeature(Feature):
    """A feature that is spoken with, over a WebSocket.

    :param voice: what it hears and speaks with; None leaves it to the application.
    """

    METHODS: ClassVar[tuple[str, ...]] = ("GET",)

    methods: Sequence[str] = METHODS
    voice: Voice | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not issubclass(self.schema, ChatInput):
            raise ConfigurationError(f"{self.name}: the input of a voice is a ChatInput, or one with more fields.")


@dataclass(frozen=True, kw_only=True)
class ReplyFeature(Feature):
    """A feature whose answer is short, and needed whole.

    :param result: what the answer has to be; None for plain text.
    :param timeout: seconds.
    :param attempts: how often the model is asked for an answer that fits `result`.
    """

    result: Shape | None = None
    timeout: float = 30.0
    attempts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens is None:
            raise ConfigurationError(f"{self.name}: a reply needs max_tokens=, the most tokens that it may have.")
        self._check("timeout", positive_seconds)
        self._check("attempts", count)


@dataclass(frozen=True, kw_only=True)
class JobFeature(Feature):
    """A feature that takes long, and that nobody watches.

    :param status: a rule of its own for its status, with ``<run_id>``; what else it captures, `rule` does, too.
    :param result: what its result has to be; None for anything that is JSON.
    :param timeout: seconds that one attempt may take; None sets no limit.
    :param attempts: how often it is tried.
    :param retry_on: exceptions of the function's after which it is tried again, besides the model's passing faults.
    :param queue: the name of the queue where it waits.
    :param webhook: the URL that is told of its end, or a function that gives it for a run; None leaves it to the
        configuration.
    :param light: it waits for other runs, and takes no worker's place.
    """

    status: str | None = None
    result: Shape | None = None
    timeout: float | None = 600.0
    attempts: int = 3
    retry_on: tuple[type[Exception], ...] = ()
    queue: str = "default"
    webhook: WebhookURL = None
    light: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("timeout", optional(positive_seconds))
        self._check("attempts", count)
        if self.status is not None and "<run_id>" not in self.status:
            raise ConfigurationError(f"{self.name}: status= takes a rule with <run_id>, not {self.status!r}.")
        unknown = set(CAPTURED.findall(self.status or "")) - {"run_id", *CAPTURED.findall(self.rule)}
        if unknown:
            raise ConfigurationError(f"{self.name}: {self.rule} has no {', '.join(sorted(unknown))} for {self.status}.")
        if not QUEUE.match(self.queue):
            raise ConfigurationError(f"{self.name}: queue= takes a name of a-z, 0-9, - and _, not {self.queue!r}.")
        kinds: Sequence[object] = self.retry_on
        if not all(inspect.isclass(kind) and issubclass(kind, Exception) for kind in kinds):
            raise ConfigurationError(f"{self.name}: retry_on= takes exception classes, not {self.retry_on!r}.")
