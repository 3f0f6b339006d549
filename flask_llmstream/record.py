"""What the extension knows about one application: a record in `app.extensions["llmstream"]`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask
from marshmallow import Schema
from werkzeug.exceptions import HTTPException

from .admission import Allowance
from .anyrun import AnyRun
from .backlog import Queue
from .config import Settings
from .conversations import Conversations, lasting
from .drain import Drain
from .errors import Aborted, ConfigurationError, FeatureFailed, LLMStreamError, RunExpired, RunNotFound
from .features import INHERIT, Decorator, Feature, JobFeature, ReplyFeature, StreamFeature, View, VoiceFeature
from .following import Following
from .ledger import LONGEST_RUN
from .limits import OpenResponses
from .mirror import Mirror
from .models import CHARACTERS_A_TOKEN, ModelSettings
from .order import About, Order
from .providers import Model
from .registry import Registry
from .rq_queue import RQQueue
from .run import Run
from .runtime import current
from .schemas import Bounds, Chat, ChatInput, load
from .sessions import Sessions
from .signals import run_ended
from .store import EmbeddedStore, RedisStore, Store
from .uploads import Folder, from_record
from .voices import Providers, Voice
from .work import Callbacks, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """The code that an application plugs in.

    :param identify: returns who asks (a string or a number that lasts), or None.
    :param authorize: whether a user may do something (``read``, ``stop`` or ``delete``) with a run of another's.
    :param context: returns what a run shall know of its request: JSON only.
    :param decorators: view decorators around every view but the client script's.
    :param voice: what calls hear and speak with.
    """

    identify: Callable[[], str | int | None] | None = None
    authorize: Callable[[Any, str, Any], bool] | None = None
    context: Callable[[], Any] | None = None
    decorators: Sequence[Decorator] = ()
    voice: Voice = field(default_factory=Voice)


log = logging.getLogger("flask_llmstream")

GREENLETS = 200
THREADS = 16
"""How many jobs a process performs at a time, where nothing is configured: most of the time they wait for models."""


def no_caller(record: Record, run: Run, name: str, data: Any) -> Any:
    raise LookupError(name)


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
    uploads: Folder
    enter: Callable[[], AbstractContextManager[Any]]
    """Opens an application context, in which a function may abort as a view may."""
    queue: Queue | None
    """Where jobs wait for workers; None where this process performs them."""
    features: dict[str, Feature] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    inner: dict[str, Feature] = field(default_factory=dict)
    """Features of the package's own that no client can start, by name."""
    voices: dict[str, Providers] = field(default_factory=dict)
    """What calls hear and speak with, by feature; under no name, what those have that name nothing of their own."""
    sessions: Sessions = field(default_factory=Sessions)
    """The calls that go on here."""
    caller: Callable[[Record, Run, str, Any], Any] = no_caller
    """Calls another feature for a run."""
    after_end: list[Callable[[AnyRun], None]] = field(default_factory=list)
    """What the package itself does when a run has ended."""
    after_forget: list[Callable[[AnyRun], None]] = field(default_factory=list)
    """What it does when somebody has deleted one."""
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

        enter = partial(_enter, app)
        queue = RQQueue(store) if isinstance(store, RedisStore) else None
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
                    enter=enter,
                    ended=lambda run: record.ended(app, run),
                    opened=conversations.opened,
                    save=conversations.save,
                    released=lambda run: record.uploads.discard(run.about.data),
                    revive=lambda about: record.revive(about),
                    resume=lambda about: record.resume(about),
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
                queue=queue,
                jobs_at_once=settings.concurrency or (GREENLETS if current().cooperative else THREADS),
            ),
            drain=drain,
            queue=queue,
            enter=enter,
            uploads=Folder(Path(app.instance_path, settings.uploads), settings.max_upload),
            feeds=Following(store, refresh=settings.heartbeat),
            open=beside.open if beside else OpenResponses(settings.max_open, settings.heartbeat, drain),
        )
        return record

    def feature(self, name: str) -> Feature | None:
        """The feature of a name."""
        if name in self.inner:
            return self.inner[name]
        return next((feature for feature in self.features.values() if feature.name == name), None)

    def ended(self, app: Flask, run: AnyRun) -> None:
        """Tell the application of a run that ends, and do what follows."""
        try:
            if run_ended.has_receivers_for(app):
                with app.app_context():
                    run_ended.send(app, run=run, text=lasting(run), state=run.decided, usage=run.usage)
        finally:
            for follow_up in self.after_end:
                try:
                    follow_up(run)
                except Exception:
                    log.exception("run %s of %s has ended, but not all that follows could be done", run.id, run.feature)

    def forget(self, run: AnyRun) -> None:
        """Stop a run, and keep nothing of it.

        :raises StoreUnavailable: others may still know of it.
        """
        self.registry.forget(run)
        for follow_up in self.after_forget:
            follow_up(run)

    def revive(self, about: About) -> Any:
        """A feature's input, of what the record of a run has of it."""
        feature = self.feature(about.feature)
        if feature is None:
            return about.data
        schema = self.schema(feature)
        value = load(schema, from_record(schema, about.data))
        return self.continued(about.owner, value, about.parent or "")[0]

    def resume(self, about: About) -> tuple[Order, Work]:
        """What was admitted elsewhere or before, and what is to be done for it."""
        feature = self.feature(about.feature)
        value, error = None, None
        try:
            if feature is None:
                raise ConfigurationError(diagnosis=f"there is no feature {about.feature}: it was renamed or removed")
            if missing := self.uploads.missing(about.data):
                raise FeatureFailed(diagnosis=f"{missing!r} is not in {self.uploads.path}: do all processes share it?")
            with self.enter():  # as the request had it: a schema may look something up
                value = self.revive(about)
        except LLMStreamError as failed:
            error = failed
        except Exception as failed:
            error = FeatureFailed(diagnosis=f"the input of {about.feature} could not be read: {type(failed).__name__}")
        order = about.order(value)
        if error is None and feature is not None:
            # Also a reply may have waited for its turn, as a part of a batch.
            return order, replace(self.work(feature, value), grace=None, queue=about.queue, attempts=about.attempts)
        return order, self._refused(error or FeatureFailed())

    def providers(self, feature: VoiceFeature) -> Providers:
        """What the calls of a feature hear and speak with."""
        if feature.voice is None:
            return self.voices.setdefault("", Providers(self.hooks.voice))
        return self.voices.setdefault(feature.name, Providers(feature.voice))

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
        work = Work(
            function=feature.function,
            provider=self.provider,
            settings=ModelSettings(
                model=wishes.model or settings.model,
                max_tokens=min(wishes.max_tokens or ceiling, ceiling),
                temperature=wishes.temperature,
                timeouts=settings.timeouts,
                retries=settings.retries,
            ),
            grace=settings.orphan_grace,
            prompt=_estimate(data),
            when_busy=feature.when_busy,
            caller=partial(self.caller, self),
        )
        if isinstance(feature, JobFeature):
            return replace(
                work,
                grace=None,
                queue=feature.queue,
                attempts=feature.attempts,
                timeout=feature.timeout,
                retry_on=feature.retry_on,
                light=feature.light,
                retention=settings.job_retention,
                result_schema=feature.result,
            )
        if isinstance(feature, ReplyFeature):
            asked = replace(work.settings, attempts=feature.attempts)
            return replace(work, settings=asked, timeout=feature.timeout, result_schema=feature.result, repeatable=True)
        if isinstance(feature, StreamFeature) and feature.orphan_grace is not INHERIT:
            return replace(work, grace=feature.orphan_grace)
        return work

    def decorated(self, view: View, decorators: Sequence[Decorator] = ()) -> View:
        """A view inside its own decorators, and those inside the ones that all views have."""
        for decorator in reversed((*self.hooks.decorators, *decorators)):
            view = decorator(view)
        return view

    def sweep(self) -> None:
        """Remove the files that killed processes have left."""
        swept = self.uploads.sweep(2 * LONGEST_RUN)
        if swept:
            log.info("%d files of runs that are gone were removed", swept)

    def close(self) -> None:
        """Stop all runs and let go of everything."""
        self.sessions.close()
        for providers in self.voices.values():
            providers.close()
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
        return lasting(run)

    def _refused(self, error: LLMStreamError) -> Work:
        """What is done for an order that cannot be carried out: it fails."""

        def refuse(run: Run) -> None:
            raise error

        return Work(function=refuse, provider=self.provider, settings=ModelSettings(max_tokens=1), grace=None)

    def _make_schema(self, feature: Feature) -> Schema:
        if not issubclass(feature.schema, ChatInput):
            return self.uploads.bind(feature.schema())
        settings = self.settings
        models = settings.models or (settings.model or self.provider.name,)
        bounds = Bounds(
            roles=feature.roles,
            models=None if "*" in models else models,
            max_message=settings.max_message,
            max_input=settings.max_input,
        )
        return self.uploads.bind(feature.schema(bounds=bounds))


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
