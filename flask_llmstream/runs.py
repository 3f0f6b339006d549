"""The views of a run: its status, its events from a cursor, stop, and forget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.datastructures import ETags

from .attendance import Attendance, RunReading
from .errors import InvalidCursor, Overloaded, RequestRefused
from .identity import accessible_run, recognize
from .links import Links
from .problems import json_response, with_problems
from .record import Record
from .requests import cursor, require_known_origin
from .run import AnyRun
from .streams import follow, stream_response
from .usage import amount, cost

LONGEST_WAIT = 30.0
"""Seconds that ``?wait=`` may ask for."""
STOP_WITHIN = 2.0
"""Seconds that a stop waits to report the end that it brought about."""
POLL_AGAIN = "1"
"""Seconds, for clients that poll."""


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
    add("/runs/<run_id>", "forget", "DELETE", _forget)
    add("/runs/<run_id>/events", "events", "GET", _events)
    add("/runs/<run_id>/cancel", "cancel", "POST", _cancel)


def describe(record: Record, run: AnyRun) -> dict[str, Any]:
    """A run as JSON."""
    return _outline(record, run, Links(record)) | {
        "cursor": str(run.cursor),
        "text": run.text,
        "result": run.ending.get("result"),
    }


def _outline(record: Record, run: AnyRun, links: Links) -> dict[str, Any]:
    """A run as JSON, without its answer."""
    retention = record.settings.retention
    ending = run.ending
    return {
        "id": run.id,
        "object": "run",
        "feature": run.feature,
        "conversation": run.conversation,
        "status": run.state,
        "attempt": run.attempt,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at if ending else None,
        "expires_at": run.ended_at + retention if ending and run.ended_at else None,
        "usage": run.usage,
        "cost": _cost(record, run),
        "finish_reason": ending.get("finish_reason"),
        "error": ending.get("problem"),
        "links": links.to(run.id),
    }


def _list(record: Record) -> Response:
    status = request.args.get("status")
    if status not in (None, "live"):
        raise RequestRefused("status is live, or left out.")
    visitor = recognize(record)
    runs = [] if visitor is None else record.registry.listed(visitor.owner, live=status == "live")
    links = Links(record)
    return json_response({"data": [_outline(record, run, links) for run in runs]})


def _status(record: Record, run_id: str) -> Response:
    run = accessible_run(record, run_id, "read")
    with _patience(record, _wait()) as seconds:
        _await_news(record, run, seconds, known=request.if_none_match)
    tag = _tag(run)
    if request.if_none_match.contains_weak(tag):
        response = Response(status=304, headers={"Cache-Control": "no-store"})
    else:
        response = json_response(describe(record, run))
    response.set_etag(tag, weak=True)
    if not run.ended:
        response.headers["Retry-After"] = POLL_AGAIN
    return response


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
    _await_news(record, run, STOP_WITHIN)
    return json_response(describe(record, run), 200 if run.ended else 202)


def _forget(record: Record, run_id: str) -> Response:
    record.registry.forget(accessible_run(record, run_id, "delete"))
    return Response(status=204)


def _await_news(record: Record, run: AnyRun, seconds: float, *, known: ETags | None = None) -> None:
    """Wait for the run's end; for a client that knows it as far as some tag, for anything after that.

    Whoever asks after a run reads it, however short the wait: an audience that polls keeps it going.
    """
    until = monotonic() + seconds
    reading = RunReading(record, run)
    attendance = Attendance(reading)
    try:
        while not (run.ended or attendance.gone) and (not known or known.contains_weak(_tag(run))):
            left = until - monotonic()
            if left <= 0:
                return
            reading.bell.wait(left)
    finally:
        attendance.close()


@contextmanager
def _patience(record: Record, seconds: float) -> Iterator[float]:
    """How long a poll may wait: not at all where the process has no place for one more open response.

    A poll itself is never refused: it is what a client does that has no stream.
    """
    try:
        if seconds:
            record.open.take_place()
    except Overloaded:
        seconds = 0.0
    try:
        yield seconds
    finally:
        if seconds:
            record.open.give_back()


def _cost(record: Record, run: AnyRun) -> str | None:
    """What it cost, where that is known."""
    usage = run.usage_by_model
    return amount(cost(record.settings.prices, usage)) if usage else None


def _tag(run: AnyRun) -> str:
    return f"{run.state}-{run.log.epoch}-{run.log.n}"


def _wait() -> float:
    text = request.args.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT:
        raise RequestRefused(f"wait is a number of seconds from 0 to {LONGEST_WAIT:g}.")
    return seconds
