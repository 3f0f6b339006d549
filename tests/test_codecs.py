"""The native codec, against a recorded transcript and against the decoder."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.codecs.native import HEARTBEAT, MEDIA_TYPE, NativeCodec, refusal
from flask_llmstream.cursor import Cursor
from flask_llmstream.events import Data, Done, Failed, Progress, Reasoning, Status, Token, Tool, Usage
from flask_llmstream.sse import Decoder

TRANSCRIPT = Path(__file__).with_name("transcripts") / "native.txt"

RUN = "V1StGXR8_Z5jdHi6B-myTA"
PROBLEM = {"type": "urn:problem-type:flask-llmstream:upstream-truncated", "title": "It broke off", "status": 502}
EVENTS = [
    Status("queued"),
    Status("thinking"),
    Reasoning("The user says hello."),
    Tool({"id": "call_1", "name": "now", "arguments": '{"zone": "UTC"}'}),
    Progress(0.4, "page 2"),
    Data({"title": "Größe"}),
    Status("writing"),
    Token("Hel"),
    Token("lo,\nworld"),
    Done(done=True, tokens=2, finish_reason="stop", usage=Usage(9, 2), ttft_ms=212.5, total_ms=300.0),
]


def test_the_recorded_transcript():
    """What is on the wire is a promise to every client that is out there: change it knowingly."""
    codec = NativeCodec(RUN)
    wire = codec.opening(1, 0, retry=2000, heartbeat=5.0)
    wire += codec.encode(1, 2, [event.encode() for event in EVENTS[:2]])
    for n, event in enumerate(EVENTS[2:], 3):
        wire += HEARTBEAT if isinstance(event, Progress) else b""
        wire += codec.encode(1, n, [event.encode()])
    wire += refusal(Failed(error="It broke off.", problem=PROBLEM).encode())
    assert wire == TRANSCRIPT.read_bytes()


payloads = st.lists(
    st.one_of(st.builds(Token, st.text()), st.builds(Data, st.dictionaries(st.text(), st.text()))).map(
        lambda event: event.encode()
    ),
    max_size=20,
)
cursors = st.builds(
    Cursor, st.from_regex(r"[A-Za-z0-9_-]{1,30}", fullmatch=True), st.integers(1, 99), st.integers(0, 99)
)


@given(cursors, payloads, st.data())
def test_any_events_in_any_batches_come_back_each_with_its_cursor(cursor, payloads, data):
    codec = NativeCodec(cursor.run_id)
    wire = codec.opening(cursor.epoch, cursor.n, retry=2500, heartbeat=0.5)
    left, n = list(payloads), cursor.n
    while left:
        size = data.draw(st.integers(1, len(left)))
        n += size
        wire += codec.encode(cursor.epoch, n, left[:size]) + HEARTBEAT
        del left[:size]
    decoder = Decoder()
    events, at = [], 0
    while at < len(wire):
        step = data.draw(st.integers(1, len(wire)))
        events += decoder.feed(wire[at : at + step])
        at += step
    assert [event.data for event in events] == payloads
    expected = [str(Cursor(cursor.run_id, cursor.epoch, cursor.n + i)) for i in range(1, len(payloads) + 1)]
    assert [event.id for event in events] == expected


@given(cursors, payloads.filter(bool))
def test_replay_packs_into_one_piece_what_live_sends_in_many(cursor, payloads):
    codec, epoch = NativeCodec(cursor.run_id), cursor.epoch
    one_by_one = [codec.encode(epoch, cursor.n + i, [payload]) for i, payload in enumerate(payloads, 1)]
    assert codec.encode(epoch, cursor.n + len(payloads), payloads) == b"".join(one_by_one)


def test_replay_merges_no_two_events():
    wire = NativeCodec(RUN).encode(1, 2, [Token("Hel").encode(), Token("lo").encode()])
    assert [json.loads(event.data) for event in Decoder().feed(wire)] == [{"token": "Hel"}, {"token": "lo"}]


def test_the_opening_fixes_the_cursor_before_there_is_any_event():
    decoder = Decoder()
    assert decoder.feed(NativeCodec("r1").opening(2, 7, retry=2345, heartbeat=2.5)) == []
    assert (decoder.last_event_id, decoder.retry) == ("r1:2-7", 2345)


def test_the_opening_tells_the_heartbeat():
    for heartbeat, said in [(5.0, b": heartbeat=5\n"), (2.5, b": heartbeat=2.5\n"), (0.25, b": heartbeat=0.25\n")]:
        assert said in NativeCodec(RUN).opening(1, 0, retry=2000, heartbeat=heartbeat)


def test_with_another_writer_the_numbers_begin_anew_and_the_id_says_so():
    """One reader, one response: it is given what a first writer said, and then what follows from the next."""
    codec, decoder = NativeCodec("r1"), Decoder()
    decoder.feed(codec.opening(1, 6, retry=2000, heartbeat=5.0))
    wire = codec.encode(1, 8, [b'{"token":"a"}', b'{"token":"b"}']) + codec.encode(2, 1, [b'{"error":"No."}'])
    assert [event.id for event in decoder.feed(wire)] == ["r1:1-7", "r1:1-8", "r1:2-1"]


def test_a_heartbeat_is_no_event_and_moves_no_cursor():
    codec, decoder = NativeCodec(RUN), Decoder()
    (event,) = decoder.feed(codec.encode(1, 1, [b'{"token":"a"}']))
    assert decoder.feed(HEARTBEAT) == []
    assert decoder.last_event_id == event.id


def test_the_id_of_a_refusal_is_a_cursor_that_leads_nowhere():
    (event,) = Decoder().feed(refusal(b'{"error":"No."}'))
    assert Cursor.parse(event.id).run_id == "refused"
    assert event.data == b'{"error":"No."}'


def test_the_media_type_names_the_only_encoding_there_is():
    assert MEDIA_TYPE == "text/event-stream; charset=utf-8"
