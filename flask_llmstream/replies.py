"""The reply view: one object, whole and validated, for what is short."""

from __future__ import annotations

from typing import Any

from flask import Response, request, url_for

from .anyrun import AnyRun
from .errors import Aborted, AnswerCut, ContentFiltered, LLMStreamError, StoreUnavailable
from .features import ReplyFeature, View
from .problems import json_response, problem_response
from .quotas import rate_limits
from .record import Record
from .requests import request_input, require_known_origin
from .starts import prepare
from .status import await_news, result_of

SLACK = 5.0
"""Seconds beyond its time in which a run has to end."""


def feature_view(record: Record, feature: ReplyFeature) -> View:
    """The view of a reply feature."""

    def view(**view_args: Any) -> Response:
        require_known_origin(request, record)
        schema = record.schema(feature)
        record.open.take_place()
        try:
            start = prepare(record, feature, view_args, lambda: request_input(request, record, schema))
            run, new = start.carry_out()
            await_news(record, run, feature.timeout + SLACK)
        finally:
            record.open.give_back()
        error = _failure(run)
        response = problem_response(error) if error else json_response(_body(record, run))
        response.headers["Location"] = url_for(f"{record.name}.run", run_id=run.id)
        if not new:
            response.headers["Idempotent-Replayed"] = "true"
        response.headers.update(rate_limits(run.standing if new else ()))
        return response

    view.__name__, view.__module__ = feature.name, feature.function.__module__
    return view


def _failure(run: AnyRun) -> LLMStreamError | None:
    """Why there is no answer, if there is none."""
    if not run.ended:
        return StoreUnavailable(retry_after=2.0, diagnosis=f"the end of run {run.id} was not heard")
    if run.state == "cancelled":
        return Aborted("This was stopped before there was an answer.", status=409, title="Stopped")
    if run.state == "incomplete":
        return ContentFiltered() if run.ending.get("finish_reason") == "content_filter" else AnswerCut()
    return run.error


def _body(record: Record, run: AnyRun) -> Any:
    """The object; what is none is put into one."""
    result = result_of(record, run)
    if result is None or isinstance(result, str):
        return {"text": run.text if result is None else result}
    return result if isinstance(result, dict) else {"result": result}
