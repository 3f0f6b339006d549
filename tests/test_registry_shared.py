"""Two processes over one Redis: each finds, reads, stops and forgets what the other writes."""

from __future__ import annotations

import threading

import pytest

from flask_llmstream.cursor import Cursor
from flask_llmstream.drain import Drain
from flask_llmstream.errors import RunExpired, RunNotFound, StoreUnavailable
from flask_llmstream.orphans import Orphans
from flask_llmstream.runtime import threads
from flask_llmstream.store import RedisStore
from tests.ledgers import holds, lapse, leftovers
from tests.orders import KEY, OWNER, claim_of, work
from tests.puppet import PATIENCE, Pause, eventually
from tests.registries import ORDER, follow, registries

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture
def make(redis_server):
    stores = []

    def store():
        stores.append(RedisStore(redis_server.url, "llmstream:"))
        return stores[-1]

    with registries(store) as make:
        yield make
    for one in stores:
        one.close()


@pytest.fixture
def here(make):
    return make()


@pytest.fixture
def there(make):
    return make()


@pytest.fixture
def pause():
    return Pause()


@pytest.fixture
def run(there, pause):
    """A run that the other process writes; it has said "Hel" and falls silent."""
    run, _ = there.start(ORDER, KEY, work("Hel", pause, "lo"))
    assert pause.reached.wait(PATIENCE)
    yield run
    pause.go_on()


def is_journalled(registry, run):
    kept, frames = registry.ledger.frames.entries(run.id, 0, 0)
    return kept and sum(len(payloads) for _, _, payloads, _ in frames) == len(run.log)


# Found and read


def test_a_run_of_the_other_is_found_and_read(here, run, pause):
    found = here.find(run.id, OWNER)
    assert found is not run and (found.id, found.owner, found.data) == (run.id, OWNER, {"q": 1})
    reader = here.read(found)
    eventually(lambda: found.text == "Hel")
    pause.go_on()
    eventually(lambda: found.ended and run.ended)
    assert found.log.entries == run.log.entries and found.state == "completed"
    here.leave(found, reader)


def test_a_repeat_of_its_request_joins_it(here, run):
    joined, new = here.start(ORDER, KEY, work())
    assert (joined.id, new) == (run.id, False) and here.live == []


def test_after_its_end_both_read_it_from_the_journal(here, there, run, pause):
    pause.go_on()
    eventually(lambda: run.ended and not there._runs)
    for registry in (here, there):
        assert follow(registry, registry.find(run.id, OWNER)) == run.log.entries
        assert follow(registry, registry.find(run.id, OWNER), Cursor(run.id, 1, 3)) == run.log.entries[3:]


def test_one_that_has_expired_has_so_everywhere(here, there, run, pause):
    pause.go_on()
    eventually(lambda: run.ended and not there._runs)
    store = here._store
    store.command("DEL", store.key("run", run.id), store.key("log", run.id))
    with pytest.raises(RunExpired):
        here.find(run.id, OWNER)
    with pytest.raises(RunNotFound):
        here.find(run.id, "user:bob")


# Stopped and forgotten


def test_a_stop_from_elsewhere_ends_it_at_once(here, run):
    here.stop(here.find(run.id, OWNER))
    eventually(lambda: run.ended)
    assert run.state == "cancelled"


def test_so_does_forgetting(here, there, run):
    here.forget(here.find(run.id, OWNER))
    eventually(lambda: run.ended)
    for registry in (here, there):
        with pytest.raises(RunNotFound):
            registry.find(run.id, OWNER)
    eventually(lambda: leftovers(here.ledger) == [])


def test_a_stop_of_what_has_ended_changes_nothing(here, there, run, pause):
    found = here.find(run.id, OWNER)
    pause.go_on()
    eventually(lambda: run.ended and not there._runs)
    here.stop(found)
    assert here.find(run.id, OWNER).state == "completed"


# Who still wants it


def test_a_reader_elsewhere_keeps_it_going(here, there, pause):
    run, _ = there.start(ORDER, KEY, work("Hel", pause, grace=0))
    eventually(lambda: is_journalled(there, run))
    found = here.find(run.id, OWNER)
    elsewhere = here.read(found)
    there.leave(run, there.read(run))
    eventually(lambda: run.audience._timer is not None)
    assert not run.cancelled, "it is looked after again later"
    here.leave(found, elsewhere)
    run.audience._timer.action()
    eventually(lambda: run.ended)
    assert run.state == "cancelled"


def test_it_is_asked_again_where_there_was_no_thread_to_ask_then(there, pause, monkeypatch):
    run, _ = there.start(ORDER, KEY, work("Hel", pause, grace=0))
    start, refused = threads.start_thread, []

    def refuse(work, name):
        if name == "llmstream-run" and not refused:
            refused.append(name)
            raise RuntimeError("can't start new thread")
        start(work, name)

    monkeypatch.setattr(threads, "start_thread", refuse)
    there.leave(run, there.read(run))
    eventually(lambda: run.ended)
    assert refused and run.state == "cancelled"


def test_one_who_has_just_left_elsewhere_has_the_grace_time_too(here, there, pause):
    run, _ = there.start(ORDER, KEY, work("Hel", pause, grace=60))
    eventually(lambda: is_journalled(there, run))
    found = here.find(run.id, OWNER)
    here.leave(found, here.read(found))
    eventually(lambda: there.ledger.frames.elsewhere(run.id) not in (None, 0.0))
    there.leave(run, there.read(run))
    first = run.audience._timer
    first.action()
    eventually(lambda: run.audience._timer is not first)
    assert not run.cancelled
    there.stop(run)


def test_whose_process_was_killed_while_they_read_it_there_has_the_grace_time_too(here, there, pause):
    """Nobody says when they left, and they are on their way back."""
    run, _ = there.start(ORDER, KEY, work("Hel", pause, grace=60))
    eventually(lambda: is_journalled(there, run))
    found = here.find(run.id, OWNER)
    elsewhere = here.read(found)
    there.leave(run, there.read(run))

    def look_again():
        timer = run.audience._timer
        timer.action()
        eventually(lambda: run.cancelled or run.audience._timer is not timer)

    look_again()
    found._subscription.close()
    eventually(lambda: there.ledger.frames.elsewhere(run.id) is None)
    look_again()
    assert not run.cancelled
    look_again()
    assert run.cancelled, "once: they have not come back"
    here.leave(found, elsewhere)


def test_who_comes_here_while_others_are_asked_keeps_it_going(there, pause, monkeypatch):
    run, _ = there.start(ORDER, KEY, work("Hel", pause, grace=0))
    elsewhere, come = there.ledger.frames.elsewhere, []

    def in_the_meantime(run_id):
        said = elsewhere(run_id)
        come.append(there.read(run))
        return said

    monkeypatch.setattr(there.ledger.frames, "elsewhere", in_the_meantime)
    Orphans(there.ledger, Drain(), there.stop)._stop_unless_read(run)
    assert come and not run.cancelled
    monkeypatch.undo()
    there.leave(run, come[0])
    eventually(lambda: run.cancelled)


def test_while_nobody_knows_who_reads_it_elsewhere_it_goes_on(there, pause, monkeypatch):
    asked = []

    def elsewhere(run_id):
        asked.append(run.cancelled)
        if len(asked) == 1:
            raise StoreUnavailable(diagnosis="Redis is gone")

    monkeypatch.setattr(there.ledger.frames, "elsewhere", elsewhere)
    run, _ = there.start(ORDER, KEY, work("Hel", pause, grace=0))
    there.leave(run, there.read(run))
    eventually(lambda: run.audience._timer is not None)
    run.audience._timer.action()
    eventually(lambda: run.ended)
    assert asked == [False, False] and run.state == "cancelled"


# Left


def left(there, run):
    """Have the process fall silent: nothing is renewed, and nothing more is journalled."""
    eventually(lambda: is_journalled(there, run))
    there._leases.close()
    there._journal.close()
    lapse(there.ledger, run.id)


def test_a_run_that_was_left_is_closed_by_the_other_and_told_there(make, there, run):
    told = []
    here = make(ended=lambda run: told.append((run.id, run.decided, run.text)))
    reader = here.read(found := here.find(run.id, OWNER))
    left(there, run)
    here._reap(run.id)
    assert told == [(run.id, "failed", "Hel")]
    eventually(lambda: found.ended and reader.log.ended)
    heard = reader.take() + reader.take()
    assert heard[:-1] == run.log.entries and reader.finished
    here.leave(found, reader)


def test_its_writer_that_comes_back_to_life_says_the_same(here, there, run, pause):
    left(there, run)
    here._reap(run.id)
    there._leases._in_touch, there._leases._runs[run.id] = float("-inf"), (1, float("-inf"))
    pause.go_on()
    eventually(lambda: run.ended)
    assert run.state == "failed" and run.log.entries[-1] == here.find(run.id, OWNER).log.entries[-1]


def test_a_writer_whose_run_was_closed_says_so_in_its_log(here, there, run, caplog):
    left(there, run)
    here._reap(run.id)
    there._hear(run.id, "ended")
    eventually(lambda: run.ended)
    assert f"run {run.id} of {run.feature} was closed by another process" in caplog.messages


def test_one_that_finds_its_own_end_says_nothing_of_the_kind(there, run, pause, caplog, monkeypatch):
    """A renewal may find it before its answer is there, which may have been lost."""
    finish = there.ledger.finish

    def overtaken(*args, **more):
        said = finish(*args, **more)
        there._hear(run.id, "ended")
        return said

    monkeypatch.setattr(there.ledger, "finish", overtaken)
    pause.go_on()
    eventually(lambda: run.ended)
    assert not caplog.messages


def test_a_cursor_from_its_writer_that_is_ahead_of_the_journal_leads_to_the_end(here, there, run):
    left(there, run)
    here._reap(run.id)
    found = here.find(run.id, OWNER)
    assert follow(here, found, Cursor(run.id, 1, 999)) == found.log.entries[-1:]


def test_one_that_was_forgotten_before_it_was_left_leaves_nothing(here, there, run):
    left(there, run)
    there._leases._subscription = None
    here.ledger.forget(run.id, run.about)
    here._reap(run.id)
    assert leftovers(here.ledger) == []


def test_of_one_that_redis_has_lost_the_lease_goes_too(here):
    """Or every process would find it on every beat, for ever."""
    lapse(here.ledger, "lost")
    here._reap("lost")
    assert holds(here.ledger, "lost") == (False, False)


def test_both_who_see_it_close_it_once(make, there, run):
    told = []
    reapers = [make(ended=lambda run: told.append(run.id)) for _ in range(4)]
    left(there, run)
    together = threading.Barrier(4)

    def reap(registry):
        together.wait(PATIENCE)
        registry._reap(run.id)

    threads = [threading.Thread(target=reap, args=(registry,)) for registry in reapers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert told == [run.id]


# Lost


def test_a_run_that_redis_has_lost_is_put_back_by_its_writer(here, there, run, pause, redis_server):
    redis_server.client().flushall()
    there._hear(run.id, "missing")
    eventually(lambda: here.ledger.find(run.id) is not None)
    found = here.find(run.id, OWNER)
    reader = here.read(found)
    pause.go_on()
    eventually(lambda: found.ended and run.ended)
    assert found.log.entries == run.log.entries
    here.leave(found, reader)


def test_many_runs_end_and_leave_nothing_behind(here, there):
    runs = [
        registry.start(ORDER, claim_of(f"{n} {id(registry)}"), work())[0]
        for n in range(10)
        for registry in (here, there)
    ]
    eventually(lambda: all(run.ended for run in runs) and not here._runs and not there._runs)
    assert here._store.command("ZCARD", here._store.key("leases")) == 0
    assert here.ledger.live(OWNER) == []
    assert here._leases._runs == there._leases._runs == {}
    assert here._journal._followers == there._journal._followers == {}
