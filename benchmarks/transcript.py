"""What one stream received, taken apart after the load has ended, so that parsing costs no token any time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

# The upstream's token is the moment it was sent, as JSON text in whatever event carries it on.
STAMP = re.compile(rb'"t(\d+) ?"')
BLANK_LINE = re.compile(rb"\n\r?\n")
REFUSAL_SHOWN = 500


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One stream as its client saw it. Times are nanoseconds of the machine's monotonic clock.

    :param started: before the connection was opened.
    :param status: HTTP status, 0 if none came.
    :param ended: the body was closed as HTTP wants it, rather than cut.
    :param sent: for each token, when the upstream sent it.
    :param arrived: for each token, when the last byte of its event was here.
    :param refusal: the start of the body, if the status was not 200.
    """

    started: int
    status: int
    ended: bool
    sent: Sequence[int] = field(repr=False)
    arrived: Sequence[int] = field(repr=False)
    refusal: str = ""

    @property
    def in_order(self) -> bool:
        """No token came twice, and none before an earlier one."""
        return all(earlier < later for earlier, later in zip(self.sent, self.sent[1:], strict=False))


def read(started: int, reads: Sequence[tuple[int, bytes]]) -> Transcript:
    """Parse one response.

    :param started: before the connection was opened, in ns.
    :param reads: what each ``recv`` returned, and when.
    """
    raw = b"".join(data for _, data in reads)
    head, _, rest = raw.partition(b"\r\n\r\n")
    status = int(head[9:12]) if head[9:12].isdigit() else 0
    if status != 200:
        refusal = rest[:REFUSAL_SHOWN].decode(errors="replace")
        return Transcript(started=started, status=status, ended=status > 0, sent=(), arrived=(), refusal=refusal)
    body, chunk_ends, ended = _unchunked(rest)
    arrival = _Arrivals(reads, chunk_ends, offset=len(raw) - len(rest))
    sent, arrived = [], []
    for token in STAMP.finditer(body):
        event_end = BLANK_LINE.search(body, token.end())
        sent.append(int(token[1]))
        arrived.append(arrival.of(event_end.end() if event_end else len(body)))
    return Transcript(started=started, status=status, ended=ended, sent=sent, arrived=arrived)


def _unchunked(rest: bytes) -> tuple[bytes, list[tuple[int, int]], bool]:
    """The body, where each chunk ends (in the body, in ``rest``), and whether the last chunk came whole."""
    pieces: list[bytes] = []
    ends: list[tuple[int, int]] = []
    position = length = 0
    while (line_end := rest.find(b"\r\n", position)) > 0:
        size = int(rest[position:line_end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(pieces), ends, rest[line_end:] == b"\r\n\r\n"
        piece = rest[line_end + 2 : line_end + 2 + size]
        pieces.append(piece)
        length += len(piece)
        position = line_end + 2 + size + 2
        ends.append((length, line_end + 2 + len(piece)))
    return b"".join(pieces), ends, False


class _Arrivals:
    """When the byte before a place in the body arrived; places are asked for in rising order."""

    def __init__(self, reads: Sequence[tuple[int, bytes]], chunk_ends: Sequence[tuple[int, int]], *, offset: int):
        self._reads = reads
        self._chunk_ends = chunk_ends
        self._offset = offset
        self._chunk = 0
        self._read = 0
        self._received = len(reads[0][1]) if reads else 0

    def of(self, place: int) -> int:
        while self._chunk_ends[self._chunk][0] < place:
            self._chunk += 1
        in_body, in_rest = self._chunk_ends[self._chunk]
        raw_place = self._offset + in_rest - (in_body - place)
        while self._received < raw_place:
            self._read += 1
            self._received += len(self._reads[self._read][1])
        return self._reads[self._read][0]
