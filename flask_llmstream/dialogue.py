"""One call: a user who speaks, and answers that are spoken back.

Three tasks for as long as it lasts, and one for each answer:

    receiver (the request's own)   audio -> `hearing`; messages and what was heard -> the mind's inbox
    mind                           the inbox, one by one -> `turns` -> what is to be done
    sender                         `delivery`: messages, and audio as fast as it is heard

The call outlives its line for a while, so that a client which comes back goes on where it was.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from . import turns
from .admission import REFUSALS
from .answering import Answer, Performs, Runs
from .commands import Mode
from .delivery import Delivery, Line
from .errors import LimitReached, LLMStreamError
from .hearing import Hears, Listener
from .runtime import current
from .terms import Terms

log = logging.getLogger("flask_llmstream")

QUOTAS = ("starts", "tokens")
"""Limits that nobody falls below by waiting for an answer to end."""
ANSWERS = 4
"""Messages that may wait for the answer before them to end."""
STALLED = 2.0
"""Seconds without audio after which a sound is over that was under way: nobody sends its end."""
STUCK = 30.0
"""Seconds after which an answer has no listener of which nothing more is heard, or acknowledged."""


class Dialogue:
    """A call.

    :param hearing: makes what it hears with.
    :param performs: prepares the answer of a run.
    """

    def __init__(
        self,
        terms: Terms,
        hearing: Callable[[Listener], Hears],
        performs: Performs,
        runs: Runs,
        *,
        backchannels: frozenset[str] = turns.BACKCHANNELS,
        anticipates: bool = False,
    ) -> None:
        self.delivery = Delivery(terms.output)
        self.input = terms.input
        self.closed = False
        self.busy_at = monotonic()
        """When something last happened, or was being said."""
        self._heard_at = monotonic()
        """When audio came last."""
        self._full_since = monotonic()
        """Since when the client has acknowledged nothing, though there is much."""
        self._anticipates = anticipates
        self._turns = turns.Turns(backchannels=backchannels)
        self._hearing = hearing(self)
        self._performs = performs
        self._runs = runs
        self._answers: tuple[Answer, ...] = ()
        """The present one, and those that were asked for while it ends. Changed by the mind alone."""
        self._mode = terms.mode
        self._talking = False
        """Whether the user holds the button."""
        self._sounding = False
        """Whether there is a sound that was found by itself."""
        self._inbox: deque[turns.Occurrence] = deque()
        self._bell = current().bell()
        self._spoke_until = self._spoke_from = monotonic()
        self._mind = current().task(self._think, lambda: None)
        self._hearing.watch(terms.mode == "auto")
        self._mind.start()

    # What the client does

    def hear(self, payload: bytes) -> None:
        """Take audio.

        :raises ValueError: it is not of the format that was agreed on.
        """
        self._hearing.feed(payload)
        self._heard_at = monotonic()
        if self._sounding or self._talking:
            self.busy_at = self._heard_at

    def talk(self, on: bool) -> None:
        """The user holds the button, or lets go of it. As long as it is held, it alone tells when there is speech."""
        if on == self._talking:
            return
        now = monotonic()
        if on:
            self._spoke_from = now
            self._hearing.watch(False)
            if not self._sounding:
                self._hearing.talk(True)
            self._talking, self._sounding = True, False
            self._happen(turns.SoundBegan(certain=True))
        else:
            self._spoke_until = now
            self._talking = False
            self._hearing.talk(False)
            self._happen(turns.SoundEnded())
            self._watch()

    def switch(self, mode: Mode) -> None:
        """Find by itself when the user speaks, or leave that to the button."""
        if mode == self._mode:
            return
        self._mode = mode
        if not self._talking:
            self._end_sound()
            self._watch()

    def type(self, text: str) -> None:
        """Take a written message."""
        self._spoke_until = monotonic()
        self._hearing.typed(text)
        self._happen(turns.Typed(text))

    def interrupt(self) -> None:
        """End the answer."""
        self._spoke_from = monotonic()
        self._happen(turns.Interrupted())

    def acknowledge(self, seq: int | None) -> None:
        """The client has all messages up to one.

        :raises ValueError: there is none of that number.
        """
        if seq is not None:
            with self.delivery.lock:
                self.delivery.outbox.acknowledge(seq)

    def played(self, generation: int, samples: int) -> None:
        """So much of the answer has been heard."""
        self.delivery.played(generation, samples)
        self._moved()

    def flushed(self, generation: int, samples: int) -> None:
        """The client has fallen silent, after so much of the answer."""
        self.delivery.flushed(generation, samples)
        self._moved()

    # What the line does

    def lost(self) -> None:
        """The line is gone."""
        if not self.closed:
            self._break_off()

    def resume(self, line: Line, seq: int, generation: int, samples: int) -> bool:
        """A client is back by another line, and has so much; whether it can go on from there."""
        if self.closed or not self.delivery.resume(line, seq, generation, samples):
            return False
        self._break_off()
        self._moved()
        return True

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End the call. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._bell.ring()
        self._hearing.close()
        for answer in self._answers:
            try:
                answer.stop("stop")
            except LLMStreamError as error:
                log.warning("an answer of a call that was ended: %s", error.diagnosis)
        self.delivery.close(code, reason)

    @property
    def speaking(self) -> bool:
        """Whether an answer is under way."""
        return bool(self._answers)

    # What does not happen

    def look(self, now: float) -> Callable[[], None] | None:
        """What is to be done, where the client has fallen silent without a word; doing it may take a while."""
        if self._sounding and now - self._heard_at > STALLED:
            return self._break_off
        if self.delivery.outbox.has_room() or not self.delivery.attached:
            self._full_since = now
        if self._answers and now - min(self._full_since, self.delivery.unheard_since) > STUCK:
            return self.interrupt
        return None

    # What is heard

    def sound_began(self, at_ms: int) -> None:
        self._spoke_from = self._moment(at_ms)
        self._sounding = True
        self.delivery.tell("speech_started", at_ms=at_ms)
        self._happen(turns.SoundBegan())

    def sound_ended(self, at_ms: int) -> None:
        self._spoke_until = self._moment(at_ms)
        self._sounding = False
        self.delivery.tell("speech_stopped", at_ms=at_ms)
        self._happen(turns.SoundEnded())

    def partly_heard(self, text: str) -> None:
        self.delivery.tell("transcript", text=text, final=False)
        self._happen(turns.Heard(text))

    def paused(self, text: str) -> None:
        if self._anticipates:
            self._happen(turns.Paused(text))

    def went_on(self) -> None:
        if self._anticipates:
            self._happen(turns.WentOn())

    def divided(self) -> None:
        self._happen(turns.SoundEnded())
        self._happen(turns.SoundBegan(certain=self._talking))

    def heard(self, number: int, text: str, error: LLMStreamError | None) -> None:
        if error is not None:
            self.report(error)
        else:
            self.delivery.tell("transcript", text=text, final=True)
        self._happen(turns.Words(text, number))

    def report(self, error: LLMStreamError) -> None:
        """Tell of what has failed, where the call goes on."""
        if error.diagnosis:
            log.warning("a call goes on after: %s", error.diagnosis)
        self.delivery.tell("problem", problem=error.problem())

    def failed(self, error: LLMStreamError) -> None:
        """Tell of what has failed, where the call cannot go on."""
        self.report(error)
        self.close(1011, error.title)

    def _moment(self, at_ms: int) -> float:
        """When a part of the audio was said: it comes as fast as it is spoken."""
        return monotonic() - max(0, self._hearing.at_ms - at_ms) / 1000

    def _break_off(self) -> None:
        """Whatever the user was saying, nothing more of it comes."""
        self.talk(False)
        self._end_sound()
        self._watch()

    def _watch(self) -> None:
        try:
            self._hearing.watch(self._mode == "auto")
        except LLMStreamError as error:
            self.report(error)

    def _end_sound(self) -> None:
        """Nobody looks any more whether it goes on."""
        if self._sounding:
            self._hearing.talk(False)
            self.sound_ended(self._hearing.at_ms)

    def _moved(self) -> None:
        for answer in self._answers:
            answer.moved()

    # The mind

    def _happen(self, what: turns.Occurrence) -> None:
        self.busy_at = monotonic()
        self._inbox.append(what)
        self._bell.ring()

    def _think(self) -> None:
        while not self.closed:
            now, deadline = monotonic(), self._turns.deadline
            if self._inbox:
                self._take(self._inbox.popleft(), now)
            elif deadline is not None and deadline <= now:
                self._take(turns.Tick(), now)
            else:
                self._bell.wait(None if deadline is None else deadline - now)

    def _take(self, what: turns.Occurrence, now: float) -> None:
        if isinstance(what, turns.Answered):
            self._answers = self._answers[1:]
            if self._answers:
                self._begin(self._answers[0])
                return
        try:
            actions = self._turns.handle(what, now)
        except ValueError:  # such as a button that is let go twice
            return
        for action in actions:
            try:
                self._act(action)
            except Exception:
                log.exception("a call could not do what it was to")
                self.close(1011, "The call could not go on.")

    def _act(self, action: turns.Action) -> None:
        match action:
            case turns.Listen():
                pass  # it does so already: audio may come faster than it is thought about
            case turns.Settle(number):
                self._hearing.settle(number)
            case turns.Hold():
                for answer in self._latest():
                    answer.hold(self._spoke_from)
            case turns.GoOn():
                for answer in self._latest():
                    answer.go_on()
            case turns.Close(reason):
                for answer in self._latest():
                    answer.stop(reason, self._spoke_from)
            case turns.Ask(text):
                self._ask(text)
            case turns.Anticipate(text):
                self._anticipate(text)
            case turns.Forget():
                self._forget()

    def _latest(self) -> Sequence[Answer]:
        """The answer that the turns are about; none where it is over."""
        return self._answers[-1:]

    def _ask(self, text: str) -> None:
        """Have a message be answered, as soon as the answer before it has ended."""
        for answer in self._latest():
            if answer.anticipated and answer.fits(text) and answer.adopt(self._spoke_until):
                return
        self._forget()
        self._add(text, self._spoke_until)

    def _anticipate(self, text: str) -> None:
        if not self._answers:
            self._add(text, None)
        elif not self._answers[-1].fits(text):
            self._forget()

    def _forget(self) -> None:
        for answer in self._latest():
            if answer.anticipated:
                answer.discard()

    def _add(self, text: str, asked_at: float | None) -> None:
        if len(self._answers) > ANSWERS:
            self.report(LimitReached("conversation", REFUSALS["conversation"]))
            return
        answer = Answer(text, self.delivery, self._performs, self._runs, asked_at=asked_at, over=self._answered)
        self._answers = (*self._answers, answer)
        if len(self._answers) == 1:
            self._begin(answer)

    def _begin(self, answer: Answer) -> None:
        if self.closed:
            return

        def answering() -> None:
            try:
                answer.begin()
            except LimitReached as error:
                self._refused(answer, error)
            except LLMStreamError as error:
                if not answer.anticipated:
                    self.report(error)
            except Exception:
                log.exception("a call could not answer")
                self.report(LLMStreamError())

        current().task(answering, lambda: None).start()

    def _refused(self, answer: Answer, error: LimitReached) -> None:
        """The user has used up a quota: to go on hearing them would be to go on paying."""
        if answer.anticipated:
            return
        self.report(error)
        if error.limit in QUOTAS:
            self.close(4429, error.detail)

    def _answered(self, answer: Answer) -> None:
        self._happen(turns.Answered())
