"""The OpenAPI 3.1 document of all that is mounted, and its operations for the document of the application itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from flask import Blueprint, Flask, Response, current_app, request
from marshmallow import Schema
from werkzeug import routing
from werkzeug.routing.converters import NumberConverter

from . import errors
from .answers import JSON, REFERENCE, Node, answer, reference, shapes
from .components import Components, as_json
from .errors import ConfigurationError
from .features import CAPTURED, Feature, JobFeature, ReplyFeature, StreamFeature, VoiceFeature
from .operations import (
    CONVERSED,
    EVENT_SOURCE,
    JOB,
    OPERATIONS,
    REPLY,
    STATUS,
    STREAM,
    Operation,
    parameter,
)
from .problems import json_response, with_problems
from .record import Record
from .requests import require_known_origin
from .schemas import ChatInput
from .uploads import file_fields, file_of

FORM = "multipart/form-data"
WHO_ASKS = (
    "The application itself identifies who asks, by whatever means it signs its users in with; anonymous visitors, "
    "where it lets them in, by the cookie of its session. Operations with `x-event-stream` answer `text/event-stream`."
)


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the view of the document. It is made when it is first asked for: Flask mounts nothing after that."""
    made: Node = {}

    def openapi() -> Response:
        require_known_origin(request, record)
        if not made:
            made.update(document(record, current_app))
        return json_response({**made, "servers": [{"url": request.script_root or "/"}]})

    blueprint.add_url_rule("/openapi.json", "openapi", with_problems(record.decorated(openapi)), methods=["GET"])


def contribute(spec: APISpec, app: Flask) -> None:
    """Add the operations of an application's features, and of what comes with them, to the application's own document.

    Call it when all features are declared. The schemas get names of their own, such as ``llmstream.Run``.

    :param spec: flask-smorest's ``api.spec``, or any of apispec's, of OpenAPI 3.1.
    :raises ConfigurationError: it is of another version.
    """
    if (spec.openapi_version.major, spec.openapi_version.minor) < (3, 1):
        raise ConfigurationError(
            f"The document is one of OpenAPI {spec.openapi_version}, which has no word for much of what a schema says "
            'here. Set OPENAPI_VERSION to "3.1.0".'
        )
    for record in app.extensions.get("llmstream", {}).values():
        prefix = re.sub(r"[^a-zA-Z0-9._-]", "_", record.name) + "."
        own = _renamed(document(record, app), prefix)
        for name, schema in own["components"]["schemas"].items():
            spec.components.schema(prefix + name, schema)
        for path, item in own["paths"].items():
            parameters = item.pop("parameters", [])
            # flask-smorest's plugin wants a rule. Of this one it finds nothing to add to the parameters.
            rule = routing.Rule(path, defaults={})
            spec.path(path, operations=item, parameters=parameters, rule=rule)


def document(record: Record, app: Flask) -> Node:
    """The document of what one extension has mounted."""
    components = Components(title=app.name, version=version("flask-llmstream"), info={"description": WHO_ASKS})
    for name, shape in shapes().items():
        components.add(name, shape)
    described: set[str] = set()
    for rule in _rules(record, app):
        operations = {
            method: operation
            for method, operation in _operations(record, rule, components)
            if f"{method} {_path(rule)}" not in described
        }
        described |= {f"{method} {_path(rule)}" for method in operations}
        if any(not isinstance(one, routing.UnicodeConverter) for one in rule._converters.values()):
            for operation in operations.values():
                _may_not_be_found(operation)
        if operations:
            components.spec.path(_path(rule), operations=operations, parameters=list(_captured(rule)))
    found: Node = as_json(components.spec.to_dict())
    return found


def _rules(record: Record, app: Flask) -> Iterator[routing.Rule]:
    return (rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith(f"{record.name}."))


def _path(rule: routing.Rule) -> str:
    return CAPTURED.sub(r"{\1}", rule.rule)


def _captured(rule: routing.Rule) -> Iterator[Node]:
    """The parameters of a rule's path."""
    for name in CAPTURED.findall(rule.rule):
        yield parameter("path", name, _converted(rule._converters[name]))


def _converted(converter: routing.BaseConverter) -> Node:
    if isinstance(converter, NumberConverter):
        least = converter.min if converter.signed else max(converter.min or 0, 0)
        bounds = {"minimum": least, "maximum": converter.max}
        kind = "integer" if converter.num_convert is int else "number"
        return {"type": kind} | {name: bound for name, bound in bounds.items() if bound is not None}
    if isinstance(converter, routing.UUIDConverter):
        return {"type": "string", "format": "uuid"}
    if isinstance(converter, routing.AnyConverter):
        return {"enum": sorted(converter.items)}
    if converter.part_isolating:
        return {"type": "string", "pattern": "^[^/]+$"}
    return {"type": "string", "minLength": 1}


def _may_not_be_found(operation: Node) -> None:
    """Tell that Flask knows no such address, and says so itself, where what stands in it is not of its rule's type."""
    missing = operation["responses"].setdefault("404", answer("There is no such address."))
    missing.setdefault("content", {})["text/html"] = {"schema": {"type": "string"}}


def _operations(record: Record, rule: routing.Rule, components: Components) -> Iterator[tuple[str, Node]]:
    """What can be asked of a rule, by method."""
    feature = record.features.get(rule.rule)
    if isinstance(feature, VoiceFeature):  # OpenAPI has no word for a WebSocket
        return
    if feature is not None:
        yield from _starts(record, feature, rule.endpoint, components)
        return
    name = rule.endpoint.removeprefix(f"{record.name}.")
    for job in record.features.values():
        if isinstance(job, JobFeature) and job.status == rule.rule:
            yield "get", _returning(job, STATUS, components).document(rule.endpoint)
            return
    for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
        operation = OPERATIONS[name]
        content = operation.content
        if operation.body is not None:
            content = {JSON: {"schema": components.loaded(operation.body())}}
        yield method.lower(), operation.document(rule.endpoint, content)


def _starts(record: Record, feature: Feature, endpoint: str, components: Components) -> Iterator[tuple[str, Node]]:
    """What can be asked of a feature's rule."""
    schema = record.schema(feature)
    operation = _worded(feature, _kind(feature, components))
    if isinstance(schema, ChatInput):
        operation = replace(operation, refusals=(*operation.refusals, *CONVERSED))
    if file_fields(schema):
        operation = replace(operation, refusals=(*operation.refusals, errors.FileRefused))
    if "POST" in feature.methods:
        yield "post", operation.document(endpoint, _content(schema, components))
    if "GET" in feature.methods:
        asked = replace(EVENT_SOURCE, parameters=(*_query(schema, components), *EVENT_SOURCE.parameters))
        yield "get", asked.document(f"{endpoint}-get")


def _kind(feature: Feature, components: Components) -> Operation:
    if isinstance(feature, JobFeature):
        return _returning(feature, JOB, components)
    if isinstance(feature, ReplyFeature):
        told: Node = {"description": '`{"text": …}`, or what the function returned, where that is no text.'}
        schema = told if feature.result is None else components.dumped(feature.result.schema)
        ok = {**REPLY.answers["200"], "content": {JSON: {"schema": schema}}}
        return replace(REPLY, answers={**REPLY.answers, "200": ok})
    assert isinstance(feature, StreamFeature)
    return STREAM


def _returning(job: JobFeature, operation: Operation, components: Components) -> Operation:
    """An operation that answers with a run, where it is known what its function returns."""
    if job.result is None:
        return operation
    result = {"result": {"anyOf": [components.dumped(job.result.schema), {"type": "null"}]}}
    content = {JSON: {"schema": {"allOf": [reference("Run"), {"properties": result}]}}}
    answers = {
        status: {**one, "content": content} if "content" in one else one for status, one in operation.answers.items()
    }
    return replace(operation, answers=answers)


def _worded(feature: Feature, operation: Operation) -> Operation:
    """An operation with the first line of what its function says of itself."""
    words = (inspect.getdoc(feature.function) or "").partition("\n")[0]
    return replace(operation, summary=words or f"{operation.summary[:-1]}: {feature.name}.")


def _content(schema: Schema, components: Components) -> dict[str, Node]:
    """What a start sends: JSON, or a form where there are files."""
    files = file_fields(schema)
    if not files:
        return {JSON: {"schema": components.loaded(schema)}}
    encoding = {name: {"contentType": ", ".join(file_of(listed).types)} for name, listed in files.items()}
    form: Node = {FORM: {"schema": components.loaded(schema), "encoding": encoding}}
    if any(listed.required for listed in files.values()):
        return form
    return form | {JSON: {"schema": components.loaded(schema, without=files)}}


def _query(schema: Schema, components: Components) -> Iterator[Node]:
    """The input as a query has it: what is neither text nor a number has no place there, but for the messages."""
    properties = components.properties(schema)
    for name, node in properties.items():
        types = {node.get("type")} if isinstance(node.get("type", ""), str) else set(node["type"])
        if name == "messages":
            yield {"name": name, "in": "query", "content": {JSON: {"schema": node}}}
        elif not types & {"array", "object"} and "$ref" not in node:
            yield parameter("query", name, node)


def _renamed(node: Any, prefix: str) -> Any:
    """A document whose schemas have a prefix."""
    if isinstance(node, list):
        return [_renamed(value, prefix) for value in node]
    if not isinstance(node, dict):
        return node
    named = {key: _renamed(value, prefix) for key, value in node.items()}
    if isinstance(node.get("$ref"), str):
        named["$ref"] = REFERENCE + prefix + node["$ref"].removeprefix(REFERENCE)
    return named
