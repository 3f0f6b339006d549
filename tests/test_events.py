"""Events: frozen, each with one JSON form, in which the field's name is the key."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream import events
from flask_llmstream.events import (
    Data,
    Done,
    Event,
    Failed,
    Progress,
    Reasoning,
    Restarted,
    Status,
    Terminal,
    Token,
    Tool,
    Usage,
)

FORMS = [
    (Token("Hel"), '{"token":"Hel"}'),
    (Token("é\n"), '{"token":"é\\n"}'),
    (Status("thinking"), '{"status":"thinking"}'),
    (Reasoning("so"), '{"reasoning":"so"}'),
    (Tool({"id": "c1", "name": "now", "arguments": "{}"}), '{"tool":{"id":"c1","name":"now","arguments":"{}"}}'),
    (Progress(0.4), '{"progress":0.4}'),
    (Progress(0.4, "page 2"), '{"progress":0.4,"message":"page 2"}'),
    (Data([1, None]), '{"data":[1,null]}'),
    (Data(None), '{"data":null}'),
    (Restarted(2), '{"restarted":2}'),
    (Done(done=True, tokens=0), '{"done":true,"tokens":0}'),
    (Done(done=True, tokens=1, cancelled=True), '{"done":true,"tokens":1,"cancelled":true}'),
    (
        Done(done=True, tokens=2, finish_reason="stop", usage=Usage(5, 2), ttft_ms=212.0),
        '{"done":true,"tokens":2,"finish_reason":"stop","usage":{"prompt_tokens":5,"completion_tokens":2},'
        '"ttft_ms":212.0}',
    ),
    (
        Failed(error="It broke.", problem={"status": 500}),
        '{"error":"It broke.","problem":{"status":500}}',
    ),
]


@pytest.mark.parametrize(("event", "form"), FORMS, ids=[form for _, form in FORMS])
def test_the_json_form(event, form):
    assert event.encode().decode() == form


def test_every_kind_of_event_has_its_form_here():
    kinds = {value for value in vars(events).values() if isinstance(value, type) and issubclass(value, Event)}
    assert kinds - {Event, Terminal} == {type(event) for event, _ in FORMS}


@pytest.mark.parametrize(("event", "form"), FORMS, ids=[form for _, form in FORMS])
def test_events_are_frozen(event, form):
    with pytest.raises(AttributeError):
        setattr(event, event.__struct_fields__[0], None)


def test_only_done_and_failed_are_terminal():
    assert {type(event) for event, _ in FORMS if isinstance(event, Terminal)} == {Done, Failed}


@given(st.text())
def test_any_text_comes_back(text):
    encoded = Token(text).encode()
    assert json.loads(encoded) == {"token": text}
    # A run's text is found by this beginning, and SSE needs one line.
    assert encoded.startswith(b'{"token"') and b"\n" not in encoded and b"\r" not in encoded


usages = st.builds(Usage, *[st.integers(0, 10**9)] * 4, st.booleans())


@given(usages, usages)
def test_usages_add_up(one, other):
    both = one + other
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"):
        assert getattr(both, name) == getattr(one, name) + getattr(other, name)
    assert both.estimated is (one.estimated or other.estimated)


def test_an_estimate_says_so():
    assert msgspec.json.decode(msgspec.json.encode(Usage(5, 2, estimated=True)))["estimated"] is True
