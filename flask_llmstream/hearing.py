"""What a call hears: its audio becomes sounds that begin and end, and utterances whose words are taken down.

One caller at a time feeds audio. What is found is reported from the same caller, but for an utterance's words, which
come when they are there, from a task of their own.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

from .audio import Format, Resampler
from .errors import LLMStreamError, Overloaded, RunCancelled
from .providers.spoken import Detector, Transcriber, Transcription, VoiceActivity
from .runtime import Task, current
from .vad import SpeechGate, SpeechStarted, SpeechStopped

log = logging.getLogger("flask_llmstream")

KEPT = 1.0
"""Seconds of audio that are kept while nobody is known to speak: some of it may belong to an utterance."""
PAUSE = 0.2
"""Seconds of silence after which what was said may be all."""
LEAST = 0.3
"""Seconds of an utterance that is ended by the button: in less there is no word, and it would be paid for."""
LONGEST = 60.0
"""Seconds of an utterance, which is kept as a whole; one that goes on becomes several."""
AT_ONCE = 2
"""Utterances of a call whose words are looked for at a time."""
WAITING = 16
"""Utterances that wait for that; for more there are no words."""
SAMPLE = 2
"""Bytes."""


class Listener(Protocol):
    """Who is told what a call hears."""

    def sound_began(self, at_ms: int) -> None:
        """The user begins to speak.

        :param at_ms: milliseconds of the audio that come before it.
        """

    def sound_ended(self, at_ms: int) -> None:
        """The user is silent again."""

    def partly_heard(self, text: str) -> None:
        """What the user has said of the utterance so far."""

    def paused(self, text: str) -> None:
        """The user has not gone on for a moment, after these words."""

    def went_on(self) -> None:
        """The user has gone on after all."""

    def divided(self) -> None:
        """What the user is saying is so long that its first part is an utterance by now; the sound goes on."""

    def heard(self, number: int, text: str, error: LLMStreamError | None) -> None:
        """The words of an utterance; or why there are none.

        :param number: that it was given when it was settled.
        """

    def report(self, error: LLMStreamError) -> None:
        """Something has failed, and the call can go on."""

    def failed(self, error: LLMStreamError) -> None:
        """Nothing can be heard any more."""


class Hears(Protocol):
    """How a call hears; it tells a `Listener`."""

    @property
    def at_ms(self) -> int:
        """Milliseconds of audio that have come in."""

    def watch(self, watching: bool) -> None:
        """Find sounds by itself from here on, or leave that to the user's button.

        :raises LLMStreamError: it can't.
        """

    def feed(self, payload: bytes) -> None:
        """Hear some more.

        :raises ValueError: it is not of the call's format.
        """

    def talk(self, on: bool) -> None:
        """The user's button says that an utterance begins here, or that the present one ends."""

    def typed(self, text: str) -> None:
        """The user writes."""

    def settle(self, number: int) -> None:
        """Have the words be reported, under this number, of the utterance that ended first."""

    def close(self) -> None:
        """Hear no more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ears:
    """What a call hears with.

    :param activity: tells speech from other sounds; None where the user holds a button instead.
    :param silence: seconds of silence after which the user has finished.
    :param threshold: probability from which on it is speech.
    """

    transcriber: Transcriber
    activity: VoiceActivity | None
    silence: float = 0.5
    threshold: float = 0.5


class Hearing:
    """What one call hears.

    :param format: the audio that comes in.
    :param language: as in BCP 47; None leaves it to the provider.
    """

    def __init__(self, ears: Ears, format: Format, listener: Listener, *, language: str | None = None) -> None:
        self._ears = ears
        self._format = format
        self._listener = listener
        self._language = language
        self._utterance: Utterance | None = None
        self._began_ms = 0
        """Where what the user is saying began, in milliseconds of the audio."""
        self._divided_ms = 0
        """And where the present part of it did."""
        self._to_words = Resampler(format.rate, ears.transcriber.rate)
        self._kept: deque[bytes] = deque()
        self._room = int(KEPT * ears.transcriber.rate) * SAMPLE
        self._over: deque[Utterance] = deque()
        """Utterances that are to be settled."""
        self._waiting: deque[tuple[Utterance, int]] = deque()
        """Those that are, once there is room, with their numbers."""
        self._settling = 0
        self._all: WeakSet[Utterance] = WeakSet()
        self._paused = False
        self._detector: Detector | None = None
        self._gate: SpeechGate | None = None
        self._to_activity: Resampler | None = None
        self._frame = bytearray()
        self._received = 0
        self._lock = threading.Lock()
        self._closed = False
        if ears.activity is not None:
            self._to_activity = Resampler(format.rate, ears.activity.rate)
        self.watching = False
        """Whether sounds are found by themselves."""

    @property
    def at_ms(self) -> int:
        """Milliseconds of audio that have come in."""
        return self._received * 1000 // self._format.rate

    def watch(self, watching: bool) -> None:
        """Find sounds by itself from here on, or leave that to the user's button.

        :raises LLMStreamError: it can't.
        """
        with self._lock:
            self._forget_sound()
            if watching and self._ears.activity is not None and not self._closed:
                if self._detector is None:  # which costs more than all else here
                    self._detector = self._ears.activity.detector()
                self.watching = True

    def feed(self, payload: bytes) -> None:
        """Hear some more.

        :raises ValueError: it is not of the call's format.
        """
        pcm = self._format.decode(payload)
        with self._lock:
            if self._closed:
                return
            self._received += len(pcm) // SAMPLE
            words = self._to_words.feed(pcm)
            if self._utterance is not None:
                self._utterance.feed(words)
            self._keep(words)
            if self.watching:
                self._look_for_sounds(pcm)
            if self._utterance is not None and self.at_ms - self._divided_ms >= LONGEST * 1000:
                began_ms = self._began_ms
                self._end()
                self._begin(self.at_ms)
                self._began_ms = began_ms
                self._listener.divided()

    def typed(self, text: str) -> None:
        """What is written is nothing to be heard."""

    def talk(self, on: bool) -> None:
        """The user's button says that an utterance begins here, or that the present one ends."""
        with self._lock:
            if on:
                self._begin(self.at_ms)
                return
            if self._utterance is not None and self.at_ms - self._began_ms < LEAST * 1000:
                self._utterance.empty()
            self._end()

    def settle(self, number: int) -> None:
        """Have the words be reported of the utterance that ended first.

        :param number: goes with them.
        """
        with self._lock:
            utterance = self._over.popleft() if self._over else None
            full = len(self._waiting) >= WAITING
            if utterance is not None and not full:
                self._waiting.append((utterance, number))
        if utterance is None:
            self._listener.heard(number, "", None)
        elif full:
            utterance.abort()
            self._listener.heard(number, "", Overloaded("More was said at once than can be written down."))
        else:
            self._settle_next()

    def close(self) -> None:
        """Hear no more."""
        with self._lock:
            self._closed = True
            for utterance in list(self._all):
                utterance.abort()
            self._utterance = None
            self._over.clear()
            self._waiting.clear()
            self._forget_sound()
            if self._detector is not None:
                self._detector.close()
                self._detector = None

    def _settle_next(self) -> None:
        with self._lock:
            if not self._waiting or self._settling >= AT_ONCE:
                return
            utterance, number = self._waiting.popleft()
            self._settling += 1
        utterance.settle(number, self._settled)

    def _settled(self) -> None:
        with self._lock:
            self._settling -= 1
        self._settle_next()

    def _look_for_sounds(self, pcm: bytes) -> None:
        activity = self._ears.activity
        assert activity is not None
        assert self._to_activity is not None
        assert self._detector is not None
        if self._gate is None:
            self._gate = SpeechGate(threshold=self._ears.threshold, silence_ms=round(self._ears.silence * 1000))
            self._started_at = self.at_ms - len(pcm) // SAMPLE * 1000 // self._format.rate
        self._frame += self._to_activity.feed(pcm)
        size = activity.samples * SAMPLE
        while len(self._frame) >= size:
            frame = bytes(self._frame[:size])
            del self._frame[:size]
            found = self._gate.hear(self._detector.probability(frame), activity.samples * 1000 / activity.rate)
            if isinstance(found, SpeechStarted):
                self._begin(self._started_at + found.since_ms)
                self._listener.sound_began(self._started_at + found.at_ms)
            elif isinstance(found, SpeechStopped):
                self._end()
                self._listener.sound_ended(self._started_at + found.at_ms)
            elif self._gate.speaking:
                self._look_for_a_pause(self._gate.quiet_ms)

    def _look_for_a_pause(self, quiet_ms: float) -> None:
        paused = quiet_ms >= PAUSE * 1000
        if paused and not self._paused and self._utterance is not None and self._utterance.so_far:
            self._listener.paused(self._utterance.so_far)
        elif self._paused and not paused:
            self._listener.went_on()
        self._paused = paused

    def _begin(self, since_ms: int) -> None:
        """Take down an utterance, with what of it was heard before it was known to be one. Audio may come faster than
        anybody thinks, after a hitch of the line: nobody is waited for here.

        :param since_ms: where it begins, in milliseconds of the audio.
        """
        if self._utterance is None:
            self._began_ms = self._divided_ms = since_ms
            self._utterance = Utterance(self._ears.transcriber, self._language, self._listener)
            self._all.add(self._utterance)
            self._utterance.feed(self._latest(self.at_ms - since_ms))

    def _end(self) -> None:
        if self._utterance is not None:
            self._over.append(self._utterance)
            self._utterance = None

    def _keep(self, words: bytes) -> None:
        self._kept.append(words)
        self._room -= len(words)
        while self._room < 0:
            self._room += len(self._kept.popleft())

    def _latest(self, duration_ms: int) -> bytes:
        """The audio that came last, as far as it is kept."""
        size = max(0, duration_ms) * self._ears.transcriber.rate // 1000 * SAMPLE
        return b"".join(self._kept)[-size:] if size else b""

    def _forget_sound(self) -> None:
        self._gate = None
        self.watching = self._paused = False
        self._frame.clear()


class Utterance:
    """One utterance, on its way to become words."""

    def __init__(self, transcriber: Transcriber, language: str | None, listener: Listener) -> None:
        self.so_far = ""
        """Its words, as far as they are known."""
        self._listener = listener
        self._transcription: Transcription | None = None
        self._error: LLMStreamError | None = None
        self._task: Task | None = None
        self._aborted = False
        try:
            self._transcription = transcriber.begin(language=language)
        except LLMStreamError as error:
            self._error = error

    def feed(self, pcm: bytes) -> None:
        if self._transcription is None or not pcm:
            return
        try:
            so_far = self._transcription.feed(pcm)
        except LLMStreamError as error:
            self._error = error
            self.empty()
            return
        if so_far and so_far != self.so_far:
            self.so_far = so_far
            self._listener.partly_heard(so_far)

    def settle(self, number: int, done: Callable[[], None]) -> None:
        """Have the words be reported as soon as they are there."""
        self._task = current().task(lambda: self._finish(number), done)
        self._task.start()

    def abort(self) -> None:
        """Nobody wants the words."""
        self._aborted = True
        self.empty()

    def empty(self) -> None:
        """There are no words in it."""
        if self._transcription is not None:
            self._transcription.abort()
            self._transcription = None

    def _finish(self, number: int) -> None:
        words, error, transcription = "", self._error, self._transcription
        try:
            if transcription is not None and error is None:
                words = transcription.finish()
        except LLMStreamError as failed:
            error = failed
        except RunCancelled:
            return
        except Exception:
            log.exception("an utterance could not be transcribed")
            error = LLMStreamError("What you said could not be made out.")
        if not self._aborted:
            self._listener.heard(number, words, error)
