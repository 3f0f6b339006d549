"""What an application gets when an `LLMStream` is registered with it: views, and a word in its log."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from flask import Blueprint, Flask, Response, send_from_directory

from . import accounts, batches, chat, feeds, history, jobs, openapi, replies, runs, voice
from .errors import ConfigurationError
from .features import Feature, JobFeature, ReplyFeature, StreamFeature, View, VoiceFeature
from .notices import check_receiver
from .problems import with_problems
from .record import Record
from .runtime import current
from .server import gunicorn_is_loading, gunicorn_worker
from .streams import close_unsent
from .websocket import add_socket_rule

STATIC = Path(__file__).with_name("static")

log = logging.getLogger("flask_llmstream")


def own_views(record: Record) -> Blueprint:
    """The views that are there without any feature of the application's."""
    blueprint = Blueprint(record.name, __name__, url_prefix=record.url_prefix)
    for room in (chat, voice, runs, batches, feeds, history, accounts, openapi):
        room.add_views(blueprint, record)
    blueprint.add_url_rule("/llmstream.js", "script", lambda: _static("llmstream.js"))
    blueprint.add_url_rule("/llmstream.d.ts", "types", lambda: _static("llmstream.d.ts"))
    blueprint.add_url_rule("/llmstream/<name>", "module", lambda name: _static(f"llmstream/{name}"))
    blueprint.teardown_request(close_unsent)
    return blueprint


def mount(app: Flask, record: Record, feature: Feature) -> None:
    """Add a feature of the application's own.

    :raises ConfigurationError: its name is taken, or its webhook's address cannot be one.
    """
    if feature.name in record.inner:
        raise ConfigurationError(f"{feature.name} is a name of the package's own; give the function another one.")
    if isinstance(feature, JobFeature):
        check_receiver(record, f"{feature.name}: webhook=", feature.webhook)
    view = record.decorated(_view(record, feature), feature.decorators)
    endpoint = f"{record.name}.{feature.name}"
    if endpoint not in app.view_functions:
        if isinstance(feature, VoiceFeature):
            add_socket_rule(app, feature.rule, endpoint, with_problems(view))
        else:
            app.add_url_rule(feature.rule, endpoint, with_problems(view), methods=list(feature.methods))
    elif feature.rule not in (record.url_prefix + chat.RULE, record.url_prefix + voice.RULE):
        raise ConfigurationError(f"{feature.name} is the name of a default view; give the function another name.")
    if isinstance(feature, JobFeature) and feature.status is not None:
        status = record.decorated(jobs.status_view(record, feature), feature.decorators)
        app.add_url_rule(feature.status, endpoint + "-status", with_problems(status), methods=["GET"])
    record.features[feature.rule] = feature
    record.views[feature.rule] = view


def greet(app: Flask, record: Record) -> None:
    """Say where runs live, and have the model's connection ready before the first visitor is."""
    if gunicorn_is_loading():
        _greet_at_first_request(app, record)
    else:
        _greet(record)


def _view(record: Record, feature: Feature) -> View:
    if isinstance(feature, JobFeature):
        return jobs.feature_view(record, feature)
    if isinstance(feature, ReplyFeature):
        return replies.feature_view(record, feature)
    if isinstance(feature, VoiceFeature):
        return voice.feature_view(record, feature)
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
    spoken = [feature for feature in list(record.features.values()) if isinstance(feature, VoiceFeature)]
    providers = {id(one): one for one in map(record.providers, spoken)}
    for warm in (record.provider.warm, *(one.warm for one in providers.values())):
        try:
            warm()
        except Exception as error:
            log.info("not all was made ready ahead: %s", error)


def _static(name: str) -> Response:
    # Named here, since what the machine's own tables say of .js and .ts is not always a script.
    return send_from_directory(STATIC, name, mimetype="text/javascript" if name.endswith(".js") else "text/plain")
