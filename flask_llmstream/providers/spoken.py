"""Where hearing and speaking come from: the interfaces of transcription, speech and voice activity.

All audio here is PCM, 16 bits, little-endian, mono. Methods block, and are called from many threads or greenlets at
once, one call of a user in each; what one utterance or one voice is made of belongs to a single caller.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Mark:
    """Where in the audio of a text a word begins.

    :param sample: samples of the text's audio that come before it.
    :param character: characters of the text that come before it.
    """

    sample: int
    character: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """A piece of speech.

    :param pcm: the audio.
    :param marks: the words that are known to begin in it, or in a piece before it; none where the provider tells none.
    """

    pcm: bytes
    marks: Sequence[Mark] = ()


class Transcription(Protocol):
    """What becomes of one utterance."""

    def feed(self, pcm: bytes) -> str | None:
        """Hear some more, without waiting for what comes of it.

        :returns: the words so far, where they are others than before; None otherwise, and where that is not offered.
        """

    def finish(self) -> str:
        """The words. Blocks; nothing is fed any more.

        :raises LLMStreamError: they are not to be had.
        """

    def abort(self) -> None:
        """Nobody wants the words. Callable from any thread, also while `finish` blocks; idempotent."""


class Transcriber(Protocol):
    """Turns speech into text.

    :param rate: the sample rate that it takes, Hz.
    """

    rate: int

    def begin(self, *, language: str | None = None) -> Transcription:
        """Listen to an utterance.

        :param language: as in BCP 47; None leaves it to the provider.
        :raises LLMStreamError: it can't.
        """

    def warm(self) -> None:
        """Load what takes long to load. Failure is no error."""

    def close(self) -> None:
        """Give back connections and processes."""


class Synthesizer(Protocol):
    """Turns text into speech.

    :param rate: the sample rate of what it makes, Hz.
    """

    rate: int

    def speak(self, text: str, *, voice: str | None = None, language: str | None = None) -> Generator[Sound]:
        """Say a sentence, piece by piece, each as soon as it is there. Closing the generator ends it at once.

        :raises LLMStreamError: it can't.
        """

    def warm(self) -> None:
        """Load what takes long to load. Failure is no error."""

    def close(self) -> None:
        """Give back connections and processes."""


class Detector(Protocol):
    """Tells speech from everything else, for one call."""

    def probability(self, pcm: bytes) -> float:
        """How probable it is that somebody speaks in the next `VoiceActivity.samples`, from 0 to 1."""

    def close(self) -> None:
        """Give back what it holds. Idempotent."""


class VoiceActivity(Protocol):
    """Makes detectors.

    :param rate: the sample rate that they take, Hz.
    :param samples: how many they take at a time.
    """

    rate: int
    samples: int

    def detector(self) -> Detector: ...

    def warm(self) -> None:
        """Load what takes long to load. Failure is no error."""

    def close(self) -> None:
        """Give back processes."""
