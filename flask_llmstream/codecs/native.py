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

    :param run_id: whose events these are.
    """

    __slots__ = ("_epoch", "_id", "_run_id")

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._epoch = 0
        self._id = b""

    def opening(self, epoch: int, n: int, *, retry: int, heartbeat: float) -> bytes:
        """The first bytes of a response: they fix the cursor before there is any event.

        :param epoch: with `n`, the last event that the reader has.
        :param retry: milliseconds after which an EventSource that has lost its line comes back.
        :param heartbeat: seconds between signs of life.
        """
        return b"retry: %d\n%b%d\n: heartbeat=%b\n\n" % (retry, self._start(epoch), n, b"%g" % heartbeat)

    def encode(self, epoch: int, n: int, payloads: Sequence[bytes]) -> bytes:
        """Events that follow one another, the last of which is the n-th of its epoch.

        JSON in one line needs nothing of what `sse.frame` looks after, and this is done for each token.
        """
        start = self._id if epoch == self._epoch else self._start(epoch)
        if len(payloads) == 1:
            return b"%b%d\ndata: %b\n\n" % (start, n, payloads[0])
        first = n - len(payloads) + 1
        return b"".join([b"%b%d\ndata: %b\n\n" % (start, first + i, payload) for i, payload in enumerate(payloads)])

    def _start(self, epoch: int) -> bytes:
        self._epoch = epoch
        self._id = f"id: {self._run_id}:{epoch}-".encode()
        return self._id


def refusal(payload: bytes) -> bytes:
    """A stream that holds nothing but an error, for an EventSource, which sees neither status nor body.

    Its id says that nothing follows, so the reconnection that an EventSource tries after every end gets a 204.
    """
    return sse.frame(payload, id=str(Cursor(REFUSED, 1, 1)))


REFUSED = "refused"
"""Stands for the run in the id of a refusal."""
