"""What clients can ask of the extension's own views, and what they are answered, as OpenAPI 3.1 has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from marshmallow import Schema

from . import errors
from .answers import EVENT_STREAM, HEADERS, JSON, LINES, STARTED, Node, answer, event_stream, reference, sentence
from .errors import LLMStreamError
from .problems import MEDIA_TYPE
from .schemas import ConversationInput
from .status import LONGEST_WAIT


def parameter(where: str, name: str, schema: Node, description: str = "") -> Node:
    """A parameter in the path, the query or a header."""
    found: Node = {"name": name, "in": where, "required": where == "path", "schema": schema}
    return found | ({"description": description} if description else {})


WITH_PROBLEMS: Mapping[int, Sequence[str]] = {
    401: ["WWW-Authenticate"],
    429: ["Retry-After", "RateLimit", "RateLimit-Policy"],
    503: ["Retry-After"],
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one rule.

    :param tag: what it belongs to.
    :param answers: by status.
    :param refusals: the kinds of error that a client may be answered with.
    :param refused_with: the headers that an error may have, because there is a run that met it.
    :param body: the schema of what is sent, as JSON.
    :param content: what is sent, by media type, where it is not that.
    """

    summary: str
    tag: str
    answers: Mapping[str, Node]
    refusals: Sequence[type[LLMStreamError]] = ()
    refused_with: Sequence[str] = ()
    parameters: Sequence[Node] = ()
    body: type[Schema] | None = None
    content: Mapping[str, Node] | None = None

    def document(self, name: str, content: Mapping[str, Node] | None = None) -> Node:
        """It as the document has it.

        :param content: what is sent, by media type.
        """
        found: Node = {"operationId": name, "summary": self.summary, "tags": [self.tag]}
        if self.parameters:
            found["parameters"] = list(self.parameters)
        if content is not None:
            found["requestBody"] = {"content": content, "required": True}
        if any(EVENT_STREAM in one.get("content", ()) for one in self.answers.values()):
            found["x-event-stream"] = True
        return found | {
            "responses": dict(sorted({**_problems(self.refusals, self.refused_with), **self.answers}.items()))
        }


def _problems(kinds: Sequence[type[LLMStreamError]], besides: Sequence[str]) -> dict[str, Node]:
    """What errors are answered with, by status."""
    found: dict[str, Node] = {}
    for status in sorted({kind.status for kind in kinds}):
        told = dict.fromkeys(f"`{kind.slug}`: {sentence(kind.title)}" for kind in kinds if kind.status == status)
        headers = dict.fromkeys([*WITH_PROBLEMS.get(status, ()), *besides])
        found[str(status)] = answer(" ".join(told), reference("Problem"), *headers, media_type=MEDIA_TYPE)
    return found


ANYBODY = (errors.NotAuthenticated, errors.OriginRefused, errors.SecretKeyMissing, errors.StoreUnavailable)
ONE_RUN = (*ANYBODY, errors.RunNotFound, errors.RunExpired)
ONE_CONVERSATION = (*ANYBODY, errors.ConversationNotFound)
BODY = (errors.RequestRefused, errors.ContentTooLarge, errors.NotJSON, errors.InvalidInput)
START = (
    *ANYBODY,
    *BODY,
    errors.InvalidKey,
    errors.KeyReused,
    errors.LimitReached,
    errors.Overloaded,
    errors.ShuttingDown,
)
CONVERSED = (errors.ConversationNotFound, errors.HistoryFull)
FAILURE = (
    errors.ContentFiltered,
    errors.UpstreamRateLimited,
    errors.FeatureFailed,
    errors.UpstreamError,
    errors.ModelNotConfigured,
    errors.RunInterrupted,
    errors.UpstreamTimeout,
    errors.RunTimeout,
)
ABORTED = answer(
    "The status with which the application's function aborted; 409 where the run was stopped.",
    reference("Problem"),
    *STARTED,
    media_type=MEDIA_TYPE,
)

CURSOR = (
    parameter("header", "Last-Event-ID", {"type": "string"}, "The last event that the client has."),
    parameter("query", "after", {"type": "string"}, "The same, where no header can be sent."),
)
KEY: Node = {"type": "string", "minLength": 22, "maxLength": 257, "pattern": "^[!-~]+$"}
KEY_MEANS = "Makes a repeated request the same one. At least 128 random bits."
A_MINUTE: Node = {"type": "integer", "minimum": 1}
AT_ONCE: Node = {"type": "integer", "minimum": 1, "maximum": 1000}
IDEMPOTENCY = parameter("header", "Idempotency-Key", KEY, KEY_MEANS)
PREFER = parameter(
    "header",
    "Prefer",
    {"type": "string", "examples": ["wait=10"]},
    f"`wait=N` has the answer wait up to N seconds, at most {LONGEST_WAIT:g}, for the end (RFC 7240).",
)
WAIT = parameter(
    "query",
    "wait",
    {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT},
    "Seconds to wait for the end; with `If-None-Match`, for anything new.",
)
KNOWN = parameter("header", "If-None-Match", {"type": "string"}, "The `ETag` of what is known.")

STREAM = Operation(
    summary="Start and follow.",
    tag="streams",
    answers={"200": event_stream("The run's events.", reference("Event"), *STARTED), "default": ABORTED},
    refusals=(*START, *FAILURE),
    refused_with=STARTED,
    parameters=(IDEMPOTENCY,),
)
EVENT_SOURCE = Operation(
    summary="Start, or resume after an event, as an EventSource does.",
    tag="streams",
    answers={
        "200": event_stream("The run's events. A refusal is one, too.", reference("Event"), "Location"),
        "204": answer("Nothing follows."),
    },
    refusals=(*ANYBODY, errors.InvalidCursor, *ONE_RUN, errors.EventStreamNotAccepted, errors.QueryTooLong),
    parameters=(*CURSOR, parameter("query", "key", KEY, KEY_MEANS)),
)
JOB = Operation(
    summary="Start.",
    tag="jobs",
    answers={
        "200": answer("It has ended while the request waited.", reference("Run"), *STARTED, "Preference-Applied"),
        "202": answer("It is on its way.", reference("Run"), *STARTED, "Retry-After"),
    },
    refusals=START,
    parameters=(IDEMPOTENCY, PREFER),
)
REPLY = Operation(
    summary="Ask.",
    tag="replies",
    answers={"200": answer("The answer.", {}, *STARTED), "default": ABORTED},
    refusals=(*START, *FAILURE, errors.InvalidAnswer, errors.AnswerCut),
    refused_with=STARTED,
    parameters=(IDEMPOTENCY,),
)
STATUS = Operation(
    summary="How a run stands.",
    tag="runs",
    answers={
        "200": answer("Known, whether it goes on or has ended.", reference("Run"), "ETag", "Retry-After"),
        "304": answer("As it is known.", None, "ETag", "Retry-After"),
    },
    refusals=(*ONE_RUN, errors.RequestRefused),
    parameters=(WAIT, KNOWN),
)

OPERATIONS: Mapping[str, Operation] = {
    "runs": Operation(
        summary="One's runs.",
        tag="runs",
        answers={"200": answer("The newest first.", reference("RunList"))},
        refusals=(*ANYBODY, errors.RequestRefused),
        parameters=(
            parameter("query", "status", {"enum": ["live"]}, "Those only that have not ended."),
            parameter("query", "feature", {"type": "string"}, "Those of one feature only."),
        ),
    ),
    "run": STATUS,
    "status": STATUS,
    "forget": Operation(
        summary="Stop a run and forget it.",
        tag="runs",
        answers={"204": answer("It is gone.")},
        refusals=ONE_RUN,
    ),
    "events": Operation(
        summary="The events of a run.",
        tag="runs",
        answers={
            "200": event_stream("From the beginning, or after an event.", reference("Event"), "Location"),
            "204": answer("Nothing follows."),
        },
        refusals=(*ONE_RUN, errors.InvalidCursor, errors.Overloaded),
        parameters=CURSOR,
    ),
    "cancel": Operation(
        summary="Stop a run.",
        tag="runs",
        answers={
            "200": answer("It has ended.", reference("Run")),
            "202": answer("It is about to end.", reference("Run")),
        },
        refusals=ONE_RUN,
    ),
    "feed": Operation(
        summary="What becomes of all of one's runs.",
        tag="runs",
        answers={"200": event_stream("How things stand, and what happens from then on.")},
        refusals=(*ANYBODY, errors.InvalidCursor),
        parameters=CURSOR,
    ),
    "conversations": Operation(
        summary="One's conversations.",
        tag="conversations",
        answers={"200": answer("The one with the latest message first.", reference("ConversationList"))},
        refusals=(*ONE_CONVERSATION, errors.RequestRefused),
        parameters=(
            parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
            parameter("query", "before", {"type": "string"}, "The last one that is known already."),
        ),
    ),
    "begin_conversation": Operation(
        summary="Begin a conversation.",
        tag="conversations",
        answers={"201": answer("It has no messages yet.", reference("Conversation"), "Location")},
        refusals=(*ANYBODY, *BODY, errors.HistoryFull),
        body=ConversationInput,
    ),
    "conversation": Operation(
        summary="A conversation with its messages.",
        tag="conversations",
        answers={"200": answer("All branches.", reference("ConversationTree"))},
        refusals=ONE_CONVERSATION,
    ),
    "rename_conversation": Operation(
        summary="Give a conversation another title.",
        tag="conversations",
        answers={"200": answer("It has the title.", reference("Conversation"))},
        refusals=(*ONE_CONVERSATION, *BODY),
        body=ConversationInput,
    ),
    "delete_conversation": Operation(
        summary="Delete a conversation.",
        tag="conversations",
        answers={"204": answer("It is gone.")},
        refusals=ONE_CONVERSATION,
    ),
    "export_conversation": Operation(
        summary="A conversation as a file.",
        tag="conversations",
        answers={
            "200": {
                "description": "To be kept elsewhere.",
                "content": {
                    JSON: {"schema": reference("ConversationExport")},
                    "text/markdown": {"schema": {"type": "string"}},
                },
                "headers": {"Content-Disposition": HEADERS["Content-Disposition"]},
            }
        },
        refusals=(*ONE_CONVERSATION, errors.RequestRefused),
        parameters=(parameter("query", "format", {"enum": ["json", "markdown"], "default": "json"}),),
    ),
    "usage": Operation(
        summary="What one has used, and what is left of the quotas.",
        tag="usage",
        answers={"200": answer("By day and model.", reference("Account"))},
        refusals=(*ANYBODY, errors.RequestRefused),
        parameters=(
            parameter(
                "query", "from", {"type": "string", "format": "date"}, "The first day; of this month's, if none."
            ),
            parameter("query", "to", {"type": "string", "format": "date"}, "The last day; today, if none."),
        ),
    ),
    "start_batch": Operation(
        summary="Have a feature answer many inputs.",
        tag="batches",
        answers={"202": answer("It is on its way.", reference("Batch"), *STARTED, "Retry-After")},
        refusals=START,
        parameters=(
            IDEMPOTENCY,
            parameter("query", "feature", {"type": "string"}, f"For `{LINES}`, as the others."),
            parameter("query", "requests", A_MINUTE, "The most a minute."),
            parameter("query", "tokens", A_MINUTE, "The most a minute."),
            parameter("query", "concurrency", AT_ONCE, "The most at a time."),
        ),
        content={
            JSON: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "feature": {"type": "string"},
                        "inputs": {"type": "array", "minItems": 1, "items": {}},
                        "rate": {
                            "type": "object",
                            "properties": {"requests": A_MINUTE, "tokens": A_MINUTE},
                            "additionalProperties": False,
                        },
                        "concurrency": AT_ONCE,
                    },
                    "required": ["feature", "inputs"],
                    "additionalProperties": False,
                }
            },
            LINES: {"schema": {"type": "string", "description": "An input a line."}},
        },
    ),
    "batches": Operation(
        summary="One's batches.",
        tag="batches",
        answers={"200": answer("The newest first.", reference("BatchList"))},
        refusals=ANYBODY,
    ),
    "batch": Operation(
        summary="How a batch stands.",
        tag="batches",
        answers={
            **STATUS.answers,
            "200": answer("Known, whether it goes on or has ended.", reference("Batch"), "ETag", "Retry-After"),
        },
        refusals=STATUS.refusals,
        parameters=STATUS.parameters,
    ),
    "forget_batch": Operation(
        summary="Stop a batch and forget it.",
        tag="batches",
        answers={"204": answer("It is gone.")},
        refusals=ONE_RUN,
    ),
    "batch_results": Operation(
        summary="What became of a batch's inputs.",
        tag="batches",
        answers={
            "200": answer(
                "A result a line, in the order in which they came.",
                {"type": "string"},
                "X-Cursor",
                "Link",
                media_type=LINES,
            )
        },
        refusals=(*ONE_RUN, errors.RequestRefused),
        parameters=(
            parameter("query", "after", {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0}),
            parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 1000}),
        ),
    ),
    "cancel_batch": Operation(
        summary="Stop a batch.",
        tag="batches",
        answers={
            "200": answer("It has ended.", reference("Batch")),
            "202": answer("It is about to end.", reference("Batch")),
        },
        refusals=ONE_RUN,
    ),
    "openapi": Operation(
        summary="This document.",
        tag="client",
        answers={"200": answer("OpenAPI 3.1.", {"type": "object"})},
        refusals=(errors.OriginRefused,),
    ),
    **{
        endpoint: Operation(
            summary=summary,
            tag="client",
            answers={
                "200": answer(HTTPStatus.OK.phrase, {"type": "string"}, "ETag", media_type=media_type),
                "304": answer(HTTPStatus.NOT_MODIFIED.phrase, None, "ETag"),
                "404": answer(HTTPStatus.NOT_FOUND.phrase),
            },
        )
        for endpoint, summary, media_type in (
            ("script", "The client.", "text/javascript"),
            ("module", "A part of the client.", "text/javascript"),
            ("types", "The client's types.", "text/plain"),
        )
    },
}
"""What there is beside an application's own features, by endpoint."""
