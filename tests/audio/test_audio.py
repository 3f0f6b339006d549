from __future__ import annotations

import array
import math
import warnings
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.audio import (
    QUIETEST,
    RATES,
    Format,
    Resampler,
    at_rate,
    level,
    milliseconds,
    resampled,
    silence,
)

PCM = st.lists(st.integers(-32768, 32767), max_size=300).map(lambda samples: array.array("h", samples).tobytes())
FORMATS = [Format(name, rate) for name, rates in RATES.items() for rate in rates]
SOME_RATES = st.sampled_from([8_000, 16_000, 22_050, 24_000, 44_100, 48_000])


def tone(hertz: float, *, rate: int, seconds: float, loudness: float = 0.5) -> bytes:
    wave = (math.sin(2 * math.pi * hertz * at / rate) for at in range(int(rate * seconds)))
    return array.array("h", [round(32767 * loudness * value) for value in wave]).tobytes()


@pytest.mark.parametrize(
    ("name", "rate", "sentence"),
    [
        ("opus", 24_000, "The audio format must be one of pcm16, pcmu, pcma; it is 'opus'."),
        (None, 24_000, "The audio format must be one of pcm16, pcmu, pcma; it is None."),
        (["pcm16"], 24_000, "The audio format must be one of pcm16, pcmu, pcma; it is ['pcm16']."),
        ("pcm16", 44_100, "The sample rate of pcm16 must be 16000 or 24000; it is 44100."),
        ("pcmu", 16_000, "The sample rate of pcmu must be 8000; it is 16000."),
        ("pcm16", "16000", "The sample rate of pcm16 must be 16000 or 24000; it is '16000'."),
        ("pcm16", 16_000.0, "The sample rate of pcm16 must be 16000 or 24000; it is 16000.0."),
    ],
)
def test_format_that_is_none(name, rate, sentence):
    with pytest.raises(ValueError) as raised:
        Format(name, rate)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("name", "rate", "size"),
    [("pcm16", 16_000, 640), ("pcm16", 24_000, 960), ("pcmu", 8_000, 160), ("pcma", 8_000, 160)],
)
def test_twenty_milliseconds_of_each_format(name, rate, size):
    form = Format(name, rate)
    assert form.size(20) == size
    assert form.milliseconds(size) == 20
    assert form.samples(size) == rate // 50
    assert form.bytes_per_second == 50 * size


@given(st.sampled_from(FORMATS), st.integers(0, 100_000))
def test_size_holds_whole_samples_and_no_more_time_than_asked(form, ms):
    size = form.size(ms)
    assert size % form.width == 0
    assert ms - 1000 / form.rate < form.milliseconds(size) <= ms


@given(PCM)
def test_pcm16_is_pcm(pcm):
    form = Format("pcm16", 24_000)
    assert form.decode(pcm) == pcm == form.encode(pcm)


@given(st.sampled_from(["pcmu", "pcma"]), st.binary(max_size=300))
def test_g711_says_the_same_after_a_round_trip(name, payload):
    form = Format(name, 8_000)
    pcm = form.decode(payload)
    assert len(pcm) == 2 * len(payload)
    # Mu-law has two ways to write zero: so it is what they say that is compared.
    assert form.decode(form.encode(pcm)) == pcm


@given(st.sampled_from(["pcmu", "pcma"]), PCM)
def test_g711_is_off_by_a_twentieth_of_a_sample_at_most(name, pcm):
    form = Format(name, 8_000)
    for before, after in zip(array.array("h", pcm), array.array("h", form.decode(form.encode(pcm))), strict=True):
        assert abs(before - after) <= max(16, abs(before) / 20)


@pytest.mark.parametrize("take", [Format("pcm16", 16_000).decode, Format("pcmu", 8_000).encode, level])
def test_half_a_sample_is_refused_in_a_sentence(take):
    with pytest.raises(ValueError, match="3 bytes end in the middle of one"):
        take(b"abc")


@given(PCM, SOME_RATES, SOME_RATES)
def test_length_after_resampling(pcm, source, target):
    samples = len(pcm) // 2
    expected = (samples - 1) * target // source + 1 if samples else 0
    assert len(resampled(pcm, source, target)) == 2 * expected


@given(PCM, SOME_RATES, SOME_RATES, st.data())
def test_resampling_does_not_depend_on_the_chunks(pcm, source, target, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pcm)), max_size=6)))
    resampler = Resampler(source, target)
    chunks = [pcm[start:end] for start, end in zip([0, *cuts], [*cuts, len(pcm)], strict=True)]
    assert b"".join(resampler.feed(chunk) for chunk in chunks) == resampled(pcm, source, target)


@pytest.mark.parametrize(("source", "target"), [(22_050, 24_000), (24_000, 16_000), (16_000, 8_000), (8_000, 24_000)])
def test_tone_keeps_its_pitch_and_its_loudness(source, target):
    there = resampled(tone(440, rate=source, seconds=1), source, target)
    samples = array.array("h", there)
    crossings = sum(1 for before, after in pairwise(samples) if before < 0 <= after)
    assert crossings == pytest.approx(440, abs=2)
    assert level(there) == pytest.approx(level(tone(440, rate=target, seconds=1)), abs=0.3)


def test_rate_that_is_none():
    with pytest.raises(ValueError, match="positive number of Hz"):
        Resampler(0, 16_000)


def test_place_in_the_same_audio_at_another_rate():
    assert at_rate(22_050, 22_050, 24_000) == 24_000
    assert at_rate(0, 22_050, 24_000) == 0


def test_loudness():
    assert level(silence(20, 16_000)) == QUIETEST
    assert level(b"") == QUIETEST
    assert level(tone(440, rate=16_000, seconds=1, loudness=1)) == pytest.approx(-3.01, abs=0.01)
    assert level(tone(440, rate=16_000, seconds=1, loudness=0.1)) == pytest.approx(-23.01, abs=0.01)


def test_duration_of_pcm():
    assert milliseconds(silence(250, 24_000), 24_000) == 250
    assert milliseconds(12_000, 24_000) == 500


def test_its_import_hides_no_warnings_of_others():
    with pytest.warns(DeprecationWarning, match="'audioop' is deprecated"):
        warnings.warn("'audioop' is deprecated", DeprecationWarning, stacklevel=1)
