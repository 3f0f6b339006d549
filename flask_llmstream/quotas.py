"""What an owner is told of their limits: headers beside each start, and the members of a refusal.

The headers are those of draft-ietf-httpapi-ratelimit-headers: structured fields, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

from flask import url_for

from .admission import Standing
from .errors import LimitReached
from .record import Record


def rate_limits(standing: Sequence[Standing]) -> dict[str, str]:
    """The headers that say what the quotas are, and what is left of them; none where there are no quotas."""
    if not standing:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{one.name}";q={one.quota};w={ceil(one.window / 1000)}' for one in standing),
        "RateLimit": ", ".join(f'"{one.name}";r={_remaining(one)};t={ceil(one.reset / 1000)}' for one in standing),
    }


def describe(standing: Sequence[Standing]) -> list[dict[str, Any]]:
    """The same as JSON; `window` and `reset` are seconds."""
    return [
        {
            "name": one.name,
            "quota": one.quota,
            "used": one.used,
            "remaining": _remaining(one),
            "window": ceil(one.window / 1000),
            "reset": ceil(one.reset / 1000),
        }
        for one in standing
    ]


@contextmanager
def explained(record: Record) -> Iterator[None]:
    """Have a refusal say which runs are live, so that one of them can be stopped, and how the quotas stand."""
    try:
        yield
    except LimitReached as error:
        error.extensions["live"] = [
            {"id": run_id, "location": url_for(f"{record.name}.run", run_id=run_id)} for run_id in error.live
        ]
        error.extensions["quotas"] = describe(error.standing)
        raise


def _remaining(one: Standing) -> int:
    # A run may use more than was reserved for it, where its function asks the model more than once.
    return max(0, one.quota - one.used)
