"""JSON for a client, and every error as problem details (RFC 9457)."""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import msgspec
from flask import Response, request
from werkzeug.exceptions import HTTPException

from .errors import LimitReached, LLMStreamError
from .features import View
from .quotas import rate_limits

log = logging.getLogger("flask_llmstream")

MEDIA_TYPE = "application/problem+json"


def json_response(data: Any, status: int = 200, **headers: str) -> Response:
    """JSON, which no cache may keep: it belongs to one visitor."""
    response = Response(msgspec.json.encode(data), status, mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    response.headers.update(headers)
    return response


def problem_response(error: LLMStreamError, **headers: str) -> Response:
    """An error as problem details (RFC 9457)."""
    response = json_response(error.problem(), error.status, **headers)
    response.mimetype = MEDIA_TYPE
    if isinstance(error, LimitReached):
        response.headers.update(rate_limits(error.standing))
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    return _challenged(response)


def with_problems(view: View) -> View:
    """Make every error that a view or its decorators raise a problem."""

    @functools.wraps(view)
    def wrapped(**view_args: Any) -> Any:
        try:
            return view(**view_args)
        except LLMStreamError as error:
            if error.diagnosis is not None:
                log.warning("%s %r: %s", request.method, request.path, error.diagnosis)
            return problem_response(error)
        except HTTPException as error:
            if error.response is not None or error.code is None:
                raise
            body = {"type": "about:blank", "title": error.name, "status": error.code, "detail": error.description}
            response = json_response(body, error.code)
            response.mimetype = MEDIA_TYPE
            for name, value in error.get_headers():
                if name not in ("Content-Type", "Content-Length"):
                    response.headers[name] = value
            return _challenged(response)

    return wrapped


def _challenged(response: Response) -> Response:
    """RFC 9110 wants a challenge with every 401; this one opens no dialogue in a browser."""
    if response.status_code == 401:
        response.headers.setdefault("WWW-Authenticate", 'Bearer realm="llmstream"')
    return response
