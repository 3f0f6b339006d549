"""Server-sent events, both ways, without I/O: bytes in, events out; events in, bytes out.

Source: the HTML Standard, sections 9.2.5 and 9.2.6. Lines end with LF, CR or CRLF and with nothing else (not where
`str.splitlines` thinks), a blank line dispatches the event, and what has not been dispatched at the end of the
stream is discarded. Data stays bytes: whoever reads it as JSON needs no text, and a character that was split
between two chunks is whole again by then.
"""

from __future__ import annotations

import re

import msgspec

BOM = b"\xef\xbb\xbf"
LF = 0x0A
LINE_END = re.compile(rb"\r\n|\n|\r")
LINE_END_OR_NUL = re.compile("[\r\n\0]")
RETRY_DIGITS = 9
"""More of them are a mistake: a billion seconds is 31 years."""


class ServerEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as it was dispatched.

    :param data: the data lines, joined with LF; UTF-8.
    :param event: its type; empty stands for ``message``.
    :param id: the stream's last event id at this point: ids are sticky.
    """

    data: bytes
    event: str = ""
    id: str = ""


class EventTooLarge(ValueError):
    """An event, or a line of one, has more bytes than the decoder allows."""


class Decoder:
    """Decodes one event stream, in time linear in its bytes, however they are cut into chunks.

    `last_event_id` and `retry` (milliseconds, None until one was sent) are what the stream has set so far.

    :param max_event_size: bytes that the data of an event and its unfinished line may have together.
    """

    def __init__(self, max_event_size: int = 1024 * 1024) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self._max = max_event_size
        self._opened = False
        self._after_cr = False
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._event = ""
        self._id = ""
        self._data_size = 0
        self._line_size = 0

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that end in this chunk.

        :raises EventTooLarge: the stream cannot be decoded any further.
        """
        if not self._opened:
            chunk = self._without_bom(chunk)
        if not chunk:
            return []
        if self._after_cr and chunk[0] == LF:
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r"
        lines = LINE_END.split(chunk) if b"\r" in chunk else chunk.split(b"\n")
        unfinished = lines.pop()
        events: list[ServerEvent] = []
        for line in lines:
            if self._line:
                line = b"".join([*self._line, line])
                self._line.clear()
                self._line_size = 0
            if not line:
                self._dispatch(events)
            elif line[:6] == b"data: ":
                self._take_data(line[6:])
            else:
                self._take(line)
        if unfinished:
            self._line.append(unfinished)
            self._line_size += len(unfinished)
            self._check_size()
        return events

    def _without_bom(self, chunk: bytes) -> bytes:
        """The chunk without a byte order mark; nothing while one may still be coming."""
        start = b"".join([*self._line, chunk])
        self._line.clear()
        if len(start) < len(BOM) and BOM.startswith(start):
            self._line.append(start)
            return b""
        self._opened = True
        return start.removeprefix(BOM)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._take_data(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= RETRY_DIGITS:
            self.retry = int(value)

    def _take_data(self, value: bytes) -> None:
        self._data.append(value)
        self._data_size += len(value) + 1
        self._check_size()

    def _check_size(self) -> None:
        if self._data_size + self._line_size > self._max:
            raise EventTooLarge(f"an event of more than {self._max} bytes")

    def _dispatch(self, events: list[ServerEvent]) -> None:
        self.last_event_id = self._id
        if self._data:
            events.append(ServerEvent(b"\n".join(self._data), self._event, self._id))
            self._data.clear()
            self._data_size = 0
        self._event = ""


def frame(data: bytes, *, id: str | None = None, event: str | None = None) -> bytes:
    """One event.

    :param data: UTF-8; may have several lines.
    :param id: what a client comes back with as its cursor. An empty one resets it.
    :param event: its type; None for ``message``.
    :raises ValueError: for a line end or a NUL in `id` or `event`, which no escape could carry.
    """
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(LINE_END.split(data))
    if event is not None:
        data = b"%b\ndata: %b" % (_field(event), data)
    name = b"data" if event is None else b"event"
    if id is None:
        return b"%b: %b\n\n" % (name, data)
    return b"id: %b\n%b: %b\n\n" % (_field(id), name, data)


def comment(text: str = "") -> bytes:
    """A block that a client skips; it keeps the line open.

    :raises ValueError: for a text of more than one line.
    """
    return b": " + _field(text) + b"\n\n" if text else b":\n\n"


def _field(value: str) -> bytes:
    if not value.isprintable() and LINE_END_OR_NUL.search(value):  # printable is cheap to ask, and the rule
        raise ValueError(f"a line end or NUL cannot be sent in a field of an event stream: {value!r}")
    return value.encode()
