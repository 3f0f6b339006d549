"""A marshmallow schema as the shape of an answer: what the model's server is sent, and what becomes of the answer."""

import datetime
import enum
import json
from decimal import Decimal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate, validates_schema

from flask_llmstream.errors import ConfigurationError
from flask_llmstream.models import AnswerShape, Misfit
from flask_llmstream.shapes import Shape
from flask_llmstream.testing.strict import objections


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class LineSchema(Schema):
    text = fields.String(required=True)
    amount = fields.Decimal(as_string=True)


class Person(Schema):
    name = fields.String(required=True)
    friends = fields.List(fields.Nested(lambda: Person()))
    boss = fields.Nested(lambda: Person(), allow_none=True)


def shape_of(**declared: fields.Field) -> Shape:
    return Shape(Schema.from_dict(declared, name="AnswerSchema"))


def property_of(field: fields.Field) -> dict:
    return shape_of(it=field).json_schema["properties"]["it"]


def test_it_is_what_a_bound_model_takes():
    def needs(shape: AnswerShape) -> str:
        return shape.name

    assert needs(Shape(LineSchema)) == "Line"


@pytest.mark.parametrize(
    ("name", "given"), [("Invoice", "Invoice"), ("InvoiceSchema", "Invoice"), ("Schema", "Schema"), ("Größe", "Gr__e")]
)
def test_its_name_is_that_of_the_class(name, given):
    assert Shape(Schema.from_dict({"a": fields.String()}, name=name)).name == given


def test_an_object_requires_all_its_properties_and_allows_no_others():
    shape = shape_of(b=fields.String(required=True), a=fields.Integer(data_key="A"))
    assert shape.json_schema == {
        "type": "object",
        "properties": {"b": {"type": "string"}, "A": {"type": ["integer", "null"]}},
        "required": ["b", "A"],
        "additionalProperties": False,
    }


NULL = {"type": "null"}


FIELDS = [
    # What may be absent or null is null here.
    (fields.String(required=True), {"type": "string"}),
    (fields.String(), {"type": ["string", "null"]}),
    (fields.String(required=True, allow_none=True), {"type": ["string", "null"]}),
    (fields.Integer(load_default=3), {"type": ["integer", "null"]}),
    (fields.Boolean(required=True), {"type": "boolean"}),
    (fields.List(fields.String(allow_none=True), required=True),
     {"type": "array", "items": {"type": ["string", "null"]}}),
    # Choices keep a type, and null is one where it is allowed.
    (fields.String(required=True, validate=validate.OneOf(["a", "b"])), {"type": "string", "enum": ["a", "b"]}),
    (fields.String(validate=validate.OneOf(["a", "b"])), {"type": ["string", "null"], "enum": ["a", "b", None]}),
    (fields.String(required=True, validate=validate.Equal("a")), {"type": "string", "enum": ["a"]}),
    (fields.Enum(Colour, required=True), {"type": "string", "enum": ["RED", "BLUE"]}),
    (fields.Enum(Colour, by_value=True, required=True), {"type": "integer", "enum": [1, 2]}),
    (fields.Constant(5, required=True), {"type": "integer", "enum": [5]}),
    (fields.Date(required=True, validate=validate.OneOf([datetime.date(2024, 5, 17)])),
     {"type": "string", "format": "date", "enum": ["2024-05-17"]}),
    (fields.List(fields.String(), required=True, validate=validate.ContainsOnly(["a"])),
     {"type": "array", "items": {"type": "string", "enum": ["a"]}}),
    # Bounds of numbers and lists are told as they are, those of strings in words.
    (fields.Float(required=True, validate=validate.Range(0, 1, min_inclusive=False)),
     {"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
    (fields.Decimal(required=True, validate=validate.Range(max=Decimal("9.5"))),
     {"type": "number", "maximum": 9.5}),
    (fields.List(fields.Integer(), required=True, validate=validate.Length(1, 3)),
     {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}),
    (fields.String(required=True, validate=validate.Length(1, 3), metadata={"description": "A code."}),
     {"type": "string", "description": "A code. At least 1 and at most 3 characters."}),
    (fields.String(required=True, validate=validate.Length(equal=3)),
     {"type": "string", "description": "Exactly 3 characters."}),
    (fields.String(required=True, validate=validate.Regexp(r"(?P<a>\d)+\Z")),
     {"type": "string", "description": r"Matches the regular expression (?P<a>\d)+\Z"}),
    (fields.String(required=True, validate=validate.NoneOf(["x"])),
     {"type": "string", "description": "None of: x."}),
    # Formats: those that strict mode knows, and those that hold what marshmallow can load.
    (fields.Date(required=True), {"type": "string", "format": "date"}),
    (fields.Date(required=True, format="%d.%m.%Y"),
     {"type": "string", "description": "In the format %d.%m.%Y of strptime."}),
    (fields.DateTime(required=True), {"type": "string", "format": "date-time"}),
    (fields.AwareDateTime(required=True), {"type": "string", "format": "date-time"}),
    (fields.DateTime(required=True, format="rfc"),
     {"type": "string", "description": "As in: Wed, 02 Oct 2002 13:00:00 GMT."}),
    (fields.DateTime(required=True, format="timestamp"),
     {"type": "number", "description": "Seconds since 1970-01-01 00:00 UTC."}),
    (fields.TimeDelta(required=True, precision="minutes"), {"type": "number", "description": "In minutes."}),
    (fields.UUID(required=True), {"type": "string", "format": "uuid"}),
    (fields.Email(required=True), {"type": "string", "format": "email"}),
    (fields.Url(required=True), {"type": "string", "pattern": "^[A-Za-z]+://[^ ]+$"}),
    (fields.IPv4(), {"type": ["string", "null"], "format": "ipv4"}),
    (fields.IP(), {"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}, NULL]}),
    (fields.Decimal(required=True, as_string=True), {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}),
    # Other schemas stand beside the first, and a reference stands alone.
    (fields.Nested(LineSchema, required=True), {"$ref": "#/$defs/Line"}),
    (fields.Nested(LineSchema), {"anyOf": [{"$ref": "#/$defs/Line"}, NULL]}),
    (fields.Nested(LineSchema, required=True, metadata={"description": "The first."}),
     {"anyOf": [{"$ref": "#/$defs/Line"}], "description": "The first."}),
    (fields.Nested(LineSchema, many=True), {"type": ["array", "null"], "items": {"$ref": "#/$defs/Line"}}),
    (fields.Nested(LineSchema(many=True), required=True), {"type": "array", "items": {"$ref": "#/$defs/Line"}}),
    (fields.List(fields.Nested(LineSchema), required=True), {"type": "array", "items": {"$ref": "#/$defs/Line"}}),
    (fields.Pluck(LineSchema, "text", required=True), {"type": "string"}),
    (fields.Pluck(LineSchema, "text", many=True), {"type": ["array", "null"], "items": {"type": "string"}}),
    (fields.Pluck(LineSchema, "amount", required=True), {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}),
    # What only people need stays here.
    (fields.String(required=True, metadata={"example": "x", "title": "It", "x-order": 3}), {"type": "string"}),
    (fields.Raw(required=True, metadata={"type": "string"}), {"type": "string"}),
]  # fmt: skip


def kind_of(table):
    """Names for the rows of a table: which field they are about."""
    return [f"{type(field).__name__} {number}" for number, (field, _) in enumerate(table, 1)]


@pytest.mark.parametrize(("field", "expected"), FIELDS, ids=kind_of(FIELDS))
def test_fields(field, expected):
    assert property_of(field) == expected


@pytest.mark.parametrize("kind", [fields.NaiveDateTime, fields.Time], ids=lambda kind: kind.__name__)
def test_moments_without_an_offset_have_a_pattern_in_place_of_the_format_that_would_demand_one(kind):
    node = property_of(kind(required=True))
    assert set(node) == {"type", "pattern"}


def test_a_nested_schema_is_written_down_once_and_another_cut_of_it_has_another_name():
    shape = shape_of(
        first=fields.Nested(LineSchema, required=True),
        second=fields.Nested(LineSchema, required=True),
        short=fields.Nested(LineSchema(only=["text"]), required=True),
    )
    definitions = shape.json_schema["$defs"]
    assert {name: list(each["properties"]) for name, each in definitions.items()} == {
        "Line": ["text", "amount"],
        "Line_2": ["text"],
    }


def test_a_schema_may_hold_itself():
    schema = Shape(Person).json_schema
    assert schema["properties"]["boss"] == {"anyOf": [{"$ref": "#"}, NULL]}
    assert "$defs" not in schema
    ann = {"name": "Ann", "friends": [{"name": "Bob", "friends": None, "boss": None}], "boss": None}
    jsonschema.validate(ann, schema)
    assert Shape(Person).load(json.dumps(ann)) == {
        "name": "Ann",
        "friends": [{"name": "Bob", "boss": None}],
        "boss": None,
    }


def test_what_is_only_dumped_is_not_asked_for_whatever_it_is():
    class Hidden(Schema):
        anything = fields.Dict()

    shape = shape_of(
        a=fields.String(), id=fields.Raw(dump_only=True), hidden=fields.Nested(Hidden, dump_only=True),
        length=fields.Function(lambda it: len(it["a"])),
    )  # fmt: skip
    assert list(shape.json_schema["properties"]) == ["a"]
    assert "$defs" not in shape.json_schema
    assert shape.dump({"a": "xyz", "id": 5}) == {"a": "xyz", "id": 5, "length": 3}


REFUSED = [
    (fields.Dict(), "List of a Nested"),
    (fields.Dict(keys=fields.String(), values=fields.Integer()), "List of a Nested"),
    (fields.Tuple((fields.String(), fields.Integer())), "Nested schema with a field for each place"),
    (fields.Raw(), "metadata="),
    (fields.Pluck(Schema.from_dict({"a": fields.String(dump_only=True)}), "a"), "Pluck a field that is loaded"),
    (fields.Function(lambda it: it, deserialize=lambda it: it), "metadata="),
    (fields.Enum(enum.Enum("Odd", {"A": (1, 2)}), by_value=True), "strings or numbers"),
    (fields.Constant({"a": 1}), "strings or numbers"),
]


@pytest.mark.parametrize(("field", "advice"), REFUSED, ids=kind_of(REFUSED))
def test_what_cannot_be_expressed_is_refused_with_its_name_and_what_to_do(field, advice):
    class Order(Schema):
        extras = field

    with pytest.raises(ConfigurationError, match=r"Order\.extras: ") as refused:
        Shape(Order)
    assert advice in str(refused.value)
    with pytest.raises(ConfigurationError, match=r"Order\.extras: "):
        shape_of(orders=fields.List(fields.Nested(Order)))
    with pytest.raises(ConfigurationError, match=r"AnswerSchema\.it: "):
        shape_of(it=fields.List(field))


def test_an_answer_is_one_object():
    with pytest.raises(ConfigurationError, match="field of another schema"):
        Shape(LineSchema(many=True))
    with pytest.raises(ConfigurationError, match="no fields"):
        Shape(Schema)


# What comes back


def test_what_the_schema_makes_of_it_is_loaded_and_can_be_dumped_again():
    class Total:
        def __init__(self, due: datetime.date, amount: Decimal) -> None:
            self.due = due
            self.amount = amount

    class TotalSchema(Schema):
        due = fields.Date(required=True)
        amount = fields.Decimal(required=True)

        @post_load
        def _make(self, data, **_):
            return Total(**data)

    shape = Shape(TotalSchema)
    total = shape.load('{"due": "2024-05-17", "amount": 12.30}')
    assert (total.due, total.amount) == (datetime.date(2024, 5, 17), Decimal("12.3"))
    assert shape.dump(total) == {"due": "2024-05-17", "amount": 12.3}
    assert shape.dump(Total(total.due, Decimal(5))) == {"due": "2024-05-17", "amount": 5}


def test_a_null_stands_for_what_is_absent_unless_null_is_a_value():
    shape = shape_of(
        absent=fields.String(), default=fields.Integer(load_default=3), null=fields.String(allow_none=True),
        lines=fields.List(fields.Nested(LineSchema)), many=fields.Nested(LineSchema(many=True)),
        one=fields.Nested(LineSchema), texts=fields.Pluck(LineSchema, "text", many=True),
    )  # fmt: skip
    line = {"text": "t", "amount": None}
    answer = {"absent": None, "default": None, "null": None, "lines": [line], "many": [line], "one": line}
    jsonschema.validate(answer | {"texts": ["t"]}, shape.json_schema)
    bare = {"text": "t"}
    assert shape.load(json.dumps(answer | {"texts": ["t"]})) == {
        "default": 3, "null": None, "lines": [bare], "many": [bare], "one": bare, "texts": [bare],
    }  # fmt: skip
    with pytest.raises(Misfit) as misfit:
        shape_of(needed=fields.String(required=True)).load('{"needed": null}')
    assert misfit.value.errors == {"needed": ["Field may not be null."]}


@pytest.mark.parametrize(
    "text", ['{"text": "t"}', '```json\n{"text": "t"}\n```', '```\n{"text": "t"}```\n', ' \n{"text":"t"}\n']
)
def test_a_fence_around_it_is_no_mistake(text):
    assert Shape(LineSchema).load(text) == {"text": "t"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! {}",
        '{"text": "t"',
        '{"text": NaN}',
        '{"text": "\\ud800"}',
        "[" * 100_000,
        '{"a": 1} {"a": 2}',
        "\ud800",
    ],
)
def test_what_is_not_json_is_a_misfit(text):
    with pytest.raises(Misfit) as misfit:
        Shape(LineSchema).load(text)
    [message] = misfit.value.errors["_schema"]
    assert message.startswith("Not a JSON document: ")


@pytest.mark.parametrize(
    ("answer", "errors"),
    [
        ("[]", {"_schema": ["Invalid input type."]}),
        ("null", {"_schema": ["Invalid input type."]}),
        ('{"amount": "x"}', {"text": ["Missing data for required field."], "amount": ["Not a valid number."]}),
        ('{"text": "t", "more": 1}', {"more": ["Unknown field."]}),
        ('{"text": "t", "amount": "-1"}', {"_schema": ["Owes us something."]}),
    ],
)
def test_what_marshmallow_does_not_take_is_a_misfit_with_its_errors(answer, errors):
    class Strict(LineSchema):
        @validates_schema
        def _positive(self, data, **_):
            if data.get("amount", 0) < 0:
                raise ValidationError("Owes us something.")

    with pytest.raises(Misfit) as misfit:
        Shape(Strict).load(answer)
    assert misfit.value.errors == errors


def test_errors_are_json_and_not_endless():
    class Picky(Schema):
        numbers = fields.List(fields.Integer())

        @validates_schema
        def _none(self, data, **_):
            raise ValidationError([Colour.RED])

    with pytest.raises(Misfit) as misfit:
        Shape(Picky).load(json.dumps({"numbers": ["x"] * 1000}))
    told = misfit.value.errors["numbers"]
    assert len(told) == 50 and told["0"] == ["Not a valid integer."]
    with pytest.raises(Misfit) as misfit:
        Shape(Picky).load('{"numbers": [1, 2]}')
    assert misfit.value.errors == {"_schema": ["Colour.RED"]}


def test_a_schema_that_ignores_what_it_does_not_know_does_so_here():
    assert Shape(LineSchema(unknown=EXCLUDE)).load('{"text": "t", "more": 1}') == {"text": "t"}


def test_a_mistake_of_the_schemas_own_is_not_the_models():
    class Broken(LineSchema):
        @post_load
        def _make(self, data, **_):
            return data["typo"]

    with pytest.raises(KeyError):
        Shape(Broken).load('{"text": "t"}')


# Of all schemas

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
UTC = st.just(datetime.UTC)
AMOUNTS = st.decimals(-(10**6), 10**6, places=2)
VALUES = [
    (lambda **o: fields.String(**o), TEXT),
    (lambda **o: fields.String(validate=validate.OneOf(["a", "b"]), **o), st.sampled_from(["a", "b"])),
    (lambda **o: fields.String(validate=validate.Length(max=8), **o), TEXT),
    (lambda **o: fields.Integer(**o), st.integers(-(2**60), 2**60)),
    (lambda **o: fields.Integer(validate=validate.Range(0, 9, max_inclusive=False), **o), st.integers(0, 8)),
    (lambda **o: fields.Float(**o), st.floats(allow_nan=False, allow_infinity=False)),
    (lambda **o: fields.Decimal(**o), AMOUNTS),
    (lambda **o: fields.Decimal(as_string=True, **o), AMOUNTS),
    (lambda **o: fields.Boolean(**o), st.booleans()),
    (lambda **o: fields.Date(**o), st.dates()),
    (lambda **o: fields.Date(format="%Y/%m/%d", **o), st.dates(datetime.date(1900, 1, 1))),
    (lambda **o: fields.Time(**o), st.times()),
    (lambda **o: fields.DateTime(**o), st.datetimes(timezones=UTC)),
    (lambda **o: fields.AwareDateTime(**o), st.datetimes(timezones=UTC)),
    (lambda **o: fields.NaiveDateTime(**o), st.datetimes()),
    (lambda **o: fields.TimeDelta(**o), st.timedeltas().map(lambda d: datetime.timedelta(days=d.days))),
    (lambda **o: fields.UUID(**o), st.uuids()),
    (lambda **o: fields.Email(**o), st.just("ann@example.com")),
    (lambda **o: fields.Url(**o), st.sampled_from(["https://example.com/?a=b#c", "FTP://example.com"])),
    (lambda **o: fields.IP(**o), st.ip_addresses()),
    (lambda **o: fields.IPv6(**o), st.ip_addresses(v=6)),
    (lambda **o: fields.Enum(Colour, **o), st.sampled_from(Colour)),
    (lambda **o: fields.Enum(Colour, by_value=True, **o), st.sampled_from(Colour)),
]
OPTIONS = st.sampled_from([{"required": True}, {}, {"allow_none": True}, {"required": True, "allow_none": True}])


def listed(kind):
    inner, values = kind
    return (lambda **o: fields.List(inner(), **o), st.lists(values, max_size=3))


def nested(kinds):
    """A schema of such fields, and data for it."""
    declared, data = {}, {}
    optional = {}
    for number, ((field, values), options) in enumerate(kinds):
        name = f"f{number}"
        declared[name] = field(**options)
        values = values | st.none() if options.get("allow_none") else values
        (data if options else optional)[name] = values  # where null may stand it is what absence comes back as
    return Schema.from_dict(declared), st.fixed_dictionaries(data, optional=optional)


def nest(kinds):
    schema, data = nested(kinds)
    return st.sampled_from(
        [
            (lambda **o: fields.Nested(schema, **o), data),
            (lambda **o: fields.Nested(schema, many=True, **o), st.lists(data, max_size=2)),
        ]
    )


KINDS = st.recursive(
    st.sampled_from(VALUES),
    lambda kinds: kinds.map(listed) | st.lists(st.tuples(kinds, OPTIONS), min_size=1, max_size=3).flatmap(nest),
    max_leaves=8,
)
SCHEMAS = st.lists(st.tuples(KINDS, OPTIONS), min_size=1, max_size=5).map(nested)


@given(st.data())
def test_whatever_a_schema_dumps_fits_its_shape_and_loads_to_what_it_was(data):
    schema, values = data.draw(SCHEMAS)
    shape = Shape(schema)
    assert list(objections(shape.json_schema)) == []
    value = data.draw(values)
    answer = with_nulls(shape.dump(value), schema())
    jsonschema.validate(answer, shape.json_schema)
    assert shape.load(json.dumps(answer)) == value


def with_nulls(dumped, schema):
    """The answer as strict mode wants it: null for what is absent."""

    def below(value, field):
        if isinstance(field, fields.List) and value is not None:
            return [below(item, field.inner) for item in value]
        if isinstance(field, fields.Nested) and value is not None:
            return [with_nulls(item, field.schema) for item in value] if field.many else with_nulls(value, field.schema)
        return value

    return {name: below(dumped.get(name), field) for name, field in schema.fields.items()}
