"""What the package's own views have in common: the application's decorators, known origins, and problems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import wraps

import pytest
from flask import Blueprint, abort, request
from flask.testing import FlaskClient

from flask_llmstream.errors import RunNotFound
from flask_llmstream.mounting import mount
from flask_llmstream.problems import json_response
from tests.conversation import problem
from tests.puppet import stage

FOREIGN = {"Origin": "https://evil.example"}


@pytest.fixture
def seen() -> list[str | None]:
    """The endpoints that the decorators of all views have seen, and the names of what they were put around."""
    return []


@pytest.fixture
def client(seen: list[str | None]) -> Iterator[FlaskClient]:
    """Of an application with a view that is mounted: of a GET and of a POST."""

    def guard(view):
        @wraps(view)
        def guarded(**view_args):
            seen.extend([request.endpoint, view.__name__])
            if "X-Barred" in request.headers:
                abort(403, "Barred.")
            return view(**view_args)

        return guarded

    def view(record, name):
        if name == "nobody":
            raise RunNotFound
        return json_response({"extension": record.name, "name": name})

    with ExitStack() as stack:
        app, llm = stack.enter_context(stage(hooks={"decorators": [guard]}))
        blueprint = Blueprint("own", __name__)
        mount(blueprint, llm.record(app), "/own/<name>", "look", "GET", view)
        mount(blueprint, llm.record(app), "/own/<name>", "change", "POST", view)
        app.register_blueprint(blueprint)
        yield app.test_client()


@pytest.mark.parametrize(("method", "endpoint"), [("GET", "look"), ("POST", "change")])
def test_it_is_given_its_record_and_what_its_rule_captures(client, seen, method, endpoint):
    response = client.open("/own/ann", method=method)
    assert (response.status_code, response.json) == (200, {"extension": "llmstream", "name": "ann"})
    assert seen == [f"own.{endpoint}", endpoint], "each has its name inside the decorators, too"
    assert client.put("/own/ann").status_code == 405


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_foreign_pages_are_refused_inside_the_decorators(client, seen, method):
    """Whoever is not let in is told so, whatever page it comes from."""
    refused = client.open("/own/ann", method=method, headers=FOREIGN)
    assert problem(refused)["type"].endswith("origin-refused")
    assert len(seen) == 2
    assert client.open("/own/ann", method=method, headers=FOREIGN | {"X-Barred": "1"}).status_code == 403


def test_what_it_and_its_decorators_raise_are_problems(client):
    assert problem(client.get("/own/nobody"))["status"] == 404
    barred = problem(client.get("/own/ann", headers={"X-Barred": "1"}))
    assert (barred["status"], barred["detail"]) == (403, "Barred.")
