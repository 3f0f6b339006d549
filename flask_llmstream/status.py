"""A run as JSON, and the waiting for what becomes of it: what all views have in common that do not stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import msgspec
from flask import Response, request
from werkzeug.datastructures import ETags

from .anyrun import AnyRun
from .attendance import Attendance, RunReading
from .errors import Overloaded, RequestRefused
from .links import Links
from .problems import json_response
from .record import Record
from .usage import amount, cost

LONGEST_WAIT = 30.0
"""Seconds that ``?wait=`` may ask for."""
STOP_WITHIN = 2.0
"""Seconds that a stop waits to report the end that it brought about."""
POLL_AGAIN = "2"
"""Seconds, for clients that poll."""


def describe(record: Record, run: AnyRun) -> dict[str, Any]:
    """A run as JSON."""
    return outline(record, run, Links(record)) | {
        "cursor": str(run.cursor),
        "text": run.text,
        "result": result_of(record, run),
    }


def result_of(record: Record, run: AnyRun) -> Any:
    """What a run's function returned.

    :raises StoreUnavailable: it is kept beside the log, and cannot be read now.
    """
    ending = run.ending
    if "result_size" not in ending:
        return ending.get("result")
    result = record.registry.ledger.result(run.id, run.log.epoch)
    return None if result is None else msgspec.json.decode(result)


def outline(record: Record, run: AnyRun, links: Links) -> dict[str, Any]:
    """A run as JSON, without its answer."""
    retention = run.about.retention or record.settings.retention
    ending = run.ending
    return {
        "id": run.id,
        "object": "run",
        "feature": run.feature,
        "conversation": run.conversation,
        "status": run.state,
        "attempt": run.attempt,
        "progress": run.progress,
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


def status(record: Record, run: AnyRun, describe: Callable[[Record, AnyRun], dict[str, Any]] = describe) -> Response:
    """How a run stands, as the current request wants to know it: at once, or when there is something new.

    :param describe: makes the body.
    """
    with patience(record, _wait()) as seconds:
        run = await_news(record, run, seconds, known=request.if_none_match)
    tag = _tag(run)
    if request.if_none_match.contains_weak(tag):
        response = Response(status=304, headers={"Cache-Control": "no-store"})
    else:
        response = json_response(describe(record, run))
    response.set_etag(tag, weak=True)
    if not run.ended:
        response.headers["Retry-After"] = POLL_AGAIN
    return response


def cancelled(record: Record, run: AnyRun, describe: Callable[[Record, AnyRun], dict[str, Any]] = describe) -> Response:
    """Stop a run, and say how it stands: 202 where its end is yet to come.

    :param describe: makes the body.
    """
    record.registry.stop(run)
    run = await_news(record, run, STOP_WITHIN)
    return json_response(describe(record, run), 200 if run.ended else 202)


def await_news(record: Record, run: AnyRun, seconds: float, *, known: ETags | None = None) -> AnyRun:
    """Wait for the run's end; for a client that knows it as far as some tag, for anything after that.

    Whoever asks after a run reads it, however short the wait: an audience that polls keeps it going.

    :returns: the run as it is then, which may be a further attempt at it.
    """
    until = monotonic() + seconds
    reading = RunReading(record, run)
    attendance = Attendance(reading)
    try:
        while not (run.ended or attendance.over) and (not known or known.contains_weak(_tag(run))):
            left = until - monotonic()
            if left <= 0:
                break
            reading.bell.wait(left)
            run = record.registry.latest(run)
    finally:
        attendance.close()
    return record.registry.latest(run)


@contextmanager
def patience(record: Record, seconds: float) -> Iterator[float]:
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
