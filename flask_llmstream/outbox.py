"""What a call tells its client: numbered messages, of which those that may be lost are kept, to be sent again."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

MOST = 4096
"""Messages that the client has not acknowledged."""
MOST_BYTES = 16_777_216
AHEAD = 1024
"""Messages after which an answer waits until the client has acknowledged some."""
AHEAD_BYTES = 1_048_576

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Outbox:
    """The messages of one call, numbered 1, 2, 3 …, each kept until the client says that it has it.

    :param most: how many may be kept. Whoever acknowledges none of so many is not listening.
    """

    def __init__(self, most: int = MOST) -> None:
        self.last = 0
        """The number of the last message."""
        self._most = most
        self._kept: deque[bytes] = deque()
        self._size = 0
        self._sent = 0

    @property
    def overfull(self) -> bool:
        """Whether more is kept than may be."""
        return len(self._kept) > self._most or self._size > MOST_BYTES

    def has_room(self, behind: int = 0) -> bool:
        """Whether there is room for more of an answer.

        :param behind: messages that are about to come.
        """
        return len(self._kept) + behind < AHEAD and self._size < AHEAD_BYTES

    def add(self, kind: str, **fields: Any) -> None:
        """Say something.

        :param kind: the message's type.
        """
        self._keep(_encode({"type": kind, "seq": self.last + 1, **fields}))

    def add_event(self, run_id: str, payload: bytes) -> None:
        """Pass on an event of a run's log, as it stands there.

        :param payload: its JSON form, whose first field is its kind.
        """
        kind = payload[2 : payload.index(b'"', 2)]
        self._keep(b'{"type":"%b","seq":%d,"run":"%b",%b' % (kind, self.last + 1, run_id.encode(), payload[1:]))

    def take(self) -> bytes | None:
        """The next message that has not been sent by this connection."""
        first = self.last - len(self._kept) + 1
        place = max(self._sent + 1, first)
        if place > self.last:
            return None
        self._sent = place
        return self._kept[place - first]

    def acknowledge(self, last: int) -> None:
        """The client has all messages up to one.

        :raises ValueError: there is no such message yet.
        """
        if last > self.last:
            raise ValueError(f"message {last} is acknowledged, and the last one is {self.last}")
        while self._kept and self.last - len(self._kept) + 1 <= last:
            self._size -= len(self._kept.popleft())

    def rewind(self, last: int) -> bool:
        """Go on, by another connection, behind the last message that the client has.

        :returns: whether all that follow are there.
        """
        if not self.last - len(self._kept) <= last <= self.last:
            return False
        self.acknowledge(last)
        self._sent = last
        return True

    def _keep(self, message: bytes) -> None:
        self.last += 1
        self._kept.append(message)
        self._size += len(message)
