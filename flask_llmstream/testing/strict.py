"""Whether OpenAI would take a JSON schema in the strict mode of structured outputs, by the rules that it documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"pattern", "format"},
    "number": {"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}
KEYWORDS["integer"] = KEYWORDS["number"]
EVERYWHERE = {"type", "enum", "const", "description", "title", "$defs", "definitions"}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
MOST_PROPERTIES = 5000
MOST_VALUES = 1000
"""Of all enums together."""


def asked_for(request: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema that a request for a chat completion wants its answer to fit."""
    schema: Mapping[str, Any] | None = _form(request).get("schema")
    return schema


def objection(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The error that OpenAI answers with, if it does not take the request's `response_format`."""
    form = _form(request)
    if not form:
        return None
    if not NAME.fullmatch(str(form.get("name", ""))):
        return _error(f"Invalid 'response_format.json_schema.name': {form.get('name')!r}.", "invalid_value")
    wrong = next(objections(form.get("schema")), None) if form.get("strict") else None
    if wrong is None:
        return None
    return _error(f"Invalid schema for response_format '{form['name']}': {wrong}", None)


def objections(schema: Any) -> Iterator[str]:
    """What strict mode does not take in a schema, each with its place."""
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        yield "In context=(), schema must be a JSON Schema of 'type: \"object\"'."
        return
    nodes = list(_nodes(schema, ()))
    for place, node in nodes:
        for wrong in _wrong(node, schema):
            yield f"In context={place}, {wrong}"
    if sum(len(node.get("properties", ())) for _, node in nodes) > MOST_PROPERTIES:
        yield f"more than {MOST_PROPERTIES} properties."
    if sum(len(node.get("enum", ())) for _, node in nodes) > MOST_VALUES:
        yield f"more than {MOST_VALUES} values in enums."


def _form(request: Mapping[str, Any]) -> Mapping[str, Any]:
    form: Mapping[str, Any] = (request.get("response_format") or {}).get("json_schema") or {}
    return form


def _error(message: str, code: str | None) -> dict[str, Any]:
    return {"message": message, "type": "invalid_request_error", "param": "response_format", "code": code}


def _nodes(node: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    yield place, node
    for family in ("$defs", "definitions", "properties"):
        for name, below in node.get(family, {}).items():
            yield from _nodes(below, (*place, family, name))
    if isinstance(items := node.get("items"), Mapping):
        yield from _nodes(items, (*place, "items"))
    for number, choice in enumerate(node.get("anyOf", ())):
        yield from _nodes(choice, (*place, "anyOf", str(number)))


def _wrong(node: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in node:
        if set(node) != {"$ref"}:
            yield "$ref cannot have keywords beside it."
        if not _leads_somewhere(node["$ref"], root):
            yield f"reference {node['$ref']!r} leads nowhere."
        return
    if "anyOf" in node:
        unknown = set(node) - {"anyOf", "description", "title"}
    else:
        types = node.get("type", [])
        types = [types] if isinstance(types, str) else types
        if not types or not set(types) <= set(KEYWORDS):
            yield "schema must have a 'type' key."
            return
        unknown = set(node) - EVERYWHERE - set().union(*(KEYWORDS[kind] for kind in types))
    if unknown:
        yield f"{sorted(unknown)} is not permitted."
    if "properties" in node or node.get("type") == "object":
        if node.get("additionalProperties") is not False:
            yield "'additionalProperties' is required to be supplied and to be false."
        if missing := set(node.get("properties", ())) ^ set(node.get("required", ())):
            yield f"'required' is required to include every key in properties. Missing {sorted(missing)}."
    if node.get("format", "date") not in FORMATS:
        yield f"{node['format']!r} is not a valid format."
    if node.get("type") == "array" and "items" not in node:
        yield "array schema missing items."


def _leads_somewhere(reference: str, root: Mapping[str, Any]) -> bool:
    node: Any = root
    for step in filter(None, reference.removeprefix("#").split("/")):
        if not isinstance(node, Mapping) or step not in node:
            return False
        node = node[step]
    return reference.startswith("#")
