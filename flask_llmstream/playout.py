"""The ledger of an answer's audio, without I/O: what was generated, what was sent, and what has been heard.

    generated ──due()──> sent ──played()──> heard
        ^                  │ cut(): nothing more is sent, and the client drops what it has not played
        └──── resume() ────┘ from what was heard, at the beginning of a word, under a new generation

All positions are samples of the answer. A generation is one stretch of it that goes to the client without a break;
packets and reports count within theirs. At most `ahead_ms` are sent beyond what the client has reported as played, so
a slow client leaves no `room`, and whoever generates waits for that. What has been heard is dropped.

The one rule of what counts as heard, whoever asks: a word does once half of its time has been played, the pause after
it included. Its time is known from the synthesizer's word marks, or else by proportion within its sentence. Text that
makes no sound, such as code, counts with the speech before it, and nothing does before the first sample.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .packets import SEQUENCE_BITS, Download

SAMPLE = 2
"""Bytes: 16 bits, mono."""
LETTERS_A_SECOND = 15
"""How fast a sentence is spoken whose end has not been generated yet: some 150 English words a minute."""
REWOUND = 1.0
"""Seconds, at most, that a resumed answer goes back to the beginning of a word."""
GENERATIONS = 8
"""Of an answer, for which a late report still counts."""
_UNFINISHED = re.compile(r"\s+[^\w\s]*\s*$")
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\s\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True)
class Caption:
    """Text that begins to be spoken.

    :param offset: samples of the generation before it.
    :param text: the answer's own characters.
    """

    offset: int
    text: str


@dataclass(slots=True)
class _Generation:
    base: int
    """Samples of the answer before it."""
    sent: int = 0
    played: int = 0


@dataclass(frozen=True, slots=True)
class _Sentence:
    sample: int
    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class Playout:
    """The ledger of one answer after the other; :meth:`begin` opens a new page.

    :param rate: samples per second; they have 16 bits.
    :param ahead_ms: milliseconds that may be sent beyond what has been played.
    :param packet_ms: milliseconds that a packet holds; fewer at the end, and where the generator is hardly keeping up.
    :param backlog_ms: milliseconds that may be generated beyond what has been sent; `room` says what is left of them.
    """

    def __init__(self, rate: int, *, ahead_ms: int = 400, packet_ms: int = 40, backlog_ms: int = 5000) -> None:
        if not 0 < packet_ms <= ahead_ms:
            raise ValueError("A packet must fit into what may be sent ahead.")
        self.rate = rate
        self.generated = 0
        """Samples of the answer."""
        self._ahead = rate * ahead_ms // 1000
        self._packet = rate * packet_ms // 1000
        self._backlog = rate * backlog_ms // 1000
        self._sequence = 0
        self._generations: dict[int, _Generation] = {}
        self._open()

    def _open(self) -> None:
        self.generated = 0
        self._audio = bytearray()
        self._kept = 0
        """The sample of the answer with which the audio that is kept begins."""
        self._marks: deque[tuple[int, int]] = deque()
        self._sentences: deque[_Sentence] = deque()
        self._told = 0
        """Of the sentences that are kept, those that the present generation has captions of."""
        self._played = 0
        self._heard = 0
        self._complete = False
        """Whether the audio of the last sentence is."""
        self._finished = False
        self._sent_last = False
        self._cut = False
        self._generations.clear()

    # What is generated.

    def begin(self, generation: int) -> None:
        """Begin a new answer. Reports about the one before count no more."""
        self._open()
        self._start(generation, 0)

    def sentence(self, text: str, start: int, *, at: int | None = None) -> int:
        """Have a sentence begin; the sample of the answer at which it does.

        :param text: the answer's own characters; audio need not follow.
        :param start: characters of the answer before it.
        :param at: where in the generated audio it begins, not before the sentence before it; None for its end, since
            what follows will be this sentence's.
        """
        at = self.generated if at is None else self._within(at, self._sentences[-1].sample if self._sentences else 0)
        self._sentences.append(_Sentence(at, start, text))
        self._complete = False
        return at

    def relocate(self, places: Mapping[int, int]) -> None:
        """Have sentences begin elsewhere than they were taken to, but for those that have been sent already.

        :param places: by the characters of the answer before each, the sample of the answer.
        """
        earliest = max(self._played, self._now.base + self._now.sent if self._generations else 0)
        for number, sentence in enumerate(self._sentences):
            if sentence.sample >= earliest:
                at = self._within(places.get(sentence.start, sentence.sample), earliest)
                self._sentences[number] = replace(sentence, sample=at)
                earliest = at

    def add(self, pcm: bytes, marks: Iterable[tuple[int, int]] = ()) -> None:
        """Append generated audio.

        :param pcm: whole samples.
        :param marks: where words begin: (sample of the answer, character of the answer), growing.
        :raises ValueError: half a sample.
        """
        if len(pcm) % SAMPLE:
            raise ValueError("Audio comes in whole samples of two bytes.")
        for sample, character in marks:
            if self._marks:  # a synthesizer may be off by some
                sample, character = max(sample, self._marks[-1][0]), max(character, self._marks[-1][1])
            self._marks.append((sample, character))
        if pcm:
            self._complete = False
        self._audio += pcm
        self.generated += len(pcm) // SAMPLE

    def pause(self) -> None:
        """The sentence's audio is complete, and what follows may take its time: what there is can be sent and heard."""
        self._complete = True

    def finish(self) -> None:
        """Nothing more will be generated."""
        self._finished = True

    # What is sent.

    def due(self) -> Download | None:
        """The next packet, if one may be sent now."""
        if self._cut or self._sent_last or not self._generations:
            return None
        generation, now = next(reversed(self._generations.items()))
        samples = min(self._packet, self.backlog)
        last = self._finished and samples == self.backlog
        if not last and not self._is_worth_it(samples):
            return None
        if samples + self.in_flight > self._ahead:
            return None
        at = (now.base + now.sent - self._kept) * SAMPLE
        packet = Download(self._sequence, generation, last, now.sent, bytes(self._audio[at : at + samples * SAMPLE]))
        self._sequence = (self._sequence + 1) % (1 << SEQUENCE_BITS)
        now.sent += samples
        self._sent_last = last
        return packet

    def captions(self) -> list[Caption]:
        """The sentences that have begun in what was sent since this was last asked; after a resume, what is left. Those
        that begin at the same place, since but the last of them makes a sound, are one.
        """
        if not self._generations:
            return []
        now = self._now
        texts: dict[int, list[str]] = {}
        while self._told < len(self._sentences):
            sentence = self._sentences[self._told]
            if sentence.sample >= now.base + now.sent and not self._sent_last:
                break
            self._told += 1
            text = sentence.text
            if sentence.sample < now.base:
                number = self._told - 1
                if self._is_whole(number) and self._end_of(number) <= now.base:
                    continue
                text = text[self._character(now.base, number, whole=False) - sentence.start :]
            texts.setdefault(max(0, sentence.sample - now.base), []).append(text)
        return [Caption(offset, "".join(parts)) for offset, parts in texts.items()]

    def _is_worth_it(self, samples: int) -> bool:
        """Whether to send that many already: fewer than a packet holds only where the client would else wait."""
        if samples in (0, self._packet):
            return samples > 0
        complete = self._complete or (bool(self._sentences) and self._sentences[-1].sample == self.generated)
        return complete or self.in_flight <= self._ahead // 2

    # What is played.

    def played(self, generation: int, samples: int) -> None:
        """Count what the client reports; more than was sent, or less than before, is taken for a mistake.

        :param generation: also an earlier one of this answer.
        :param samples: of that generation, from its beginning.
        """
        reported = self._generations.get(generation)
        if reported is None:
            return
        reported.played = max(reported.played, min(samples, reported.sent))
        self._played = max(self._played, reported.base + reported.played)
        self._listen()
        self._forget()

    def cut(self) -> int:
        """Send nothing more; the samples of the answer that have been heard, as far as is known now."""
        self._cut = True
        return self._played

    def resume(self, generation: int) -> int:
        """Go on from what was heard, at the beginning of a word, and say from which sample of the answer that is."""
        base = self._word_at(self._played)
        self._start(generation, base)
        return base

    def heard(self) -> int:
        """The characters of the answer that have been heard."""
        self._listen()
        return self._heard

    def samples_of(self, generation: int | None) -> int:
        """Samples of one generation that the client has played."""
        reported = None if generation is None else self._generations.get(generation)
        return 0 if reported is None else reported.played

    @property
    def samples_heard(self) -> int:
        """Samples of the answer that the client has played."""
        return self._played

    @property
    def offset(self) -> int:
        """Samples of the answer that come before the present generation."""
        return self._now.base if self._generations else 0

    @property
    def backlog(self) -> int:
        """Samples that are generated and not sent."""
        return self.generated - self._now.base - self._now.sent if self._generations else self.generated

    @property
    def room(self) -> int:
        """Samples that may be generated now; none, or fewer, where the client is slow."""
        return self._backlog - self.backlog

    @property
    def in_flight(self) -> int:
        """Samples that are sent and not played, as far as is known."""
        return self._now.sent - self._now.played if self._generations else 0

    @property
    def done(self) -> bool:
        """Whether the answer was generated, sent and played to its end."""
        return self._sent_last and not self.in_flight

    @property
    def _now(self) -> _Generation:
        return next(reversed(self._generations.values()))

    def _within(self, sample: int, earliest: int) -> int:
        return min(max(sample, earliest), self.generated)

    def _start(self, generation: int, base: int) -> None:
        self._generations.pop(generation, None)
        self._generations[generation] = _Generation(base)
        while len(self._generations) > GENERATIONS:
            del self._generations[next(iter(self._generations))]
        self._told = 0
        self._sent_last = False
        self._cut = False

    def _word_at(self, sample: int) -> int:
        """The beginning of the word that this sample belongs to, where it is known and near."""
        begins = max((mark for mark, _ in self._marks if mark <= sample), default=sample)
        return max(self._kept, begins) if sample - begins <= REWOUND * self.rate else sample

    def _forget(self) -> None:
        """Drop what is needed neither for a resume nor to say what was heard."""
        keep = self._word_at(self._played)
        keep = min(keep, self._now.base + self._now.sent)  # the client may be asked to play something again
        del self._audio[: (keep - self._kept) * SAMPLE]
        self._kept = keep
        while len(self._marks) > 1 and self._marks[1][0] <= self._played:
            self._marks.popleft()
        while len(self._sentences) > 1 and self._end_of(0) <= keep:
            self._sentences.popleft()
            self._told = max(0, self._told - 1)

    # What is heard.

    def _listen(self) -> None:
        """Once heard stays heard, also where a sentence turns out to be longer than it seemed."""
        if self._sentences and self.done:
            self._heard = self._sentences[-1].end
        if self._played:
            begun = [number for number, sentence in enumerate(self._sentences) if sentence.sample < self._played]
            if begun:
                self._heard = max(self._heard, self._character(self._played, begun[-1]))

    def _end_of(self, number: int) -> int:
        """The sample with which a sentence ends, as far as it is generated."""
        return self._sentences[number + 1].sample if number + 1 < len(self._sentences) else self.generated

    def _is_whole(self, number: int) -> bool:
        return self._finished or self._complete or number + 1 < len(self._sentences)

    def _character(self, sample: int, number: int, *, whole: bool = True) -> int:
        """How far the answer has been spoken at a sample within this sentence or at its end.

        :param whole: count the word that is being spoken where half of it is over; else never.
        """
        sentence, end = self._sentences[number], self._end_of(number)
        if sample >= end and self._is_whole(number):
            return self._with_silent(number, sample)
        marks = [mark for mark in self._marks if sentence.sample <= mark[0] < end]
        if not marks:
            return self._by_proportion(sample, number, whole)
        reached = sentence.start
        latest = end, self._after(marks[-1][1], number)
        for (begins, character), (ends, following) in zip(marks, [*marks[1:], latest], strict=True):
            if begins > sample:
                break
            counts = whole and (sample - begins) * 2 >= ends - begins > 0
            reached = following if counts else character
        return self._tidied(sentence, reached) if whole else max(sentence.start, min(reached, sentence.end))

    def _after(self, character: int, number: int) -> int:
        """How far the answer has been spoken once the latest word is that is known to begin in a sentence."""
        sentence = self._sentences[number]
        word = None if self._is_whole(number) else _WORD.search(sentence.text, character - sentence.start)
        return sentence.end if word is None else sentence.start + word.end()

    def _with_silent(self, number: int, sample: int) -> int:
        """The end of a sentence, or of those after it that make no sound."""
        while number + 1 < len(self._sentences) and self._is_whole(number + 1) and self._end_of(number + 1) <= sample:
            number += 1
        return self._sentences[number].end

    def _by_proportion(self, sample: int, number: int, whole: bool) -> int:
        sentence = self._sentences[number]
        length = self._end_of(number) - sentence.sample
        if not self._is_whole(number):
            length = max(length, len(sentence.text) * self.rate // LETTERS_A_SECOND)
        reached = len(sentence.text) * (sample - sentence.sample) / length
        for word in _WORD.finditer(sentence.text):
            if word.end() > reached:
                counts = whole and (reached - word.start()) * 2 >= word.end() - word.start()
                return self._tidied(sentence, sentence.start + (word.end() if counts else word.start()))
        return sentence.end

    @staticmethod
    def _tidied(sentence: _Sentence, character: int) -> int:
        """The end of the last word before a character of a sentence; its start where there is none."""
        character = max(sentence.start, min(character, sentence.end))
        if character == sentence.end:
            return character
        text = _UNFINISHED.sub("", sentence.text[: character - sentence.start])
        return sentence.start + len(text) if any(map(str.isalnum, text)) else sentence.start
