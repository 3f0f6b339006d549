"""An owner's feed: every entry once and in order, whatever is missed of what is published; or the gap is told."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flask_llmstream import feed as feed_module
from flask_llmstream import store as store_package
from flask_llmstream.feed import START, Entry, Feed, FeedReader, reach


class AnyOrder(RuleBasedStateMachine):
    """A feed, a store that may lose everything once, and a channel that may lose what is published.

    A reader that is told of a gap finds out how things stand, and counts what it hears from there.
    """

    @initialize(before=st.integers(1, 3))
    def begin(self, before):
        self.told, self.stored, self.published, self.questions = [], [], [], []
        self.lost_at = None
        for _ in range(before):
            self.tell()
        self.published.clear()
        self.feed = Feed("feed:ann")
        self.feed.learn_end(self.feed.question(), self.stored[-1:])
        self.reader = FeedReader(self.feed, None, self.follow, lambda: None)
        assert self.reader.take() is None
        self.reader.resume(self.reader.end)
        self.got, self.begun = [], len(self.told)

    def follow(self, place):
        return [entry for entry in self.stored if entry.place >= place]

    @rule()
    def tell(self):
        n = len(self.told) + 1
        entry = Entry((1000 + n // 3, n % 3), b"%d" % n)
        self.told.append(entry)
        self.stored.append(entry)
        self.published.append(b"%d-%d %b" % (*entry.place, entry.payload))

    @precondition(lambda self: self.published)
    @rule()
    def hear(self):
        self.feed.hear(self.published.pop(0))

    @rule()
    def lose_the_channel(self):
        """And have it again: what is published from now on is heard, and it is known that something may be missing."""
        self.published.clear()
        self.feed.doubt()

    @precondition(lambda self: self.lost_at is None)
    @rule(restarted=st.booleans())
    def lose_the_store(self, restarted):
        """It is emptied, or restarted, which breaks the line as well."""
        self.lost_at = len(self.told)
        self.stored.clear()
        if restarted:
            self.lose_the_channel()

    @rule()
    def ask(self):
        self.questions.append((self.feed.question(), None))

    @precondition(lambda self: self.questions)
    @rule(which=st.integers(0, 5))
    def be_answered(self, which):
        """The store looks at some time after it was asked."""
        at = which % len(self.questions)
        asked, answer = self.questions[at]
        self.questions[at] = asked, self.follow(asked.place) if answer is None else answer

    @precondition(lambda self: any(answer is not None for _, answer in self.questions))
    @rule()
    def learn(self):
        at = next(i for i, (_, answer) in enumerate(self.questions) if answer is not None)
        self.feed.learn(*self.questions.pop(at))

    @rule()
    def take(self):
        news = self.reader.take()
        if news is None:
            assert self.lost_at is not None, "nothing was lost, so there was no gap"
            self.reader.resume(self.reader.end)
            known = [entry for entry in self.told if entry.place <= self.reader.place]
            self.got, self.begun = [], len(known) or self.lost_at
        else:
            self.got += news

    @invariant()
    def everything_once_and_in_order(self):
        assert self.got == self.told[self.begun : self.begun + len(self.got)]

    def teardown(self):
        if not hasattr(self, "feed"):
            return
        self.lose_the_channel()
        while not self.feed.learn(asked := self.feed.question(), self.follow(asked.place)):
            pass
        self.take()
        assert self.got == self.told[self.begun :]


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def entries(first, last):
    return [Entry((n, 0), b"{}") for n in range(first, last + 1)]


def published(first, last):
    return [b"%d-0 {}" % n for n in range(first, last + 1)]


def feed_of(*known):
    feed = Feed("feed:ann")
    assert feed.learn_end(feed.question(), known[-1:])
    return feed


def refuse(place):
    raise AssertionError("the store is not to be asked")


def test_a_process_remembers_a_bounded_part():
    feed = feed_of()
    for message in published(1, 10_000):
        feed.hear(message)
    assert len(feed._entries) == feed_module.REMEMBERED


def test_a_reader_that_is_too_slow_reads_the_store():
    stored = entries(1, 200)
    feed = feed_of(stored[0])
    reader = FeedReader(feed, None, lambda place: [e for e in stored if e.place >= place], lambda: None)
    reader.resume(reader.end)
    for message in published(2, 200):
        feed.hear(message)
    assert reader.take() == stored[1:]
    assert reader.take() == []


def test_a_reader_that_is_slower_than_the_store_is_told_so():
    feed = feed_of(*entries(1, 1))
    reader = FeedReader(feed, None, lambda place: entries(700, 1200), lambda: None)
    reader.resume(reader.end)
    for message in published(2, 1200):
        feed.hear(message)
    assert reader.take() is None
    assert reader.take() is None, "and again until it says from where it goes on"
    reader._read = refuse
    reader.resume(reader.end)
    assert reader.take() == []
    feed.hear(b"1201-0 {}")
    assert [entry.place for entry in reader.take()] == [(1201, 0)]


def test_a_store_that_forgets_is_noticed_by_all_readers():
    """Also where another machine takes its place, whose clock is behind: then its places are those of before."""
    feed = feed_of(*entries(5, 10))
    readers = [FeedReader(feed, None, lambda place: entries(8, 8), lambda: None) for _ in range(3)]
    for reader in readers:
        reader.resume(reader.end)
    feed.doubt()
    assert feed.learn(feed.question(), [])
    for message in published(8, 12):
        feed.hear(message)
    assert [reader.take() for reader in readers] == [None] * 3


def test_what_is_published_while_the_store_is_asked_is_not_believed():
    """What the store says is older: to believe it would be to jump over what lies between."""
    feed = feed_of(*entries(1, 1))
    feed.doubt()
    asked = feed.question()
    feed.hear(b"3-0 {}")
    assert not feed.learn(asked, entries(1, 1))
    feed.hear(b"4-0 {}")
    assert feed.learn(feed.question(), entries(1, 4))
    assert feed.end.place == (4, 0)
    assert [entry.place[0] for entry in feed.after(feed.end._replace(place=(1, 0)))] == [2, 3, 4]


def test_a_doubt_that_comes_while_the_store_is_asked_stays():
    feed = feed_of(*entries(1, 1))
    asked = feed.question()
    feed.doubt()
    assert not feed.learn(asked, entries(1, 1))
    assert not feed.sure


def test_the_answer_to_an_old_question_loses_nobody_their_place():
    feed = feed_of(*entries(1, 1))
    reader = FeedReader(feed, None, refuse, lambda: None)
    reader.resume(reader.end)
    asked = feed.question()
    feed.hear(b"2-0 {}")
    assert not feed.learn(asked, [])
    assert [entry.place for entry in reader.take()] == [(2, 0)]


@given(st.integers(0, feed_module.KEPT + 50), st.integers(0, 50))
def test_from_its_start_a_feed_follows_without_a_gap_while_it_was_never_cut(length, cut):
    """Redis keeps at least so many, and the scripts never cut otherwise."""
    cut = min(cut, max(0, length - feed_module.KEPT))
    told = entries(1, length)[cut:]
    if reach(START, told):
        assert cut == 0


def test_as_many_entries_are_kept_as_the_scripts_say():
    scripts = [path.read_text() for path in Path(*store_package.__path__).glob("*.lua")]
    cuts = [int(most) for script in scripts for most in re.findall(r"'MAXLEN', '~', (\d+)", script)]
    assert cuts
    assert set(cuts) == {feed_module.KEPT}
