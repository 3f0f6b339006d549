from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.commands import (
    AudioFormat,
    End,
    Flushed,
    Interrupt,
    Message,
    Ping,
    Played,
    Resume,
    SetMode,
    Start,
    Talk,
    Typed,
    read,
)

UNDERSTOOD: list[tuple[str, Message]] = [
    ('{"type":"start"}', Start()),
    (
        '{"type":"start","conversation":"c","parent":"m","mode":"push","input":{"format":"pcmu","rate":8000},'
        '"output":{"format":"pcma","rate":8000},"language":"en","voice":"alloy","model":"m1","temperature":0.5,'
        '"data":{"city":"Paris"}}',
        Start(
            conversation="c",
            parent="m",
            mode="push",
            input=AudioFormat(format="pcmu", rate=8000),
            output=AudioFormat(format="pcma", rate=8000),
            language="en",
            voice="alloy",
            model="m1",
            temperature=0.5,
            data={"city": "Paris"},
        ),
    ),
    ('{"type":"resume","token":"t","seq":7}', Resume(token="t", seq=7)),
    (
        '{"type":"resume","token":"t","seq":7,"generation":2,"played":960}',
        Resume(token="t", seq=7, generation=2, played=960),
    ),
    ('{"type":"played","generation":1,"samples":960,"seq":9}', Played(generation=1, samples=960, seq=9)),
    ('{"type":"played","generation":1,"samples":960}', Played(generation=1, samples=960)),
    ('{"type":"flushed","generation":1,"samples":0}', Flushed(generation=1, samples=0)),
    ('{"type":"interrupt"}', Interrupt()),
    ('{"type":"talk","on":true}', Talk(on=True)),
    ('{"type":"mode","mode":"auto"}', SetMode(mode="auto")),
    ('{"type":"message","text":"Grüße 👋"}', Typed(text="Grüße 👋")),
    ('{"type":"ping","t":12}', Ping(t=12)),
    ('{"type":"ping","t":12.5}', Ping(t=12.5)),
    ('{"type":"end"}', End()),
    ('{"reason":"a later version says why","type":"end"}', End()),
]


@pytest.mark.parametrize(("text", "command"), UNDERSTOOD, ids=[text[:100] for text, _ in UNDERSTOOD])
def test_command(text, command):
    assert read(text) == command


def test_defaults_of_a_call():
    start = read('{"type":"start"}')
    assert isinstance(start, Start)
    assert (start.mode, start.input, start.output) == (
        "auto",
        AudioFormat(format="pcm16", rate=16000),
        AudioFormat(format="pcm16", rate=24000),
    )


def test_two_calls_share_no_data():
    first, second = read('{"type":"start"}'), read('{"type":"start"}')
    assert isinstance(first, Start)
    assert isinstance(second, Start)
    assert first.data is not second.data


MALFORMED = [
    ("", "truncated"),
    ("hello", "JSON"),
    ("{", "truncated"),
    ("[]", "object"),
    ("null", "object"),
    ('"start"', "object"),
    ("{}", "`type`"),
    ('{"type":"dance"}', "'dance'"),
    ('{"type":7}', "type"),
    ('{"type":"start","mode":"both"}', "$.mode"),
    ('{"type":"start","input":{"format":"","rate":16000}}', "$.input.format"),
    ('{"type":"start","input":{"format":"pcm16"}}', "`rate`"),
    ('{"type":"start","input":{"format":"pcm16","rate":16000.5}}', "$.input.rate"),
    ('{"type":"start","language":""}', "$.language"),
    ('{"type":"start","voice":"' + "v" * 201 + '"}', "$.voice"),
    ('{"type":"start","temperature":"hot"}', "$.temperature"),
    ('{"type":"start","data":[]}', "$.data"),
    ('{"type":"resume","seq":1}', "`token`"),
    ('{"type":"resume","token":"t"}', "`seq`"),
    ('{"type":"resume","token":"t","seq":-1}', "$.seq"),
    ('{"type":"resume","token":"t","seq":9007199254740992}', "$.seq"),
    ('{"type":"played","generation":1}', "`samples`"),
    ('{"type":"played","generation":1,"samples":1.5}', "$.samples"),
    ('{"type":"played","generation":1,"samples":-1}', "$.samples"),
    ('{"type":"played","generation":true,"samples":1}', "$.generation"),
    ('{"type":"flushed","samples":1}', "`generation`"),
    ('{"type":"talk"}', "`on`"),
    ('{"type":"talk","on":"yes"}', "$.on"),
    ('{"type":"mode","mode":null}', "$.mode"),
    ('{"type":"message"}', "`text`"),
    ('{"type":"message","text":1}', "$.text"),
    ('{"type":"ping"}', "`t`"),
    ('{"type":"ping","t":-1}', "$.t"),
    ('{"type":"ping","t":NaN}', "JSON"),
    ('{"type":"ping","t":1e999}', "range"),
    ('{"type":"end"} {"type":"end"}', "JSON"),
    ('{"type":"start","data":' + '{"a":' * 5000 + "1" + "}" * 5000 + "}", "deep"),
]


@pytest.mark.parametrize(("text", "said"), MALFORMED, ids=[text[:80] for text, _ in MALFORMED])
def test_what_is_malformed_is_refused_in_a_sentence_that_says_where(text, said):
    with pytest.raises(ValueError, match=r"^[A-Z].*\.$") as refused:
        read(text)
    sentence = str(refused.value)
    assert said in sentence
    assert "\n" not in sentence
    assert len(sentence) < 123, "it is to fit into a close frame"


def test_lone_surrogate_is_no_text():
    with pytest.raises(ValueError, match="surrogates"):
        read('{"type":"message","text":"\ud800"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KINDS = ["start", "resume", "played", "flushed", "interrupt", "talk", "mode", "message", "ping", "end"]
FIELDS = ["conversation", "mode", "input", "data", "token", "seq", "generation", "samples", "on", "text", "t"]


@given(st.text() | JSON.map(json.dumps))
def test_anything_is_understood_or_refused(text):
    with contextlib.suppress(ValueError):
        read(text)


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_fields_are_understood_or_refused(kind, fields):
    try:
        command = read(json.dumps({"type": kind, **fields}))
    except ValueError:
        return
    assert msgspec.to_builtins(command)["type"] == kind
