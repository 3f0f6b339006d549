"""The event stream format, as the WHATWG specification and the web platform tests have it."""

from __future__ import annotations

from base64 import b64encode

import pytest

from tests.client.server import done, opening, sse, token, tokens

pytestmark = pytest.mark.needs("chromium")

PARSE = """async ([stream, cuts]) => {
    const { EventStreamParser } = await import('/api/llmstream/events.js');
    const bytes = Uint8Array.from(atob(stream), (character) => character.charCodeAt(0));
    const seen = { blocks: [], comments: [], retries: [] };
    const parser = new EventStreamParser({
        onBlock: ({ id = null, data = null, event }) => seen.blocks.push([id, data, event]),
        onComment: (comment) => seen.comments.push(comment),
        onRetry: (retry) => seen.retries.push(retry),
    });
    let start = 0;
    for (const cut of [...cuts, bytes.length]) parser.feed(bytes.subarray(start, start = cut));
    return seen;
}"""


def parse(page, stream: bytes, cuts: tuple[int, ...] = ()):
    return page.evaluate(PARSE, [b64encode(stream).decode(), list(cuts)])


CASES = {
    "data": (b"data: a\n\n", [[None, "a", "message"]]),
    "two data lines are one with a line feed": (b"data: a\ndata: b\n\n", [[None, "a\nb", "message"]]),
    "one leading space alone is taken off": (
        b"data:  a\n\ndata:b\n\n",
        [[None, " a", "message"], [None, "b", "message"]],
    ),
    "empty data is an event": (b"data:\n\ndata\n\n", [[None, "", "message"]] * 2),
    "two empty data lines": (b"data\ndata\n\n", [[None, "\n", "message"]]),
    "event": (b"event: x\ndata: a\n\ndata: b\n\n", [[None, "a", "x"], [None, "b", "message"]]),
    "empty event is message": (b"event: x\nevent:\ndata: a\n\n", [[None, "a", "message"]]),
    "id": (b"id: 1\ndata: a\n\ndata: b\n\n", [["1", "a", "message"], [None, "b", "message"]]),
    "id without data": (b"id: 1\n\n", [["1", None, "message"]]),
    "empty id": (b"id\ndata: a\n\n", [["", "a", "message"]]),
    "id with NUL is ignored": (b"id: 1\0\ndata: a\n\n", [[None, "a", "message"]]),
    "NUL in data stays": (b"data: \0\n\n", [[None, "\0", "message"]]),
    "unknown and capital fields": (b"Data: a\nfoo: b\n data: c\ndata: d\n\n", [[None, "d", "message"]]),
    "colons in values": (b"data: a:b: c\n\n", [[None, "a:b: c", "message"]]),
    "unfinished block": (b"data: a\n\ndata: b\n", [[None, "a", "message"]]),
    "only one BOM": (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [[None, "a", "message"]]),
    "two BOMs": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [[None, "b", "message"]]),
    "other line separators don't separate": (
        "data: a\u2028b\u0085c\x0bd\x0ce\n\n".encode(),
        [[None, "a\u2028b\u0085c\x0bd\x0ce", "message"]],
    ),
    "not UTF-8": (b"data: \xff\n\n", [[None, "\ufffd", "message"]]),
    "blank lines": (b"\n\n\ndata: a\n\n\n\n", [[None, "a", "message"]]),
}


@pytest.mark.parametrize(("stream", "blocks"), CASES.values(), ids=CASES)
def test_format_with_each_line_end_whole_and_byte_by_byte(page, stream, blocks):
    """A byte at a time, a CRLF that has only begun must end its line, and end it once."""
    for line_end in (b"\n", b"\r", b"\r\n"):
        ended = stream.replace(b"\n", line_end)
        assert parse(page, ended)["blocks"] == blocks, line_end
        assert parse(page, ended, tuple(range(1, len(ended))))["blocks"] == blocks, line_end


def test_every_cut_in_two_gives_the_same(page):
    stream = b"\xef\xbb\xbfid: r1:1-1\r\ndata: " + "aé€😀".encode() + b"\r\r\n: x\n\r\ndata: b\r\n\r\n"
    whole = parse(page, stream)
    assert whole["blocks"] == [["r1:1-1", "aé€😀", "message"], [None, "b", "message"]]
    for cut in range(1, len(stream)):
        assert parse(page, stream, (cut,)) == whole, f"cut at {cut}"


def test_retry_takes_digits_alone(page):
    stream = b"retry: 10\n\nretry: 1.5\n\nretry: -1\n\nretry: 3x\n\nretry\n\nretry:20\n\n"
    assert parse(page, stream)["retries"] == [10, 20]


def test_comments(page):
    assert parse(page, b": heartbeat=5\n:\n\n:x\n")["comments"] == [" heartbeat=5", "", "x"]


def test_long_lines_take_linear_time(page):
    """Twice four megabytes in pieces of 64 bytes; joined anew at each piece they would take minutes."""
    milliseconds = page.evaluate("""async () => {
        const { EventStreamParser } = await import('/api/llmstream/events.js');
        const piece = new TextEncoder().encode('x'.repeat(64));
        let size = 0;
        const parser = new EventStreamParser({ onBlock: ({ data }) => (size += data.length) });
        const feed = (text) => parser.feed(new TextEncoder().encode(text));
        const start = performance.now();
        for (let n = 0; n < 2; n++) {
            feed('data: ');
            for (let m = 0; m < 65536; m++) parser.feed(piece);
            feed('\\n\\n');
        }
        return size === 2 * 4 * 2 ** 20 && performance.now() - start;
    }""")
    assert milliseconds
    assert milliseconds < 10_000


@pytest.mark.parametrize("endless", [b"data: " + b"x" * 3000, b"data: x\n" * 1100], ids=["line", "lines"])
def test_event_that_has_no_end(page, server, endless):
    server.will("POST /chat", sse(opening(), token(1, "Hi"), endless))
    run = page.evaluate("outcome(stream('/chat', {}, {maxEventSize: 2048}))")
    assert (run["error"]["name"], run["text"]) == ("ProtocolError", "Hi")


def test_limit_is_for_one_event_and_not_for_all(page, server):
    server.will("POST /chat", sse(opening(), b": padding\n" * 300, tokens("x" * 100), done(101)))
    run = page.evaluate("outcome(stream('/chat', {}, {maxEventSize: 256}))")
    assert run["end"]["text"] == "x" * 100


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
def test_each_byte_in_a_chunk_of_its_own(page, server, line_end):
    stream = b"\xef\xbb\xbf" + opening() + token(1, "aé€") + b":\n\n" + token(2, "😀") + done(3)
    stream = stream.replace(b"\n", line_end)
    server.will("POST /chat", sse(*[stream[n : n + 1] for n in range(len(stream))]))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["tokens"] == ["aé€", "😀"]
    assert run["state"] == "completed"


def test_events_with_a_name_of_their_own_are_not_ours(page, server):
    named = b'event: metrics\nid: r1:1-1\ndata: {"token": "no"}\n\n'
    server.will("POST /chat", sse(opening(), named, token(2, "yes"), done(3)))
    assert page.evaluate("outcome(stream('/chat'))")["text"] == "yes"


def test_id_without_data_moves_the_cursor(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a"), b"id: r1:1-2\n\n"))
    server.will("GET /runs/r1/events", sse(opening(2), token(3, "b"), done(4)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["text"] == "ab"
    assert server.came("GET /runs/r1/events")[0].query == {"after": "r1:1-2"}
