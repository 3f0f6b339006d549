"""How the package's own views are mounted: behind the decorators of all views, open to known origins, with problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, request

from .problems import with_problems
from .record import Record
from .requests import require_known_origin


def mount(
    blueprint: Blueprint, record: Record, rule: str, endpoint: str, method: str, view: Callable[..., Response]
) -> None:
    """Mount a view of a record, which is given that and what its rule captures."""

    def bound(**view_args: Any) -> Response:
        require_known_origin(request, record)
        return view(record, **view_args)

    bound.__name__ = endpoint
    blueprint.add_url_rule(rule, endpoint, with_problems(record.decorated(bound)), methods=[method])
