"""Whose turn it is to speak: the state machine of a call. It knows no audio and no clock of its own.

                 sound            silence            words
    listening ──────────> hearing ────────> settling ──────> answering ──────> listening
        ^                    ^  ^─────────────┘ │               │   heard to its end
        └────────────────────┼──────────────────┘ nothing       │ sound
                             │                                  v
                             └──────────────────────────── doubting ────> judging
                               it goes on, or means something     silence    │ something was said: the next turn
                                                                             │ nothing, or a mere sign of listening:
                                                                             └────> answering, from where it was heard

A sound during an answer silences it at once (`Hold`), before anybody knows what it was. Speech that goes on, or
whose words mean something, ends the answer (`Close`); a cough, or a "mm-hm", does not, and the answer goes on
(`GoOn`). What a user says in several breaths, or writes in between, is one turn: its parts are put together, in the
order in which they were said, whatever the order in which their words come. Words that come very late are the next
turn where nothing else has come between.

While the user pauses, an answer to what was said so far may be begun (`Anticipate`). It is either the one that `Ask`
asks for, or it is forgotten (`Forget`).

`handle` takes what has happened and returns what is to be done about it. A move that no state has is ignored, where
it may come late (the end of an answer that was closed); everything else that cannot happen raises `ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

CONFIRMED_AFTER = 0.8
"""Seconds of speech during an answer after which it is meant, whatever its words."""
WORDS_WITHIN = 10.0
"""Seconds within which the words of an utterance have to be known; afterwards the call goes on without them."""
BACKCHANNELS = frozenset(
    (
        *("ah", "aha", "hm", "hmm", "huh", "mhm", "mm", "mmhm", "mmm", "oh", "uh", "uhhuh", "uhuh", "um"),
        *("ok", "okay", "right", "yeah", "yep", "yes", "ja", "genau", "oui", "si", "sí"),
    )
)
"""Words that a listener says without wanting the turn (Yngve 1970)."""

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")

CloseReason = Literal["speech", "interrupt", "message"]


class State(Enum):
    """Where a call stands."""

    LISTENING = "listening"
    HEARING = "hearing"
    """The user speaks."""
    SETTLING = "settling"
    """The user has spoken, and the words are awaited."""
    ANSWERING = "answering"
    DOUBTING = "doubting"
    """The answer is silenced, since there is a sound."""
    JUDGING = "judging"
    """The sound is over, and its words are awaited."""


# What happens


@dataclass(frozen=True, slots=True)
class SoundBegan:
    """The user begins to make a sound.

    :param certain: it is speech, since the user holds the button.
    """

    certain: bool = False


@dataclass(frozen=True, slots=True)
class SoundEnded:
    """The user is silent again."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the user is saying, as far as it is known by now."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """What the user has said in one utterance; empty for nothing.

    :param utterance: its number, as `Settle` gave it.
    """

    text: str
    utterance: int


@dataclass(frozen=True, slots=True)
class Typed:
    """The user sends a written message."""

    text: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The user wants the answer to end."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer has ended: it was heard to its end, or failed."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: the deadline has come."""


@dataclass(frozen=True, slots=True)
class Paused:
    """The user has not gone on for a moment: this may be all."""

    text: str


@dataclass(frozen=True, slots=True)
class WentOn:
    """It was not."""


Occurrence = SoundBegan | SoundEnded | Heard | Words | Typed | Interrupted | Answered | Tick | Paused | WentOn


# What is to be done


@dataclass(frozen=True, slots=True)
class Listen:
    """Begin to take down what the user says."""


@dataclass(frozen=True, slots=True)
class Settle:
    """The utterance is over: bring `Words`.

    :param utterance: its number.
    """

    utterance: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Silence the answer, so that it can still go on."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """Let the answer go on from where it was heard."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the answer: what was heard of it is all that was said."""

    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Ask:
    """Begin the turn of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Anticipate:
    """Begin an answer that nobody hears yet, to what the user will probably have said."""

    text: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The user says something else, or nothing: that answer is not wanted."""


Action = Listen | Settle | Hold | GoOn | Close | Ask | Anticipate | Forget


class Turns:
    """The turns of a call.

    :param confirmed_after: seconds of speech after which it is meant as an interruption.
    :param backchannels: words that are none, in lower case.
    """

    def __init__(
        self, *, confirmed_after: float = CONFIRMED_AFTER, backchannels: frozenset[str] = BACKCHANNELS
    ) -> None:
        self.state = State.LISTENING
        self.deadline: float | None = None
        """When a `Tick` is wanted, on the caller's clock."""
        self._confirmed_after = confirmed_after
        self._backchannels = backchannels
        self._parts: dict[int, str | None] = {}
        """What the user has said and nobody has answered; None where the words are awaited."""
        self._late: dict[int, bool] = {}
        """Utterances whose words have not come in time, and whether a mere sign of listening would be an answer."""
        self._count = 0
        self._anticipating = False

    def handle(self, what: Occurrence, now: float) -> list[Action]:
        """Take what has happened, and say what is to be done about it.

        :param now: seconds, on a clock that never goes back.
        :raises ValueError: it cannot happen in this state.
        """
        match what:
            case SoundBegan(certain):
                return list(self._sound_began(certain, now))
            case SoundEnded():
                return list(self._sound_ended(now))
            case Heard(text):
                return list(self._heard(text))
            case Words(text, utterance):
                return list(self._words(text, utterance))
            case Typed(text):
                return list(self._typed(text))
            case Interrupted():
                return list(self._interrupted())
            case Answered():
                self._without_answer()
                return []
            case Tick():
                return list(self._tick(now))
            case Paused(text):
                return list(self._paused(text))
            case WentOn():
                return list(self._forget())

    def _sound_began(self, certain: bool, now: float) -> Sequence[Action]:
        state = self.state
        if state in (State.HEARING, State.DOUBTING):
            if not certain:
                raise ValueError(f"a sound cannot begin twice: the call is {state.value}")
            return self._means_it()
        if state in (State.LISTENING, State.SETTLING):
            self._enter(State.HEARING)
            return [Listen()]
        if certain:
            self._enter(State.HEARING)
            return [Close("speech"), Listen()]
        self._enter(State.DOUBTING, now + self._confirmed_after)
        return [Hold(), Listen()] if state is State.ANSWERING else [Listen()]

    def _sound_ended(self, now: float) -> Sequence[Action]:
        if self.state not in (State.HEARING, State.DOUBTING):
            raise ValueError(f"no sound can end that has not begun: the call is {self.state.value}")
        after = State.SETTLING if self.state is State.HEARING else State.JUDGING
        self._enter(after, now + WORDS_WITHIN)
        return [Settle(self._add(None))]

    def _heard(self, text: str) -> Sequence[Action]:
        return self._means_it() if self._means_something(text) else []

    def _words(self, text: str, utterance: int) -> Sequence[Action]:
        if self._parts.get(utterance, "") is not None:
            return self._late_words(text.strip(), utterance)
        self._parts[utterance] = text.strip()
        return [*self._heard(text), *self._judge()]

    def _late_words(self, text: str, utterance: int) -> Sequence[Action]:
        """Words that nobody waits for any more: where the user waits as well, they are all there is to be answered."""
        counts = self._late.pop(utterance, None)
        if counts is None or self.state is not State.LISTENING or not (counts or self._means_something(text)):
            return []
        self._parts[utterance] = text
        return self._take_turn()

    def _means_it(self) -> Sequence[Action]:
        """What is heard during the answer is no mere sign of listening."""
        if self.state not in (State.DOUBTING, State.JUDGING):
            return []
        self._without_answer()
        return [Close("speech")]

    def _judge(self) -> Sequence[Action]:
        """What follows once all words are there, unless the user is speaking on."""
        if None in self._parts.values():
            return []
        if self.state is State.SETTLING:
            return self._take_turn()
        if self.state is State.JUDGING:
            self._parts.clear()
            self._enter(State.ANSWERING)
            return [GoOn()]
        return []

    def _take_turn(self) -> Sequence[Action]:
        text = " ".join(filter(None, self._parts.values()))
        self._parts.clear()
        self._enter(State.ANSWERING if text else State.LISTENING)
        if not text:
            return self._forget()
        self._anticipating = False
        return [Ask(text)]

    def _typed(self, text: str) -> Sequence[Action]:
        if not text.strip():
            return []
        closing: list[Action] = []
        if self.state in (State.ANSWERING, State.DOUBTING, State.JUDGING):
            closing.append(Close("message"))
        self._add(text)
        if self.state in (State.LISTENING, State.ANSWERING):
            return [*closing, *self._take_turn()]
        self._without_answer()
        return closing

    def _interrupted(self) -> Sequence[Action]:
        if self.state not in (State.ANSWERING, State.DOUBTING, State.JUDGING):
            return []
        self._without_answer()
        return [Close("interrupt")]

    def _tick(self, now: float) -> Sequence[Action]:
        if self.deadline is None or now < self.deadline:
            return []
        if self.state is State.DOUBTING:
            return self._means_it()
        late = (number for number, text in self._parts.items() if text is None)
        self._late |= dict.fromkeys(late, self.state is State.SETTLING)
        self._parts = {number: text or "" for number, text in self._parts.items()}
        return self._judge()

    def _paused(self, text: str) -> Sequence[Action]:
        if self.state is not State.HEARING or None in self._parts.values() or not text.strip():
            return []
        self._anticipating = True
        return [Anticipate(" ".join(filter(None, (*self._parts.values(), text.strip()))))]

    def _forget(self) -> Sequence[Action]:
        forgets, self._anticipating = self._anticipating, False
        return [Forget()] if forgets else []

    def _add(self, text: str | None) -> int:
        """Have a further part, and number it."""
        self._count += 1
        self._parts[self._count] = text
        return self._count

    def _without_answer(self) -> None:
        """The answer is gone; what the user is doing goes on."""
        if self.state is State.ANSWERING:
            self._enter(State.LISTENING)
        elif self.state is State.DOUBTING:
            self._enter(State.HEARING)
        elif self.state is State.JUDGING:
            self._enter(State.SETTLING, self.deadline)

    def _enter(self, state: State, deadline: float | None = None) -> None:
        self.state, self.deadline = state, deadline

    def _means_something(self, text: str) -> bool:
        words = WORD.findall(text.lower().replace("-", ""))
        return any(word not in self._backchannels for word in words)
