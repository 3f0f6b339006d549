"""The job view: 202 and a status, for what takes long."""

from __future__ import annotations

import re
from typing import Any

from flask import Response, request, url_for

from .anyrun import AnyRun
from .errors import RunNotFound
from .features import CAPTURED, JobFeature, View
from .identity import accessible_run
from .problems import json_response
from .quotas import rate_limits
from .record import Record
from .requests import request_input, require_known_origin
from .starts import prepare
from .status import LONGEST_WAIT, POLL_AGAIN, await_news, describe, patience, status

PREFERS_TO_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?=[,;]|$)", re.IGNORECASE)


def feature_view(record: Record, feature: JobFeature) -> View:
    """The view of a job feature."""

    def view(**view_args: Any) -> Response:
        require_known_origin(request, record)
        schema = record.schema(feature)
        run, new = prepare(record, feature, view_args, lambda: request_input(request, record, schema)).carry_out()
        wait = _preference()
        if wait is not None:
            with patience(record, wait) as seconds:
                run = await_news(record, run, seconds)
        ended = run.ended
        response = json_response(describe(record, run), 200 if wait is not None and ended else 202)
        response.headers["Location"] = _location(record, feature, view_args, run)
        response.headers.update(rate_limits(run.standing if new else ()))
        if not new:
            response.headers["Idempotent-Replayed"] = "true"
        if not ended:
            response.headers["Retry-After"] = POLL_AGAIN
        elif wait is not None:
            response.headers["Preference-Applied"] = f"wait={wait:g}"
        return response

    view.__name__, view.__module__ = feature.name, feature.function.__module__
    return view


def status_view(record: Record, feature: JobFeature) -> View:
    """The view of a job's status under a rule of its own."""

    def view(run_id: str, **_: Any) -> Response:
        require_known_origin(request, record)
        run = accessible_run(record, run_id, "read")
        if run.feature != feature.name:
            raise RunNotFound
        return status(record, run)

    view.__name__, view.__module__ = f"{feature.name}_status", feature.function.__module__
    return view


def _location(record: Record, feature: JobFeature, view_args: dict[str, Any], run: AnyRun) -> str:
    """Where the status is: under the feature's own rule, where it has one."""
    if feature.status is None:
        return url_for(f"{record.name}.run", run_id=run.id)
    captured = {name: value for name, value in view_args.items() if name in CAPTURED.findall(feature.status)}
    return url_for(f"{record.name}.{feature.name}-status", **{**captured, "run_id": run.id})


def _preference() -> float | None:
    """The seconds that the client would wait for the end (RFC 7240), if it would."""
    match = PREFERS_TO_WAIT.search(",".join(request.headers.getlist("Prefer")))
    return None if match is None else min(float(match[1]), LONGEST_WAIT)
