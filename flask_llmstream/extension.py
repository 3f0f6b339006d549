"""The extension: what an application creates, declares its features on, and registers itself with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakSet

from flask import Flask, current_app
from marshmallow import Schema

from . import cli
from .admission import WhenBusy
from .calls import call
from .driver import add_batches
from .errors import ConfigurationError
from .features import (
    INHERIT,
    Decorator,
    Feature,
    JobFeature,
    ReplyFeature,
    StreamFeature,
    VoiceFeature,
    WebhookURL,
)
from .identity import Visitor, recognize, welcome
from .installation import greet, mount, own_views
from .notices import add_notices
from .providers import Model
from .record import Hooks, Record
from .schemas import ChatInput
from .shapes import Shape
from .voices import Voice
from .writer import Function

F = TypeVar("F", bound=Function)

KEY = "llmstream"


class LLMStream:
    """Language-model features for Flask applications.

    :param app: an application to register with at once; otherwise call `init_app`.
    :param model: what answers: anything that fills `flask_llmstream.providers.Model`. Without it, OpenAI or
        whatever speaks its protocol, as the environment variables of its client say.
    :param identify: returns who sends the current request, as a string or number that lasts, or None for nobody,
        which is answered with 401. Without it, visitors are anonymous where that is allowed.
    :param authorize: ``authorize(user, action, subject)`` returns whether somebody may do something with what is not
        theirs; actions on a run are ``read``, ``stop`` and ``delete``.
    :param context: returns what a run shall know of the request that started it: JSON, such as a locale.
    :param decorators: view decorators for all views.
    :param voice: what calls hear and speak with; without it, OpenAI or whatever speaks its protocol.
    :param url_prefix: where the default chat and the runs are.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        model: Model | None = None,
        identify: Callable[[], str | int | None] | None = None,
        authorize: Callable[[Any, str, Any], bool] | None = None,
        context: Callable[[], Any] | None = None,
        decorators: Sequence[Decorator] = (),
        voice: Voice | None = None,
        url_prefix: str = "/api",
    ) -> None:
        if not url_prefix.startswith("/") or url_prefix.endswith("/"):
            raise ConfigurationError(
                f"url_prefix begins with a slash and does not end with one; {url_prefix!r} does not."
            )
        self.url_prefix = url_prefix
        self._model = model
        self._hooks = Hooks(
            identify=identify,
            authorize=authorize,
            context=context,
            decorators=tuple(decorators),
            voice=voice or Voice(),
        )
        self._features: dict[str, Feature] = {}
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    @property
    def name(self) -> str:
        """The first part of its endpoints' names: ``llmstream``, and what sets its prefix apart from ``/api``."""
        if self.url_prefix == "/api":
            return "llmstream"
        # Flask gives the dot in an endpoint's name a meaning of its own.
        return "llmstream" + self.url_prefix.replace("-", "--").replace("/", "-").replace(".", "_")

    def init_app(self, app: Flask) -> None:
        """Register with an application.

        :raises ConfigurationError: it is registered already, or its configuration is wrong.
        """
        records = app.extensions.setdefault(KEY, {})
        if self.name in records:
            raise ConfigurationError(
                f"This application already has an LLMStream under {self.url_prefix}. Declare features on that one, or "
                "give the second another url_prefix."
            )
        provider = self._model or _default_model()
        record = Record.of(
            app,
            name=self.name,
            url_prefix=self.url_prefix,
            hooks=self._hooks,
            provider=provider,
            beside=next(iter(records.values()), None),
        )
        record.caller = call
        add_notices(record)
        add_batches(record)
        app.register_blueprint(own_views(record))
        app.cli.add_command(cli.commands)
        records[self.name] = record
        self._apps.add(app)
        greet(app, record)
        for feature in self._features.values():
            mount(app, record, feature)

    def stream(
        self,
        rule: str,
        *,
        input: type[Schema] = ChatInput,
        decorators: Sequence[Decorator] = (),
        methods: Sequence[str] = StreamFeature.METHODS,
        roles: Sequence[str] = ("user", "assistant"),
        max_tokens: int | None = None,
        orphan_grace: float | None = INHERIT,
        when_busy: WhenBusy | None = None,
    ) -> Callable[[F], F]:
        """Declare a function whose answer a user watches grow.

        The function takes a run, and yields text or events; an iterator that it returns is consumed, and any other
        value is the run's result. It is returned unchanged.

        :param rule: the whole rule, the prefix included; what it captures is in `run.view_args`.
        :param input: the schema of what clients send.
        :param decorators: view decorators, the outermost first, such as `login_required`.
        :param methods: which of GET and POST start it.
        :param roles: the roles that a client's messages may have.
        :param max_tokens: the most tokens of one answer, below what the configuration allows.
        :param orphan_grace: seconds that it goes on with no reader: 0 stops it at once, None lets it finish.
        :param when_busy: what becomes of a start where its user has no slot (``reject``, ``replace`` or ``join``); None
            leaves it to the configuration.
        :raises ConfigurationError: the rule or the function's name is taken.
        """

        def declare(function: F) -> F:
            self._declare(
                StreamFeature(
                    name=function.__name__,
                    rule=rule,
                    function=function,
                    schema=input,
                    decorators=tuple(decorators),
                    methods=tuple(methods),
                    roles=roles,
                    max_tokens=max_tokens,
                    orphan_grace=orphan_grace,
                    when_busy=when_busy,
                )
            )
            return function

        return declare

    def job(
        self,
        rule: str,
        *,
        input: type[Schema] = ChatInput,
        result: type[Schema] | Schema | None = None,
        status: str | None = None,
        decorators: Sequence[Decorator] = (),
        max_tokens: int | None = None,
        timeout: float | None = 600.0,
        attempts: int = 3,
        retry_on: type[Exception] | Sequence[type[Exception]] = (),
        queue: str = "default",
        webhook: WebhookURL = None,
        when_busy: WhenBusy | None = None,
    ) -> Callable[[F], F]:
        """Declare a function that takes long, and that nobody watches: its POST answers 202 and a status.

        The function is of the same kind as a stream's. It runs in a worker, or without Redis in the web process.

        :param rule: the whole rule, the prefix included.
        :param input: the schema of what clients send; with a `File` in it, they send a form.
        :param result: the schema of what it returns.
        :param status: a rule of its own for the status, with ``<run_id>``, beside the one that all runs have.
        :param decorators: view decorators, the outermost first.
        :param max_tokens: the most tokens of one answer, below what the configuration allows.
        :param timeout: seconds that one attempt may take; None sets no limit.
        :param attempts: how often it is tried: again after the model's passing faults, and where its worker was lost.
        :param retry_on: exceptions of the function's after which it is tried again, too.
        :param queue: the name of the queue where it waits for a worker.
        :param webhook: the URL that is told of its end, or a function that gives it for a run; None leaves it to the
            configuration.
        :param when_busy: as in `stream`.
        :raises ConfigurationError: the rule or the function's name is taken, or `result` cannot be had from a model.
        """

        def declare(function: F) -> F:
            self._declare(
                JobFeature(
                    name=function.__name__,
                    rule=rule,
                    function=function,
                    schema=input,
                    decorators=tuple(decorators),
                    max_tokens=max_tokens,
                    when_busy=when_busy,
                    status=status,
                    result=None if result is None else Shape(result),
                    timeout=timeout,
                    attempts=attempts,
                    retry_on=(retry_on,) if isinstance(retry_on, type) else tuple(retry_on),
                    queue=queue,
                    webhook=webhook,
                )
            )
            return function

        return declare

    def reply(
        self,
        rule: str,
        *,
        input: type[Schema] = ChatInput,
        result: type[Schema] | Schema | None = None,
        decorators: Sequence[Decorator] = (),
        max_tokens: int | None = None,
        timeout: float = 30.0,
        attempts: int = 3,
        when_busy: WhenBusy | None = None,
    ) -> Callable[[F], F]:
        """Declare a function whose answer is short and needed whole: its POST answers one validated object.

        :param rule: the whole rule, the prefix included.
        :param input: the schema of what clients send; with a `File` in it, they send a form.
        :param result: the schema of the answer, which the function has as ``run.result_schema``; None for plain text,
            which is answered as ``{"text": …}``.
        :param decorators: view decorators, the outermost first.
        :param max_tokens: the most tokens of one answer; a reply has to say so.
        :param timeout: seconds that it may take in all.
        :param attempts: how often the model is asked for an answer that fits `result`.
        :param when_busy: as in `stream`.
        :raises ConfigurationError: as `job` does, or `max_tokens` is missing.
        """

        def declare(function: F) -> F:
            self._declare(
                ReplyFeature(
                    name=function.__name__,
                    rule=rule,
                    function=function,
                    schema=input,
                    decorators=tuple(decorators),
                    max_tokens=max_tokens,
                    when_busy=when_busy,
                    result=None if result is None else Shape(result),
                    timeout=timeout,
                    attempts=attempts,
                )
            )
            return function

        return declare

    def voice(
        self,
        rule: str,
        *,
        input: type[Schema] = ChatInput,
        decorators: Sequence[Decorator] = (),
        max_tokens: int | None = None,
        voice: Voice | None = None,
        when_busy: WhenBusy | None = None,
    ) -> Callable[[F], F]:
        """Declare a function with which a user speaks: a WebSocket takes speech, and what it yields is spoken.

        The function is of the same kind as a stream's, and each turn is a run of its own, in a conversation.

        :param rule: the whole rule, the prefix included.
        :param input: the schema of a turn: `ChatInput`, or a subclass with more fields.
        :param decorators: view decorators, the outermost first.
        :param max_tokens: the most tokens of one answer, below what the configuration allows.
        :param voice: what it hears and speaks with; None leaves it to the `LLMStream`.
        :param when_busy: as in `stream`.
        :raises ConfigurationError: the rule or the function's name is taken.
        """

        def declare(function: F) -> F:
            self._declare(
                VoiceFeature(
                    name=function.__name__,
                    rule=rule,
                    function=function,
                    schema=input,
                    decorators=tuple(decorators),
                    max_tokens=max_tokens,
                    voice=voice,
                    when_busy=when_busy,
                )
            )
            return function

        return declare

    def visitor(self) -> Visitor:
        """Who sends the current request.

        A page calls this on its first load, so that an anonymous visitor has an identity before the first message.

        :raises NotAuthenticated: nobody who is let in.
        """
        record = self.record(current_app._get_current_object())  # type: ignore[attr-defined]
        return recognize(record) or welcome()

    def record(self, app: Flask) -> Record:
        """What it knows about an application.

        :raises ConfigurationError: it is not registered there.
        """
        try:
            record: Record = app.extensions[KEY][self.name]
        except KeyError:
            raise ConfigurationError(
                "This LLMStream is not registered with the application. Call llm.init_app(app) where it is created."
            ) from None
        return record

    def _declare(self, feature: Feature) -> None:
        for other in self._features.values():
            if other.rule == feature.rule or other.name == feature.name:
                raise ConfigurationError(
                    f"{feature.name} on {feature.rule}: there is already {other.name} on {other.rule}. "
                    "Each feature has a rule and a name of its own."
                )
        for app in self._apps:
            mount(app, self.record(app), feature)
        self._features[feature.rule] = feature


def _default_model() -> Model:
    from .providers.openai import OpenAI

    model: Model = OpenAI()
    return model
