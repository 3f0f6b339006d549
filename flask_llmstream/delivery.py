"""What goes out to a call's client: numbered messages first, then the audio of the answer, at the pace of its ears.

One task sends, for as long as a line is there. When the line is lost, what was not acknowledged waits for the next.
"""

from __future__ import annotations

import threading
from math import inf
from time import monotonic
from typing import Any, Protocol

from .audio import Format
from .outbox import Outbox
from .packets import Download
from .playout import Playout
from .runtime import current

AHEAD_MS = 400
"""Milliseconds of audio that are sent before the client has heard what comes before them."""
GENERATIONS = 65536
TAKEN_OVER = "Another connection has taken over this call."


class Line(Protocol):
    """A connection to the client. Sending by one that is lost raises what its kind of connection raises."""

    def send(self, data: str | bytes) -> None: ...

    def close(self, code: int = 1000, reason: str = "") -> None: ...


class Delivery:
    """One call's way out.

    :param output: the audio that the client takes.
    """

    def __init__(self, output: Format) -> None:
        self.output = output
        self.lock = threading.RLock()
        self.outbox = Outbox()
        self.generation = 0
        self.playout: Playout | None = None
        """The audio of the present answer."""
        self.held = False
        """Whether the answer is silenced."""
        self.first_sent: float | None = None
        """When the first audio of the present answer went out; seconds on the monotonic clock."""
        self.first_played: float | None = None
        """When the client began to hear it."""
        self.flushed_at: float | None = None
        """When the client had fallen silent, as far as it says so."""
        self._moved_at = inf
        """When the client last heard more, or had heard all that it had and was sent more."""
        self._flushing: int | None = None
        self._told_of = False
        """Whether the client knows of the present answer's audio."""
        self._run_id = ""
        self._passed = "", 0
        self._packets = 0
        self._bell = current().bell()
        self._line: Line | None = None
        self._closing: tuple[int, str] | None = None

    @property
    def attached(self) -> bool:
        """Whether there is a line."""
        return self._line is not None

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a message."""
        with self.lock:
            self.outbox.add(kind, **fields)
        self._bell.ring()

    def pass_on(self, run_id: str, payload: bytes) -> None:
        """Send an event of a run."""
        with self.lock:
            self._passed = run_id, self.passed(run_id) + 1
            self.outbox.add_event(run_id, payload)
        self._bell.ring()

    def passed(self, run_id: str) -> int:
        """How many events of the present run have been passed on."""
        latest, n = self._passed
        return n if run_id == latest else 0

    def page(self) -> Playout:
        """What takes the audio of one answer."""
        return Playout(self.output.rate, ahead_ms=AHEAD_MS)

    def begin(self, run_id: str, playout: Playout, *, held: bool = False) -> None:
        """Begin to send the audio of an answer.

        :param held: not before it goes on.
        """
        with self.lock:
            self.generation = (self.generation + 1) % GENERATIONS
            self.playout = playout
            playout.resume(self.generation)  # some of it may have been generated already
            self.held, self._told_of, self._run_id = held, not held, run_id
            self.first_sent = self.first_played = self.flushed_at = self._flushing = None
            if held:
                playout.cut()
            else:
                self.outbox.add("speaking", generation=self.generation, run=run_id, continues=False, offset=0)
        self._bell.ring()

    def hush(self, reason: str) -> None:
        """Have the client fall silent at once. The answer can go on afterwards, or end. Idempotent."""
        with self.lock:
            if self.playout is None or self.held:
                return
            self.held = True
            self.playout.cut()
            self._flushing, self.flushed_at = self.generation, None
            self.generation = (self.generation + 1) % GENERATIONS
            self.outbox.add("flush", generation=self.generation, reason=reason)
        self._bell.ring()

    def go_on(self) -> None:
        """Have the answer go on from where it was heard."""
        with self.lock:
            if self.playout is None or not self.held:
                return
            self.held = False
            offset, continues = self.playout.resume(self.generation), self._told_of
            self._told_of = True
            self.outbox.add(
                "speaking", generation=self.generation, run=self._run_id, continues=continues, offset=offset
            )
        self._bell.ring()

    def end(self, playout: Playout) -> None:
        """An answer is over: its audio is not sent any more."""
        with self.lock:
            if self.playout is playout:
                self.playout = None
                self.held = False

    def played(self, generation: int, samples: int) -> None:
        """The client has heard so much of a generation.

        :param samples: of its audio.
        """
        with self.lock:
            if self.playout is not None:
                before = self.playout.samples_heard
                self.playout.played(generation, samples)
                if self.playout.samples_heard > before:
                    self._moved_at = monotonic()
                if samples > 0 and self.first_played is None and generation == self.generation:
                    self.first_played = max(monotonic() - samples / self.output.rate, self.first_sent or 0.0)
        self._bell.ring()

    def flushed(self, generation: int, samples: int) -> None:
        """The client has fallen silent."""
        with self.lock:
            self.played(generation, samples)
            if self._flushing is not None and self._answers_it(generation):
                self._flushing, self.flushed_at = None, monotonic()

    def _answers_it(self, generation: int) -> bool:
        """Whether this tells of the latest flush, and not late of one before it. A client of which nothing is known to
        have been heard since may still have been at what came before.
        """
        known = 0 if self.playout is None else self.playout.samples_of(self._flushing)
        return generation == self._flushing or known == 0

    @property
    def silent(self) -> bool:
        """Whether the client has said that it has fallen silent, or had nothing to say."""
        return self._flushing is None or not self.attached

    @property
    def unheard_since(self) -> float:
        """Since when the client has audio of which it has heard nothing; infinity where it has none."""
        with self.lock:
            playout = self.playout
            waits = playout is not None and self.attached and not self.held and playout.in_flight > 0
            return self._moved_at if waits else inf

    def news(self) -> None:
        """There is something to be sent."""
        self._bell.ring()

    def send_to(self, line: Line) -> None:
        """Send by the present line until it is lost, closed, or another one has taken its place."""
        while self._line is line:
            with self.lock:
                message, closing = self.outbox.take(), self._closing
                data = None if message is not None or closing is not None else self._packet()
            if message is not None:
                line.send(message.decode())
            elif data is not None:
                line.send(data)
            elif closing is not None:
                line.close(*closing)
                return
            else:
                self._bell.wait()

    def resume(self, line: Line, seq: int, generation: int, samples: int) -> bool:
        """Go on by another line with what its client lacks: messages, and the rest of what was being heard.

        :param seq: the last message that it has.
        :param generation: with `samples`, the audio that it has heard.
        :returns: whether all of that is there.
        """
        with self.lock:
            if not self.outbox.rewind(seq):
                return False
            self.attach(line)
            self.played(generation, samples)
            speaks = self.playout is not None and not self.held and not self.playout.done
            if speaks:
                self.hush("stop")
            if self._flushing is not None:  # this report stands for the answer, which the line may have lost
                self._flushing, self.flushed_at = None, monotonic()
            self.outbox.add("resumed", restored="full", generation=self.generation)
            if speaks:
                self.go_on()
        return True

    def attach(self, line: Line) -> None:
        """From here on this is the line. Nothing is sent by another one: what it took would be missing here."""
        with self.lock:
            previous, self._line = self._line, line
        if previous is not None and previous is not line:
            closing = current().task(lambda: previous.close(4409, TAKEN_OVER), lambda: None)
            closing.start()  # which may take a while
        self._bell.ring()

    def is_on(self, line: Line) -> bool:
        """Whether this is the line."""
        return self._line is line

    def lose(self, line: Line) -> bool:
        """A line is gone; whether it was the present one."""
        with self.lock:
            present = self._line is line
            if present:
                self._line = None
        self._bell.ring()
        return present

    def close(self, code: int, reason: str) -> None:
        """Close the line, when what there is to say has been said; the audio is not waited for."""
        with self.lock:
            self._closing = code, reason
        self._bell.ring()

    def _packet(self) -> bytes | None:
        """The next audio that may be sent; the captions that belong to it follow."""
        waiting = 0 if self.playout is None else self.playout.in_flight
        due = None if self.playout is None or self.held else self.playout.due()
        if self.playout is None or due is None:
            return None
        for caption in self.playout.captions():
            self.outbox.add("sentence", generation=due.generation, offset=caption.offset, text=caption.text)
        if self.first_sent is None:
            self.first_sent = monotonic()
        if waiting == 0:
            self._moved_at = monotonic()
        frame = Download(self._packets, due.generation, due.last, due.offset, self.output.encode(due.payload)).encode()
        self._packets = (self._packets + 1) % 2**32
        return frame
