from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.vad import SpeechGate, SpeechStarted, SpeechStopped

WINDOW = 32  # ms


def heard(gate: SpeechGate, *spans: tuple[float, int]) -> list[tuple[float, object]]:
    """What the gate tells, and after how many ms, of spans of (probability, windows)."""
    told = []
    for probability, windows in spans:
        for _ in range(windows):
            if event := gate.hear(probability, WINDOW):
                told.append((gate.position_ms, event))
    return told


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        pytest.param([(0.1, 100)], [], id="silence"),
        pytest.param([(0.0, 10), (0.9, 3), (0.0, 50)], [], id="a click is shorter than the onset"),
        pytest.param([(0.0, 20), (0.9, 4)], [(768, SpeechStarted(640, 340))], id="the fourth window is certain"),
        pytest.param([(0.9, 4)], [(128, SpeechStarted(0, 0))], id="nothing lies before the beginning"),
        pytest.param(
            [(0.0, 10), (0.9, 2), (0.2, 1), (0.9, 4)],
            [(544, SpeechStarted(416, 116))],
            id="an onset that breaks off begins anew",
        ),
        pytest.param(
            [(0.0, 10), (0.6, 1), (0.4, 3)], [(448, SpeechStarted(320, 20))], id="what has begun needs less to go on"
        ),
        pytest.param([(0.4, 100)], [], id="and less is not enough to begin"),
        pytest.param(
            [(0.9, 10), (0.0, 15), (0.9, 5)], [(128, SpeechStarted(0, 0))], id="a pause between words is no end"
        ),
        pytest.param(
            [(0.9, 10), (0.0, 16)],
            [(128, SpeechStarted(0, 0)), (832, SpeechStopped(320))],
            id="the end is where it was, and told when it is certain",
        ),
        pytest.param(
            [(0.9, 10), (0.4, 40), (0.0, 16)],
            [(128, SpeechStarted(0, 0)), (2112, SpeechStopped(1600))],
            id="a voice that wavers goes on",
        ),
        pytest.param(
            [(0.9, 10), (0.0, 16), (0.9, 4)],
            [(128, SpeechStarted(0, 0)), (832, SpeechStopped(320)), (960, SpeechStarted(832, 832))],
            id="what belongs to one utterance does not belong to the next",
        ),
    ],
)
def test_what_is_told(spans, told):
    assert heard(SpeechGate(), *spans) == told


def test_how_sure_how_soon_and_how_long_can_be_chosen():
    gate = SpeechGate(threshold=0.8, stay=0.7, onset_ms=64, silence_ms=96, prefix_ms=32)
    assert heard(gate, (0.79, 10), (0.8, 2), (0.7, 2), (0.69, 3)) == [
        (384, SpeechStarted(320, 288)),
        (544, SpeechStopped(448)),
    ]


def test_silence_can_be_made_shorter_while_it_lasts():
    gate = SpeechGate(silence_ms=2000)
    assert len(heard(gate, (0.9, 10), (0.0, 10))) == 1
    gate.silence_ms = 200
    assert heard(gate, (0.0, 1)) == [(672, SpeechStopped(320))]


def test_how_long_it_has_been_quiet():
    gate = SpeechGate()
    for probability, quiet in [(0.0, 32), (0.9, 0), (0.0, 96), (0.9, 0), (0.9, 0), (0.9, 0), (0.9, 0), (0.0, 32)]:
        gate.hear(probability, WINDOW)
        assert gate.quiet_ms == quiet


def test_reset_ends_the_speech_where_it_was_and_keeps_the_position():
    gate = SpeechGate()
    assert gate.reset() is None
    heard(gate, (0.9, 10), (0.0, 2))
    assert gate.reset() == SpeechStopped(320)
    assert not gate.speaking
    assert heard(gate, (0.9, 4)) == [(512, SpeechStarted(384, 384))]


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"stay": 0.9}, {"stay": 0}, {"onset_ms": -1}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError):
        SpeechGate(**wrong)


SPANS = st.lists(st.tuples(st.floats(0, 1), st.floats(1, 400)), max_size=200)
GATES = st.builds(
    SpeechGate,
    threshold=st.floats(0.3, 0.9),
    onset_ms=st.floats(0, 300),
    silence_ms=st.floats(0, 1000),
    prefix_ms=st.floats(0, 500),
)


@given(GATES, SPANS)
def test_starts_and_stops_take_turns_and_go_forward(gate, spans):
    told = []
    for probability, duration in spans:
        before = gate.speaking
        event = gate.hear(probability, duration)
        assert (event is not None) == (gate.speaking != before)
        if event is not None:
            told.append(event)
            assert 0 <= event.at_ms <= round(gate.position_ms)
        if isinstance(event, SpeechStarted):
            assert event.since_ms <= event.at_ms
            assert gate.position_ms - event.since_ms <= gate.lookback_ms + duration + 1
    assert [type(event) for event in told] == ([SpeechStarted, SpeechStopped] * len(told))[: len(told)]
    for before, after in pairwise(told):
        assert before.at_ms <= after.at_ms


@given(GATES, SPANS)
def test_position_is_the_length_of_what_was_heard(gate, spans):
    for probability, duration in spans:
        gate.hear(probability, duration)
    assert gate.position_ms == pytest.approx(sum(duration for _, duration in spans))
