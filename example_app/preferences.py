"""What visitors prefer: kept under their name, and changed only by a page that knows what it was before.

A run takes them along from the request that starts it (the `context` hook), so that they hold in a worker's process
too, and for a job that waits also if they are changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from flask import Flask, Response, current_app, request
from marshmallow import Schema, ValidationError, fields, validate, validates

from flask_llmstream import LLMStream, Run
from flask_llmstream.errors import RequestRefused
from flask_llmstream.problems import json_response, with_problems
from flask_llmstream.providers import Message
from flask_llmstream.record import Record
from flask_llmstream.requests import json_body, require_known_origin
from flask_llmstream.schemas import load
from flask_llmstream.store import Store, digest

RULE = "/api/settings"
LONGEST = 4000
"""Characters of the instructions."""
KEPT = 365 * 86400
"""Seconds after the last change."""
VOICES = ("alloy", "ash", "ballad", "coral", "echo", "sage", "shimmer", "verse")
LANGUAGES = {
    "": "the language of the question",
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "pl": "Polish",
    "pt": "Portuguese",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
"""By their codes (BCP 47)."""
REPLACE = """
-- KEYS: the preferences. ARGV: what they have to be (empty: none are kept), what they become, seconds to keep that.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class Preferences(msgspec.Struct, frozen=True):
    """What one visitor prefers.

    :param model: None leaves it to the application, as it does the temperature.
    :param instructions: what every model call is told first.
    :param voice: what answers sound like where they are spoken.
    :param language: what answers are written in; empty for that of the question.
    """

    model: str | None = None
    temperature: float | None = None
    instructions: str = ""
    voice: str = VOICES[0]
    language: str = ""

    @property
    def encoded(self) -> bytes:
        return msgspec.json.encode(self)

    @property
    def tag(self) -> str:
        """What tells them from what they were before."""
        return digest(self.encoded.decode())

    @property
    def options(self) -> dict[str, Any]:
        """How the model is called."""
        wishes = {"model": self.model, "temperature": self.temperature}
        return {name: value for name, value in wishes.items() if value is not None}

    def told(self, task: str = "") -> list[Message]:
        """What the model is told before anything else, in one message: chat templates allow no second one.

        :param task: what it is to do, where that is not the visitor's question.
        """
        language = f"Write in {LANGUAGES[self.language]}." if self.language else ""
        said = "\n\n".join(filter(None, (task, self.instructions, language)))
        return [{"role": "system", "content": said}] if said else []


class PreferencesInput(Schema):
    """What a visitor may prefer; what is left out is what it is at first.

    :param models: the models that may be named; None allows any.
    """

    model = fields.String(allow_none=True, validate=validate.Length(min=1, max=200))
    temperature = fields.Float(allow_none=True, validate=validate.Range(min=0, max=2, error="Must be from 0 to 2."))
    instructions = fields.String(validate=validate.Length(max=LONGEST))
    voice = fields.String(validate=validate.OneOf(VOICES))
    language = fields.String(validate=validate.OneOf(list(LANGUAGES), error="Not a language that is known here."))

    def __init__(self, *, models: tuple[str, ...] | None) -> None:
        super().__init__()
        self.models = models

    @validates("model")
    def _allowed(self, model: str | None, **_: Any) -> None:
        if model is not None and self.models is not None and model not in self.models:
            raise ValidationError(f"Must be one of: {', '.join(self.models)}.")


class PreconditionRequired(RequestRefused):
    status = 428
    slug = "precondition-required"
    title = "Say which settings you are changing"


class PreconditionFailed(RequestRefused):
    status = 412
    slug = "precondition-failed"
    title = "The settings have been changed elsewhere"


def of(run: Run) -> Preferences:
    """What the one who started a run prefers."""
    return msgspec.convert(run.context or {}, Preferences)


def models(record: Record) -> tuple[str, ...] | None:
    """The models that may be named; None for any."""
    settings = record.settings
    named = settings.models or (settings.model or record.provider.name,)
    return None if "*" in named else tuple(named)


def read(store: Store, owner: str) -> Preferences:
    """What somebody prefers."""
    kept = store.command("GET", _key(store, owner))
    return Preferences() if kept is None else msgspec.json.decode(kept, type=Preferences)


def replace(store: Store, owner: str, before: Preferences, after: Preferences) -> bool:
    """Change them, if they are what they were; whether they are."""
    # Somebody who has changed nothing yet has nothing in the store, and prefers what is so at first.
    seen = (before.encoded, b"") if before == Preferences() else (before.encoded,)
    key = _key(store, owner)
    return any(store.command("EVAL", REPLACE, 1, key, expected, after.encoded, KEPT) for expected in seen)


def add_views(app: Flask, llm: LLMStream) -> None:
    """Mount the settings."""
    record = llm.record(app)
    schema = PreferencesInput(models=models(record))

    def settings() -> Response:
        require_known_origin(request, record)
        owner = llm.visitor().owner
        if request.method == "PUT":
            return _answer(_put(record, schema, owner))
        response = _answer(read(record.store, owner))
        response.make_conditional(request)
        return response

    app.add_url_rule(RULE, "preferences", with_problems(settings), methods=["GET", "PUT"])


def taken_along(llm: LLMStream) -> Mapping[str, Any]:
    """What a run knows of the request that starts it: the preferences of who sends it, as far as they still hold."""
    record = llm.record(current_app._get_current_object())  # type: ignore[attr-defined]
    preferences = read(record.store, llm.visitor().owner)
    allowed = models(record)
    if allowed is not None and preferences.model not in allowed:
        preferences = msgspec.structs.replace(preferences, model=None)
    kept: dict[str, Any] = msgspec.to_builtins(preferences)
    return kept


def _put(record: Record, schema: Schema, owner: str) -> Preferences:
    if "If-Match" not in request.headers:
        raise PreconditionRequired("Send If-Match with the ETag that the settings had when they were read.")
    after = Preferences(**load(schema, json_body(request, record)))
    while True:
        before = read(record.store, owner)
        if not request.if_match.contains(before.tag):
            raise PreconditionFailed("Another page has changed the settings. See what they are now, and save again.")
        if replace(record.store, owner, before, after):
            return after


def _answer(preferences: Preferences) -> Response:
    response = json_response(preferences)
    response.set_etag(preferences.tag)
    return response


def _key(store: Store, owner: str) -> str:
    return store.key("example", "preferences", digest(owner))
