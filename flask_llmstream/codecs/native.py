"""The package's own format: server-sent events, one JSON object each, whose ids are cursors.

Replay and live are one path: whatever is there is encoded into one piece of bytes, and no two events are merged.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import sse
from ..cursor import Cursor

HEARTBEAT = sse.comment()
MEDIA_TYPE = "text/event-stream; charset=utf-8"


class NativeCodec:
    """The encoder of one reader.

    :param cursor: the last event that the reader has.
    """

    __slots__ = ("_id", "_n")

    def __init__(self, cursor: Cursor) -> None:
        self._id = f"id: {cursor.run_id}:{cursor.epoch}-".encode()
        self._n = cursor.n

    def opening(self, *, retry: int, heartbeat: float) -> bytes:
        """The first bytes of a response: they fix the cursor before there is any event.

        :param retry: milliseconds after which an EventSource that has lost its line comes back.
        :param heartbeat: seconds between signs of life.
        """
        return b"retry: %d\n%b%d\n: heartbeat=%b\n\n" % (retry, self._id, self._n, b"%g" % heartbeat)

    def encode(self, payloads: Sequence[bytes]) -> bytes:
        """The events that follow those before.

        JSON in one line needs nothing of what `sse.frame` looks after, and this is done for each token.
        """
        n, start = self._n, self._id
        self._n = n + len(payloads)
        if len(payloads) == 1:
            return b"%b%d\ndata: %b\n\n" % (start, n + 1, payloads[0])
        return b"".join([b"%b%d\ndata: %b\n\n" % (start, n + i, payload) for i, payload in enumerate(payloads, 1)])


def refusal(payload: bytes) -> bytes:
    """A stream that holds nothing but an error, for an EventSource, which sees neither status nor body.

    Its id says that nothing follows, so the reconnection that an EventSource tries after every end gets a 204.
    """
    return sse.frame(payload, id=str(Cursor(REFUSED, 1, 1)))


REFUSED = "refused"
"""Stands for the run in the id of a refusal."""
