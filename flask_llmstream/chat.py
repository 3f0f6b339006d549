"""The stream view: a user watches the answer grow. POST starts a run, GET is the same for an EventSource."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import MethodNotAllowed

from .codecs.native import REFUSED, refusal
from .errors import LLMStreamError, Overloaded, QueryTooLong, StoreUnavailable
from .events import Failed
from .features import StreamFeature, View
from .identity import accessible_run
from .problems import with_problems
from .quotas import rate_limits
from .record import Record
from .requests import cursor, json_body, query_input, require_event_stream, require_known_origin, require_own_page
from .run import Run
from .schemas import Chat
from .starts import prepare
from .streams import RunStream, come_back, follow, stream_response

RULE = "/chat/stream"


def chat(run: Run) -> Iterator[Any]:
    """The default feature: what the client says goes to the model, and back comes what that answers."""
    asked: Chat = run.input
    return run.model.stream(asked.messages)


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the default chat. An application replaces it by declaring a feature of its own on this rule."""
    rule = record.url_prefix + RULE
    default = StreamFeature(name="chat", rule=rule, function=chat)
    record.features[rule] = default
    record.views[rule] = record.decorated(feature_view(record, default), default.decorators)

    def view(**view_args: Any) -> Any:
        feature = record.features[rule]
        if request.method not in (*feature.methods, "HEAD"):
            raise MethodNotAllowed(feature.methods)
        return record.views[rule](**view_args)

    blueprint.add_url_rule(RULE, "chat", with_problems(view), methods=StreamFeature.METHODS)


def feature_view(record: Record, feature: StreamFeature) -> View:
    """The view of a stream feature."""

    def view(**view_args: Any) -> Any:
        if request.method == "POST":
            return _post(record, feature, view_args)
        require_event_stream(request)
        if request.method == "HEAD":
            return stream_response(iter(()))
        return _get(record, feature, view_args)

    view.__name__, view.__module__ = feature.name, feature.function.__module__
    return view


def _post(record: Record, feature: StreamFeature, view_args: dict[str, Any]) -> Response:
    require_known_origin(request, record)
    stream, limits = _start(record, feature, view_args, lambda: json_body(request, record))
    response = stream.response(refusable=True)
    response.headers.update(limits)
    return response


def _get(record: Record, feature: StreamFeature, view_args: dict[str, Any]) -> Response:
    """Start or resume. Of a start's refusal an EventSource sees neither status nor body: to tell it takes a stream."""
    require_own_page(request, record)
    at = cursor(request)
    if at is not None and at.run_id == REFUSED:
        return Response(status=204)
    try:
        if at is None:
            stream, _ = _start(record, feature, view_args, lambda: query_input(request))
            return stream.response()
    except QueryTooLong:
        raise  # no EventSource could mend that, but its author sees the status
    except (Overloaded, StoreUnavailable) as error:
        return come_back(error)
    except LLMStreamError as error:
        return stream_response(iter([refusal(Failed(error=error.detail, problem=error.problem()).encode())]))
    try:
        return follow(record, accessible_run(record, at.run_id, "read"), at)
    except (Overloaded, StoreUnavailable) as error:
        return come_back(error)


def _start(
    record: Record, feature: StreamFeature, view_args: dict[str, Any], read: Callable[[], Any]
) -> tuple[RunStream, dict[str, str]]:
    """Start the run that a request asks for, or join the one that it repeats, and begin to read it.

    :returns: its stream, and the headers that tell how its owner's quotas stand.
    """
    start = prepare(record, feature, view_args, read)
    with record.open.place():
        run, new = start.carry_out()
        try:
            return RunStream(record, run), rate_limits(run.standing if new else ())
        except BaseException:
            if new:
                record.registry.stop(run)
            raise
