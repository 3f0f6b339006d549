"""Server-sent events by the book: the tables follow web-platform-tests (eventsource/format-*)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sse import Decoder, EventTooLarge, ServerEvent, comment, frame


def decode(*chunks: bytes) -> list[ServerEvent]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def data_of(stream: bytes) -> list[bytes]:
    return [event.data for event in decode(stream)]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: hello\n\n", [b"hello"]),
        (b"data:hello\n\n", [b"hello"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data:\ttab\n\n", [b"\ttab"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:\n\n", [b""]),
        (b"data\n\n", [b""]),
        (b"data\ndata\n\n", [b"\n"]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"data: a\n\ndata: unfinished", [b"a"]),
        (b"\n\n\ndata: a\n\n", [b"a"]),
        (b": comment\n\ndata: a\n: in between\ndata: b\n\n", [b"a\nb"]),
        (b":data: a\n\n", []),
        (b"Data: a\ndata : b\n data: c\ndata: d\n\n", [b"d"]),
        (b"datax: a\nunknown: b\nunknown\ndata: c\n\n", [b"c"]),
        (b"event: only\n\n", []),
        (b"data: nul \0 byte\n\n", [b"nul \0 byte"]),
        ("data: U+2028 \u2028, U+0085 \x85, \v and \f end no line\n\n".encode(), None),
        ("data: über 🎉\n\n".encode(), ["über 🎉".encode()]),
        (b"data: \xff\xfe\n\n", [b"\xff\xfe"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"b"]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    ],
)
def test_which_data_is_dispatched(stream, data):
    assert data_of(stream) == (data if data is not None else [stream[6:-2]])


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_lines_end_with_any_of_three(end):
    lines = [b"data: a", b"data: b", b"", b"event: e", b"data: c", b"", b""]
    assert decode(end.join(lines)) == [ServerEvent(b"a\nb"), ServerEvent(b"c", "e")]


def test_an_event_goes_out_with_its_cr_without_waiting_for_a_lf():
    decoder = Decoder()
    assert decoder.feed(b"data: a\r\n\r") == [ServerEvent(b"a")]
    assert decoder.feed(b"\ndata: b\r\n\r\n") == [ServerEvent(b"b")]


def test_a_blank_line_of_its_own_is_not_taken_for_half_a_crlf():
    assert decode(b"data: a\r", b"\n", b"\n") == [ServerEvent(b"a")]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"event: e\ndata: a\n\ndata: b\n\n", [ServerEvent(b"a", "e"), ServerEvent(b"b")]),
        (b"event: e\nevent:\ndata: a\n\n", [ServerEvent(b"a")]),
        (b"event: lost\n\ndata: a\n\n", [ServerEvent(b"a")]),
        (b"id: 1\ndata: a\n\ndata: b\n\n", [ServerEvent(b"a", "", "1"), ServerEvent(b"b", "", "1")]),
        (b"id: 1\n\ndata: a\n\n", [ServerEvent(b"a", "", "1")]),
        (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [ServerEvent(b"a", "", "1"), ServerEvent(b"b")]),
        (b"id: 1\nid: 2\0\ndata: a\n\n", [ServerEvent(b"a", "", "1")]),
        ("id: ü\ndata: a\n\n".encode(), [ServerEvent(b"a", "", "ü")]),
    ],
)
def test_types_and_sticky_ids(stream, events):
    assert decode(stream) == events


def test_an_id_counts_only_once_its_block_has_ended():
    decoder = Decoder()
    decoder.feed(b"id: 1\n\nid: 2\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"\n")
    assert decoder.last_event_id == "2"


@pytest.mark.parametrize(
    ("line", "milliseconds"),
    [
        (b"retry: 2000", 2000),
        (b"retry:0", 0),
        (b"retry: 03000", 3000),
        (b"retry", None),
        (b"retry: -1", None),
        (b"retry: 1.5", None),
        (b"retry: 1e3", None),
        ("retry: ٣".encode(), None),
        (b"retry: " + b"9" * 5000, None),
    ],
)
def test_retry_is_ascii_digits_only(line, milliseconds):
    decoder = Decoder()
    assert decoder.feed(line + b"\n\n") == []
    assert decoder.retry == milliseconds


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 100 + b"\n\n"],
        [b"data: " + b"x" * 100],
        [b"data: x\n"] * 100,
        [b"data: ", *[b"x"] * 100],
        [b":", *[b"x"] * 100],
        [b"event: ", *[b"x"] * 100],
    ],
    ids=["whole", "unfinished", "many lines", "byte by byte", "a comment", "a type"],
)
def test_an_event_that_is_too_large_is_refused(chunks):
    decoder = Decoder(max_event_size=64)
    with pytest.raises(EventTooLarge):
        for chunk in chunks:
            decoder.feed(chunk)


def test_the_size_limit_is_an_events_and_not_the_streams():
    decoder = Decoder(max_event_size=64)
    for _ in range(100):
        decoder.feed(b": a comment that takes some room\n")
        assert len(decoder.feed(b"data: " + b"x" * 50 + b"\n\n")) == 1


LINES = st.lists(
    st.one_of(
        st.sampled_from([b"", b"", b"data: a", b"data", b"id: 1", b"id", b"event: e", b": c", b"retry: 5", b"id: \0"]),
        st.text("ab: \0\u2028ü", max_size=6).map(str.encode),
    ),
    max_size=12,
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
STREAMS = st.builds(
    lambda bom, lines, ends: bom + b"".join(line + end for line, end in zip(lines, ends, strict=False)),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xef\xbb"]),
    LINES,
    st.lists(ENDS, min_size=12, max_size=12),
)


def by_the_book(stream: bytes) -> list[ServerEvent]:
    """The standard's algorithm, word for word and slow: section 9.2.6, "interpreting an event stream"."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    lines = re.split(rb"\r\n|\n|\r", stream)[:-1]
    events, data, kind, last_id = [], b"", "", ""
    for line in lines:
        if not line:
            if data:
                events.append(ServerEvent(data[:-1], kind, last_id))
            data, kind = b"", ""
            continue
        if line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data += value + b"\n"
        elif field == b"event":
            kind = value.decode("utf-8", "replace")
        elif field == b"id" and b"\0" not in value:
            last_id = value.decode("utf-8", "replace")
    return events


@given(STREAMS, st.data())
def test_chunks_may_be_cut_anywhere(stream, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == by_the_book(stream)


@given(STREAMS)
def test_chunks_may_be_single_bytes(stream):
    assert decode(*(bytes([byte]) for byte in stream)) == by_the_book(stream)


FIELDS = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


@given(st.binary(), st.none() | FIELDS, st.none() | FIELDS)
def test_what_is_framed_is_decoded_again(data, id, event):
    [decoded] = decode(frame(data, id=id, event=event))
    assert decoded.data == re.sub(rb"\r\n|\r", b"\n", data)
    assert decoded.event == (event or "")
    assert decoded.id == (id or "")


def test_the_form_of_a_frame():
    assert frame(b'{"token":"Hel"}', id="r:1-1") == b'id: r:1-1\ndata: {"token":"Hel"}\n\n'
    assert frame(b"{}", event="done") == b"event: done\ndata: {}\n\n"
    assert frame(b"{}", id="7", event="done") == b"id: 7\nevent: done\ndata: {}\n\n"
    assert frame(b"a\nb") == b"data: a\ndata: b\n\n"


@pytest.mark.parametrize("unfit", ["a\nb", "a\rb", "a\0b", "\n"])
def test_no_line_end_or_nul_gets_into_a_field(unfit):
    for make in (
        lambda: frame(b"", id=unfit),
        lambda: frame(b"", event=unfit),
        lambda: comment(unfit),
    ):
        with pytest.raises(ValueError, match="cannot be sent"):
            make()


def test_comments_are_no_events():
    assert (comment(), comment("x")) == (b":\n\n", b": x\n\n")
    assert Decoder().feed(comment() + comment("heartbeat=5")) == []
