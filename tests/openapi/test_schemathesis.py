"""Whatever is sent that the document allows, and much that it does not: no 5xx, and no answer that it does not have.

Event streams are left out, since what they answer is no document; `test_answers` reads them.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from flask_llmstream.operations import OPERATIONS
from tests.openapi.shop import operations, shop

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 15
"""Of each operation, and of each kind: what the document allows, and what it does not."""
PRODUCT = {"name": "A jumper"}
STREAMS = {"events", "feed"}
FILES = {"script", "module", "types"}
"""Somebody has to close them, which schemathesis does not."""
FEATURES = {"appraise", "translate", "judge", "answer"}
ASKED = {*OPERATIONS, *FEATURES, "appraise-status"} - STREAMS - FILES
MISTAKEN = (
    FEATURES
    | {
        name
        for name, operation in OPERATIONS.items()
        if operation.body or operation.content or any(one["in"] == "query" for one in operation.parameters)
    }
    & ASKED
)
"""Those of which a client can get something wrong besides their address, which Flask says itself."""


@pytest.fixture(scope="module")
def app():
    with shop(hooks={"identify": lambda: "ann"}) as (app, _):
        yield app


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_wsgi("/api/openapi.json", app)


def there(app, path):
    """What a path has to name that something is there, which is made for it."""
    client = app.test_client()
    if "{conversation_id}" in path:
        return {"conversation_id": client.post("/api/conversations", json={}).json["id"]}
    if "/batches/{run_id}" in path:
        batch = {"feature": "judge", "inputs": [PRODUCT]}
        return {"run_id": client.post("/api/batches", json=batch).json["id"]}
    if "{run_id}" in path:
        job = client.post("/api/7/products", json=PRODUCT, headers={"Prefer": "wait=5"})
        return {"shop": 7, "run_id": job.json["id"]}
    return {"shop": 7}


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, GenerationMode.POSITIVE) for name in sorted(ASKED)]
    + [(name, GenerationMode.NEGATIVE) for name in sorted(MISTAKEN)],
)
def test_no_answer_is_a_surprise(app, schema, name, mode):
    operation = schema.find_operation_by_id(f"llmstream.{name}")

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        named = there(app, case.path)
        case.path_parameters = {key: named.get(key, value) for key, value in (case.path_parameters or {}).items()}
        if isinstance(case.body, dict):
            case.body.pop("max_tokens", None)  # whoever wants one token of a reply gets a 502, and rightly
            if name == "start_batch" and mode is GenerationMode.POSITIVE:
                case.body["feature"] = "judge"  # the document does not say which there are
        case.call_and_validate(checks=CHECKS)

    ask()


def test_every_operation_is_asked_that_is_no_stream_and_no_file(app):
    document = app.test_client().get("/api/openapi.json").json
    found = {name for name, operation in operations(document).items() if not operation.get("x-event-stream")}
    assert found == {f"llmstream.{name}" for name in ASKED | FILES}
