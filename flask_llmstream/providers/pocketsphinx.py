"""Transcription with no network: pocketsphinx, in child processes, since it lets no other thread work beside it."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..audio import WIDTH, milliseconds, whole
from ..errors import ConfigurationError, InvalidInput, LLMStreamError
from .child import AUDIO, FAILED, FINAL, FINISH, FRAME, HEARD, PARTIAL, taken
from .offloaded import Children, Connection, demand, is_installed
from .spoken import Transcription

log = logging.getLogger("flask_llmstream")

RATE = 16_000
UNDER_WAY = RATE * WIDTH
"""Bytes that a child may be given before it has dealt with them: a second of audio."""
WAITING = 9 * RATE * WIDTH
"""Bytes that wait here besides: what comes at once after a stall of the line is dealt with seven times as fast as it
was said. What is more is lost, the oldest first.
"""


class PocketSphinx:
    """Understands English with a model that its wheel brings; needs the extra ``voice``.

    It takes 0.1 to 0.15 CPU seconds for a second of speech, and mistakes every sixth word of a clear voice. With a
    grammar it takes a tenth of that, and hardly ever mistakes what the grammar allows.

    :param grammar: what can be said, as JSGF; None for anything.
    :param processes: how many utterances there may be at a time. Each has a child process to itself, started when it
        is first needed, with 100 MB of its own (with a grammar, 30 MB).
    :param options: further options of ``pocketsphinx.Decoder``, such as ``hmm``, ``lm`` and ``dict`` for another model.
        ``{"fwdflat": False}`` has the words some 70 ms earlier, and one in five wrong.
    :param language: of the model.
    """

    rate = RATE

    def __init__(
        self,
        *,
        grammar: str | None = None,
        processes: int = 4,
        options: Mapping[str, Any] | None = None,
        language: str = "en",
    ) -> None:
        self.language = language
        orders = {"grammar": grammar, "decoder": {"samprate": RATE, **(options or {})}}
        self._children = Children("recognize", orders, processes=processes, each=1)

    def begin(self, *, language: str | None = None) -> Transcription:
        """Listen to an utterance.

        :raises ConfigurationError: pocketsphinx is not installed.
        :raises InvalidInput: it is in another language than the model's.
        :raises Overloaded: there are as many utterances as may be.
        """
        demand("pocketsphinx", "Speech recognition by pocketsphinx")
        if language is not None and _primary(language) != _primary(self.language):
            message = f"The language {language!r} is not understood here: the model of speech is for {self.language!r}."
            raise InvalidInput(message, errors={"language": [message]})
        return Utterance(self._children.connect())

    def warm(self) -> None:
        """Start a child process, which loads the model meanwhile."""
        if is_installed("pocketsphinx"):
            self._children.warm(1)

    def close(self) -> None:
        self._children.close()


class Utterance:
    """An utterance that a child process listens to.

    The child is given no more than it can be expected to hear at once; what it does not keep up with waits here.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._waiting: deque[bytes] = deque()
        self._waiting_size = 0
        self._under_way = 0
        self._lost = 0
        self._partial = ""
        self._final: str | None = None
        self._failure: LLMStreamError | None = None
        self._lock = threading.Lock()
        self._finishing = False
        self._aborted = False

    def feed(self, pcm: bytes) -> str | None:
        """Hear some more.

        :param pcm: at 16 kHz.
        :returns: the words so far, where they are others than before.
        :raises ValueError: for half a sample.
        """
        if self._aborted or self._final is not None or self._failure is not None:
            return None
        before = self._partial
        self._queue(whole(pcm))
        try:
            self._connection.socket.setblocking(False)
            self._read_what_is_there()
            self._write_what_fits()
        except OSError as error:
            self._fail(error)
        return self._partial if self._partial != before else None

    def finish(self) -> str:
        """The words; none where the utterance was aborted.

        :raises ConfigurationError: pocketsphinx does not take its grammar or its options.
        :raises LLMStreamError: the child process died over them.
        """
        with self._lock:
            if self._aborted:
                return ""
            self._finishing = True
        try:
            if self._final is None and self._failure is None:
                self._wait_for_words()
        except OSError as error:
            self._fail(error)
        finally:
            with self._lock:
                self._finishing = False
            self._connection.close()
        if self._aborted:
            return ""
        if self._failure is not None:
            raise self._failure
        return self._final or ""

    def abort(self) -> None:
        with self._lock:
            if self._aborted:
                return
            self._aborted = True
            # Wakes the one who waits in `finish`, who then closes it.
            with suppress(OSError):
                self._connection.socket.shutdown(socket.SHUT_RDWR)
            finishing = self._finishing
        if not finishing:
            self._connection.close()

    def _queue(self, pcm: bytes) -> None:
        if not pcm:
            return
        self._waiting.append(pcm)
        self._waiting_size += len(pcm)
        while self._waiting_size > WAITING and len(self._waiting) > 1:
            if not self._lost:
                log.warning("Speech recognition does not keep up: what is said is lost in part.")
            dropped = self._waiting.popleft()
            self._waiting_size -= len(dropped)
            self._lost += len(dropped)

    def _write_what_fits(self) -> None:
        while True:
            if not self._outbox:
                if not self._waiting or self._under_way + len(self._waiting[0]) > max(UNDER_WAY, len(self._waiting[0])):
                    return
                self._prepare()
            with suppress(BlockingIOError):
                del self._outbox[: self._connection.socket.send(self._outbox)]
            if self._outbox:
                return

    def _prepare(self) -> None:
        pcm = self._waiting.popleft()
        self._waiting_size -= len(pcm)
        self._under_way += len(pcm)
        self._outbox += FRAME.pack(AUDIO, len(pcm)) + pcm

    def _read_what_is_there(self) -> None:
        with suppress(BlockingIOError):
            while self._failure is None:
                self._read()

    def _wait_for_words(self) -> None:
        if self._lost:
            log.warning("%d ms of an utterance were lost.", milliseconds(self._lost // WIDTH, RATE))
        self._connection.wait()
        while self._waiting:
            self._prepare()
        self._outbox += FRAME.pack(FINISH, 0)
        self._connection.socket.sendall(self._outbox)
        while self._final is None and self._failure is None:
            self._read()

    def _read(self) -> None:
        chunk = self._connection.socket.recv(65536)
        if not chunk:
            raise ConnectionResetError("the child process has ended")
        self._inbox += chunk
        while (message := taken(self._inbox)) is not None:
            self._take(*message)

    def _take(self, kind: int, content: bytes) -> None:
        if kind == HEARD:
            self._under_way -= struct.unpack("<I", content)[0]
        elif kind == PARTIAL:
            self._partial = content.decode()
        elif kind == FINAL:
            self._final = content.decode()
        elif kind == FAILED:
            self._failure = ConfigurationError(
                "Speech recognition is not set up correctly.", diagnosis=content.decode()
            )

    def _fail(self, error: OSError) -> None:
        if self._aborted or self._failure is not None:
            return
        self._failure = LLMStreamError("What was said could not be recognized.", diagnosis=f"pocketsphinx: {error}")
        self._connection.give_up()


def _primary(language: str) -> str:
    return language.replace("_", "-").partition("-")[0].lower()
