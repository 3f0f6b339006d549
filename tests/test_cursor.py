"""Cursors: what goes out comes back, and nothing else is taken for one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.cursor import Cursor
from flask_llmstream.errors import InvalidCursor

cursors = st.builds(
    Cursor,
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.integers(0, 10**15 - 1),
    st.integers(0, 10**12 - 1),
)


@given(cursors)
def test_what_goes_out_comes_back(cursor):
    assert Cursor.parse(str(cursor)) == cursor


@given(cursors)
def test_the_wire_form_is_one_word_of_ascii(cursor):
    """As a header's value, and in a line of an event stream."""
    assert re.fullmatch(r"[\x21-\x7e]{5,}", str(cursor))


def test_the_wire_form():
    assert str(Cursor("abc_-9", 2, 17)) == "abc_-9:2-17"
    assert Cursor.parse("runs:1795171646790-3") == Cursor("runs", 1795171646790, 3), "a place in an owner's feed"


@given(st.text())
def test_any_text_is_a_cursor_or_refused(text):
    try:
        cursor = Cursor.parse(text)
    except InvalidCursor:
        return
    assert Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "17",
        "abc:1",
        "abc:1-",
        "abc:-1",
        ":1-1",
        "abc:1-1 ",
        "abc:1-1\n",
        "abc:1-+1",
        "abc:1--1",
        "a c:1-1",
        "ä:1-1",
        "abc:1-٣",
        "a" * 65 + ":1-1",
        "abc:1-" + "1" * 13,
        "abc:" + "1" * 16 + "-1",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidCursor):
        Cursor.parse(text)
