"""How a run's end is carried out: who hears of it in which order, and what is said where the store cannot be asked."""

from __future__ import annotations

import json
import time
from contextlib import closing

import pytest

from flask_llmstream import ending as ending_module
from flask_llmstream.ending import Endings
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.events import Token, Usage
from flask_llmstream.journal import NullJournal
from flask_llmstream.leases import NullLeases
from flask_llmstream.ledger import Ledger
from flask_llmstream.log import Log, Reader
from flask_llmstream.mirror import Mirrors
from flask_llmstream.run import Outcome
from flask_llmstream.runtime import current
from flask_llmstream.store import RedisStore
from tests.elsewhere import Reading, Writer
from tests.ledgers import REAPED, holds, lapse, leftovers, usage
from tests.orders import MODEL, OWNER, admit, left_by_its_writer, make_run
from tests.puppet import eventually
from tests.redis_server import RedisServer

COMPLETED = Outcome(state="completed", finish_reason="stop")


class Hold(NullLeases):
    """Leases that are sure, or not."""

    def __init__(self):
        self.sure = True
        self.released = []

    def holds(self, run_id):
        return self.sure

    def release(self, run_id):
        self.released.append(run_id)


class Behind(NullJournal):
    """A journal that has come to the first event of each run."""

    def release(self, run_id):
        return 1


class Heard(Log):
    """A log that tells when its readers hear of the end."""

    def __init__(self, story):
        super().__init__(10**6)
        self.story = story

    def end(self, terminal):
        self.story.append("readers")
        super().end(terminal)


class Process:
    """A process that ends runs, and the story of what it told whom."""

    def __init__(self, store):
        self.story = []
        self.ledger = Ledger(store, retention=600, lease=60)
        self.leases = Hold()
        self.journal = Behind()
        self.mirrors = Mirrors(self.ledger, lambda about: about.data, refresh=3600)
        self.endings = Endings(
            self.ledger,
            self.journal,
            self.leases,
            ended=lambda run: self.ended(run),
            save=lambda *what: self.save(*what),
        )
        finish = self.ledger.finish

        def told(*given, **more):
            self.story.append("ledger")
            return finish(*given, **more)

        self.ledger.finish = told

    def ended(self, run):
        self.story.append(f"application: {run.decided}, {run.text}")

    def save(self, run, state, usage):
        self.story.append(f"conversation: {state}")

    def run(self, *words, run_id="r1"):
        """One that has said something, and whose end is decided."""
        run = make_run(run_id, log=Heard(self.story))
        admit(self.ledger, run_id, run.about)
        run.begin()
        for word in words or ("Hel", "lo"):
            run.say(Token(word))
        assert run.settle(COMPLETED)
        return run


@pytest.fixture
def process(store):
    return Process(store)


def last(run):
    return json.loads(run.log.entries[-1])


# In order


def test_the_application_then_the_conversation_then_the_ledger_then_the_readers(process):
    """A page that reloads at the end finds the answer saved."""
    run = process.run()
    assert process.endings.carry_out(run) is True
    assert process.story == ["application: completed, Hello", "conversation: completed", "ledger", "readers"]
    assert run.ended and "durable" not in last(run)
    assert process.ledger.find("r1").terminal == run.log.entries[-1]
    assert process.leases.released == ["r1"]


def test_where_another_process_may_have_closed_it_the_ledger_comes_first(process):
    process.leases.sure = False
    run = process.run()
    assert process.endings.carry_out(run) is True
    assert process.story == ["conversation: completed", "ledger", "readers", "application: completed, Hello"]


def test_what_the_next_attempt_holds_is_not_released(process):
    """It may begin here while the old one, which has lost its hold, is about to say how it ended."""
    process.leases.sure = False
    run = process.run()
    finish = process.ledger.finish

    def overtaken(*given, **more):
        process.ledger.store.command("HSET", process.ledger.store.key("run", "r1"), "epoch", 2)
        run.passed_on = True
        return finish(*given, **more)

    process.ledger.finish = overtaken
    process.endings.carry_out(run)
    assert process.leases.released == []
    assert "application" not in "".join(process.story)


def test_the_end_lets_go_of_what_only_the_function_needed(process):
    for sure in (True, False):
        process.leases.sure = sure
        run = process.run(run_id=f"sure {sure}")
        process.endings.carry_out(run)
        assert run.input is None and run.task is None


def test_the_usage_is_in_the_accounts_by_the_model_that_had_it(process):
    run = make_run("r1")
    admit(process.ledger, "r1", run.about)
    run.meter.by_model.update({MODEL: Usage(30, 4), "other": Usage(5, 6, cached_tokens=2)})
    run.settle(COMPLETED)
    process.endings.carry_out(run)
    counted = {
        f"runs {MODEL}": 1,
        f"prompt {MODEL}": 30,
        f"completion {MODEL}": 4,
        "prompt other": 5,
        "completion other": 6,
        "cached other": 2,
    }
    assert {name: number for name, number in usage(process.ledger).items() if number} == counted


# Closed by another


def reap(process, run_id="r1"):
    """What another process does that finds the run left."""
    lapse(process.ledger, run_id)
    end = left_by_its_writer(terminal=REAPED, state="failed")
    assert process.ledger.finish(run_id, make_run(run_id).about, end)[0] == "ended"
    process.story.clear()


def test_a_writer_that_was_given_up_says_what_the_journal_says(process):
    process.leases.sure = False
    run = process.run()
    reap(process)
    process.endings.carry_out(run)
    assert run.log.entries[-1] == REAPED and run.superseded
    assert (run.log.epoch, run.log.n, run.state) == (2, 1, "failed")
    assert process.story == ["conversation: completed", "ledger", "readers"], (
        "the application was told by who closed it"
    )
    assert run.input is None


def test_its_readers_who_have_more_than_was_kept_hear_that_too(process):
    process.leases.sure = False
    run = process.run()
    run.audience.join()
    reader = Reader(run.log, current().bell(), epoch=1)
    reader.take()
    reap(process)
    process.endings.carry_out(run)
    assert (reader.take(), reader.epoch, reader.finished) == ([REAPED], 2, True)


def test_one_that_learns_of_it_late_still_says_what_the_journal_says(process):
    """It believed that it held the run, and has told the application."""
    run = process.run()
    reap(process)
    process.endings.carry_out(run)
    assert run.log.entries[-1] == REAPED
    assert process.story[0] == "application: completed, Hello"


def test_one_that_was_fenced_out_by_a_writer_who_goes_on_sends_its_readers_there(process, store):
    run = process.run()
    store.command("HSET", store.key("run", "r1"), "epoch", 2)
    process.endings.carry_out(run)
    assert run.log.lost and not run.ended and process.leases.released == ["r1"]


# Lost


def test_a_run_that_redis_has_lost_is_put_back_and_ended(process, store):
    run = process.run()
    store.command("FLUSHALL")
    assert process.endings.carry_out(run) is True
    found = process.mirrors.find("r1")
    assert found.log.entries == run.log.entries and found.text == "Hello"
    assert holds(process.ledger) == (False, False)


def test_one_that_was_to_be_forgotten_is_not_put_back(process, store):
    run = process.run()
    run.forgotten = True
    store.command("FLUSHALL")
    process.endings.carry_out(run)
    assert run.ended and leftovers(process.ledger) == []


def test_one_that_is_forgotten_while_its_result_is_kept_leaves_none(process, monkeypatch):
    run = process.run()
    run.result_apart = b'"a large one"'
    keep = process.ledger.keep_result

    def forgotten_meanwhile(*given):
        keep(*given)
        assert process.ledger.result("r1", 1) == run.result_apart
        run.forgotten = True
        process.ledger.forget("r1", run.about, 1)

    monkeypatch.setattr(process.ledger, "keep_result", forgotten_meanwhile)
    process.endings.carry_out(run)
    assert run.ended and leftovers(process.ledger) == []
    assert process.ledger.result("r1", 1) is None


def test_of_one_that_was_forgotten_no_result_is_kept(process):
    run = process.run()
    run.result_apart, run.forgotten = b'"a large one"', True
    process.endings.carry_out(run)
    assert process.ledger.result("r1", 1) is None


# A store that cannot be asked


class Away:
    """Has a ledger's steps fail for a while."""

    def __init__(self, process, monkeypatch):
        monkeypatch.setattr(ending_module, "BACKOFF", 0.01)
        self.process = process
        self.finish, self.process.ledger.finish = process.ledger.finish, self
        self.away = True
        self.tries = 0

    def __call__(self, *given, **more):
        self.tries += 1
        if self.away:
            raise StoreUnavailable(diagnosis="gone")
        return self.finish(*given, **more)


def test_local_readers_hear_the_end_and_that_it_is_known_here_alone(process, monkeypatch):
    away = Away(process, monkeypatch)
    run = process.run()
    assert process.endings.carry_out(run) is False
    assert run.ended and last(run)["durable"] is False and last(run)["done"] is True
    assert process.leases.released == [], "it is held until the ledger knows"
    eventually(lambda: away.tries > 3)
    assert process.ledger.find("r1").terminal is None
    away.away = False
    eventually(lambda: process.leases.released == ["r1"])
    found = process.mirrors.find("r1")
    assert found.state == "completed" and "durable" not in found.ending
    assert len([entry for entry in run.log.entries if b'"done"' in entry]) == 1


@pytest.mark.parametrize("sure", [True, False])
def test_the_application_is_told_once_all_the_same(process, monkeypatch, sure):
    away = Away(process, monkeypatch)
    process.leases.sure = sure
    process.endings.carry_out(process.run())
    away.away = False
    eventually(lambda: process.leases.released)
    assert sum(line.startswith("application") for line in process.story) == 1


def test_after_a_while_it_is_left_to_whoever_finds_it(process, monkeypatch):
    monkeypatch.setattr(ending_module, "TRIED_FOR", 0.05)
    away = Away(process, monkeypatch)
    process.endings.carry_out(process.run())
    eventually(lambda: process.leases.released == ["r1"])
    tries = away.tries
    time.sleep(0.05)
    assert away.tries == tries


def test_a_conversation_that_cannot_be_saved_now_is_saved_later(process, monkeypatch):
    """The ledger is not told before it is: the end would be there and the answer not."""
    monkeypatch.setattr(ending_module, "BACKOFF", 0.01)
    faults = [StoreUnavailable(diagnosis="gone"), StoreUnavailable(diagnosis="gone")]

    def save(run, state, usage):
        process.story.append("conversation")
        if faults:
            raise faults.pop()

    process.save = save
    run = process.run()
    process.endings.carry_out(run)
    assert last(run)["durable"] is False
    eventually(lambda: process.leases.released)
    assert process.story[1:] == ["conversation", "readers", "conversation", "conversation", "ledger"]


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("fault", ["gone", "paused"])
def test_readers_wait_two_seconds_for_redis_at_the_most(fault):
    with RedisServer() as server, closing(RedisStore(server.url, "llmstream:")) as store:
        process = Process(store)
        run = process.run()
        begun = time.monotonic()
        if fault == "gone":
            server.kill()
        else:
            server.pause()
        process.endings.carry_out(run)
        took = time.monotonic() - begun
        assert last(run)["durable"] is False
        assert took < (0.5 if fault == "gone" else 2.2)
        if fault == "gone":
            server.start()
        else:
            server.resume()
        eventually(lambda: process.leases.released)
        found = process.mirrors.find("r1")
        assert found.state == "completed" and "durable" not in found.ending
        assert found.log.entries[-1] == run.terminal


# Left by its process


@pytest.fixture
def writer(process):
    return Writer(process.ledger)


def close(process):
    """What a process does that finds the run left."""
    lapse(process.ledger)
    mirror = process.mirrors.left("r1")
    process.endings.reap(mirror)
    return mirror


def test_a_run_that_was_left_is_closed_with_what_it_had_said(process, writer):
    writer.say(b"Hel", b"lo")
    run = close(process)
    assert process.story == ["conversation: failed", "ledger", "application: failed, Hello"]
    end = run.ending
    assert end["problem"]["type"].endswith("run-interrupted") and end["problem"]["kept"] == "r1:1-3"
    assert (run.state, run.text, run.log.epoch) == ("failed", "Hello", 2)
    assert process.mirrors.find("r1").log.entries == run.log.entries
    assert holds(process.ledger) == (False, False)


def test_what_it_has_used_is_estimated_and_counted(process, writer):
    writer.say(b"Hel", b"lo")
    run = close(process)
    assert run.usage == Usage(writer.about.prompt, 2, estimated=True)
    assert usage(process.ledger) == {
        f"runs {MODEL}": 1,
        f"prompt {MODEL}": writer.about.prompt,
        f"completion {MODEL}": 2,
        f"cached {MODEL}": 0,
    }


def test_one_that_never_asked_its_model_has_used_nothing(process, writer):
    run = close(process)
    assert run.usage is None and usage(process.ledger) == {f"runs {MODEL}": 1}


def test_one_that_was_to_stop_is_cancelled(process, writer):
    """Also where this process has known the run for longer than anybody has wanted that."""
    writer.say(b"Hel")
    with Reading(process.mirrors.find("r1")):
        process.ledger.stop("r1")
        run = close(process)
        assert (run.state, run.ending["cancelled"], run.text) == ("cancelled", True, "Hel")
    assert process.story[-1] == "application: cancelled, Hel"


def test_those_who_read_it_here_hear_the_end_once(process, writer):
    writer.say(b"Hel")
    with Reading(process.mirrors.find("r1")) as reader:
        run = close(process)
        heard = []
        eventually(lambda: heard.extend(reader.take()) or reader.finished)
        assert heard == [*writer.log, run.log.entries[-1]]
        eventually(lambda: not run._catching_up)
        assert len(run.log) == len(heard)


@pytest.mark.parametrize("meanwhile", ["renewed", "ended", "closed by another"])
def test_one_that_is_not_left_after_all_is_left_alone(process, writer, meanwhile):
    lapse(process.ledger)
    mirror = process.mirrors.left("r1")
    if meanwhile == "renewed":
        process.ledger.store.command("ZADD", process.ledger.store.key("leases"), 1e15, "r1")
    elif meanwhile == "ended":
        writer.end()
    else:
        writer.goes()
    before = process.ledger.find("r1")
    process.endings.reap(mirror)
    assert process.ledger.find("r1") == before
    assert not any(line.startswith("application") for line in process.story)


@pytest.mark.parametrize("whose", ["its writer's", "left"])
def test_an_answer_that_cannot_be_saved_at_all_has_ended_all_the_same(process, store, caplog, whose):
    """Or its slot would be held, and every process would try to close it on every beat."""

    def save(run, state, usage):
        raise ZeroDivisionError

    process.save = save
    if whose == "left":
        Writer(process.ledger)
        lapse(process.ledger)
        assert close(process).ended
    else:
        assert process.endings.carry_out(process.run())
    assert process.ledger.find("r1").terminal
    assert holds(process.ledger) == (False, False)
    assert "the answer of run r1 of chat could not be saved" in caplog.text


def test_one_that_was_forgotten_leaves_nothing(process, writer):
    process.ledger.forget("r1", writer.about)
    close(process)
    assert leftovers(process.ledger) == [] and process.ledger.kept(OWNER) == []


def test_a_receiver_that_fails_is_told_to_the_log_and_to_nobody_else(process, writer, caplog):
    def ended(run):
        raise ZeroDivisionError

    process.ended = ended
    assert close(process).ended
    assert "ZeroDivisionError" in caplog.text
