"""When somebody begins to speak, and when they have stopped, from how probable speech is in each window of the audio.

    quiet ──a window ≥ threshold──> rising ──onset_ms of windows ≥ stay──> speaking    SpeechStarted
      ^                               │                                    │  ^
      │<──────a window < stay─────────┘                   a window < stay  │  │  a window ≥ stay
      │                                                                    v  │
      └<───────────────────silence_ms of windows < stay─────────────────── falling     SpeechStopped

To be taken for speech a window must reach `threshold`, and to go on being speech only `stay`, which is lower: so a
voice that wavers about one value does not begin and stop with each window. A click is shorter than `onset_ms`, and a
pause between two words is shorter than `silence_ms`.

Nothing here knows a clock: time is the length of the audio that was heard. Both events tell the place where it
happened, which lies before the place where it was certain.
"""

from __future__ import annotations

from dataclasses import dataclass

THRESHOLD = 0.5
HYSTERESIS = 0.15
"""By how much the probability may fall below the threshold until speech is speech no longer, as with silero."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody speaks.

    :param at_ms: where the speech begins, in ms since the first window.
    :param since_ms: where the audio begins that belongs to it: a little earlier, since a word may begin softly.
    """

    at_ms: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Nobody speaks any more.

    :param at_ms: where the speech ended, in ms since the first window.
    """

    at_ms: int


class SpeechGate:
    """Where speech starts and stops in one stream of audio.

    :param threshold: how probable speech must be in a window to begin, from 0 to 1.
    :param stay: and to go on; None for `HYSTERESIS` less.
    :param onset_ms: how long somebody speaks until it counts.
    :param silence_ms: how long nobody speaks until it has stopped. May be changed at any time.
    :param prefix_ms: how much audio before the speech belongs to it.
    """

    def __init__(
        self,
        *,
        threshold: float = THRESHOLD,
        stay: float | None = None,
        onset_ms: float = 128,
        silence_ms: float = 500,
        prefix_ms: float = 300,
    ) -> None:
        stay = max(threshold - HYSTERESIS, threshold / 2) if stay is None else stay
        if not 0 < stay <= threshold <= 1:
            raise ValueError(f"0 < stay <= threshold <= 1 is not so with {stay} and {threshold}.")
        if min(onset_ms, silence_ms, prefix_ms) < 0:
            raise ValueError(f"No time is below 0 ms: {onset_ms}, {silence_ms}, {prefix_ms}.")
        self.threshold = threshold
        self.stay = stay
        self.onset_ms = onset_ms
        self.silence_ms = silence_ms
        self.prefix_ms = prefix_ms
        self.speaking = False
        """Whether somebody speaks, as far as is certain."""
        self.position_ms = 0.0
        """How much audio was heard."""
        self._began: float | None = None
        """Where the windows began that may become speech."""
        self._ended = 0.0
        """Where the latest window of speech ended."""
        self._told = 0.0
        """Where the latest event was told: all audio before belongs to what was before."""

    @property
    def lookback_ms(self) -> float:
        """How much of the latest audio is to be kept while nobody speaks, besides one window, so that all is there
        that belongs to what may turn out to be speech.
        """
        return self.prefix_ms + self.onset_ms

    @property
    def quiet_ms(self) -> float:
        """How long there has been no speech, up to the latest window; 0 in the midst of it."""
        return 0.0 if self._began is not None else self.position_ms - self._ended

    def hear(self, probability: float, duration_ms: float) -> SpeechStarted | SpeechStopped | None:
        """What one more window makes of it.

        :param probability: that somebody speaks in it.
        :param duration_ms: its length.
        """
        before = self.position_ms
        self.position_ms += duration_ms
        return self._while_speaking(probability) if self.speaking else self._while_quiet(probability, before)

    def reset(self) -> SpeechStopped | None:
        """Begin anew, where the audio no longer hangs together or is no longer listened to; the position stays."""
        was_speaking, self.speaking, self._began = self.speaking, False, None
        self._told = self.position_ms
        return SpeechStopped(round(self._ended)) if was_speaking else None

    def _while_quiet(self, probability: float, before: float) -> SpeechStarted | None:
        if self._began is None and probability >= self.threshold:
            self._began = before
        elif probability < self.stay:
            self._began = None
        if self._began is None or self.position_ms - self._began < self.onset_ms:
            return None
        began, self._began = self._began, None
        since, self._told = max(began - self.prefix_ms, self._told), self.position_ms
        self.speaking, self._ended = True, self.position_ms
        return SpeechStarted(round(began), round(since))

    def _while_speaking(self, probability: float) -> SpeechStopped | None:
        if probability >= self.stay:
            self._ended = self.position_ms
        if self.position_ms - self._ended < self.silence_ms or self._ended == self.position_ms:
            return None
        self.speaking, self._told = False, self.position_ms
        return SpeechStopped(round(self._ended))
