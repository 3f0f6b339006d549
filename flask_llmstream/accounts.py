"""The view of one's own account: what was used, by day and model, what it cost, and what is left of the quotas."""

from __future__ import annotations

from datetime import date, datetime

from flask import Blueprint, Response, request

from .errors import RequestRefused
from .identity import recognize
from .problems import json_response, with_problems
from .quotas import describe as describe_quotas
from .record import Record
from .requests import require_known_origin
from .usage import Accounts, describe, standing, today, total

NOBODY = ""
"""Stands for a visitor who has no identity yet, and has used nothing."""


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the view."""

    def usage() -> Response:
        require_known_origin(request, record)
        return _usage(record)

    blueprint.add_url_rule("/usage", "usage", with_problems(record.decorated(usage)))


def _usage(record: Record) -> Response:
    visitor = recognize(record)
    owner = NOBODY if visitor is None else visitor.owner
    first, last = _period()
    settings = record.settings
    entries = Accounts(record.store, settings.prices).of(owner, first, last)
    quotas = standing(record.store, owner, {"starts": settings.starts_per_user, "tokens": settings.token_budget})
    return json_response(
        {
            "object": "usage",
            "from": first.isoformat(),
            "to": last.isoformat(),
            "data": [describe(entry, "day", "model") for entry in entries],
            "total": describe(total(entries)),
            "quotas": describe_quotas(quotas),
        }
    )


def _period() -> tuple[date, date]:
    """The first and the last day that are asked for; this month, where none are."""
    last = _day("to") or today()
    first = _day("from") or last.replace(day=1)
    if first > last:
        raise RequestRefused(f"from={first} is later than to={last}.")
    return first, last


def _day(name: str) -> date | None:
    text = request.args.get(name)
    if not text:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise RequestRefused(f"{name} is a day such as 2026-11-30.") from None
