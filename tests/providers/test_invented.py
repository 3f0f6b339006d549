"""The simulation where JSON is asked for: a document that fits the schema, from what the text says."""

import json
import math
from itertools import pairwise

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import Schema, fields, validate

from flask_llmstream.errors import AnswerCut, InvalidAnswer
from flask_llmstream.models import BoundModel, Meter, ModelSettings
from flask_llmstream.providers import CORRECTION, Call
from flask_llmstream.providers.invented import LONGEST, invent, spoil
from flask_llmstream.providers.simulated import Simulated
from flask_llmstream.providers.texts import dates, numbers, times
from flask_llmstream.shapes import Shape


class Item(Schema):
    article = fields.String(required=True)
    quantity = fields.Integer()
    price = fields.Decimal(required=True, as_string=True)


class Delivery(Schema):
    reference = fields.String(required=True)
    sender = fields.String()
    shipped_on = fields.Date(required=True)
    arrives = fields.Date()
    contact = fields.Email()
    currency = fields.String()
    weight_kg = fields.Float()
    total = fields.Decimal(required=True)
    items = fields.List(fields.Nested(Item), required=True)


class Opinion(Schema):
    sentiment = fields.String(required=True, validate=validate.OneOf(["positive", "neutral", "negative"]))
    is_urgent = fields.Boolean()
    topics = fields.List(fields.String())


NOTE = """\
Delivery note, reference: DN-2024/17
Sender: Northwind Ltd.
Shipped on: 17 May 2024
Questions to help@northwind.example.

1. Claw hammer   2   € 10.50
2. Nails, 60 mm      € 1.20

Total: EUR 1,022.20
"""


def read(schema: type[Schema], text: str) -> dict:
    """The document as an application gets it."""
    shape = Shape(schema)
    document = invent(shape.json_schema, text)
    jsonschema.validate(document, shape.json_schema)
    return shape.dump(shape.load(json.dumps(document)))


def test_a_document_is_read_by_the_names_of_its_properties():
    assert read(Delivery, NOTE) == {
        "reference": "DN-2024/17",
        "sender": "Northwind Ltd.",
        "shipped_on": "2024-05-17",
        "contact": "help@northwind.example",
        "currency": "EUR",
        "total": 1022.2,
        "items": [
            {"article": "Claw hammer", "quantity": 2, "price": "10.5"},
            {"article": "Nails", "quantity": 60, "price": "1.2"},
        ],
    }


def test_what_is_not_in_the_text_is_absent_or_the_plainest_thing_that_fits():
    assert read(Delivery, "Nothing of the kind.") == {
        "reference": "Nothing of the kind.",
        "shipped_on": "1970-01-01",
        "total": 0,
        "items": [],
    }


@pytest.mark.parametrize(
    ("text", "sentiment"),
    [
        ("I love it, great work", "positive"),
        ("It arrived broken. Terrible!", "negative"),
        ("This is not good", "negative"),
        ("It isn't bad", "positive"),
        ("It is a chair", "neutral"),
        ("Great seat, terrible legs", "neutral"),
        ("The answer is: negative", "negative"),
    ],
)
def test_a_choice_is_the_one_that_the_words_speak_for(text, sentiment):
    assert read(Opinion, text) == {"sentiment": sentiment}


def test_what_may_be_null_is_not_guessed():
    """Only a value that stands alone, and behind no other name, is taken for one without a name."""
    assert read(Delivery, "It arrives on 3 May 2024.")["arrives"] == "2024-05-03"
    assert "arrives" not in read(Delivery, "On 3 May 2024 or on 4 May 2024.")
    assert "weight_kg" not in read(Delivery, "Pieces: 3")
    assert read(Delivery, "It weighs 3.5 kg")["weight_kg"] == 3.5


def test_booleans_and_lists():
    assert read(Opinion, "Good, but not urgent. Topics: price, delivery") == {
        "sentiment": "positive",
        "is_urgent": False,
        "topics": ["price", "delivery"],
    }
    assert read(Opinion, "This is urgent!\n- one\n- two")["topics"] == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12 and 3.5 or -7", [12, 3.5, -7]),
        ("1,234.50; 1.234,50; 1'234.50; 1 234,50", [1234.5] * 4),
        ("1,234 but 1.234", [1234, 1.234]),
        ("1,234,567 and 1.234.567", [1234567, 1234567]),
        ("€12 $3.20 EUR5 19%", [12, 3.2, 5, 19]),
        ("INV-42, v2, 2024-05-17, 10:30, 3rd", []),
        ("99999999999999999999999", []),
        ("Total 5.", [5]),
    ],
)
def test_numbers_in_a_text(text, found):
    assert list(numbers(text)) == found


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-17",
        "17.05.2024",
        "17. 5. 2024",
        "5/17/2024",
        "17/5/2024",
        "17 May 2024",
        "May 17th, 2024",
        "17th of May 2024",
    ],
)
def test_dates_in_a_text(text):
    assert list(dates(f"On {text} it was.")) == ["2024-05-17"]


def test_dates_that_are_none_and_times():
    assert list(dates("2024-02-31 and 99.99.2024")) == []
    assert list(dates("17.05.2024, before 2023-01-02")) == ["2024-05-17", "2023-01-02"]
    assert list(times("from 9:30 to 17:05:09, not 25:00")) == ["09:30:00", "17:05:09"]


class Everything(Schema):
    moment = fields.DateTime(required=True)
    naive = fields.NaiveDateTime(required=True)
    at = fields.Time(required=True)
    site = fields.Url(required=True)
    address = fields.IP(required=True)
    key = fields.UUID(required=True)
    score = fields.Float(required=True, validate=validate.Range(0, 1, min_inclusive=False))
    rating = fields.Integer(required=True, validate=validate.Range(1, 5))
    level = fields.Integer(required=True, validate=validate.OneOf([10, 20]))
    parts = fields.List(fields.Nested(Item), required=True, validate=validate.Length(min=1, max=2))
    more = fields.List(fields.Nested(lambda: Everything()))
    inner = fields.Nested(Opinion, required=True)


PIECES = """total: 1,2 2024-05-17 31.12.1999 10:30 not good bad € $5 moment: site: https://a.example/x 10.0.0.1 ::1 key:
    -3 0.5 - 1. rating: level: 20 {} [] null " \\ ü 🎉 /fail more: parts: topics: a,b; is urgent
    12345678-1234-1234-1234-123456789abc"""
WORDS = st.sampled_from([*PIECES.split(), "\n", "\n- ", "\n1. "])


@given(st.lists(WORDS, max_size=40).map(" ".join) | st.text(max_size=200))
def test_whatever_the_text_is_the_document_fits(text):
    for schema in (Delivery, Opinion, Everything):
        read(schema, text)


def test_of_a_long_text_the_beginning_is_read():
    for text in ("a" * 10**6, "1 " * 10**6, "a-" * 10**6, "total: " * 10**5, " " * 10**6, "1 111" * 10**5):
        read(Everything, text)
    assert read(Delivery, "total: 5" + " " * LONGEST)["total"] == 5
    assert read(Delivery, " " * LONGEST + "total: 5")["total"] == 0


@pytest.mark.parametrize("document", [{"a": 1}, {"a": []}, {"a": {"b": 1}}, {"a": None}, {}], ids=str)
def test_a_spoiled_document_fits_no_schema_that_it_fitted(document):
    spoiled = spoil(document)
    assert spoiled != document
    if document:
        assert isinstance(spoiled["a"], dict if isinstance(document["a"], list) else list)


# As a model


@pytest.fixture
def model() -> Simulated:
    return Simulated(first_token=0, rate=math.inf, seed=1)


def ask(model: Simulated, text: str, **more: object) -> tuple[object, list, Meter]:
    """What a function gets that asks for an opinion, and the attempts that were rejected."""
    rejected: list = []
    meter = Meter(rejected=lambda attempt, errors: rejected.append((attempt, errors)))
    bound = BoundModel(model, ModelSettings(max_tokens=500), meter)
    messages = [
        {"role": "system", "content": "Say whether it is positive, neutral or negative."},
        {"role": "user", "content": text},
    ]
    return bound.reply(messages, Shape(Opinion), **more), rejected, meter


def test_with_a_schema_it_answers_with_a_document_and_nothing_else(model):
    opinion, rejected, meter = ask(model, "I love it")
    assert (opinion, rejected) == ({"sentiment": "positive"}, [])
    assert meter.finish_reason == "stop" and meter.usage.completion_tokens > 10


def test_it_streams_the_document_too(model):
    form = {"type": "json_schema", "json_schema": {"name": "o", "schema": Shape(Opinion).json_schema}}
    call = Call(messages=[{"role": "user", "content": "/think I love it"}], options={"response_format": form})
    events = list(model.stream(call))
    kinds = [type(event).__name__ for event in events]
    assert {"Reasoning", "Token"} == set(kinds) and sum(a != b for a, b in pairwise(kinds)) == 1
    text = "".join(event.token for event in events if type(event).__name__ == "Token")
    assert json.loads(text)["sentiment"] == "positive"


@pytest.mark.parametrize("text", ["/fail schema I love it", "Judge this:\n\n/fail schema\nI love it"])
def test_it_errs_once_and_then_reads_the_question_again_and_not_the_correction(model, text):
    opinion, rejected, _ = ask(model, text)
    assert opinion == {"sentiment": "positive"}
    assert rejected == [(1, {"sentiment": ["Not a valid string."]})]


def test_it_errs_each_time(model):
    with pytest.raises(InvalidAnswer) as invalid:
        ask(model, "/fail schema always I love it")
    assert invalid.value.problem()["attempts"] == 3


def test_few_tokens_cut_the_document(model):
    with pytest.raises(AnswerCut):
        ask(model, "I love it", max_tokens=5)


def test_a_correction_is_no_question(model):
    messages = [
        {"role": "user", "content": "/echo Hello"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": CORRECTION},
    ]
    assert model.reply(Call(messages=messages)).text == "Hello"


def test_without_a_schema_the_command_changes_nothing(model):
    assert model.reply(Call(messages=[{"role": "user", "content": "/fail schema /echo Hello"}])).text == "Hello"
