"""The log: one writes, any number follow, each from a place of its own."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.errors import InvalidCursor
from flask_llmstream.log import ENTRY_OVERHEAD, PIECE, Log, LogFull, Reader
from flask_llmstream.runtime import current


class CountingBell:
    def __init__(self):
        self.rings = 0

    def ring(self):
        self.rings += 1


def log_of(*payloads, limit=10**6):
    log = Log(limit)
    for payload in payloads:
        log.append(payload)
    return log


def test_a_reader_gets_what_is_there_and_then_what_comes():
    log = log_of(b"1", b"2")
    reader = Reader(log, CountingBell())
    assert reader.take() == [b"1", b"2"]
    assert reader.take() == []
    log.append(b"3")
    assert reader.take() == [b"3"]


def test_each_reader_has_a_place_of_its_own():
    log = log_of(b"1", b"2", b"3")
    early, late = Reader(log, CountingBell()), Reader(log, CountingBell(), after=2)
    assert late.take() == [b"3"]
    assert early.take() == [b"1", b"2", b"3"]
    assert (early.n, late.n) == (3, 3)


def test_a_cursor_at_the_end_has_everything():
    assert Reader(log_of(b"1"), CountingBell(), after=1).take() == []


def test_a_cursor_ahead_of_the_log_is_refused():
    log = log_of(b"1")
    with pytest.raises(InvalidCursor):
        Reader(log, CountingBell(), after=2)
    assert log.readers == 0


def test_all_readers_are_woken_by_each_event_and_by_the_end():
    log = Log(1000)
    bells = [CountingBell(), CountingBell()]
    for bell in bells:
        Reader(log, bell)
    log.append(b"1")
    assert [bell.rings for bell in bells] == [1, 1]
    log.end(b"2")
    assert [bell.rings for bell in bells] == [2, 2]


def test_who_has_left_is_not_woken_and_does_not_count():
    log = Log(1000)
    stayed, left = Reader(log, CountingBell()), Reader(log, CountingBell())
    assert log.readers == 2
    left.leave()
    left.leave()
    log.append(b"1")
    assert log.readers == 1
    assert (stayed.bell.rings, left.bell.rings) == (1, 0)


def test_a_reader_is_finished_when_it_has_the_last_event():
    log = log_of(b"1")
    reader = Reader(log, CountingBell())
    reader.take()
    assert not reader.finished
    log.end(b"2")
    assert not reader.finished
    assert reader.take() == [b"2"]
    assert reader.finished


def test_a_reader_that_comes_late_takes_the_log_piece_by_piece():
    payloads = [b"%06d" % n for n in range(PIECE // 2)]
    log = log_of(*payloads, limit=10**8)
    log.end(b"end")
    reader = Reader(log, CountingBell())
    got = []
    while not reader.finished:
        piece = reader.take()
        assert 0 < sum(map(len, piece)) <= PIECE + len(payloads[0])
        got += piece
    assert got == [*payloads, b"end"]


def test_an_event_larger_than_a_piece_is_a_piece():
    log = log_of(b"x" * (2 * PIECE), b"y")
    reader = Reader(log, CountingBell())
    assert [reader.take(), reader.take(), reader.take()] == [[b"x" * (2 * PIECE)], [b"y"], []]


def test_the_limit_counts_what_entries_take():
    log = log_of(b"x" * 10, b"x" * 10, limit=2 * (10 + ENTRY_OVERHEAD))
    with pytest.raises(LogFull):
        log.append(b"")
    assert log.entries == [b"x" * 10] * 2


def test_a_full_log_stays_full():
    """A small event after a large one that did not fit would leave a hole in the text."""
    log = Log(100)
    with pytest.raises(LogFull):
        log.append(b"x" * 100)
    with pytest.raises(LogFull):
        log.append(b"x")


def test_there_is_always_room_for_the_last_event():
    log = log_of(limit=1)
    log.end(b"the end, which is longer than the limit")
    assert log.ended
    assert log.entries == [b"the end, which is longer than the limit"]


@given(st.lists(st.binary(), max_size=30), st.data())
def test_any_cut_into_readings_gives_every_event_once_in_order(payloads, data):
    log = Log(10**6)
    after = data.draw(st.integers(0, len(payloads)))
    for payload in payloads[:after]:
        log.append(payload)
    reader = Reader(log, CountingBell(), after=after)
    got = []
    for payload in payloads[after:]:
        log.append(payload)
        if data.draw(st.booleans()):
            got += reader.take()
    assert got + reader.take() == payloads[after:]


def test_readers_in_other_threads_get_every_event_once_in_order():
    log = Log(10**8)
    payloads = [b"%d" % n for n in range(3000)]
    got: dict[int, list[bytes]] = {}

    def read(number):
        reader = Reader(log, current().bell())
        got[number] = []
        while not reader.finished:
            got[number] += reader.take()
            if not reader.finished:
                reader.bell.wait(5)
        reader.leave()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for payload in payloads:
        log.append(payload)
    log.end(b"end")
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "a reader was not woken"
    assert all(events == [*payloads, b"end"] for events in got.values())
    assert len(got) == 5
    assert log.readers == 0
