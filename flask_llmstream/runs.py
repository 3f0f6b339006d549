"""The views of a run: its status, its events from a cursor, stop, and forget."""

from __future__ import annotations

from functools import partial

from flask import Blueprint, Response, request

from .errors import InvalidCursor, RequestRefused
from .identity import accessible_run, recognize
from .links import Links
from .mounting import mount
from .problems import json_response
from .record import Record
from .requests import cursor
from .status import cancelled, outline, status
from .streams import follow, stream_response


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the views of runs."""

    add = partial(mount, blueprint, record)
    add("/runs", "runs", "GET", _list)
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
    return cancelled(record, accessible_run(record, run_id, "stop"))


def _forget(record: Record, run_id: str) -> Response:
    record.forget(accessible_run(record, run_id, "delete"))
    return Response(status=204)
