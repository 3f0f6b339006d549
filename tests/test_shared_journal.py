"""The journal of a process among several: what all of its runs say, kept in order, together, and in spite of faults."""

from __future__ import annotations

import threading
import time

import pytest

from flask_llmstream import journal as journal_module
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.events import Token
from flask_llmstream.journal import SharedJournal
from flask_llmstream.ledger import Ledger
from flask_llmstream.log import PIECE
from flask_llmstream.mirror import Mirror
from flask_llmstream.run import Outcome
from flask_llmstream.store import RedisStore
from tests.orders import DONE, admit, ending, make_run
from tests.puppet import PATIENCE, eventually
from tests.redis_server import RedisServer


class Journalled:
    """A journal, and the runs that it follows."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.lost = []
        self.journal = SharedJournal(ledger.frames, self.put_back)
        self.steps = []
        self._append = ledger.frames.append
        ledger.frames.append = self.append

    def put_back(self, run):
        self.ledger.restore(run.id, run.about, 1, list(run.log.entries))
        self.lost.append(run.id)

    def append(self, frames):
        said = self._append(frames)
        self.steps.append([(run_id, len(payloads)) for run_id, _, _, payloads, _ in frames])
        return said

    def follow(self, run_id):
        run = make_run(run_id)
        admit(self.ledger, run_id, run.about)
        self.journal.follow(run)
        return run

    def kept(self, run):
        """The log as other processes have it."""
        mirror = Mirror(self.ledger.find(run.id), self.ledger, lambda about: None)
        mirror.catch_up()
        return mirror.log.entries

    def has(self, *runs):
        return all(self.kept(run) == run.log.entries for run in runs)

    def close(self):
        for run_id in list(self.journal._followers):
            self.journal.release(run_id)
        self.journal.close()


@pytest.fixture
def journalled(ledger):
    journalled = Journalled(ledger)
    yield journalled
    journalled.close()


def say(run, *words):
    for word in words:
        run.say(Token(word))


# What it keeps


def test_what_a_run_says_is_kept_as_it_comes(journalled):
    run = journalled.follow("r1")
    run.begin()
    say(run, "Hel")
    eventually(lambda: journalled.has(run))
    say(run, "lo")
    eventually(lambda: journalled.has(run))
    assert journalled.ledger.find("r1").started_at == run.started_at


def test_when_it_began_is_told_once(journalled, monkeypatch):
    told, append = [], journalled._append

    def look(frames):
        told.extend(began for *_, began in frames)
        return append(frames)

    journalled._append = look
    run = journalled.follow("r1")
    run.begin()
    for word in "abc":
        say(run, word)
        eventually(lambda: journalled.has(run))
    assert [began for began in told if began is not None] == [run.started_at]


def test_what_was_said_before_it_was_followed_is_kept_too(journalled):
    run = make_run("r1")
    admit(journalled.ledger, "r1", run.about)
    say(run, "Hel", "lo")
    journalled.journal.follow(run)
    eventually(lambda: journalled.has(run))


def test_a_long_log_is_kept_piece_by_piece(journalled):
    run = make_run("r1")
    admit(journalled.ledger, "r1", run.about)
    words = ["x" * (PIECE // 4)] * 10
    say(run, *words)
    journalled.journal.follow(run)
    eventually(lambda: journalled.has(run) and len(journalled.steps) >= 3)


def test_of_many_runs_that_talk_at_once_each_has_its_own_in_order(journalled):
    runs = [journalled.follow(f"r{n}") for n in range(12)]

    def talk(run):
        for n in range(60):
            say(run, str(n))
            if n % 20 == 0:
                time.sleep(0.001)

    threads = [threading.Thread(target=talk, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    eventually(lambda: journalled.has(*runs))


# Together, or at once


def test_what_many_say_is_kept_in_one_step(journalled, monkeypatch):
    monkeypatch.setattr(journal_module, "WINDOW", 0.1)
    runs = [journalled.follow(f"r{n}") for n in range(6)]
    for n in range(30):
        for run in runs:
            say(run, str(n))
        time.sleep(0.002)
    eventually(lambda: journalled.has(*runs))
    assert max(len(step) for step in journalled.steps) == 6
    assert len(journalled.steps) < 20, "180 events"


def test_where_little_is_going_on_nothing_waits(journalled, monkeypatch):
    monkeypatch.setattr(journal_module, "WINDOW", 3600)
    runs = [journalled.follow(f"r{n}") for n in range(journal_module.LITTLE)]
    for n in range(20):
        for run in runs:
            say(run, str(n))
        eventually(lambda: journalled.has(*runs))


def test_two_that_begin_to_talk_at_the_same_moment_are_both_heard(journalled):
    """Whoever comes second must not trust the first to wake the journal, which may think the same."""

    class Interrupted(dict):
        """Lets another thread in, where the first has said that it has news and not yet woken anybody."""

        meanwhile = None

        def __setitem__(self, *given):
            super().__setitem__(*given)
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile:
                meanwhile()

    journalled.journal._dirty = Interrupted()
    first, second = journalled.follow("r1"), journalled.follow("r2")
    say(first, "a")
    say(second, "a")
    eventually(lambda: journalled.has(first, second))
    eventually(lambda: not journalled.journal._dirty)
    journalled.journal._dirty.meanwhile = lambda: say(second, "b")
    say(first, "b")
    eventually(lambda: journalled.has(first, second))


# Faults


class Faulty:
    """Has steps fail: before they reach Redis, or when only their answer is lost."""

    def __init__(self, journalled, *, applied):
        self.journalled = journalled
        self.times = 0
        self.tries = 0
        self.applied = applied
        self.append = journalled.ledger.frames.append
        journalled.ledger.frames.append = self

    def __call__(self, frames):
        if self.times == 0:
            return self.append(frames)
        self.times -= 1
        self.tries += 1
        if self.applied:
            self.append(frames)
        raise StoreUnavailable(diagnosis="gone")


@pytest.mark.parametrize("applied", [False, True], ids=["never came", "answer lost"])
def test_a_step_that_failed_is_repeated(journalled, monkeypatch, applied):
    monkeypatch.setattr(journal_module, "BACKOFF", 0.001)
    faulty = Faulty(journalled, applied=applied)
    runs = [journalled.follow(f"r{n}") for n in range(3)]
    for n in range(10):
        faulty.times = n % 3
        for run in runs:
            say(run, f"{n} ")
        eventually(lambda: faulty.times == 0 and journalled.has(*runs))
    assert faulty.tries > 5 and journalled.lost == []
    published = [payload for *_, payloads, _ in journalled.ledger.frames.entries("r1", 0, 0)[1] for payload in payloads]
    assert set(published) == set(runs[1].log.entries)


def test_after_an_outage_it_catches_up_and_holds_nothing_besides_the_logs(journalled, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "BACKOFF", 0.001)
    monkeypatch.setattr(journal_module, "BACKOFF_MOST", 0.01)
    faulty = Faulty(journalled, applied=False)
    faulty.times = -1
    runs = [journalled.follow(f"r{n}") for n in range(3)]
    for n in range(100):
        for run in runs:
            say(run, str(n))
        assert len(journalled.journal._dirty) <= 3
    eventually(lambda: faulty.tries > 5)
    faulty.times = 0
    eventually(lambda: journalled.has(*runs))
    warnings = [record for record in caplog.records if "waits for Redis" in record.getMessage()]
    assert len(warnings) == 1, "an outage is told once"


def test_a_run_that_ends_in_an_outage_is_not_held_any_longer(journalled, monkeypatch):
    monkeypatch.setattr(journal_module, "BACKOFF_MOST", 0.01)
    faulty = Faulty(journalled, applied=False)
    faulty.times = -1
    run, other = journalled.follow("r1"), journalled.follow("r2")
    say(run, "a")
    say(other, "a")
    eventually(lambda: faulty.tries > 1)
    journalled.journal.release("r1")
    tries = faulty.tries
    eventually(lambda: faulty.tries > tries + 2)
    assert {follower.run.id for follower in journalled.journal._dirty} <= {"r2"}
    faulty.times = 0
    eventually(lambda: journalled.has(other))


def test_a_mistake_of_the_program_is_told_and_survived(journalled, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "BACKOFF_MOST", 0.01)
    append, mistakes = journalled.ledger.frames.append, [ZeroDivisionError]

    def mistaken(frames):
        if mistakes:
            raise mistakes.pop()
        return append(frames)

    journalled.ledger.frames.append = mistaken
    run = journalled.follow("r1")
    say(run, "a")
    eventually(lambda: journalled.has(run))
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("part", ["all of it", "its log"])
def test_a_log_that_redis_has_lost_is_put_back_and_gone_on_with(journalled, store, part):
    run, other = journalled.follow("r1"), journalled.follow("r2")
    say(run, "Hel", "lo")
    say(other, "a")
    eventually(lambda: journalled.has(run, other))
    store.command("DEL", store.key("log", "r1"))
    if part == "all of it":
        store.command("DEL", store.key("run", "r1"))
    say(run, ", ")
    say(other, "b")
    eventually(lambda: journalled.lost == ["r1"] and journalled.has(run, other))
    say(run, "world")
    eventually(lambda: journalled.has(run))
    assert journalled.lost == ["r1"]


@pytest.mark.needs("redis-server")
def test_over_a_redis_that_is_paused_and_killed_and_comes_back(monkeypatch):
    """With a server that forgets nothing, and one that forgets all."""
    monkeypatch.setattr(journal_module, "BACKOFF_MOST", 0.05)
    for persistent in (True, False):
        with RedisServer(persistent=persistent) as server:
            store = RedisStore(server.url + "?socket_timeout=0.1", "llmstream:")
            journalled = Journalled(Ledger(store, retention=600, lease=60))
            runs = [journalled.follow(f"r{n}") for n in range(4)]
            over = threading.Event()

            def talk(run, over=over):
                while not over.is_set():
                    say(run, "word ")
                    time.sleep(0.001)

            threads = [threading.Thread(target=talk, args=(run,)) for run in runs]
            for thread in threads:
                thread.start()
            with server.paused():
                time.sleep(0.25)
            server.kill()
            server.start()
            over.set()
            for thread in threads:
                thread.join(PATIENCE)
            for run in runs:
                say(run, "the end")
            eventually(lambda runs=runs, journalled=journalled: found(journalled, runs) and journalled.has(*runs))
            journalled.close()
            store.close()


def found(journalled, runs):
    try:
        return all(journalled.ledger.find(run.id) for run in runs)
    except StoreUnavailable:
        return False


# Release


def test_who_releases_a_run_is_told_how_much_is_kept(journalled):
    run = journalled.follow("r1")
    say(run, "Hel", "lo")
    eventually(lambda: journalled.journal._followers["r1"].kept == len(run.log))  # Redis has it a moment earlier
    readers = run.log.readers
    assert journalled.journal.release("r1") == len(run.log)
    assert run.log.readers == readers - 1
    assert journalled.journal.release("r1") == 0
    assert journalled.journal.release("nothing") == 0


def test_the_end_has_what_the_journal_did_not_come_to(journalled, monkeypatch):
    """However much of it is on its way at that moment."""
    for n in range(30):
        run = journalled.follow(f"r{n}")
        say(run, *"abcdefgh"[: n % 9])
        kept = journalled.journal.release(run.id)
        say_no_more = list(run.log.entries)
        run.settle(Outcome(state="completed"))
        end = ending(*say_no_more[kept:], kept=kept)
        assert journalled.ledger.finish(run.id, run.about, end)[0] == "ended"
        assert journalled.kept(run) == [*say_no_more, DONE]


def test_where_nothing_is_followed_nothing_runs(journalled):
    for n in range(3):
        run = journalled.follow(f"r{n}")
        assert journalled.journal._running
        say(run, "a")
        journalled.journal.release(run.id)
        eventually(lambda: not journalled.journal._running)
    run = journalled.follow("r4")
    say(run, "a")
    eventually(lambda: journalled.has(run))


def test_a_closed_journal_writes_no_more(journalled):
    run = journalled.follow("r1")
    eventually(lambda: journalled.has(run))
    journalled.journal.close()
    say(run, "a")
    time.sleep(0.02)
    assert journalled.kept(run) == run.log.entries[:1]
