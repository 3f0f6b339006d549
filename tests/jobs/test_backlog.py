"""The runs that wait: the scripts that take one up, have it tried again and stop it, over the embedded and the real
Redis; and the queue of a single process."""

import threading
import time

import pytest

from flask_llmstream.admission import Allowance, Quota
from flask_llmstream.backlog import Backlog, LocalQueue, Place
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.events import Usage
from flask_llmstream.ledger import LOOKED_AFTER, Ledger
from tests.jobs.house import WAITING
from tests.ledgers import events, holds, key, lapse
from tests.orders import about_of, admit, claim_of, ending, left_by_its_writer
from tests.puppet import PATIENCE

USED = {"house": Usage(3, 2)}


class Shelf:
    """A queue that performs nothing."""

    def __init__(self):
        self.places = []

    def put(self, place):
        self.places.append(place)

    def has(self, place):
        return place in self.places

    def done(self, run_id):
        pass


def about_job(run_id="r1", **more):
    return about_of(claim_of(run_id), **{"queue": "default", "attempts": 3} | more)


def place_of(run_id, attempt=1):
    return Place(run_id=run_id, attempt=attempt, extension="", queue="default")


@pytest.fixture
def backlog(ledger):
    return Backlog(ledger, Shelf())


@pytest.fixture
def job(ledger):
    """What the record of a run says that waits."""
    about = about_job()
    assert admit(ledger, "r1", about).verdict == "admitted"
    return about


def record(ledger, run_id="r1"):
    fields = ledger.store.command("HGETALL", key(ledger, "run", run_id))
    return {name.decode(): value.decode() for name, value in fields.items()}


def come_due(ledger, run_id="r1"):
    """Have it be time to look after a run that waits."""
    ledger.store.command("ZADD", key(ledger, "leases"), "XX", WAITING + 1, run_id)


def looked_after_in(ledger, run_id="r1"):
    """Seconds until a run that waits is looked after."""
    due = float(ledger.store.command("ZSCORE", key(ledger, "leases"), run_id)) - WAITING
    return due / 1000 - time.time()


# Wait


def test_a_run_that_waits_is_nobody_s_and_holds_its_slot(ledger, job):
    is_ = record(ledger)
    assert "process" not in is_ and is_["waiting"] == "1"
    assert holds(ledger) == (True, True)
    found = ledger.find("r1")
    assert (found.waiting, found.attempt, found.epoch, found.used) == (True, 1, 1, {})


def test_it_is_put_where_its_record_says(backlog, job):
    backlog.put("r1", 1, about_job(queue="cpu", extension="llmstream-v2"))
    assert backlog.queue.places == [Place(run_id="r1", attempt=1, extension="llmstream-v2", queue="cpu")]


# Take


def test_whoever_takes_it_has_it(backlog, ledger, job):
    taken = backlog.take("r1", 1)
    assert (taken.about, taken.epoch, taken.failures, taken.max_tokens, taken.used) == (job, 1, 0, 0, {})
    assert record(ledger)["process"] == ledger.store.process
    assert not ledger.find("r1").waiting
    left = float(ledger.store.command("ZSCORE", key(ledger, "leases"), "r1")) / 1000 - time.time()
    assert left == pytest.approx(ledger.lease, abs=5)


def test_one_s_own_repeat_has_it_too(backlog, job):
    assert backlog.take("r1", 1) == backlog.take("r1", 1)


def test_of_many_at_once_one_has_it(ledger, job):
    """Each of them another process."""
    if not ledger.store.shared:
        pytest.skip("there is one process")
    stores = [ledger.store.alone() for _ in range(8)]
    together, got = threading.Barrier(8), []

    def take(store):
        backlog = Backlog(Ledger(store, retention=600, lease=60), Shelf())
        together.wait(PATIENCE)
        got.append(backlog.take("r1", 1))

    threads = [threading.Thread(target=take, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert sorted(verdict for verdict in got if isinstance(verdict, str)) == ["held"] * 7


@pytest.mark.parametrize("attempt", [0, 2])
def test_another_attempt_is_stale(backlog, job, attempt):
    assert backlog.take("r1", attempt) == "stale"


def test_what_there_is_no_longer_cannot_be_taken(backlog, ledger, job):
    assert backlog.take("unknown", 1) == "missing"
    ledger.finish("r1", job, ending())
    assert backlog.take("r1", 1) == "ended"


def test_what_was_stopped_cannot_be_taken(backlog, ledger, job):
    assert ledger.stop("r1")
    assert backlog.take("r1", 1) == "stopped"


def test_what_is_left_of_a_budget_is_told_to_who_takes_it(backlog, ledger):
    allowance = Allowance(tokens=Quota(1300, 3600))
    for name in ("r1", "r2"):
        verdict = ledger.admit(name, about_job(name), b'{"status":"queued"}', allowance, max_tokens=900)
    assert verdict.max_tokens == 1300 - 903 - 3
    assert [backlog.take(name, 1).max_tokens for name in ("r1", "r2")] == [900, verdict.max_tokens]


# Again


def again(backlog, about, epoch=1, used=USED, **more):
    return backlog.again("r1", about, epoch, used, **more)


def test_the_next_attempt_waits_in_the_next_epoch(backlog, ledger, job):
    backlog.take("r1", 1)
    assert again(backlog, job) == 2
    found = ledger.find("r1")
    assert (found.waiting, found.attempt, found.epoch, found.used) == (True, 2, 2, USED)
    assert "process" not in record(ledger)
    assert events(ledger)[1:] == [((2, 2), [b'{"restarted":2}', b'{"status":"queued"}'], False)]
    taken = backlog.take("r1", 2)
    assert (taken.epoch, taken.failures, taken.used) == (2, 1, USED)
    assert holds(ledger) == (True, True)


def test_the_old_one_is_fenced(backlog, ledger, job):
    backlog.take("r1", 1)
    again(backlog, job)
    assert backlog.take("r1", 1) == "stale"
    assert ledger.frames.append([("r1", 1, 1, [b'{"token":"x"}'], None)]) == [-1]
    assert ledger.finish("r1", job, ending())[0] == "fenced"
    backlog.take("r1", 2)
    assert again(backlog, job, epoch=1) == "fenced"


def test_one_s_own_repeat_is_no_further_attempt(backlog, ledger, job):
    backlog.take("r1", 1)
    assert again(backlog, job) == again(backlog, job) == 2
    assert record(ledger)["failures"] == "1" and len(events(ledger)) == 2


def test_there_are_so_many_attempts(backlog, ledger, job):
    for attempt in (1, 2):
        backlog.take("r1", attempt)
        assert again(backlog, job, epoch=attempt) == attempt + 1
    backlog.take("r1", 3)
    before = record(ledger)
    assert again(backlog, job, epoch=3) == "spent"
    assert record(ledger) == before


def test_one_that_was_put_back_has_not_failed(backlog, ledger, job):
    for attempt in range(1, 6):
        backlog.take("r1", attempt)
        assert again(backlog, job, epoch=attempt, failed=False) == attempt + 1
    assert record(ledger)["failures"] == "0"


def test_what_was_used_is_kept_where_nothing_is_added(backlog, ledger, job):
    backlog.take("r1", 1)
    again(backlog, job)
    backlog.take("r1", 2)
    again(backlog, job, epoch=2, used={})
    assert ledger.find("r1").used == USED


def test_it_is_looked_after_when_it_waits_for_long(backlog, ledger, job):
    backlog.take("r1", 1)
    again(backlog, job)
    assert looked_after_in(ledger) == pytest.approx(LOOKED_AFTER, abs=1)


def test_one_that_is_due_later_comes_before_those_that_only_wait(backlog, ledger, job):
    backlog.take("r1", 1)
    again(backlog, job, delay=5.0)
    due = float(ledger.store.command("ZSCORE", key(ledger, "leases"), "r1"))
    assert due / 1000 - time.time() == pytest.approx(5.0, abs=1)
    backlog.look_after("r1", 2, job)  # by who has heard of it for the attempt before
    assert backlog.queue.places == []
    lapse(ledger)
    backlog.look_after("r1", 2, job)
    assert backlog.queue.places == [place_of("r1", 2)]
    assert looked_after_in(ledger) == pytest.approx(LOOKED_AFTER, abs=1)


def test_others_may_say_so_only_when_it_was_left(backlog, ledger, job):
    backlog.take("r1", 1)
    assert again(backlog, job, lapsed=True) == "leased"
    lapse(ledger)
    assert again(backlog, job, lapsed=True) == 2


def test_what_was_stopped_is_not_tried_again(backlog, ledger, job):
    backlog.take("r1", 1)
    assert not ledger.stop("r1")
    assert again(backlog, job) == "stopped"


def test_what_was_deleted_is_not_tried_again(backlog, ledger, job):
    backlog.take("r1", 1)
    assert not ledger.forget("r1", job)
    assert again(backlog, job) == "stopped"


def test_what_has_ended_is_not_tried_again(backlog, ledger, job):
    assert backlog.again("unknown", job, 1, USED) == "missing"
    backlog.take("r1", 1)
    ledger.finish("r1", job, ending())
    assert again(backlog, job) == "ended"


# Stop and forget


def test_what_waits_is_for_the_asker_to_end(ledger, job):
    assert ledger.stop("r1") and ledger.stop("r1")
    assert ledger.finish("r1", job, left_by_its_writer())[0] == "ended"
    assert not ledger.stop("r1")


def test_what_is_performed_is_for_its_process_to_end(backlog, ledger, job):
    backlog.take("r1", 1)
    heard = []
    subscription = ledger.store.subscribe(key(ledger, "process", ledger.store.process), heard.append)
    assert not ledger.stop("r1")
    deadline = time.monotonic() + PATIENCE
    while not heard and time.monotonic() < deadline:
        time.sleep(0.005)
    subscription.close()
    assert heard == [b"stop r1"] and record(ledger)["stop"] == "1"


def test_what_waits_and_is_deleted_is_for_the_asker_to_end(ledger, job):
    assert ledger.forget("r1", job)
    assert ledger.find("r1") is None and ledger.find("r1", forgotten=True).stop
    assert ledger.finish("r1", job, left_by_its_writer())[0] == "ended"
    assert record(ledger) == {} and holds(ledger) == (False, False)


def test_what_ended_before_it_was_taken_is_deleted_whole(ledger, job):
    ledger.stop("r1")
    ledger.finish("r1", job, left_by_its_writer())
    assert not ledger.forget("r1", job)
    assert record(ledger) == {}


# Look after


def test_what_its_queue_has_lost_is_put_there_again(backlog, ledger, job):
    come_due(ledger)
    backlog.look_after("r1", 1, job)
    assert backlog.queue.places == [place_of("r1")]
    assert looked_after_in(ledger) == pytest.approx(LOOKED_AFTER, abs=2)


def test_that_it_waits_for_long_is_told_once_for_its_queue(backlog, ledger, job, caplog):
    """Nobody else would say that no worker takes anything from there."""
    backlog.look_after("r1", 1, job)
    assert not caplog.records, "it was not due"
    for _ in range(2):
        come_due(ledger)
        backlog.look_after("r1", 1, job)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "run r1 waits in the queue default for long: is there a worker for it?"
    admit(ledger, "r2", other := about_job("r2", queue="urgent"))
    come_due(ledger, "r2")
    backlog.look_after("r2", 1, other)
    assert "run r2 waits in the queue urgent" in caplog.text


def test_what_is_in_its_queue_is_left_there(backlog, ledger, job):
    backlog.put("r1", 1, job)
    come_due(ledger)
    backlog.look_after("r1", 1, job)
    assert backlog.queue.places == [place_of("r1")]


def test_one_that_cannot_be_put_is_looked_after_again(backlog, ledger, job):
    def away(place):
        raise StoreUnavailable

    come_due(ledger)
    backlog.queue.put = away
    with pytest.raises(StoreUnavailable):
        backlog.look_after("r1", 1, job)
    assert looked_after_in(ledger) == pytest.approx(LOOKED_AFTER, abs=2)


def test_of_those_who_find_it_due_one_looks_after_it(backlog, ledger, job):
    backlog.look_after("r1", 1, job)
    assert backlog.queue.places == []
    come_due(ledger)
    for _ in range(3):
        backlog.look_after("r1", 1, job)
    assert backlog.queue.places == [place_of("r1")]


def test_one_that_was_stopped_meanwhile_is_left_to_whoever_ends_it(backlog, ledger, job):
    assert ledger.stop("r1")
    backlog.look_after("r1", 1, job)
    assert ledger.finish("r1", job, left_by_its_writer())[0] == "ended"


def test_one_that_has_ended_meanwhile_is_no_longer_looked_after(backlog, ledger, job):
    ledger.finish("r1", job, ending())
    backlog.look_after("r1", 1, job)
    assert holds(ledger) == (False, False)


# The queue of a single process


class Bench:
    """Performs what a `LocalQueue` gives it, until it is told that it is done.

    :param refused: runs that cannot be performed.
    """

    def __init__(self, most, refused=()):
        self.begun = []
        self.queue = LocalQueue(self.perform, most)
        self._refused = refused

    def perform(self, run_id, attempt):
        self.begun.append((run_id, attempt))
        return None if run_id in self._refused else Performed(run_id)


class Performed:
    """A run that is performed."""

    def __init__(self, run_id):
        self.about = about_job(run_id, light=run_id.startswith("light"))


def test_so_many_are_performed_at_a_time_in_the_order_in_which_they_came():
    bench = Bench(2)
    for name in "abcd":
        bench.queue.put(place_of(name))
    assert bench.begun == [("a", 1), ("b", 1)]
    assert bench.queue.has(place_of("c")) and not bench.queue.has(place_of("a"))
    bench.queue.done("b")
    bench.queue.done("b")
    assert bench.begun[2:] == [("c", 1)]
    bench.queue.put(place_of("b", 2))
    bench.queue.done("a")
    bench.queue.done("c")
    assert bench.begun[3:] == [("d", 1), ("b", 2)]


def test_what_is_not_performed_takes_no_place():
    bench = Bench(1, refused="ab")
    for name in "abc":
        bench.queue.put(place_of(name))
    assert [name for name, _ in bench.begun] == ["a", "b", "c"]


def test_what_only_waits_for_others_takes_no_place():
    bench = Bench(1)
    for name in ("light 1", "light 2", "a", "b"):
        bench.queue.put(place_of(name))
    assert [name for name, _ in bench.begun] == ["light 1", "light 2", "a"]


def test_a_mistake_takes_no_place():
    def perform(run_id, attempt):
        if run_id == "a":
            raise ZeroDivisionError
        begun.append(run_id)
        return Performed(run_id)

    begun = []
    queue = LocalQueue(perform, 1)
    with pytest.raises(ZeroDivisionError):
        queue.put(place_of("a"))
    queue.put(place_of("b"))
    assert begun == ["b"]


def test_many_threads_do_not_exceed_it():
    performed, most, lock = set(), [], threading.Lock()

    def perform(run_id, attempt):
        with lock:
            performed.add(run_id)
            most.append(len(performed))
        return Performed(run_id)

    queue = LocalQueue(perform, 3)
    together = threading.Barrier(6)

    def put_and_do(worker):
        together.wait(PATIENCE)
        for n in range(50):
            queue.put(place_of(f"{worker}-{n}"))
            with lock:
                done = performed.pop() if performed else None
            if done:
                queue.done(done)

    threads = [threading.Thread(target=put_and_do, args=[worker]) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 3 and len(most) >= 290
