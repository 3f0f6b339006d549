"""marshmallow schemas as components of an OpenAPI 3.1 document: apispec's, with what it leaves out or gets wrong."""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from typing import Any

import msgspec
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import EXCLUDE, INCLUDE, Schema, fields, validate

from .answers import Node, reference
from .schemas import ChatInput

PYTHON_S_OWN = re.compile(r"\(\?(?![:=!]|<[=!])|\\[AZ]|[*+?}]\+")
"""What a pattern may have that the dialect of JSON Schema (ECMA-262) has not."""


class Components:
    """The schemas of one document, in a spec that has nothing else yet.

    :param info: what `APISpec` takes.
    """

    def __init__(self, **info: Any) -> None:
        plugin = MarshmallowPlugin(schema_name_resolver=self._name)
        self.spec = APISpec(openapi_version="3.1.0", plugins=[plugin], **info)
        assert plugin.converter is not None
        self._converter = plugin.converter
        self._converter.add_attribute_function(_exactly)  # type: ignore[no-untyped-call]
        self._names: set[str] = set()

    def loaded(self, schema: Schema, *, without: Collection[str] = ()) -> Node:
        """A reference to what a schema takes.

        :param without: names of what is left out.
        """
        taken = {name: field for name, field in schema.load_fields.items() if (field.data_key or name) not in without}
        node = self._object(schema, taken)
        if isinstance(schema, ChatInput):
            _bound(node, schema)
        return self.add(type(schema).__name__, node)

    def dumped(self, schema: Schema) -> Node:
        """A reference to what a schema gives out."""
        return self.add(type(schema).__name__, self._object(schema, schema.dump_fields))

    def properties(self, schema: Schema) -> dict[str, Node]:
        """What a schema takes, by name."""
        return {
            field.data_key or name: self._converter.field2property(field) for name, field in schema.load_fields.items()
        }

    def add(self, name: str, node: Node) -> Node:
        """A reference to a component, which is there once, however often it is added."""
        known, free, n = self.spec.components.schemas, name, 1
        while free in self._names and known.get(free) != node:
            n += 1
            free = f"{name}_{n}"
        if free not in self._names:
            self._names.add(free)
            self.spec.components.schema(free, node)
        return reference(free)

    def _object(self, schema: Schema, of: Any) -> Node:
        node: Node = self._converter.fields2jsonschema(of, partial=schema.partial)  # type: ignore[no-untyped-call]
        if schema.unknown != EXCLUDE:
            node["additionalProperties"] = schema.unknown == INCLUDE
        return node

    def _name(self, schema: Any) -> str:
        """A name for a schema that is nested in another one."""
        name = free = (schema if isinstance(schema, type) else type(schema)).__name__
        n = 1
        while free in self._names:
            n += 1
            free = f"{name}_{n}"
        self._names.add(free)
        return free


def as_json(node: Any) -> Any:
    """A part of a document as JSON has it: validators and defaults may be any objects."""
    if isinstance(node, dict):
        return {str(key): as_json(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [as_json(value) for value in node]
    if isinstance(node, Decimal):
        return int(node) if node == node.to_integral_value() else float(node)
    return msgspec.to_builtins(node, enc_hook=str)


def _exactly(converter: Any, field: fields.Field[Any], *, ret: Node) -> Node:
    """The last of apispec's attribute functions: puts right what the others found."""
    if isinstance(field, fields.Decimal) and not field.as_string:
        ret["type"] = ["number", "null"] if field.allow_none else "number"
    for rule in field.validators:
        if isinstance(rule, validate.Range):
            for bound, excluded, inclusive in (
                ("minimum", "exclusiveMinimum", rule.min_inclusive),
                ("maximum", "exclusiveMaximum", rule.max_inclusive),
            ):
                if bound in ret and not inclusive:
                    ret[excluded] = ret.pop(bound)
        if isinstance(rule, validate.Regexp) and "pattern" in ret:
            pattern = _pattern(rule.regex)
            ret.pop("pattern")
            if pattern is not None:
                ret["pattern"] = pattern
    if field.allow_none and "enum" in ret and None not in ret["enum"]:
        ret["enum"] = [*ret["enum"], None]
    return {}


def _pattern(regex: re.Pattern[Any]) -> str | None:
    """A pattern that is matched from the beginning, in words of ECMA-262; None where it has none."""
    if not isinstance(regex.pattern, str) or regex.flags & ~re.UNICODE:
        return None
    pattern = regex.pattern.removeprefix(r"\A").removeprefix("^")
    pattern = re.sub(r"\(\?P<\w+>", "(", re.sub(r"\\Z\Z", "$", pattern))
    if PYTHON_S_OWN.search(pattern):
        return None
    return f"^(?:{pattern})" if "|" in pattern else f"^{pattern}"


def _bound(node: Node, schema: ChatInput) -> None:
    """Tell what a conversation's schema checks by itself."""
    bounds, properties = schema.bounds, node["properties"]
    if "messages" in properties:
        message = {"role": {"enum": list(bounds.roles)}, "content": {"maxLength": bounds.max_message}}
        items = properties["messages"]["items"]
        properties["messages"] |= {
            "items": {"allOf": [items, {"properties": message}]},
            "description": f"All of the conversation; at most {bounds.max_input} characters together.",
        }
    if "message" in properties:
        properties["message"] |= {"minLength": 1, "maxLength": min(bounds.max_message, bounds.max_input)}
    if "model" in properties and bounds.models is not None:
        properties["model"] = {"enum": [name for name in bounds.models if name]}
    node["oneOf"] = [{"required": ["messages"]}, {"required": ["conversation", "message"]}]
    node["dependentRequired"] = {
        "conversation": ["message"],
        "message": ["conversation"],
        "parent": ["conversation"],
    }
