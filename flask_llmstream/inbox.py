"""What a client has said and nobody has asked for yet: whole messages, of bounded length."""

from __future__ import annotations

from collections import deque

from wsproto.events import BytesMessage, TextMessage

WEIGHT = 64
"""Bytes that a message takes beside its own."""


class MessageTooLong(Exception):
    """A message is longer than it may be. What has come of it is dropped."""


class Inbox:
    """Received messages. One puts in what comes, and one takes, which may be another thread.

    :param longest: bytes of the longest message that is taken.
    :param room: bytes from which on it is full.
    """

    def __init__(self, longest: int, room: int) -> None:
        self._longest = longest
        self._room = room
        self._messages: deque[tuple[str | bytes, int]] = deque()
        self._pieces = bytearray()
        # Each is changed by one thread only.
        self._received = 0
        self._taken = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    @property
    def full(self) -> bool:
        """Whether no more should be read until something was taken."""
        return self._received - self._taken >= self._room

    def put(self, event: TextMessage | BytesMessage) -> bool:
        """Put a message together: wsproto tells of each fragment, and of what has come of a frame.

        :returns: whether it is complete.
        :raises MessageTooLong: it is, as far as it has come.
        """
        data = event.data
        piece = data.encode() if isinstance(data, str) else data
        size = len(self._pieces) + len(piece)
        if size > self._longest:
            self._pieces.clear()
            raise MessageTooLong
        if self._pieces or not event.message_finished:
            self._pieces += piece
        if not event.message_finished:
            return False
        if self._pieces:
            data = self._pieces.decode() if isinstance(data, str) else bytes(self._pieces)
            self._pieces.clear()
        self._received += size + WEIGHT
        self._messages.append((data if isinstance(data, str) else bytes(data), size + WEIGHT))
        return True

    def take(self) -> str | bytes:
        """The message that came first."""
        message, weight = self._messages.popleft()
        self._taken += weight
        return message
