"""What clients are answered, for the OpenAPI document: bodies, as types of which it has the schemas, and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

import msgspec

from . import events
from .anyrun import State
from .conversations import Message

Node = dict[str, Any]
"""A part of the document."""
JSON = "application/json"
LINES = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
REFERENCE = "#/components/schemas/"

HEADERS: Mapping[str, Node] = {
    "Content-Disposition": {"schema": {"type": "string"}, "description": "What to call the file."},
    "ETag": {"schema": {"type": "string"}, "description": "Changes with every event."},
    "Idempotent-Replayed": {"schema": {"const": "true"}, "description": "The request is one that was sent before."},
    "Link": {"schema": {"type": "string"}, "description": 'With `rel="next"`, where it goes on.'},
    "Location": {"schema": {"type": "string"}, "description": "Where the status is."},
    "Preference-Applied": {"schema": {"type": "string"}, "description": "The preference that was followed."},
    "RateLimit": {"schema": {"type": "string"}, "description": "What is left of the quotas."},
    "RateLimit-Policy": {"schema": {"type": "string"}, "description": "What the quotas are."},
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds after which to ask again."},
    "WWW-Authenticate": {"schema": {"type": "string"}, "description": "A challenge, as RFC 9110 wants it."},
    "X-Cursor": {"schema": {"type": "integer"}, "description": "How many results one has with these."},
}
STARTED = ("Location", "Idempotent-Replayed", "RateLimit", "RateLimit-Policy")


class RunLinks(TypedDict):
    """Where a run is found."""

    self: str
    events: str
    cancel: str


class Problem(TypedDict):
    """Why something failed (RFC 9457); some kinds have further members.

    :param type: the kind.
    :param detail: a sentence for a person.
    :param retry_after: seconds after which the same request may succeed.
    :param errors: what is wrong, by field.
    """

    type: str
    title: str
    status: int
    detail: NotRequired[str | None]
    retry_after: NotRequired[float]
    errors: NotRequired[dict[str, Any]]


class RunOutline(TypedDict):
    """A run without its answer.

    :param attempt: 1, and one more each time that it is tried again.
    :param created_at: seconds since 1970-01-01 00:00 UTC, as all times are.
    :param expires_at: when it is no longer kept.
    :param cost: a decimal number, in the currency of the application's prices.
    :param error: by what it failed.
    """

    id: str
    object: Literal["run"]
    feature: str
    conversation: str | None
    status: State
    attempt: int
    progress: events.Progress | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    usage: events.Usage | None
    cost: str | None
    finish_reason: events.FinishReason | None
    error: Problem | None
    links: RunLinks


class Run(RunOutline):
    """One piece of a language model's work.

    :param cursor: its last event so far; events after that are had with it.
    :param text: the answer so far.
    :param result: what the function returned.
    """

    cursor: str
    text: str
    result: Any


class RunList(TypedDict):
    """Runs, the newest first."""

    data: list[RunOutline]


class ConversationLinks(TypedDict):
    """Where a conversation is found."""

    self: str
    export: str


class Conversation(TypedDict):
    """What is known of a conversation beside its messages.

    :param updated_at: the second of the last message.
    :param head: the message that was added last.
    """

    id: str
    object: Literal["conversation"]
    title: str | None
    created_at: float
    updated_at: float
    head: str | None
    links: ConversationLinks


class ConversationList(TypedDict):
    """Conversations, the one with the latest message first."""

    data: list[Conversation]
    has_more: bool


class ConversationTree(Conversation):
    """A conversation with its messages, of all branches, in the order in which they were added.

    :param run: the run that answers it now.
    """

    messages: list[Message]
    run: str | None


class ConversationExport(TypedDict):
    """A conversation to be kept elsewhere."""

    id: str
    title: str | None
    created_at: float
    updated_at: float
    head: str | None
    messages: list[Message]


class Consumption(TypedDict):
    """What was used.

    :param cost: a decimal number; null where something was used that has no price.
    """

    runs: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: str | None


class DailyConsumption(Consumption):
    """What was used on a day with a model."""

    day: str
    model: str


class Quota(TypedDict):
    """How a quota stands; `window` and `reset` are seconds."""

    name: str
    quota: int
    used: int
    remaining: int
    window: int
    reset: int


class BatchLinks(TypedDict):
    """Where a batch is found."""

    self: str
    results: str
    cancel: str


class BatchCounts(TypedDict):
    """How many inputs there are, and what became of them."""

    total: int
    completed: int
    failed: int


class BatchUsage(TypedDict):
    """What the model consumed, in tokens."""

    prompt_tokens: int
    completion_tokens: int


class Batch(TypedDict):
    """Many inputs for one feature."""

    id: str
    object: Literal["batch"]
    feature: str
    status: State
    created_at: float
    started_at: float | None
    ended_at: float | None
    request_counts: BatchCounts
    usage: BatchUsage
    error: Problem | None
    links: BatchLinks


class BatchList(TypedDict):
    """Batches, the newest first."""

    data: list[Batch]


Account = TypedDict(
    "Account",
    {
        "object": Literal["usage"],
        "from": str,
        "to": str,
        "data": list[DailyConsumption],
        "total": Consumption,
        "quotas": list[Quota],
    },
)

EVENTS = (
    events.Token,
    events.Status,
    events.Reasoning,
    events.Tool,
    events.Progress,
    events.Data,
    events.Restarted,
    events.Done,
    events.Failed,
)
SHAPES = (
    Problem,
    Run,
    RunOutline,
    RunList,
    Conversation,
    ConversationList,
    ConversationTree,
    ConversationExport,
    Account,
    Batch,
    BatchList,
)
PARAMETER = re.compile(r"^\s*:param (\w+): (.*?)(?=^\s*:|\Z)", re.DOTALL | re.MULTILINE)


def shapes() -> dict[str, Node]:
    """The schemas of what is answered, by name."""
    _, components = msgspec.json.schema_components([*SHAPES, *EVENTS], ref_template=REFERENCE + "{name}")
    for component in components.values():
        component.pop("title")
        words = component.pop("description", "")
        described = {name: " ".join(text.split()) for name, text in PARAMETER.findall(words)}
        for name, text in described.items():
            component["properties"][name]["description"] = sentence(text)
        if summary := " ".join(words.partition("\n\n")[0].split()):
            component["description"] = summary.replace("``", "`")
    event = {"description": "What a run says: one of these in each `data:` of its event stream."}
    return components | {"Event": event | {"anyOf": [reference(kind.__name__) for kind in EVENTS]}}


def reference(name: str) -> Node:
    """What stands for a schema."""
    return {"$ref": REFERENCE + name}


def answer(description: str, schema: Node | None = None, *headers: str, media_type: str = JSON) -> Node:
    """What a status comes with.

    :param schema: of its body; None for none.
    """
    found: Node = {"description": description}
    if headers:
        found["headers"] = {name: HEADERS[name] for name in headers}
    if schema is not None:
        found["content"] = {media_type: {"schema": schema}}
    return found


def event_stream(description: str, event: Node | None = None, *headers: str) -> Node:
    """An answer that goes on.

    :param event: the schema of one event's data, for which OpenAPI 3.1 has no place.
    """
    found = answer(description, {"type": "string"}, *headers, media_type=EVENT_STREAM)
    if event is not None:
        found["content"][EVENT_STREAM]["x-event-schema"] = event
    return found


def sentence(text: str) -> str:
    """A text that begins and ends as a sentence does."""
    return text[0].upper() + text[1:].rstrip(".") + "."
