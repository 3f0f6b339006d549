"""The extension: what an application creates, declares its features on, and registers itself with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from flask import Blueprint, Flask, Response, current_app, send_from_directory
from marshmallow import Schema

from . import accounts, batches, chat, cli, feeds, history, jobs, openapi, replies, runs
from .admission import WhenBusy
from .calls import call
from .driver import add_batches
from .errors import ConfigurationError
from .features import INHERIT, Decorator, Feature, JobFeature, ReplyFeature, StreamFeature, View, WebhookURL
from .identity import Visitor, recognize, welcome
from .notices import add_notices, check_receiver
from .problems import with_problems
from .providers import Model
from .record import Hooks, Record
from .runtime import current
from .schemas import ChatInput
from .server import gunicorn_is_loading, gunicorn_worker
from .shapes import Shape
from .streams import close_unsent
from .writer import Function

F = TypeVar("F", bound=Function)

KEY = "llmstream"
STATIC = Path(__file__).with_name("static")

log = logging.getLogger("flask_llmstream")


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
        url_prefix: str = "/api",
    ) -> None:
        if not url_prefix.startswith("/") or url_prefix.endswith("/"):
            raise ConfigurationError(
                f"url_prefix begins with a slash and does not end with one; {url_prefix!r} does not."
            )
        self.url_prefix = url_prefix
        self._model = model
        self._hooks = Hooks(identify=identify, authorize=authorize, context=context, decorators=tuple(decorators))
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
        blueprint = Blueprint(self.name, __name__, url_prefix=self.url_prefix)
        chat.add_views(blueprint, record)
        runs.add_views(blueprint, record)
        batches.add_views(blueprint, record)
        feeds.add_views(blueprint, record)
        history.add_views(blueprint, record)
        accounts.add_views(blueprint, record)
        openapi.add_views(blueprint, record)
        blueprint.add_url_rule("/llmstream.js", "script", lambda: _static("llmstream.js"))
        blueprint.add_url_rule("/llmstream.d.ts", "types", lambda: _static("llmstream.d.ts"))
        blueprint.add_url_rule("/llmstream/<name>", "module", lambda name: _static(f"llmstream/{name}"))
        blueprint.teardown_request(close_unsent)
        app.register_blueprint(blueprint)
        app.cli.add_command(cli.commands)
        records[self.name] = record
        self._apps.add(app)
        if gunicorn_is_loading():
            _greet_at_first_request(app, record)
        else:
            _greet(record)
        for feature in self._features.values():
            _mount(app, record, feature)

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
            _mount(app, self.record(app), feature)
        self._features[feature.rule] = feature


def _mount(app: Flask, record: Record, feature: Feature) -> None:
    if feature.name in record.inner:
        raise ConfigurationError(f"{feature.name} is a name of the package's own; give the function another one.")
    if isinstance(feature, JobFeature):
        check_receiver(record, f"{feature.name}: webhook=", feature.webhook)
    view = record.decorated(_view(record, feature), feature.decorators)
    endpoint = f"{record.name}.{feature.name}"
    if endpoint not in app.view_functions:
        app.add_url_rule(feature.rule, endpoint, with_problems(view), methods=list(feature.methods))
    elif feature.rule != record.url_prefix + chat.RULE:
        raise ConfigurationError(f"{feature.name} is the name of a default view; give the function another name.")
    if isinstance(feature, JobFeature) and feature.status is not None:
        status = record.decorated(jobs.status_view(record, feature), feature.decorators)
        app.add_url_rule(feature.status, endpoint + "-status", with_problems(status), methods=["GET"])
    record.features[feature.rule] = feature
    record.views[feature.rule] = view


def _view(record: Record, feature: Feature) -> View:
    if isinstance(feature, JobFeature):
        return jobs.feature_view(record, feature)
    if isinstance(feature, ReplyFeature):
        return replies.feature_view(record, feature)
    assert isinstance(feature, StreamFeature)
    return chat.feature_view(record, feature)


def _greet(record: Record) -> None:
    """Say where runs live, and have the model's connection ready before the first visitor is."""
    worker = gunicorn_worker()
    record.sweep()
    if record.store.shared:
        log.info("runs are kept in Redis, under %s", record.store.prefix)
    elif worker is not None and worker.cfg.workers > 1:
        log.error(
            "%d worker processes, and each knows its own runs only: status, stop and resume fail whenever they reach "
            "another one. Set LLMSTREAM_REDIS_URL, or run one worker (-w 1).",
            worker.cfg.workers,
        )
    else:
        log.info("runs live in the memory of this process")
    if worker is not None:
        record.registry.wake()
        current().task(partial(_warm, record), lambda: None).start()


def _greet_at_first_request(app: Flask, record: Record) -> None:
    """With --preload the workers are yet to come, and nothing tells when they have."""
    greeted = False

    @app.before_request
    def greet() -> None:
        nonlocal greeted
        if not greeted:
            greeted = True
            _greet(record)


def _warm(record: Record) -> None:
    try:
        record.provider.warm()
    except Exception as error:
        log.info("no connection to the model was opened ahead: %s", error)


def _static(name: str) -> Response:
    # Named here, since what the machine's own tables say of .js and .ts is not always a script.
    return send_from_directory(STATIC, name, mimetype="text/javascript" if name.endswith(".js") else "text/plain")


def _default_model() -> Model:
    from .providers.openai import OpenAI

    model: Model = OpenAI()
    return model
