"""The calls of a process: each is kept for a while after its line was lost, and ends when it has lasted too long."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from .commands import End, Flushed, Interrupt, Ping, Played, Resume, SetMode, Start, Talk, Typed, read
from .delivery import Line
from .dialogue import Dialogue
from .packets import LONGEST, Intake, Upload
from .runtime import Timer, current

RESUME_WITHIN = 30.0
"""Seconds for which a call is kept whose line was lost."""
MESSAGES_A_SECOND = 50
"""What a client may have to say. Twice as many are taken, and a few hundred at once."""
CLOSED_WITHIN = 5.0
"""Seconds that the end of all calls is waited for."""
LOOKED_AT = 1.0
"""Seconds between two looks at how long a call has lasted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How long calls may last.

    :param idle: seconds without a word from either side.
    :param length: seconds in all.
    :param leaving: whether the process is about to go: nobody comes back to a call here whose line was lost.
    """

    idle: float
    length: float
    leaving: Callable[[], bool] = lambda: False


Scope = list[Any]
"""A feature, and what its rule has captured."""


class Refusal(Exception):
    """What a client does that it may not do.

    :param code: the close code.
    :param reason: a short sentence.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Session:
    """One call and its client.

    :param owner: whose it is.
    :param scope: what was called: whoever comes back calls the same.
    :param wishes: what its client asked for, with the conversation.
    :param over: called when it has ended.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        owner: str,
        scope: Scope,
        wishes: Start,
        bounds: Bounds,
        over: Callable[[Session], None],
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.owner = owner
        self.scope = scope
        self.wishes = wishes
        self.dialogue = dialogue
        self._bounds = bounds
        self._over = over
        self._began = monotonic()
        self._waiting: Timer | None = None
        self._intake = Intake(dialogue.input.bytes_per_second)
        self._messages = Intake(MESSAGES_A_SECOND)
        self._timer = current().timers.every(LOOKED_AT, self._look)

    def attach(self, line: Line) -> None:
        """A line is there; it numbers its audio anew."""
        self._intake.anew()
        self.dialogue.delivery.attach(line)
        self._wait_no_longer()

    def detach(self, line: Line) -> None:
        """A line is gone. Another one may come for a while."""
        if self.dialogue.delivery.lose(line) and not self.dialogue.closed:
            self._waiting = current().timers.after(RESUME_WITHIN, lambda: current().hand_over(self._give_up))
            self.dialogue.lost()

    def take(self, message: str | bytes, line: Line) -> None:
        """Do what the client says; what still comes by a line that another one has replaced is passed over.

        :raises Refusal: it may not say that.
        """
        if not self.dialogue.delivery.is_on(line):
            return
        try:
            if isinstance(message, str) and not self._messages.take(1, monotonic()):
                raise Refusal(1008, "There are too many messages.")
            if isinstance(message, bytes):
                self._hear(message)
            else:
                self._obey(message, line)
        except ValueError as error:
            raise Refusal(4400, str(error)) from None

    def close(self, code: int, reason: str) -> None:
        """End the call. Idempotent."""
        self._timer.cancel()
        self._wait_no_longer()
        self.dialogue.close(code, reason)
        self._over(self)

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        """Nobody has come back, unless somebody did this very moment."""
        if not self.dialogue.delivery.attached:
            self.close(1001, "The client has not come back.")

    def _hear(self, frame: bytes) -> None:
        upload = Upload.read(frame)
        if len(upload.payload) > self.dialogue.input.bytes_per_second * LONGEST:
            raise Refusal(1009, f"A frame holds at most {LONGEST * 1000:g} ms of audio.")
        if not self._intake.take(len(upload.payload), monotonic()):
            raise Refusal(1008, "Audio comes in more than twice as fast as it is spoken.")
        if not self._intake.follows(upload.sequence):
            return
        self.dialogue.hear(upload.payload)

    def _obey(self, text: str, line: Line) -> None:
        dialogue = self.dialogue
        match read(text):
            case Played(generation=generation, samples=samples, seq=seq):
                dialogue.acknowledge(seq)
                dialogue.played(generation, samples)
            case Flushed(generation=generation, samples=samples, seq=seq):
                dialogue.acknowledge(seq)
                dialogue.flushed(generation, samples)
            case Talk(on=on):
                dialogue.talk(on)
            case SetMode(mode=mode):
                dialogue.switch(mode)
            case Typed(text=message):
                dialogue.type(message)
            case Interrupt():
                dialogue.interrupt()
            case Ping(t=t):
                line.send('{"type":"pong","t":%s,"at":%.1f}' % (repr(t), (monotonic() - self._began) * 1000))  # noqa: UP031
            case End():
                self.close(1000, "The call was ended.")
            case Start() | Resume():
                raise ValueError("A call begins once.")

    def _look(self) -> None:
        """End the call when it is time; from a timer, which must not wait."""
        now = monotonic()
        if now - self._began > self._bounds.length:
            current().hand_over(lambda: self.close(4410, "The call has lasted as long as it may."))
        elif now - self.dialogue.busy_at > self._bounds.idle and not self.dialogue.speaking:
            current().hand_over(lambda: self.close(4408, "Nobody has said anything for long."))
        elif self.dialogue.delivery.outbox.overfull:
            current().hand_over(lambda: self.close(1008, "The client acknowledges nothing."))
        elif not self.dialogue.delivery.attached and self._bounds.leaving():
            current().hand_over(lambda: self.close(1001, "The server is going away."))
        elif remedy := self.dialogue.look(now):
            current().hand_over(remedy)


class Sessions:
    """The calls of this process."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session) -> None:
        """Keep a call."""
        with self._lock:
            self._sessions[session.id] = session

    def find(self, session_id: str) -> Session | None:
        """A call that goes on."""
        return self._sessions.get(session_id)

    def drop(self, session: Session) -> None:
        """Keep it no longer. Idempotent."""
        with self._lock:
            self._sessions.pop(session.id, None)

    def is_full(self, owner: str, most: int) -> bool:
        """Whether somebody has as many calls as they may have. Those whose line is lost give way: whoever has loaded
        a page anew comes by another call.
        """
        calls = [session for session in list(self._sessions.values()) if session.owner == owner]
        lost = [session for session in calls if not session.dialogue.delivery.attached]
        for session in lost[: max(0, len(calls) + 1 - most)]:
            session.close(1001, "Another call has taken its place.")
        return len(calls) - len(lost) >= most

    def close(self) -> None:
        """End all calls, side by side: some have to say goodbye to a server of theirs."""
        bell, going = current().bell(), list(self._sessions.values())
        for session in going:
            current().task(partial(session.close, 1001, "The server is going away."), bell.ring).start()
        until = monotonic() + CLOSED_WITHIN
        while self._sessions and (left := until - monotonic()) > 0:
            bell.wait(left)
