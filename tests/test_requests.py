"""What a request says: its body, key and cursor, and the page that it comes from."""

import json
from types import SimpleNamespace

import pytest
from flask import Flask, Request
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from flask_llmstream.cursor import Cursor
from flask_llmstream.errors import (
    ContentTooLarge,
    EventStreamNotAccepted,
    InvalidCursor,
    InvalidInput,
    InvalidKey,
    NotJSON,
    OriginRefused,
    QueryTooLong,
    RequestRefused,
)
from flask_llmstream.requests import (
    LONGEST_QUERY,
    cursor,
    fingerprint,
    idempotency_key,
    json_body,
    query_input,
    require_event_stream,
    require_known_origin,
    require_own_page,
)

KEY = "0123456789abcdefABCDEF"
"""The shortest that is allowed."""


def request(path="/", **more):
    return Request(EnvironBuilder(path, **more).get_environ())


def record(**settings):
    return SimpleNamespace(settings=SimpleNamespace(**{"max_input": 1000, "allowed_origins": (), **settings}))


# The body


def test_a_body_is_json():
    assert json_body(request(method="POST", json={"é": [1]}), record()) == {"é": [1]}
    suffixed = request(method="POST", data=b"[]", content_type="application/vnd.api+json; charset=utf-8")
    assert json_body(suffixed, record()) == []


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_body_of_another_type_is_refused(content_type):
    """A form of a foreign page can send these and not JSON."""
    with pytest.raises(NotJSON):
        json_body(request(method="POST", data=b"{}", content_type=content_type), record())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"{'a': 1}", b"[" * 100_000, b'{"a": NaN}'], ids=lambda b: repr(b)[:9]
)
def test_a_body_that_is_no_json_is_refused(body):
    with pytest.raises(RequestRefused, match="not valid JSON"):
        json_body(request(method="POST", data=body, content_type="application/json"), record(max_input=10**6))


def test_the_longest_valid_input_fits_and_no_more():
    most = 1000 * 6 + 65536
    fits = json.dumps("x" * (most - 2)).encode()
    assert len(fits) == most
    assert json_body(request(method="POST", data=fits, content_type="application/json"), record())
    with pytest.raises(ContentTooLarge):
        json_body(request(method="POST", data=fits + b" ", content_type="application/json"), record())


def test_a_smaller_limit_of_the_applications_holds():
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 10
    with app.test_request_context("/", method="POST", json="x" * 20):
        from flask import request as current

        with pytest.raises(ContentTooLarge, match="more than 10 bytes"):
            json_body(current, record())


# The query


def test_a_message_alone_is_a_conversation():
    data = query_input(request("/?message=Hello%20there&key=k&after=a:1-1"))
    assert data == {"messages": [{"role": "user", "content": "Hello there"}]}


def test_messages_are_json_and_so_are_numbers():
    query = {"messages": '[{"role": "user", "content": "5"}]', "max_tokens": "5", "temperature": "0.5", "model": "5"}
    assert query_input(request(query_string=query)) == {
        "messages": [{"role": "user", "content": "5"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "model": "5",
    }


def test_a_number_that_is_none_is_left_to_the_schema():
    assert query_input(request("/?message=a&max_tokens=many"))["max_tokens"] == "many"


DEEP = "[" * 3000
"""Nested deeper than a decoder follows."""


@pytest.mark.parametrize("name", ["max_tokens", "temperature"])
def test_a_number_that_is_nested_without_end_is_none_either(name):
    assert query_input(request(f"/?message=a&{name}={DEEP}"))[name] == DEEP


@pytest.mark.parametrize("query", ["message=a&messages=[]", "messages=[", "messages=", f"messages={DEEP}"])
def test_a_query_that_says_two_things_or_nothing_is_refused(query):
    with pytest.raises(InvalidInput):
        query_input(request(f"/?{query}"))


def test_other_fields_are_for_the_features_schema():
    assert query_input(request("/?text=a")) == {"text": "a"}


@pytest.mark.parametrize("length", [LONGEST_QUERY, LONGEST_QUERY + 1])
def test_a_query_has_a_limit(length):
    long = request("/?message=" + "x" * (length - len("message=")))
    if length == LONGEST_QUERY:
        assert query_input(long)
    else:
        with pytest.raises(QueryTooLong):
            query_input(long)


# The key


keys = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=22, max_size=255)


@given(keys.filter(lambda key: not key.startswith('"')))
def test_quoted_and_bare_are_the_same(key):
    bare = idempotency_key(request(headers={"Idempotency-Key": key}))
    quoted = idempotency_key(request(headers={"Idempotency-Key": f'"{key}"'}))
    assert bare == quoted == key


def test_an_event_source_says_it_in_the_query():
    assert idempotency_key(request(f"/?key={KEY}")) == KEY
    assert idempotency_key(request("/?key=" + "x" * 30, headers={"Idempotency-Key": KEY})) == KEY


@pytest.mark.parametrize("path", ["/", "/?key="])
def test_no_key_is_none(path):
    assert idempotency_key(request(path)) is None
    assert idempotency_key(request(path, headers={"Idempotency-Key": ""})) is None


@pytest.mark.parametrize(
    "key",
    [KEY[1:], f'"{KEY[1:]}"', '""', '"', "x" * 256, KEY + " " + KEY, KEY + "é"],
    ids=["short", "short and quoted", "nothing", "a quote", "long", "two words", "not ASCII"],
)
def test_a_key_that_could_be_guessed_or_is_no_key_is_refused(key):
    with pytest.raises(InvalidKey):
        idempotency_key(request(query_string={"key": key}))


def test_an_uuid_is_a_key():
    assert idempotency_key(request(headers={"Idempotency-Key": "9b2e1c1e-5b0a-4f3e-8d39-0f2c1d3e4f5a"}))


# What makes two requests the same


def test_the_order_of_names_does_not_matter_and_everything_else_does():
    same = fingerprint("chat", {}, {"a": 1, "b": [1, 2]})
    assert fingerprint("chat", {}, {"b": [1, 2], "a": 1}) == same
    others = [
        fingerprint("other", {}, {"a": 1, "b": [1, 2]}),
        fingerprint("chat", {"n": 1}, {"a": 1, "b": [1, 2]}),
        fingerprint("chat", {}, {"a": 1, "b": [2, 1]}),
        fingerprint("chat", {}, {"a": "1", "b": [1, 2]}),
        fingerprint("chat", {}, {"a": 1}),
    ]
    assert len({same, *others}) == 6


def test_what_an_url_can_capture_has_a_fingerprint():
    import uuid

    assert fingerprint("chat", {"id": uuid.UUID(int=1)}, {}) != fingerprint("chat", {"id": uuid.UUID(int=2)}, {})


# The cursor


def test_the_cursor_is_in_the_header_or_in_the_query():
    assert cursor(request(headers={"Last-Event-ID": "r1:1-2"})) == Cursor("r1", 1, 2)
    assert cursor(request("/?after=r1:1-2")) == Cursor("r1", 1, 2)
    assert cursor(request("/?after=r1:1-2", headers={"Last-Event-ID": "r1:1-9"})) == Cursor("r1", 1, 9)
    assert cursor(request("/?after=")) is None
    assert cursor(request(headers={"Last-Event-ID": ""})) is None


def test_a_cursor_of_somebody_elses_is_refused():
    with pytest.raises(InvalidCursor):
        cursor(request(headers={"Last-Event-ID": "17"}))


# Who may start work by GET


@pytest.mark.parametrize("accept", ["text/event-stream", "text/html, text/event-stream;q=0.5", "TEXT/EVENT-STREAM"])
def test_an_event_source_says_what_it_wants(accept):
    require_event_stream(request(headers={"Accept": accept}))


@pytest.mark.parametrize("accept", [None, "*/*", "text/html", "image/webp,*/*;q=0.8", "text/event-stream;q=0"])
def test_an_image_tag_or_a_crawler_does_not(accept):
    with pytest.raises(EventStreamNotAccepted):
        require_event_stream(request(headers={"Accept": accept} if accept else None))


# The page that it comes from

OWN = "http://localhost"
FOREIGN = "https://evil.example"
ALLOWED = "https://app.example.com"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("headers", "get", "post"),
    [
        ({}, True, True),
        ({"Origin": OWN}, True, True),
        ({"Origin": "HTTP://LOCALHOST"}, True, True),
        ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, True, True),
        ({"Sec-Fetch-Site": "same-origin"}, True, True),
        ({"Origin": FOREIGN}, False, False),
        ({"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site"}, False, False),
        ({"Sec-Fetch-Site": "cross-site"}, False, True),
        ({"Sec-Fetch-Site": "same-site"}, False, True),
        ({"Sec-Fetch-Site": "none"}, False, True),
        ({"Origin": "null"}, False, False),
        ({"Origin": f"{OWN}:8000"}, False, False),
        ({"Origin": f"{OWN}.evil.example"}, False, False),
        ({"Origin": ALLOWED}, True, True),
        ({"Origin": ALLOWED.upper()}, True, True),
        ({"Origin": ALLOWED, "Sec-Fetch-Site": "cross-site"}, True, True),
        ({"Origin": ALLOWED.replace("https", "http")}, False, False),
    ],
    ids=lambda value: " ".join(value.values()) or "none" if isinstance(value, dict) else str(value),
)
def test_the_origin(method, headers, get, post):
    allowed = get if method == "GET" else post
    check = require_own_page if method == "GET" else require_known_origin  # a GET that starts work
    asked = request(method=method, headers=headers)
    if allowed:
        check(asked, record(allowed_origins=(ALLOWED,)))
    else:
        with pytest.raises(OriginRefused):
            check(asked, record(allowed_origins=(ALLOWED,)))


def test_a_star_allows_all():
    require_known_origin(request(method="POST", headers={"Origin": FOREIGN}), record(allowed_origins=("*",)))
