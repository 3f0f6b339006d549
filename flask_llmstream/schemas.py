"""What clients may send to the chat, as a marshmallow schema; features bring schemas of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates, validates_schema

from .conversations import ID
from .errors import InvalidInput

MOST_MESSAGES = 1000
LONGEST_TITLE = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A conversation to be continued, and the client's wishes as to how.

    :param messages: all of it, up to the question.
    :param conversation: where it is kept, if it is kept here; the client sends `message` alone then, and what comes
        before it in `messages` is read.
    :param parent: the kept message that `message` follows: None for the last one, an empty one to begin anew.
    :param more: the fields that a schema of the application's own adds.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    conversation: str | None = None
    message: str = ""
    parent: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a client may ask for. The number of tokens is not among it: asking for more than allowed is no mistake.

    :param roles: the roles that messages may have.
    :param models: the models that may be named; None allows any.
    :param max_message: characters of one message.
    :param max_input: characters of all messages together.
    """

    roles: Sequence[str]
    models: Sequence[str] | None
    max_message: int
    max_input: int


CHAT_FIELDS = ("messages", "conversation", "message", "parent", "model", "max_tokens", "temperature")
ONE_OF_BOTH = "Send either messages, or a conversation and a message."


class MessageSchema(Schema):
    """One message of a conversation."""

    role = fields.String(required=True)
    content = fields.String(required=True)


class ConversationInput(Schema):
    """What a client may decide of a conversation: its title."""

    title = fields.String(validate=validate.Length(min=1, max=LONGEST_TITLE))


class ChatInput(Schema):
    """A conversation: what the default chat takes, and each stream feature that names no schema.

    Either the client sends all `messages`, or the `message` that is to follow those that are kept in a `conversation`.

    :param bounds: what a client may ask for.
    """

    messages = fields.List(fields.Nested(MessageSchema), validate=validate.Length(min=1, max=MOST_MESSAGES))
    conversation = fields.String(validate=validate.Regexp(ID, error="Must be 16 to 64 of A-Z, a-z, 0-9, - and _."))
    message = fields.String()
    parent = fields.String(allow_none=True, validate=validate.Length(max=100))
    model = fields.String(validate=validate.Length(min=1, max=200))
    max_tokens = fields.Integer(strict=True, validate=validate.Range(min=1))
    temperature = fields.Float(validate=validate.Range(min=0, max=2))

    def __init__(self, *, bounds: Bounds, **more: Any) -> None:
        super().__init__(**more)
        self.bounds = bounds

    # Each field by itself: a validator of the whole would be silent as soon as any field is wrong.

    @validates("messages")
    def _bounded(self, messages: list[dict[str, str]], **_: Any) -> None:
        bounds = self.bounds
        wrong: dict[Any, Any] = {}
        total = 0
        for place, message in enumerate(messages):
            size = len(message.get("content", ""))  # where that is missing, it is told already
            total += size
            if message.get("role", bounds.roles[0]) not in bounds.roles:
                wrong[place] = {"role": [f"Must be one of: {', '.join(bounds.roles)}."]}
            elif size > bounds.max_message:
                wrong[place] = {"content": [f"Longer than {bounds.max_message} characters."]}
        if wrong:
            raise ValidationError(wrong)
        if total > bounds.max_input:
            raise ValidationError(f"Longer than {bounds.max_input} characters together.")

    @validates("message")
    def _fits(self, message: str, **_: Any) -> None:
        most = min(self.bounds.max_message, self.bounds.max_input)
        if not message:
            raise ValidationError("Shorter than minimum length 1.")
        if len(message) > most:
            raise ValidationError(f"Longer than {most} characters.")

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _asks_once(self, _data: Any, original: Mapping[str, Any], **_: Any) -> None:
        """By what was sent, so that it is said also where other things are wrong."""
        kept = {"conversation", "message", "parent"} & set(original)
        if ("messages" in original) == bool(kept):
            raise ValidationError(ONE_OF_BOTH, "messages")
        missing = {"conversation", "message"} - set(original)
        if kept and missing:
            raise ValidationError({name: ["Missing data for required field."] for name in missing})

    @validates("model")
    def _allowed(self, model: str, **_: Any) -> None:
        models = self.bounds.models
        if models is not None and model not in models:
            names = ", ".join(filter(None, models))
            raise ValidationError(f"Must be one of: {names}." if names else "The application chooses the model.")

    @post_load
    def _chat(self, data: dict[str, Any], **_: Any) -> Chat:
        own = {name: data.pop(name) for name in list(data) if name in CHAT_FIELDS}
        if "parent" in own:
            own["parent"] = own["parent"] or ""
        return Chat(**own, more=data)


def load(schema: Schema, data: Any) -> Any:
    """Validate `data`.

    :raises InvalidInput: its ``errors`` name each field that is wrong.
    """
    if not isinstance(data, Mapping):
        raise InvalidInput("The input must be a JSON object.")
    try:
        return schema.load(data)
    except ValidationError as error:
        errors: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]
        raise InvalidInput(f"The input is not valid: {_first(errors)}", errors=errors) from None


def _first(messages: Any, path: str = "") -> str:
    """The first of marshmallow's nested messages, with its place, as a sentence for a person."""
    while isinstance(messages, Mapping) and messages:
        key, messages = next(iter(messages.items()))
        if key != "_schema":
            path += f".{key}" if path else str(key)
    text = messages[0] if isinstance(messages, list) and messages else "invalid."
    return f"{path}: {text}" if path else str(text)
