"""The frames that carry audio, and the meter of those that come up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.packets import Download, Intake, Upload, after, newer

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
PCM16 = 32_000
"""Bytes per second, at 16 kHz."""
FRAME = PCM16 // 50
"""20 ms."""


def test_the_bytes_are_those_of_the_protocol():
    assert Upload(1, 0x01020304, b"ab").encode() == b"\x01\0\0\0\x04\x03\x02\x01ab"
    assert Download(2, 3, True, 4, b"ab").encode() == b"\x02\0\0\0\x03\0\x01\0\x04\0\0\0ab"
    assert Download(2, 3, False, 4, b"").encode() == b"\x02\0\0\0\x03\0\0\0\x04\0\0\0"


@given(st.builds(Upload, u32, u32, st.binary(min_size=1)))
def test_what_goes_up_comes_back(upload):
    assert Upload.read(upload.encode()) == upload


@given(st.builds(Download, u32, u16, st.booleans(), u32, st.binary()))
def test_what_goes_down_comes_back(download):
    assert Download.read(download.encode()) == download


@given(st.binary(max_size=30))
def test_what_is_no_frame_is_refused_with_a_sentence(frame):
    for kind, least in ((Upload, 9), (Download, 12)):
        if len(frame) < least:
            with pytest.raises(ValueError, match=f"this one has {len(frame)}\\."):
                kind.read(frame)
        else:
            kind.read(frame)


def test_flags_of_a_later_version_are_passed_over():
    assert not Download.read(b"\0\0\0\0\0\0\xfe\xff\0\0\0\0").last


def test_numbers_wrap():
    assert Download.read(Download(2**32, 2**16, False, 2**32, b"").encode()) == Download(0, 0, False, 0, b"")
    assert after(2**16 - 1) == 0


@pytest.mark.parametrize(
    ("a", "b", "is_newer"),
    [
        (1, 0, True),
        (0, 1, False),
        (0, 0, False),
        (0, 65535, True),
        (65535, 0, False),
        (32767, 0, True),
        (32768, 0, False),  # as far apart as can be: neither
        (0, 32768, False),
        (10, 65530, True),
    ],
)
def test_which_generation_is_newer(a, b, is_newer):
    assert newer(a, b) is is_newer


@given(u16, st.integers(1, 2**15 - 1))
def test_what_comes_after_is_newer(generation, steps):
    later = (generation + steps) % 2**16
    assert newer(later, generation) and not newer(generation, later)
    assert newer(after(generation), generation)


def refused_at(times: float, *, size: int = FRAME, seconds: float = 60.0, stall: tuple[float, float] = (0, 0)):
    """When an upload at so many times real time is refused, in seconds; None if it is not."""
    intake, since, length = Intake(PCM16), 0.0, size / PCM16
    for number in range(int(seconds * times / length)):
        due = number * length / times
        since = max(since, stall[1] if stall[0] <= due < stall[1] else due)
        if not intake.take(size, since):
            return since
    return None


@pytest.mark.parametrize(
    ("times", "earliest", "latest"),
    [(1.0, None, None), (1.9, None, None), (3.0, 4.5, 5.5), (4.0, 2.2, 2.8), (100.0, 0.0, 0.1)],
)
def test_an_upload_is_refused_that_is_faster_than_twice_real_time(times, earliest, latest):
    at = refused_at(times)
    assert (at is None) if earliest is None else (earliest <= at <= latest)


def test_what_a_hanging_line_delivers_at_once_is_taken():
    assert refused_at(1.0, stall=(10.0, 14.9)) is None
    assert refused_at(1.0, stall=(10.0, 20.0)) == 20.0


def test_frames_too_small_to_be_audio_count_for_some():
    assert refused_at(1.0, size=2, seconds=3.0) is not None
    assert refused_at(1.0, size=PCM16 * 3 // 1000, seconds=30.0) is None, "as an AudioWorklet may have them"


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 4 * FRAME)), max_size=60))
def test_no_window_holds_more_than_the_allowance(frames):
    intake, now, taken = Intake(PCM16), 0.0, []
    for pause, size in frames:
        now += pause
        if intake.take(size, now):
            taken.append((now, size))
    for start, (begun, _) in enumerate(taken):
        for end in range(start, len(taken)):
            total = sum(size for _, size in taken[start : end + 1])
            assert total <= PCM16 * 5 + 2 * PCM16 * (taken[end][0] - begun) + 1


@pytest.mark.parametrize(
    ("sequences", "follow", "lost", "repeated"),
    [
        ([0, 1, 2], [True, True, True], 0, 0),
        ([0, 2, 5], [True, True, True], 3, 0),
        ([0, 1, 1, 0, 2], [True, True, False, False, True], 0, 2),
        ([7, 8], [True, True], 0, 0),  # a call that was resumed
        ([2**32 - 1, 0, 2], [True, True, True], 1, 0),
    ],
)
def test_gaps_and_repetitions_are_counted(sequences, follow, lost, repeated):
    intake = Intake(PCM16)
    assert [intake.follows(sequence) for sequence in sequences] == follow
    assert (intake.lost, intake.repeated) == (lost, repeated)
