"""Timing: the parts of a run, on one clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.timing import Timing


def test_everything_counts_from_the_request():
    timing = Timing(created=100.0, started=100.012, first=100.5, last=102.5, ended=102.75)
    assert (timing.queue_ms, timing.ttft_ms, timing.total_ms) == (12.0, 500.0, 2750.0)


def test_what_has_not_happened_took_no_time_that_could_be_told():
    timing = Timing(created=100.0)
    assert (timing.queue_ms, timing.ttft_ms, timing.total_ms) == (None, None, None)
    assert timing.tokens_per_second is None


def test_n_tokens_have_one_gap_less():
    assert Timing(0.0, first=1.0, last=3.0, tokens=101).tokens_per_second == 50.0


@pytest.mark.parametrize(
    "timing",
    [
        Timing(0.0, first=1.0, last=3.0),
        Timing(0.0, first=1.0, last=3.0, tokens=1),
        Timing(0.0, first=1.0, last=1.0, tokens=2),
        Timing(0.0, first=1.0, tokens=2),
        Timing(0.0, last=1.0, tokens=2),
    ],
    ids=str,
)
def test_a_rate_needs_two_moments_with_time_between_them(timing):
    assert timing.tokens_per_second is None


@given(st.lists(st.floats(0, 1e6), min_size=4, max_size=4), st.integers(2, 10**6))
def test_no_time_is_negative(moments, tokens):
    created, started, first, ended = sorted(moments)
    timing = Timing(created, started=started, first=first, last=ended, ended=ended, tokens=tokens)
    assert 0 <= timing.queue_ms <= timing.ttft_ms <= timing.total_ms
    rate = timing.tokens_per_second
    assert rate is None or rate >= 0
