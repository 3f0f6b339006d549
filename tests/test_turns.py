from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flask_llmstream.turns import (
    BACKCHANNELS,
    CONFIRMED_AFTER,
    WORDS_WITHIN,
    Action,
    Answered,
    Anticipate,
    Ask,
    Close,
    Forget,
    GoOn,
    Heard,
    Hold,
    Interrupted,
    Listen,
    Occurrence,
    Paused,
    Settle,
    SoundBegan,
    SoundEnded,
    State,
    Tick,
    Turns,
    Typed,
    WentOn,
    Words,
)

LISTENING, HEARING, SETTLING = State.LISTENING, State.HEARING, State.SETTLING
ANSWERING, DOUBTING, JUDGING = State.ANSWERING, State.DOUBTING, State.JUDGING

SOUND, SILENCE, BUTTON = SoundBegan(), SoundEnded(), SoundBegan(certain=True)
SPEECH, CHOSEN, MESSAGE = Close("speech"), Close("interrupt"), Close("message")
LATE = 100.0
"""Seconds; after all deadlines."""

WAYS: dict[State, list[Occurrence]] = {
    LISTENING: [],
    HEARING: [SOUND],
    SETTLING: [SOUND, SILENCE],
    ANSWERING: [Typed("why")],
    DOUBTING: [Typed("why"), SOUND],
    JUDGING: [Typed("why"), SOUND, SILENCE],
}
"""How a call comes into each state, at 0 s. The first utterance is part 1, or 2 after the message."""


def call_in(state: State) -> Turns:
    turns = Turns()
    for what in WAYS[state]:
        turns.handle(what, 0.0)
    assert turns.state is state
    return turns


def play(turns: Turns, *story: tuple[float, Occurrence]) -> list[Action]:
    """What is done about all that happens, each at its time."""
    return list(itertools.chain.from_iterable(turns.handle(what, at) for at, what in story))


CANNOT = ValueError

TABLE: list[tuple[State, Occurrence, float, State, list[Action] | type[ValueError]]] = [
    # The user begins to make a sound.
    (LISTENING, SOUND, 1, HEARING, [Listen()]),
    (HEARING, SOUND, 1, HEARING, CANNOT),
    (SETTLING, SOUND, 1, HEARING, [Listen()]),
    (ANSWERING, SOUND, 1, DOUBTING, [Hold(), Listen()]),
    (DOUBTING, SOUND, 0.1, DOUBTING, CANNOT),
    (JUDGING, SOUND, 1, DOUBTING, [Listen()]),
    # The user holds the button, in whatever mode.
    (LISTENING, BUTTON, 1, HEARING, [Listen()]),
    (HEARING, BUTTON, 1, HEARING, []),
    (SETTLING, BUTTON, 1, HEARING, [Listen()]),
    (ANSWERING, BUTTON, 1, HEARING, [SPEECH, Listen()]),
    (DOUBTING, BUTTON, 0.1, HEARING, [SPEECH]),
    (JUDGING, BUTTON, 1, HEARING, [SPEECH, Listen()]),
    # The user is silent again.
    (LISTENING, SILENCE, 1, LISTENING, CANNOT),
    (HEARING, SILENCE, 1, SETTLING, [Settle(1)]),
    (SETTLING, SILENCE, 1, SETTLING, CANNOT),
    (ANSWERING, SILENCE, 1, ANSWERING, CANNOT),
    (DOUBTING, SILENCE, 0.1, JUDGING, [Settle(2)]),
    (JUDGING, SILENCE, 1, JUDGING, CANNOT),
    # The first words of an utterance are known.
    (LISTENING, Heard("the weather"), 1, LISTENING, []),
    (HEARING, Heard("the weather"), 1, HEARING, []),
    (SETTLING, Heard("the weather"), 1, SETTLING, []),
    (ANSWERING, Heard("the weather"), 1, ANSWERING, []),
    (DOUBTING, Heard("the weather"), 0.1, HEARING, [SPEECH]),
    (DOUBTING, Heard("mm-hm"), 0.1, DOUBTING, []),
    (JUDGING, Heard("the weather"), 1, SETTLING, [SPEECH]),
    (JUDGING, Heard("mm-hm"), 1, JUDGING, []),
    # All its words are.
    (LISTENING, Words("the weather", 1), 1, LISTENING, []),
    (HEARING, Words("the weather", 1), 1, HEARING, []),
    (SETTLING, Words("the weather", 1), 1, ANSWERING, [Ask("the weather")]),
    (SETTLING, Words("mm-hm", 1), 1, ANSWERING, [Ask("mm-hm")]),
    (SETTLING, Words(" ", 1), 1, LISTENING, []),
    (SETTLING, Words("of another", 7), 1, SETTLING, []),
    (ANSWERING, Words("the weather", 1), 1, ANSWERING, []),
    (DOUBTING, Words("the weather", 1), 0.1, DOUBTING, []),
    (JUDGING, Words("the weather", 2), 1, ANSWERING, [SPEECH, Ask("the weather")]),
    (JUDGING, Words("Mm-hm.", 2), 1, ANSWERING, [GoOn()]),
    (JUDGING, Words("", 2), 1, ANSWERING, [GoOn()]),
    # The user writes.
    (LISTENING, Typed("wait"), 1, ANSWERING, [Ask("wait")]),
    (LISTENING, Typed(" \n"), 1, LISTENING, []),
    (HEARING, Typed("wait"), 1, HEARING, []),
    (SETTLING, Typed("wait"), 1, SETTLING, []),
    (ANSWERING, Typed("wait"), 1, ANSWERING, [MESSAGE, Ask("wait")]),
    (ANSWERING, Typed(" \n"), 1, ANSWERING, []),
    (DOUBTING, Typed("wait"), 0.1, HEARING, [MESSAGE]),
    (JUDGING, Typed("wait"), 1, SETTLING, [MESSAGE]),
    # The button that ends the answer.
    (LISTENING, Interrupted(), 1, LISTENING, []),
    (HEARING, Interrupted(), 1, HEARING, []),
    (SETTLING, Interrupted(), 1, SETTLING, []),
    (ANSWERING, Interrupted(), 1, LISTENING, [CHOSEN]),
    (DOUBTING, Interrupted(), 0.1, HEARING, [CHOSEN]),
    (JUDGING, Interrupted(), 1, SETTLING, [CHOSEN]),
    # The answer has ended by itself, or one that was closed has ended late.
    (LISTENING, Answered(), 1, LISTENING, []),
    (HEARING, Answered(), 1, HEARING, []),
    (SETTLING, Answered(), 1, SETTLING, []),
    (ANSWERING, Answered(), 1, LISTENING, []),
    (DOUBTING, Answered(), 0.1, HEARING, []),
    (JUDGING, Answered(), 1, SETTLING, []),
    # Time passes.
    (LISTENING, Tick(), LATE, LISTENING, []),
    (HEARING, Tick(), LATE, HEARING, []),
    (SETTLING, Tick(), WORDS_WITHIN - 0.1, SETTLING, []),
    (SETTLING, Tick(), WORDS_WITHIN, LISTENING, []),
    (ANSWERING, Tick(), LATE, ANSWERING, []),
    (DOUBTING, Tick(), CONFIRMED_AFTER - 0.1, DOUBTING, []),
    (DOUBTING, Tick(), CONFIRMED_AFTER, HEARING, [SPEECH]),
    (JUDGING, Tick(), WORDS_WITHIN - 0.1, JUDGING, []),
    (JUDGING, Tick(), WORDS_WITHIN, ANSWERING, [GoOn()]),
    # The user pauses in the midst of what may be all.
    (LISTENING, Paused("the weather"), 1, LISTENING, []),
    (HEARING, Paused("the weather"), 1, HEARING, [Anticipate("the weather")]),
    (HEARING, Paused(" "), 1, HEARING, []),
    (SETTLING, Paused("the weather"), 1, SETTLING, []),
    (ANSWERING, Paused("the weather"), 1, ANSWERING, []),
    (DOUBTING, Paused("mm-hm"), 0.1, DOUBTING, []),
    (JUDGING, Paused("mm-hm"), 1, JUDGING, []),
    *((state, WentOn(), 0.1, state, []) for state in State),
]


@pytest.mark.parametrize(
    ("before", "what", "at", "after", "actions"),
    TABLE,
    ids=[f"{before.value}-{what}-{at:g}" for before, what, at, _, _ in TABLE],
)
def test_move(before, what, at, after, actions):
    turns = call_in(before)
    if actions is CANNOT:
        with pytest.raises(ValueError, match=f"the call is {before.value}"):
            turns.handle(what, at)
    else:
        assert turns.handle(what, at) == actions
    assert turns.state is after


def test_the_table_has_every_state_with_every_occurrence():
    kinds = (SoundBegan, SoundEnded, Heard, Words, Typed, Interrupted, Answered, Tick, Paused, WentOn)
    assert {(before, type(what)) for before, what, _, _, _ in TABLE} == set(itertools.product(State, kinds))


@pytest.mark.parametrize("state", State)
def test_only_what_is_awaited_has_a_deadline(state):
    deadlines = {SETTLING: WORDS_WITHIN, JUDGING: WORDS_WITHIN, DOUBTING: CONFIRMED_AFTER}
    assert call_in(state).deadline == deadlines.get(state)


# What a listener says


@pytest.mark.parametrize("text", [*sorted(BACKCHANNELS), "Mm-hm.", "uh-huh", "Yeah, okay!", "OK… right", "—", "?!", ""])
def test_sign_of_listening_lets_the_answer_go_on(text):
    turns = call_in(JUDGING)
    assert turns.handle(Words(text, 2), 1) == [GoOn()]


@pytest.mark.parametrize("text", ["no", "yes but why", "okay stop", "Wetter?", "天気", "1", "mm-hm but"])
def test_words_that_mean_something_end_it(text):
    turns = call_in(JUDGING)
    assert turns.handle(Words(text, 2), 1) == [SPEECH, Ask(text)]


def test_an_application_says_which_words_are_signs_of_listening():
    turns = Turns(backchannels=frozenset({"claro"}))
    assert play(turns, (0, Typed("why")), (1, SOUND), (1.2, SILENCE), (1.3, Words("Claro", 2)))[-1] == GoOn()


# Stories


def test_several_breaths_are_one_turn():
    turns = Turns()
    story = play(
        turns, (0, SOUND), (1, SILENCE), (1.2, SOUND), (1.3, Words("what is", 1)), (2, SILENCE), (2.1, Words("that", 2))
    )
    assert story == [Listen(), Settle(1), Listen(), Settle(2), Ask("what is that")]


def test_words_that_come_in_another_order_are_asked_in_the_order_in_which_they_were_said():
    turns = Turns()
    play(turns, (0, SOUND), (1, SILENCE), (1.2, SOUND), (2, SILENCE))
    assert play(turns, (2.1, Words("that", 2)), (2.2, Words("what is", 1))) == [Ask("what is that")]


def test_of_two_utterances_one_whose_words_never_come_does_not_take_the_other_with_it():
    turns = Turns()
    play(turns, (0, SOUND), (1, SILENCE), (1.2, SOUND), (2, SILENCE), (2.1, Words("that", 2)))
    assert play(turns, (2 + WORDS_WITHIN, Tick())) == [Ask("that")]
    assert play(turns, (13, Words("what is", 1))) == []


def test_late_words_are_not_taken_for_those_of_the_next_utterance():
    turns = Turns()
    play(turns, (0, SOUND), (1, SILENCE), (1 + WORDS_WITHIN, Tick()), (12, SOUND), (13, SILENCE))
    assert play(turns, (13.1, Words("long ago", 1))) == []
    assert play(turns, (13.2, Words("hello", 2))) == [Ask("hello")]


def test_late_words_are_the_next_turn_where_the_user_waits_for_an_answer():
    turns = call_in(SETTLING)
    assert play(turns, (WORDS_WITHIN, Tick()), (15, Words("yes", 1)), (16, Words("yes", 1))) == [Ask("yes")]


def test_late_sign_of_listening_is_no_turn_but_late_speech_is():
    turns = call_in(JUDGING)
    assert play(turns, (WORDS_WITHIN, Tick()), (12, Answered()), (13, Words("mm-hm", 2))) == [GoOn()]
    turns = call_in(JUDGING)
    assert play(turns, (WORDS_WITHIN, Tick()), (12, Answered()), (13, Words("stop", 2))) == [GoOn(), Ask("stop")]


def test_words_count_once():
    turns = call_in(SETTLING)
    turns.handle(SOUND, 0.5)
    assert play(turns, (1, Words("one", 1)), (1.1, Words("two", 1)), (2, SILENCE), (2.1, Words("", 2))) == [
        Settle(2),
        Ask("one"),
    ]


def test_what_is_written_while_the_user_speaks_is_asked_with_what_was_said():
    turns = call_in(HEARING)
    assert play(turns, (1, Typed("see below")), (2, SILENCE), (3, Words("and above", 2))) == [
        Settle(2),
        Ask("see below and above"),
    ]


def test_what_is_written_while_words_are_awaited_comes_behind_them():
    turns = call_in(SETTLING)
    assert play(turns, (1, Typed("in Paris")), (2, Words("the weather", 1))) == [Ask("the weather in Paris")]


def test_what_is_written_while_nothing_was_said_after_all_is_asked():
    turns = call_in(SETTLING)
    assert play(turns, (1, Typed("hello")), (WORDS_WITHIN, Tick())) == [Ask("hello")]


def test_sign_of_listening_followed_by_speech_belongs_to_what_is_said():
    turns = call_in(JUDGING)
    story = play(turns, (1, SOUND), (1.1, Words("yeah", 2)), (1.2, SILENCE), (1.3, Words("but why", 3)))
    assert story == [Listen(), Settle(3), SPEECH, Ask("yeah but why")]


def test_two_signs_of_listening_let_it_go_on_once():
    turns = call_in(JUDGING)
    story = play(turns, (1, SOUND), (1.1, Words("mm", 2)), (1.2, SILENCE), (1.3, Words("hm", 3)))
    assert story == [Listen(), Settle(3), GoOn()]
    assert play(turns, (5, SOUND), (5.1, SILENCE), (5.2, Words("stop", 4))) == [
        Hold(),
        Listen(),
        Settle(4),
        SPEECH,
        Ask("stop"),
    ]


def test_meaningful_words_of_an_earlier_sound_end_the_answer_while_the_next_goes_on():
    turns = call_in(JUDGING)
    assert play(turns, (1, SOUND), (1.1, Words("wait", 2))) == [Listen(), SPEECH]
    assert play(turns, (2, SILENCE), (2.1, Words("a moment", 3))) == [Settle(3), Ask("wait a moment")]


def test_answer_that_ends_while_it_is_doubted_leaves_the_sound_to_be_an_utterance():
    turns = call_in(DOUBTING)
    assert play(turns, (0.1, Answered()), (0.5, SILENCE), (0.6, Words("okay", 2))) == [Settle(2), Ask("okay")]


def test_interruption_while_doubting_leaves_the_sound_to_be_an_utterance():
    turns = call_in(DOUBTING)
    assert play(turns, (0.1, Interrupted()), (LATE, Tick()), (LATE, SILENCE), (LATE, Words("and now", 2))) == [
        CHOSEN,
        Settle(2),
        Ask("and now"),
    ]


def test_end_of_a_closed_answer_does_not_end_the_one_after_it_being_asked():
    """It is the caller who knows which one has ended; here, none is open any more."""
    turns = call_in(ANSWERING)
    assert play(turns, (1, Interrupted()), (1.1, Answered()), (2, Typed("next"))) == [CHOSEN, Ask("next")]


def test_a_deadline_that_was_judged_is_none_any_more():
    turns = call_in(JUDGING)
    turns.handle(Tick(), WORDS_WITHIN)
    assert turns.deadline is None
    assert turns.handle(Tick(), LATE) == []


def test_answer_that_was_begun_early_is_the_one_that_is_asked_for():
    turns = call_in(HEARING)
    assert play(turns, (1, Paused("the weather")), (1.3, SILENCE), (1.4, Words("the weather", 1))) == [
        Anticipate("the weather"),
        Settle(1),
        Ask("the weather"),
    ]
    assert turns.handle(WentOn(), 2) == []


def test_answer_that_was_begun_early_is_forgotten_when_the_user_goes_on():
    turns = call_in(HEARING)
    assert play(turns, (1, Paused("the")), (1.2, WentOn()), (1.3, WentOn())) == [Anticipate("the"), Forget()]


def test_answer_that_was_begun_early_is_forgotten_when_nothing_was_said():
    turns = call_in(HEARING)
    assert play(turns, (1, Paused("the")), (1.3, SILENCE), (1.4, Words("", 1))) == [
        Anticipate("the"),
        Settle(1),
        Forget(),
    ]


def test_answer_is_begun_early_to_all_that_was_said():
    turns = call_in(SETTLING)
    assert play(turns, (1, SOUND), (1.1, Words("tell me", 1)), (1.5, Paused("the time"))) == [
        Listen(),
        Anticipate("tell me the time"),
    ]


def test_no_answer_is_begun_early_while_earlier_words_are_awaited():
    turns = call_in(SETTLING)
    assert play(turns, (1, SOUND), (1.5, Paused("the time"))) == [Listen()]


# Whatever happens

TEXTS = st.sampled_from(["", " ", "mm-hm", "okay", "what", "the weather", "stop"])


class Call(RuleBasedStateMachine):
    """Plays every caller: brings words for what was settled, late or never, and ticks when a deadline has come."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.words = itertools.count(1)
        self.sounding = False
        self.awaited: list[int] = []
        self.late: list[int] = []
        self.open = False
        self.held = False
        self.listening = False
        self.early = False
        self.said: list[tuple[int | None, str]] = []
        """What was said and neither asked nor taken for nothing: by utterance."""

    @initialize()
    def begin(self) -> None:
        self.turns = Turns()

    def take(self, what: Occurrence) -> list[Action]:
        actions = self.turns.handle(what, self.now)
        for action in actions:
            self.meet(action)
        return actions

    def meet(self, action: Action) -> None:
        match action:
            case Listen():
                self.listening = True
            case Settle(utterance):
                assert self.listening, "nothing is taken down"
                self.listening = False
                assert utterance not in self.awaited
                self.awaited.append(utterance)
                self.said.append((utterance, ""))
            case Hold():
                assert self.open
                assert not self.held
                self.held = True
            case GoOn():
                assert self.open
                assert self.held
                self.held = False
                assert all(not meaningful(text) for _, text in self.said), "words are lost"
                self.give_up()
            case Close():
                assert self.open
                self.open = self.held = False
            case Ask(text):
                assert not self.open, "two answers at once"
                assert text == " ".join(text for _, text in self.said if text)
                self.open, self.early = True, False
                self.give_up()
            case Anticipate():
                assert not self.open
                self.early = True
            case Forget():
                assert self.early
                self.early = False

    def give_up(self) -> None:
        """Words that still come are late."""
        self.late += self.awaited
        self.awaited.clear()
        self.said.clear()

    @rule(certain=st.booleans())
    @precondition(lambda self: not self.sounding)
    def begin_a_sound(self, certain: bool) -> None:
        self.sounding = True
        self.take(SoundBegan(certain=certain))

    @rule()
    @precondition(lambda self: self.sounding)
    def press_the_button_meanwhile(self) -> None:
        self.take(BUTTON)

    @rule()
    @precondition(lambda self: self.sounding)
    def end_the_sound(self) -> None:
        self.sounding = False
        self.take(SILENCE)

    @rule(text=TEXTS)
    @precondition(lambda self: self.sounding)
    def hear_a_part(self, text: str) -> None:
        self.take(Heard(text))

    @rule(text=TEXTS)
    @precondition(lambda self: self.sounding)
    def pause(self, text: str) -> None:
        self.take(Paused(text))

    @rule()
    @precondition(lambda self: self.sounding)
    def go_on_speaking(self) -> None:
        self.take(WentOn())
        assert not self.early

    @rule(text=TEXTS, which=st.integers(0, 3))
    @precondition(lambda self: self.awaited)
    def bring_words(self, text: str, which: int) -> None:
        utterance = self.awaited.pop(which % len(self.awaited))
        text = f"{text} {next(self.words)}" if meaningful(text) else text
        self.said = [(number, text.strip() if number == utterance else before) for number, before in self.said]
        self.take(Words(text, utterance))

    @rule(text=TEXTS)
    @precondition(lambda self: self.late)
    def bring_late_words(self, text: str) -> None:
        was, asked = self.turns.state, [Ask(text.strip())]
        if was is LISTENING:
            self.said.append((None, text.strip()))
        actions = self.take(Words(text, self.late.pop()))
        if was is not LISTENING or not text.strip():
            assert actions == []
        elif meaningful(text):
            assert actions == asked
        else:
            assert actions in ([], asked), "a sign of listening is none where nobody has spoken"
            self.said.clear()

    @rule(text=TEXTS)
    def write(self, text: str) -> None:
        if text.strip():
            text = f"{text} {next(self.words)}"
            self.said.append((None, text))
        self.take(Typed(text))

    @rule()
    def interrupt(self) -> None:
        self.take(Interrupted())
        assert not self.open

    @rule()
    @precondition(lambda self: self.open)
    def end_the_answer(self) -> None:
        self.open = self.held = False
        self.take(Answered())

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 12.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.turns.deadline is not None and self.turns.deadline <= until:
            self.now = self.turns.deadline
            before = self.turns.deadline
            waiting, self.awaited = self.awaited, []
            if self.turns.state is DOUBTING:
                waiting, self.awaited = [], waiting
            self.late += waiting
            self.take(Tick())
            assert self.turns.deadline is None or self.turns.deadline > before, "it would tick for ever"
        self.now = until

    @invariant()
    def state_tells_the_truth(self) -> None:
        state = self.turns.state
        assert self.sounding == (state in (HEARING, DOUBTING)) == self.listening
        assert self.open == (state in (ANSWERING, DOUBTING, JUDGING))
        assert self.held == (state in (DOUBTING, JUDGING))
        assert (self.turns.deadline is not None) == (state in (SETTLING, DOUBTING, JUDGING))
        if state in (LISTENING, ANSWERING):
            assert not any(text for _, text in self.said), "words are lost"
            assert not self.early
            self.give_up()


def meaningful(text: str) -> bool:
    words = re.findall(r"\w+", text.lower().replace("-", ""))
    return any(word not in BACKCHANNELS for word in words)


TestAnyCall: Any = Call.TestCase


@given(st.lists(st.sampled_from([what for _, what, _, _, _ in TABLE]), max_size=12), st.floats(0, 20))
def test_nothing_that_may_happen_is_fatal(story, step):
    turns = Turns()
    for n, what in enumerate(story):
        try:
            turns.handle(what, n * step)
        except ValueError as error:
            assert "the call is" in str(error)
