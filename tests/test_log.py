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


def log_of(*payloads, limit=10**6, **more):
    log = Log(limit, **more)
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


# Parts: each writer has its own numbers


def two_parts(*, complete=True):
    """A first writer said three things and was given up; a second one goes on."""
    log = log_of(b"1-1", b"1-2", b"1-3", complete=complete)
    log.take_over(2)
    log.append(b"2-1")
    return log


def test_each_writer_begins_at_one():
    log = two_parts()
    assert (log.epoch, log.n, len(log)) == (2, 1, 4)


def test_a_reader_is_given_the_events_of_one_writer_at_a_time():
    reader = Reader(two_parts(), CountingBell(), epoch=1)
    assert (reader.take(), reader.epoch, reader.n) == ([b"1-1", b"1-2", b"1-3"], 1, 3)
    assert (reader.take(), reader.epoch, reader.n) == ([b"2-1"], 2, 1)
    assert reader.take() == []


def test_a_piece_ends_where_a_writer_does():
    log = two_parts()
    reader = Reader(log, CountingBell(), epoch=1, after=2)
    assert reader.take() == [b"1-3"]
    log.end(b"2-2")
    assert reader.take() == [b"2-1", b"2-2"]
    assert reader.finished


def test_without_a_writer_named_it_is_the_present_one():
    assert Reader(two_parts(), CountingBell(), after=0).take() == [b"2-1"]


@pytest.mark.parametrize("after", [3, 4, 50])
def test_a_cursor_ahead_of_what_was_kept_of_its_writer_leads_to_the_next(after):
    """A crash lost what this reader had heard already: it must hear the end all the same, and learn of the loss."""
    reader = Reader(two_parts(), CountingBell(), epoch=1, after=after)
    assert (reader.take(), reader.epoch, reader.n) == ([b"2-1"], 2, 1)


@pytest.mark.parametrize("after", [0, 3])
def test_the_cursor_of_a_writer_of_whom_nothing_is_kept_begins_at_the_next(after):
    log = log_of(b"3-1", epoch=3)
    reader = Reader(log, CountingBell(), epoch=1, after=after)
    assert (reader.take(), reader.epoch, reader.n) == ([b"3-1"], 3, 1)


def test_a_cursor_of_a_writer_that_never_was_is_refused():
    log = two_parts()
    with pytest.raises(InvalidCursor):
        Reader(log, CountingBell(), epoch=3)
    assert log.readers == 0


def test_a_writer_that_has_said_nothing_is_replaced():
    log = log_of(epoch=0)
    reader = Reader(log, CountingBell())
    log.take_over(1)
    log.append(b"1-1")
    assert log.parts == [(1, 0)]
    assert (reader.take(), reader.epoch, reader.n) == ([b"1-1"], 1, 1)


def test_a_reader_that_waits_goes_on_with_the_next_writer():
    log = log_of(b"1-1")
    reader = Reader(log, CountingBell(), after=1)
    log.take_over(2)
    log.end(b"2-1")
    assert (reader.take(), reader.epoch, reader.finished) == ([b"2-1"], 2, True)


# A copy of another process's log may be behind its readers


def test_a_copy_that_is_behind_gives_nothing_until_it_has_more():
    log = log_of(b"1-1", b"1-2", complete=False)
    reader = Reader(log, CountingBell(), epoch=1, after=4)
    assert reader.take() == []
    log.extend([b"1-3", b"1-4"])
    assert reader.take() == []
    log.extend([b"1-5"])
    assert (reader.take(), reader.n) == ([b"1-5"], 5)


@pytest.mark.parametrize("after", [5, 6, 50])
def test_a_reader_ahead_of_a_log_that_has_ended_hears_its_end(after):
    """It has heard more than was kept, and perhaps an end that was not."""
    log = log_of(b"1-1", b"1-2", b"1-3", complete=False)
    log.end(b"end")
    reader = Reader(log, CountingBell(), epoch=1, after=after)
    assert not reader.finished
    assert reader.take() == [b"end"]
    assert (reader.n, reader.finished) == (4, True)


def test_a_reader_that_has_the_end_is_not_told_it_again():
    log = log_of(b"1-1", complete=False)
    log.end(b"end")
    reader = Reader(log, CountingBell(), epoch=1, after=2)
    assert reader.finished and reader.take() == []


def test_readers_are_told_that_a_log_is_lost():
    log = log_of(b"1-1", complete=False)
    bell = CountingBell()
    reader = Reader(log, bell, epoch=1)
    log.lose()
    assert bell.rings == 1 and log.lost and not log.ended
    assert (reader.take(), reader.finished) == ([b"1-1"], False)


@st.composite
def logs(draw):
    """The events of each of several writers, by epoch; the last one of all is the terminal."""
    epochs = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    return [(epoch, draw(st.integers(1, 5))) for epoch in epochs]


def played(log, writers):
    """Let each writer say its events; the steps one by one, so that others may come in between."""
    for epoch, count in writers:
        if epoch != log.epoch:
            log.take_over(epoch)
        for n in range(1, count + 1):
            payload = b"%d-%d" % (epoch, n)
            if (epoch, n) == (writers[-1][0], count):
                log.end(payload)
            else:
                log.append(payload)
            yield


@given(logs(), st.data())
def test_readers_at_any_cursor_get_exactly_what_follows(writers, data):
    """Whenever they come, and however often they take something."""
    log = Log(10**6, epoch=writers[0][0], complete=False)
    everything = [(epoch, n) for epoch, count in writers for n in range(1, count + 1)]
    readers, heard = [], {}
    for _ in [None, *played(log, writers)]:
        if data.draw(st.booleans()):
            epoch = data.draw(st.integers(0, log.epoch))
            cursor = epoch, data.draw(st.integers(0, 7)) if epoch else 0
            reader = Reader(log, CountingBell(), epoch=cursor[0], after=cursor[1])
            readers.append((cursor, reader))
            heard[reader] = []
        for _, reader in readers:
            if data.draw(st.booleans()):
                hear(reader, heard[reader])
    for cursor, reader in readers:
        while hear(reader, heard[reader]):
            pass
        assert reader.finished
        follows = [place for place in everything if place > cursor]
        if cursor[0] == everything[-1][0] and cursor > everything[-1]:
            follows = everything[-1:]
        assert heard[reader] == follows


def hear(reader, heard):
    """Take what there is, with the places that the reader gives it."""
    taken = reader.take()
    first = reader.n - len(taken) + 1
    for n, payload in enumerate(taken, first):
        assert payload == b"%d-%d" % (reader.epoch, n)
        heard.append((reader.epoch, n))
    return taken
