"""What the extension knows about one application: a record in `app.extensions["llmstream"]`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flask import Flask
from marshmallow import Schema
from werkzeug.exceptions import HTTPException

from .admission import Allowance, WhenBusy
from .config import Settings, count, one_of, optional, seconds
from .conversations import Conversations
from .drain import Drain
from .errors import Aborted, ConfigurationError, RunExpired, RunNotFound
from .following import Following
from .limits import OpenResponses
from .mirror import Mirror
from .models import CHARACTERS_A_TOKEN, ModelSettings
from .order import About
from .providers import Model
from .registry import Callbacks, Registry, Work
from .run import AnyRun
from .schemas import Bounds, Chat, ChatInput, load
from .signals import run_ended
from .store import EmbeddedStore, RedisStore, Store
from .writer import Function

View = Callable[..., Any]
Decorator = Callable[[View], View]

INHERIT: Any = object()
"""Stands for what the configuration says, where None means something of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """The code that an application plugs in.

    :param identify: returns who asks (a string or a number that lasts), or None.
    :param authorize: whether a user may do something (``read``, ``stop`` or ``delete``) with a run of another's.
    :param context: returns what a run shall know of its request: JSON only.
    :param decorators: view decorators around every view but the client script's.
    """

    identify: Callable[[], str | int | None] | None = None
    authorize: Callable[[Any, str, Any], bool] | None = None
    context: Callable[[], Any] | None = None
    decorators: Sequence[Decorator] = ()


@dataclass(frozen=True, kw_only=True)
class Feature:
    """An application's function and the rule under which it streams.

    :param schema: what its input must be.
    :param decorators: view decorators for its view.
    :param roles: the roles that a client's messages may have.
    :param max_tokens: the most tokens of one answer; None leaves it to the configuration.
    :param orphan_grace: seconds that it goes on with no reader; None lets it finish.
    :param when_busy: what becomes of a start where its user has no slot; None leaves it to the configuration.
    """

    name: str
    rule: str
    function: Function
    schema: type[Schema] = ChatInput
    decorators: Sequence[Decorator] = ()
    methods: Sequence[str] = ("GET", "POST")
    roles: Sequence[str] = ("user", "assistant")
    max_tokens: int | None = None
    orphan_grace: Any = INHERIT
    when_busy: WhenBusy | None = None

    def __post_init__(self) -> None:
        schema: object = self.schema
        if not (inspect.isclass(schema) and issubclass(schema, Schema)):
            raise ConfigurationError(f"{self.name}: input= takes a marshmallow Schema class, not {schema!r}.")
        if inspect.iscoroutinefunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ConfigurationError(f"{self.name} is async: features are ordinary functions, which may block.")
        unknown = set(self.methods) - {"GET", "POST"}
        if unknown or not self.methods:
            raise ConfigurationError(f"{self.name}: a stream answers GET and POST, not {', '.join(sorted(unknown))}.")
        if isinstance(self.roles, str) or not self.roles:
            raise ConfigurationError(f"{self.name}: roles= takes a list of names, not {self.roles!r}.")
        self._check("max_tokens", optional(count))
        self._check("when_busy", optional(one_of("reject", "replace", "join")))
        if self.orphan_grace is not INHERIT:
            self._check("orphan_grace", optional(seconds))

    def _check(self, name: str, check: Callable[[Any], Any]) -> None:
        value = getattr(self, name)
        try:
            check(value)
        except ValueError as error:
            raise ConfigurationError(f"{self.name}: {name}= takes {error}, not {value!r}.") from None


@dataclass(kw_only=True)
class Record:
    """One application's part in one `LLMStream`.

    :param name: the first part of its endpoints' names.
    :param url_prefix: where its own routes are.
    :param features: what is declared, by rule; `views` has what serves it.
    """

    name: str
    url_prefix: str
    settings: Settings
    hooks: Hooks
    provider: Model
    store: Store
    conversations: Conversations
    registry: Registry
    feeds: Following
    drain: Drain
    open: OpenResponses
    features: dict[str, Feature] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    _schemas: dict[str, Schema] = field(default_factory=dict)

    @classmethod
    def of(
        cls, app: Flask, *, name: str, url_prefix: str, hooks: Hooks, provider: Model, beside: Record | None = None
    ) -> Record:
        """Read the application's configuration and set up what serves it.

        :param beside: another one of the same application, with which it shares what is the process's.
        """
        settings = Settings.from_config(app.config)
        url, prefix = settings.redis_url, settings.redis_prefix
        store = EmbeddedStore(prefix) if url is None else RedisStore(url, prefix)

        def ended(run: AnyRun) -> None:
            if run_ended.has_receivers_for(app):
                with app.app_context():
                    run_ended.send(app, run=run, text=run.text, state=run.decided, usage=run.usage)

        def revive(about: About) -> Any:
            for feature in record.features.values():
                if feature.name == about.feature:
                    value = load(record.schema(feature), about.data)
                    return record.continued(about.owner, value, about.parent or "")[0]
            return about.data

        drain = beside.drain if beside else Drain(elsewhere=store.shared)
        conversations = Conversations(store, retention=settings.conversation_retention)

        record = cls(
            name=name,
            url_prefix=url_prefix,
            settings=settings,
            hooks=hooks,
            provider=provider,
            store=store,
            conversations=conversations,
            registry=Registry(
                store,
                Callbacks(
                    enter=partial(_enter, app),
                    ended=ended,
                    opened=conversations.opened,
                    save=conversations.save,
                    revive=revive,
                ),
                allowance=Allowance(
                    runs=settings.max_runs_per_user,
                    busy=settings.when_busy,
                    starts=settings.starts_per_user,
                    tokens=settings.token_budget,
                ),
                retention=settings.retention,
                log_limit=settings.max_log,
                refresh=settings.heartbeat,
                drain=drain,
            ),
            drain=drain,
            feeds=Following(store, refresh=settings.heartbeat),
            open=beside.open if beside else OpenResponses(settings.max_open, settings.heartbeat, drain),
        )
        return record

    def schema(self, feature: Feature) -> Schema:
        """The schema of a feature's input, made once: making one takes longer than using it."""
        schema = self._schemas.get(feature.rule)
        if schema is None:
            schema = self._schemas[feature.rule] = self._make_schema(feature)
        return schema

    def continued(self, owner: str, value: Any, parent: str | None = None) -> tuple[Any, str | None]:
        """An input with the messages that lead to it, where it goes on with a conversation.

        :param parent: the message that it follows, whatever the input says.
        :returns: the input, and that message's id.
        :raises ConversationNotFound: the conversation has been deleted, or never had such a message.
        :raises InvalidInput: it has no such message.
        """
        if not isinstance(value, Chat) or value.conversation is None:
            return value, None
        parent, history = self.conversations.recall(
            owner,
            value.conversation,
            value.parent if parent is None else parent,
            room=self.settings.max_input - len(value.message),
            so_far=lambda run_id: self._text_so_far(run_id, owner),
        )
        return replace(value, messages=[*history, {"role": "user", "content": value.message}]), parent

    def work(self, feature: Feature, data: Any) -> Work:
        """What a feature does for an input."""
        settings = self.settings
        ceiling = min(feature.max_tokens or settings.max_tokens, settings.max_tokens)
        wishes = data if isinstance(data, Chat) else Chat(messages=())
        return Work(
            function=feature.function,
            provider=self.provider,
            settings=ModelSettings(
                model=wishes.model or settings.model,
                max_tokens=min(wishes.max_tokens or ceiling, ceiling),
                temperature=wishes.temperature,
                timeouts=settings.timeouts,
                retries=settings.retries,
            ),
            grace=settings.orphan_grace if feature.orphan_grace is INHERIT else feature.orphan_grace,
            prompt=_estimate(data),
            when_busy=feature.when_busy,
        )

    def decorated(self, view: View, decorators: Sequence[Decorator] = ()) -> View:
        """A view inside its own decorators, and those inside the ones that all views have."""
        for decorator in reversed((*self.hooks.decorators, *decorators)):
            view = decorator(view)
        return view

    def close(self) -> None:
        """Stop all runs and let go of everything."""
        self.registry.close()
        self.feeds.close()
        self.store.close()
        self.provider.close()

    def _text_so_far(self, run_id: str, owner: str) -> str:
        try:
            run = self.registry.find(run_id, owner)
            if isinstance(run, Mirror):
                run.catch_up()
        except (RunNotFound, RunExpired):
            return ""
        return run.text

    def _make_schema(self, feature: Feature) -> Schema:
        if not issubclass(feature.schema, ChatInput):
            return feature.schema()
        settings = self.settings
        models = settings.models or (settings.model or self.provider.name,)
        return feature.schema(
            bounds=Bounds(
                roles=feature.roles,
                models=None if "*" in models else models,
                max_message=settings.max_message,
                max_input=settings.max_input,
            )
        )


@contextmanager
def _enter(app: Flask) -> Iterator[None]:
    """An application context, in which a function may abort as a view may."""
    with app.app_context():
        try:
            yield
        except HTTPException as error:
            raise Aborted(error.description, status=error.code or 500, title=error.name) from error


def _estimate(data: Any) -> int:
    """The tokens that an input may come to."""
    if isinstance(data, Chat):
        size = sum(len(str(message.get("content", ""))) for message in data.messages)
    else:
        size = len(repr(data))
    return size // CHARACTERS_A_TOKEN
