"""The views of a run: its status, its events from a cursor, stop, and forget."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, request

from .errors import InvalidCursor, RequestRefused
from .identity import accessible_run, recognize
from .links import Links
from .problems import json_response, with_problems
from .record import Record
from .requests import cursor, require_known_origin
from .status import await_news, describe, outline, status
from .streams import follow, stream_response

STOP_WITHIN = 2.0
"""Seconds that a stop waits to report the end that it brought about."""


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the views of runs."""

    def add(rule: str, endpoint: str, method: str, view: Callable[[Record, str], Response]) -> None:
        def bound(run_id: str) -> Response:
            require_known_origin(request, record)
            return view(record, run_id)

        bound.__name__ = endpoint
        blueprint.add_url_rule(rule, endpoint, with_problems(record.decorated(bound)), methods=[method])

    def listed() -> Response:
        require_known_origin(request, record)
        return _list(record)

    blueprint.add_url_rule("/runs", "runs", with_problems(record.decorated(listed)), methods=["GET"])
    add("/runs/<run_id>", "run", "GET", _status)
    add("/status/<run_id>", "status", "GET", _status)
    add("/runs/<run_id>", "forget", "DELETE", _forget)
    add("/runs/<run_id>/events", "events", "GET", _events)
    add("/runs/<run_id>/cancel", "cancel", "POST", _cancel)


def _list(record: Record) -> Response:
    wanted = request.args.get("status")
    if wanted not in (None, "live"):
        raise RequestRefused("status is live, or left out.")
    visitor = recognize(record)
    feature = request.args.get("feature")
    runs = [] if visitor is None else record.registry.listed(visitor.owner, live=wanted == "live", feature=feature)
    links = Links(record)
    return json_response({"data": [outline(record, run, links) for run in runs]})


def _status(record: Record, run_id: str) -> Response:
    return status(record, accessible_run(record, run_id, "read"))


def _events(record: Record, run_id: str) -> Response:
    run = accessible_run(record, run_id, "read")
    at = cursor(request)
    if at is not None and at.run_id != run_id:
        raise InvalidCursor("The cursor belongs to another run.")
    if request.method == "HEAD":
        return stream_response(iter(()))
    return follow(record, run, at)


def _cancel(record: Record, run_id: str) -> Response:
    run = accessible_run(record, run_id, "stop")
    record.registry.stop(run)
    run = await_news(record, run, STOP_WITHIN)
    return json_response(describe(record, run), 200 if run.ended else 202)


def _forget(record: Record, run_id: str) -> Response:
    record.forget(accessible_run(record, run_id, "delete"))
    return Response(status=204)
