"""A marshmallow schema as the shape of a model's answer: a strict JSON schema on the way out, validation on the way in.

Structured outputs hold an answer to a subset of JSON Schema (OpenAI: "Supported schemas", strict mode): each object
lists all its properties as required and allows no others, so what is optional here may be null there, and such a null
is taken away again before marshmallow sees it. What the subset lacks is told in words in the ``description``;
marshmallow checks everything in any case. apispec converts the fields, to OpenAPI 3.1, whose schemas are JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import islice
from typing import Any, Final

import msgspec
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, ValidationError, fields, validate

from .errors import ConfigurationError
from .models import Misfit

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems")
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
"""What strict mode knows. A pattern it knows, too, but in another dialect than Python's: only those below are sent."""
DECIMAL = r"^-?[0-9]+(\.[0-9]+)?$"
TIME = r"^[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(Z|[+-][0-9]{2}:[0-9]{2})?$"
NAIVE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?$"
URL = r"^[A-Za-z]+://[^ ]+$"
JSON_TYPES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
REFUSED: Final = "x-refused"
REFERENCE = "#/components/schemas/"
MOMENTS = (fields.DateTime, fields.Date, fields.Time)
MOST_TOLD = 50
"""Mistakes of each list or object that are told; a long answer can have thousands."""
FENCE = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)


class Shape:
    """The shape that a model's answer shall have.

    :param schema: a marshmallow schema, as a class or an instance.
    :raises ConfigurationError: it is none, or holds something that structured outputs cannot express; the error names
        the field.
    """

    def __init__(self, schema: type[Schema] | Schema) -> None:
        if not issubclass(schema if isinstance(schema, type) else type(schema), Schema):
            raise ConfigurationError(f"The shape of an answer is a marshmallow Schema, not {schema!r}.")
        self.schema = schema() if isinstance(schema, type) else schema
        self.name = _name(type(self.schema))
        self.json_schema: Mapping[str, Any] = strict_schema(self.schema)

    def load(self, text: str) -> Any:
        """What the schema makes of an answer. A Markdown fence around the JSON is no mistake.

        :raises Misfit: the text is not JSON, or marshmallow does not take it.
        """
        fenced = FENCE.fullmatch(text)
        try:
            data = msgspec.json.decode(fenced[1] if fenced else text)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise Misfit({"_schema": [f"Not a JSON document: {error}."]}) from None
        try:
            return self.schema.load(_without_nulls(data, self.schema))
        except ValidationError as error:
            raise Misfit(_told(error.normalized_messages())) from None  # type: ignore[no-untyped-call]

    def dump(self, loaded: Any) -> Any:
        """What was loaded, or anything that the schema dumps, as JSON data again."""
        return _as_json(self.schema.dump(loaded))


def strict_schema(schema: Schema) -> dict[str, Any]:
    """The strict JSON schema of what a marshmallow schema loads.

    :raises ConfigurationError: there is none.
    """
    if schema.many:
        raise ConfigurationError(
            f"{type(schema).__name__}(many=True) cannot be the shape of an answer: that must be an object. "
            "Put the list into a field of another schema."
        )
    names = _Names()
    plugin = MarshmallowPlugin(schema_name_resolver=names)
    spec = APISpec("", "", "3.1.0", plugins=[plugin])
    assert plugin.converter is not None
    plugin.converter.add_attribute_function(_strictly)  # type: ignore[no-untyped-call]
    root = names(schema)
    spec.components.schema(root, schema=schema)
    return _Document(root, spec.to_dict()["components"]["schemas"]).assemble()


class _Names:
    """A name of its own for each schema, also where one is nested twice with different fields."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def __call__(self, schema: Any) -> str:
        kind = schema if isinstance(schema, type) else type(schema)
        name = _name(kind)
        self._given[name] = self._given.get(name, 0) + 1
        return name if self._given[name] == 1 else f"{name}_{self._given[name]}"


def _name(kind: type) -> str:
    short = kind.__name__.removesuffix("Schema") or kind.__name__
    return re.sub(r"[^a-zA-Z0-9_-]", "_", short)[:60]


def _strictly(converter: Any, field: fields.Field[Any], *, ret: dict[str, Any]) -> dict[str, Any]:
    """The last of apispec's attribute functions: replaces what the others found by what is sent.

    What is refused is only marked. It may lie below a field that is not asked for.
    """
    found = dict(ret)
    ret.clear()
    if field.dump_only:
        return {"readOnly": True}
    if objection := _objection(field, found):
        schema, name = _place(field)
        return {REFUSED: f"{type(schema).__name__}.{name}: {objection}"}
    node = _node(field, found)
    words = [str(field.metadata.get("description", "")), *_in_words(field, found, node)]
    if "$ref" in node and any(words):  # which takes nothing beside it
        node = {"anyOf": [node]}
    if field.allow_none or (isinstance(field.parent, Schema) and not field.required):
        node = _nullable(node)
    return node | ({"description": " ".join(filter(None, words))} if any(words) else {})


def _objection(field: fields.Field[Any], found: dict[str, Any]) -> str | None:
    kind = type(field).__name__
    if isinstance(field, fields.Mapping):
        return f"a {kind} has keys that nobody knows beforehand. Make it a List of a Nested schema with key and value."
    if isinstance(field, fields.Tuple):
        return f"a {kind} cannot be expressed. Make it a Nested schema with a field for each place."
    if isinstance(field, fields.Pluck) and field.schema.fields[field.field_name].dump_only:
        return f"{field.field_name} of {type(field.schema).__name__} is only dumped. Pluck a field that is loaded, too."
    if isinstance(field, fields.Nested | fields.List | fields.IPInterface | fields.IP):
        return None
    values = _enum(field, found)
    if values is not None and not all(value is None or type(value) in JSON_TYPES for value in values):
        return "not all of its values are JSON. Choose among strings or numbers."
    if values is None and not set(_types(found)) & set(JSON_TYPES.values()):
        return (
            f"a {kind} does not say what it is in JSON. Use a field that does, or name the type in "
            'metadata={"type": "string"}.'
        )
    return None


def _node(field: fields.Field[Any], found: dict[str, Any]) -> dict[str, Any]:
    """The schema of one field, without a word on whether it may be null."""
    if isinstance(field, fields.Pluck):
        return _plucked(field, found)
    if isinstance(field, fields.Nested) and not _many(field):
        reference = found.get("$ref") or (found.get("allOf") or found["anyOf"])[0]["$ref"]
        return {"$ref": reference}
    if isinstance(field, fields.IPInterface):
        return {"type": "string"}
    if type(field) is fields.IP:
        return {"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]}
    values = _enum(field, found)
    types = _types(found) or sorted({JSON_TYPES[type(value)] for value in values or () if value is not None})
    node: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    if isinstance(field, fields.Decimal) and field.as_string:
        node |= {"type": "string", "pattern": DECIMAL}
    elif isinstance(field, MOMENTS) and node["type"] == "string":
        node |= _moment(field)
    elif isinstance(field, fields.Url) and not field.relative:
        node |= {"pattern": URL}
    elif found.get("format") in FORMATS:
        node |= {"format": found["format"]}
    if node["type"] in ("number", "integer", "array"):
        node |= _limits(field, {bound: found[bound] for bound in BOUNDS if isinstance(found.get(bound), int | float)})
    if "items" in found:
        choices = {"enum": found["enum"]} if "enum" in found and "type" in found["items"] else {}
        return node | {"items": choices | found["items"]}
    return node | ({} if values is None else {"enum": values})


def _plucked(field: fields.Pluck, found: dict[str, Any]) -> dict[str, Any]:
    """The one field of the other schema, which is asked for in its own right here: absent it cannot be."""
    node = {key: value for key, value in found.items() if key not in ("description", "readOnly")}
    inner = node["items"] if _many(field) and "items" in node else node
    if not field.schema.fields[field.field_name].allow_none:
        if isinstance(inner.get("type"), list):
            rest = [kind for kind in inner["type"] if kind != "null"]
            inner["type"] = rest[0] if len(rest) == 1 else rest
        for key in ("enum", "anyOf"):
            if key in inner:
                inner[key] = [value for value in inner[key] if value not in (None, {"type": "null"})]
    return node


def _moment(field: fields.DateTime | fields.Date | fields.Time) -> dict[str, str]:
    if field.format not in (None, "iso", "iso8601"):
        return {}
    if isinstance(field, fields.Date):
        return {"format": "date"}
    if isinstance(field, fields.Time):
        return {"pattern": TIME}
    if isinstance(field, fields.NaiveDateTime) and field.timezone is None:  # which the format would give an offset
        return {"pattern": NAIVE}
    return {"format": "date-time"}


def _limits(field: fields.Field[Any], found: dict[str, float]) -> dict[str, float]:
    """The bounds of a number or a list. Of a number's apispec does not tell which are excluded, and leaves Decimals."""
    if not isinstance(field, fields.Number):
        return found
    limits = {"multipleOf": found["multipleOf"]} if "multipleOf" in found else {}
    for rule in field.validators:
        if isinstance(rule, validate.Range):
            lowest = "minimum" if rule.min_inclusive else "exclusiveMinimum"
            highest = "maximum" if rule.max_inclusive else "exclusiveMaximum"
            limits |= {lowest: _as_json(rule.min)} if rule.min is not None else {}
            limits |= {highest: _as_json(rule.max)} if rule.max is not None else {}
    return limits


def _in_words(field: fields.Field[Any], found: dict[str, Any], node: dict[str, Any]) -> Iterator[str]:
    """What the schema cannot say, for the model to read."""
    if isinstance(field, MOMENTS) and not {"format", "pattern"} & set(node):
        yield {
            "rfc": "As in: Wed, 02 Oct 2002 13:00:00 GMT.",
            "rfc822": "As in: Wed, 02 Oct 2002 13:00:00 GMT.",
            "timestamp": "Seconds since 1970-01-01 00:00 UTC.",
            "timestamp_ms": "Milliseconds since 1970-01-01 00:00 UTC.",
        }.get(str(field.format), f"In the format {field.format} of strptime.")
    if isinstance(field, fields.TimeDelta):
        yield f"In {field.precision}."
    for rule in field.validators:
        if isinstance(rule, validate.Length) and node.get("type") == "string":
            yield _span(rule.equal, rule.min, rule.max, "characters")
        elif isinstance(rule, validate.Range) and node.get("type") not in ("number", "integer"):
            yield _span(None, rule.min, rule.max, "")
        elif isinstance(rule, validate.Regexp):
            yield f"Matches the regular expression {rule.regex.pattern!s}"
        elif isinstance(rule, validate.NoneOf):
            yield f"None of: {rule.values_text}."


def _span(equal: Any, least: Any, most: Any, unit: str) -> str:
    if equal is not None:
        return f"Exactly {equal} {unit}."
    parts = [f"at least {least}" if least is not None else "", f"at most {most}" if most is not None else ""]
    return f"{' and '.join(filter(None, parts))} {unit}".strip().capitalize() + "."


def _types(found: dict[str, Any]) -> list[str]:
    """The types other than null."""
    types = found.get("type") or []
    return [kind for kind in ([types] if isinstance(types, str) else types) if kind != "null"]


def _enum(field: fields.Field[Any], found: dict[str, Any]) -> list[Any] | None:
    """All values that are allowed, as they are in JSON; None for a field that does not list them."""
    if isinstance(field, fields.Constant):
        return [field.constant]
    if "enum" not in found or isinstance(field, fields.List | fields.Nested):
        return None
    values = [value for value in found["enum"] if value is not None]
    if isinstance(field, fields.Enum):  # whose names or values apispec has made JSON already
        return values
    return [_as_json(field.serialize("value", {"value": value})) for value in values]


def _nullable(node: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in node:
        return node | {"anyOf": [*node["anyOf"], {"type": "null"}]}
    if "$ref" in node:
        return {"anyOf": [node, {"type": "null"}]}
    types = _types(node)
    enum = {"enum": [*node["enum"], None]} if "enum" in node and None not in node["enum"] else {}
    return node | {"type": [*types, "null"]} | enum


def _many(field: fields.Nested) -> bool:
    return field.many or field.schema.many


def _place(field: fields.Field[Any]) -> tuple[Any, str | None]:
    """The schema that a field belongs to, also from within a list, and its name there."""
    parent: Any = field.parent
    while isinstance(parent, fields.Field):
        parent = parent.parent
    return parent, field.name


class _Document:
    """Puts the root and all that it refers to into one document."""

    def __init__(self, root: str, components: Mapping[str, Any]) -> None:
        self._root = root
        self._components = components
        self._definitions: dict[str, Any] = {}

    def assemble(self) -> dict[str, Any]:
        document = self._object(self._root)
        return document | ({"$defs": self._definitions} if self._definitions else {})

    def _object(self, name: str) -> dict[str, Any]:
        component = self._components[name]
        properties = {
            key: self._node(node) for key, node in component["properties"].items() if not node.get("readOnly")
        }
        if not properties:
            raise ConfigurationError(f"{name} has no fields that a model could fill. Give it some.")
        description = {"description": component["description"]} if "description" in component else {}
        required = {"required": list(properties), "additionalProperties": False}
        return {"type": "object"} | description | {"properties": properties} | required

    def _node(self, node: dict[str, Any]) -> dict[str, Any]:
        if REFUSED in node:
            raise ConfigurationError(f"The shape of an answer cannot have {node[REFUSED]}")
        if "$ref" in node:
            return {"$ref": self._define(node["$ref"].removeprefix(REFERENCE))}
        if "items" in node:
            return node | {"items": self._node(node["items"])}
        if "anyOf" in node:
            return node | {"anyOf": [self._node(choice) for choice in node["anyOf"]]}
        return node

    def _define(self, name: str) -> str:
        if name == self._root:
            return "#"
        if name not in self._definitions:
            self._definitions[name] = {}  # first, for those that refer to themselves
            self._definitions[name] = self._object(name)
        return f"#/$defs/{name}"


def _without_nulls(data: Any, schema: Schema) -> Any:
    """The data without the nulls that stand for what is absent."""
    if not isinstance(data, Mapping):
        return data
    known = {field.data_key or name: field for name, field in schema.load_fields.items()}
    return {
        key: _below(value, known[key]) if key in known else value
        for key, value in data.items()
        if value is not None or key not in known or known[key].allow_none or known[key].required
    }


def _below(value: Any, field: fields.Field[Any]) -> Any:
    if isinstance(field, fields.Pluck):
        return value
    if isinstance(field, fields.List) and isinstance(value, list):
        return [_below(item, field.inner) for item in value]
    if isinstance(field, fields.Nested):
        if _many(field) and isinstance(value, list):
            return [_without_nulls(item, field.schema) for item in value]
        return _without_nulls(value, field.schema)
    return value


def _told(errors: Any) -> Any:
    """marshmallow's errors as JSON has them: places in lists are keys too, and a message may be any object."""
    if isinstance(errors, Mapping):
        return {str(key): _told(below) for key, below in islice(errors.items(), MOST_TOLD)}
    if isinstance(errors, list):
        return [_told(below) for below in errors[:MOST_TOLD]]
    return str(errors)


def _as_json(value: Any) -> Any:
    """What a schema dumped, with numbers for the Decimals that it leaves."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value
