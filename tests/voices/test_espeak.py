from __future__ import annotations

import ctypes
import sys
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.audio import QUIETEST, level, milliseconds
from flask_llmstream.errors import ConfigurationError, InvalidInput
from flask_llmstream.providers import espeak_library
from flask_llmstream.providers.espeak import PART, PIECE, Espeak, parts, voice_name


def spoken(text: str, **more: str) -> tuple[bytes, list[tuple[int, str]]]:
    """The audio of a text, and each word of it with the sample at which it begins."""
    sounds = list(Espeak().speak(text, **more))
    marks = [mark for sound in sounds for mark in sound.marks]
    ends = [mark.character for mark in marks[1:]] + [len(text)]
    words = [text[mark.character : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return b"".join(sound.pcm for sound in sounds), [
        (mark.sample, word) for mark, word in zip(marks, words, strict=True)
    ]


def test_it_speaks_and_tells_where_each_word_begins():
    pcm, words = spoken("What is the weather today?")
    assert [word for _, word in words] == ["What", "is", "the", "weather", "today?"]
    assert 1000 < milliseconds(pcm, Espeak.rate) < 3000
    assert -30 < level(pcm) < 0
    samples = [sample for sample, _ in words]
    assert samples[0] == 0
    assert all(before < after for before, after in pairwise(samples))
    assert samples[-1] < len(pcm) // 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It costs 12,345.67 € today.", ["It", "costs", "12,345.67", "€", "today."]),
        ("Äpfel — “quoted” naïve café.", ["Äpfel —", "“quoted”", "naïve", "café."]),
        ("Yes 😀 indeed", ["Yes", "😀", "indeed"]),
    ],
)
def test_words_are_those_that_are_written(text, words):
    assert [word for _, word in spoken(text)[1]] == words


def test_each_word_of_a_script_without_spaces_is_one():
    _, words = spoken("今天天气怎么样", language="zh-CN")
    assert len(words) > 2


def test_pieces_are_short_and_carry_the_marks_that_lie_in_them():
    before = 0
    for sound in Espeak().speak("What is the weather today, my dear friend?"):
        samples = len(sound.pcm) // 2
        assert 0 < samples <= PIECE
        assert all(before <= mark.sample < before + samples for mark in sound.marks)
        before += samples


def test_long_text_is_spoken_in_parts_and_its_marks_go_on():
    text = "Here is a long sentence about the weather in the north, and so on. " * 8
    pcm, words = spoken(text)
    assert milliseconds(pcm, Espeak.rate) > 20_000
    # What is spoken as one, such as "in the", has one mark.
    assert " ".join(word for _, word in words) == text.strip()
    assert len(words) > 0.7 * len(text.split())
    assert all(before < after for (before, _), (after, _) in pairwise(words))


@given(st.text(max_size=800))
def test_parts_are_the_text(text):
    spans = list(parts(text))
    assert all(0 < end - start <= PART for start, end in spans)
    assert "".join("".join(text[start:end] for start, end in spans).split()) == "".join(text.split())


def test_long_text_is_parted_at_a_pause():
    text = "one two three four five, " * 10
    (start, end), *_ = parts(text)
    assert text[start:end].endswith(", ")


@pytest.mark.parametrize("text", ["", " \n", "\0", "...", "\ud800", "[[h@l'oU]] <b>&amp;</b>"])
def test_nothing_in_a_text_breaks_it(text):
    for sound in Espeak().speak(text):
        assert len(sound.pcm) % 2 == 0


@pytest.mark.parametrize(
    ("voice", "language", "name"),
    [
        (None, "en-US", "gmw/en-US"),
        (None, "en", "gmw/en"),
        (None, "de-DE", "gmw/de"),
        (None, "pt_BR", "roa/pt-BR"),
        (None, "zh-TW", "sit/cmn"),
        ("f3", "de-AT", "gmw/de+f3"),
        ("annie", "en-US", "gmw/en-US+Annie"),
        ("en-us", "de-DE", "gmw/en-US"),
        ("en-us+f3", "de-DE", "gmw/en-US+f3"),
        ("English (America)", "de-DE", "gmw/en-US"),
    ],
)
def test_voices(voice, language, name):
    assert voice_name(voice, language) == name


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"voice": "alloy"}, "There is no voice 'alloy' to speak with."),
        ({"voice": "en-us+alloy"}, "There is no voice 'en-us+alloy' to speak with."),
        ({"language": "xx-YY"}, "There is no language 'xx-YY' to speak with."),
        ({"voice": "../../etc/passwd"}, "There is no voice '../../etc/passwd' to speak with."),
    ],
)
def test_voice_that_is_none(more, sentence):
    with pytest.raises(InvalidInput) as raised:
        next(Espeak().speak("Hello", **more))
    assert raised.value.detail == sentence
    assert "espeak-ng --voices" in raised.value.diagnosis


def test_speed_is_heard():
    usual = spoken("What is the weather today?")[0]
    fast = b"".join(sound.pcm for sound in Espeak(words_per_minute=350).speak("What is the weather today?"))
    assert len(fast) < 0.7 * len(usual)


def test_two_may_speak_at_once():
    texts = ("One two three four.", "A much longer text, that has more words in it than the other one.")
    lengths = {text: len(spoken(text)[0]) for text in texts}
    wrong = []

    def speak(text: str) -> None:
        for _ in range(20):
            pcm, words = spoken(text)
            # No two times are quite the same: some of it is made of noise.
            if [word for _, word in words][:2] != text.split()[:2] or abs(len(pcm) / lengths[text] - 1) > 0.01:
                wrong.append(text)

    threads = [threading.Thread(target=speak, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_ends_it():
    sounds = Espeak().speak("What is the weather today? " * 100)
    assert level(next(sounds).pcm) > QUIETEST
    sounds.close()


def test_it_says_what_to_install(monkeypatch):
    def missing(name: str) -> None:
        raise OSError

    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-llmstream\[voice\]'"):
        espeak_library._open()
