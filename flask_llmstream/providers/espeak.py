"""Speech with no network: espeak-ng, in this process.

It makes a second of audio in about a millisecond. So a text is spoken first and then given out in pieces; a long one
is spoken in parts, between which other greenlets have their turn.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress

from ..audio import WIDTH
from ..errors import InvalidInput, LLMStreamError
from .espeak_library import RATE, Library, library
from .spoken import Mark, Sound

PIECE = RATE // 4
"""Samples that a piece has at most."""
PART = 160
"""Characters that are spoken in one go: about ten seconds of audio."""
PAUSES = ",;:.!?…—)"
"""Behind what a long text is parted best."""


class Espeak:
    """Speaks some hundred languages, in a voice that nobody takes for a human's; needs the extra ``voice``.

    Where the extra is not installed, the system's library serves too (Debian: ``libespeak-ng1``).

    :param voice: for texts that name none: a voice of espeak-ng (``en-us``, ``gmw/de``), a variant that alters the
        language's voice (``f3``, ``Annie``), or both with a plus in between.
    :param language: for texts that name none; as in BCP 47.
    :param words_per_minute: how fast it speaks.
    """

    rate = RATE

    def __init__(self, *, voice: str | None = None, language: str = "en-US", words_per_minute: int = 175) -> None:
        self.voice = voice
        self.language = language
        self.words_per_minute = words_per_minute

    def speak(self, text: str, *, voice: str | None = None, language: str | None = None) -> Generator[Sound]:
        """Say a sentence, piece by piece.

        :raises ConfigurationError: espeak-ng is not installed.
        :raises InvalidInput: it has no such voice or language.
        """
        name = voice_name(voice or self.voice, language or self.language)
        spoken = 0
        for start, end in parts(text):
            pcm, words = library().say(text[start:end], name, words_per_minute=self.words_per_minute)
            marks = [Mark(spoken + sample, start + at) for sample, at in written(text[start:end], words)]
            yield from _pieces(pcm, marks, spoken)
            spoken += len(pcm) // WIDTH

    def warm(self) -> None:
        """Load the library, and the voice."""
        with suppress(LLMStreamError):
            for _ in self.speak("a"):
                pass

    def close(self) -> None:
        """Nothing: the library serves all of the process."""


def voice_name(voice: str | None, language: str) -> str:
    """What espeak-ng calls a voice.

    :param voice: as for `Espeak`; one that names more than a variant needs no language.
    :raises InvalidInput: it has no such voice or language.
    """
    espeak = library()
    named, plus, variant = (voice or "").partition("+")
    if not plus and named.lower() in espeak.variants:
        named, variant = "", named
    found = espeak.voices.get(named.lower()) if named else _of_language(language, espeak)
    if found is None:
        raise _unknown(*("voice", voice) if named else ("language", language))
    if variant and variant.lower() not in espeak.variants:
        raise _unknown("voice", voice)
    return f"{found}+{espeak.variants[variant.lower()]}" if variant else found


def parts(text: str) -> Iterator[tuple[int, int]]:
    """From where to where each part of a text goes that is spoken in one go. White space alone is no part."""
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= PART else start + _good_end(text[start : start + PART])
        if not text[start:end].isspace():
            yield start, end
        start = end


def written(text: str, spoken: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The words of a text as they are written: what is spoken as several, such as a number, is one.

    :param spoken: (samples, characters) in front of each word that is spoken.
    """
    reached = -1
    for sample, at in spoken:
        at = min(at, len(text) - 1)
        while at > 0 and text[at].isspace():
            at -= 1
        while at > 0 and not (text[at - 1].isspace() or _stands_alone(text[at])):
            at -= 1
        if at > reached:
            reached = at
            yield sample, at


def _good_end(text: str) -> int:
    """Behind the last pause in the second half of a text, else behind its last word, else its end."""
    ends = [at + 1 for at, character in enumerate(text) if character.isspace() or _stands_alone(character)]
    pauses = [end for end in ends if end > len(text) // 2 and text[end - 2] in PAUSES]
    return (pauses or ends or [len(text)])[-1]


def _stands_alone(character: str) -> bool:
    """Whether it is of a script that has no spaces between its words."""
    return unicodedata.east_asian_width(character) in "WF"


def _pieces(pcm: bytes, marks: Sequence[Mark], before: int) -> Iterator[Sound]:
    """A part's audio, cut up.

    :param before: samples of the text in front of it.
    """
    starts = [mark.sample - before for mark in marks]
    for first in range(0, len(pcm) // WIDTH, PIECE):
        here = slice(bisect_left(starts, first), bisect_left(starts, first + PIECE))
        yield Sound(pcm=pcm[WIDTH * first : WIDTH * (first + PIECE)], marks=tuple(marks[here]))


def _of_language(tag: str, espeak: Library) -> str | None:
    """The best voice of a language; for ``de-AT``, where there is none, that of ``de``."""
    tag = tag.lower().replace("_", "-")
    while tag:
        if tag in espeak.languages:
            return espeak.languages[tag]
        tag = tag.rpartition("-")[0]
    return None


def _unknown(field: str, value: str | None) -> InvalidInput:
    message = f"There is no {field} {value!r} to speak with."
    advice = "`espeak-ng --voices` lists voices and languages, `espeak-ng --voices=variant` what alters a voice"
    return InvalidInput(message, errors={field: [message]}, diagnosis=advice)
