"""What only greenlets can do: be interrupted anywhere. `test_runtime.py` runs this under gevent."""

import threading

import gevent
import pytest

from flask_llmstream.errors import RunCancelled
from flask_llmstream.runtime import current
from tests.conversation import ask, events
from tests.puppet import PATIENCE, eventually, stage


class Story(list):
    def tell(self, word):
        return lambda: self.append(word)


@pytest.fixture
def story():
    return Story()


@pytest.fixture(autouse=True)
def no_complaints(capfd):
    """An interruption is no crash, and gevent has nothing to report."""
    yield
    assert capfd.readouterr().err == ""


def settle():
    """Let every greenlet that can run do so."""
    for _ in range(10):
        gevent.sleep(0)


def test_this_process_is_one_of_greenlets():
    assert current().cooperative


def test_one_that_is_interrupted_before_its_start_does_no_work(story):
    task = current().task(story.tell("work"), story.tell("done"))
    task.interrupt()
    task.start()
    eventually(lambda: story)
    settle()
    assert story == ["done"]


def test_one_that_is_interrupted_before_its_turn_does_no_work(story):
    task = current().task(story.tell("work"), story.tell("done"))
    task.start()
    task.interrupt()
    eventually(lambda: story)
    settle()
    assert story == ["done"]


@pytest.fixture
def waiting(story):
    """A task that waits, and cleans up when it is interrupted."""
    begun = threading.Event()
    cleaned = threading.Event()

    def work():
        try:
            begun.set()
            gevent.sleep(3600)
        except RunCancelled:
            story.append("interrupted")
            raise
        finally:
            cleaned.wait(PATIENCE)
            story.append("cleaned")

    task = current().task(work, story.tell("done"))
    task.cleaned = cleaned
    task.start()
    assert begun.wait(PATIENCE)
    return task


def test_it_is_interrupted_where_it_waits(waiting, story):
    waiting.cleaned.set()
    waiting.interrupt()
    eventually(lambda: "done" in story)
    settle()
    assert story == ["interrupted", "cleaned", "done"]


def test_a_second_interruption_does_not_strike_the_clean_up(waiting, story):
    waiting.interrupt()
    eventually(lambda: story)
    waiting.interrupt()
    settle()
    assert story == ["interrupted"]
    waiting.cleaned.set()
    eventually(lambda: "done" in story)
    assert story == ["interrupted", "cleaned", "done"]


def test_it_can_be_interrupted_from_a_thread_of_the_system(waiting, story):
    """Such as those of gevent's pool, which have a hub each."""
    waiting.cleaned.set()
    gevent.get_hub().threadpool.apply(waiting.interrupt)
    eventually(lambda: "done" in story)
    assert story == ["interrupted", "cleaned", "done"]


def test_the_interrupter_does_not_wait(waiting, story):
    waiting.interrupt()
    assert story == []
    waiting.cleaned.set()
    eventually(lambda: "done" in story)


def test_done_cannot_be_interrupted(story):
    goes_on = threading.Event()

    def done():
        story.append("begun")
        goes_on.wait(PATIENCE)
        story.append("done")

    task = current().task(lambda: None, done)
    task.start()
    eventually(lambda: story)
    task.interrupt()
    settle()
    goes_on.set()
    eventually(lambda: len(story) == 2)
    assert story == ["begun", "done"]


def test_an_interruption_of_what_is_over_does_nothing(story):
    task = current().task(story.tell("work"), story.tell("done"))
    task.start()
    eventually(lambda: len(story) == 2)
    task.interrupt()
    settle()
    assert story == ["work", "done"]


def test_a_task_may_interrupt_itself(story):
    """A function that stops its own run."""

    def work():
        task.interrupt()
        story.append("went on")
        gevent.sleep(0.01)
        story.append("never")

    task = current().task(work, story.tell("done"))
    task.start()
    eventually(lambda: "done" in story)
    assert story == ["went on", "done"]


# Shelter


@pytest.fixture
def giving_back(story):
    """A task that gives back what it has borrowed, in shelter; and what lets it go on with that."""
    goes_on = threading.Event()

    def work():
        task.shelter()
        story.append("begins")
        goes_on.wait(PATIENCE)
        story.append("gave back")

    task = current().task(work, story.tell("done"))
    task.goes_on = goes_on
    return task


def test_what_has_taken_shelter_is_not_interrupted(giving_back, story):
    giving_back.start()
    eventually(lambda: story)
    giving_back.interrupt()
    settle()
    giving_back.goes_on.set()
    eventually(lambda: "done" in story)
    assert story == ["begins", "gave back", "done"]


def test_nor_by_an_interruption_that_was_on_its_way(story):
    """One that came in the same turn of the loop, before the work had said that it takes shelter."""
    turn, goes_on = threading.Event(), threading.Event()

    def work():
        turn.wait(PATIENCE)
        task.shelter()
        story.append("begins")
        goes_on.wait(PATIENCE)
        story.append("gave back")

    task = current().task(work, story.tell("done"))
    task.start()
    settle()
    turn.set()  # the work goes on at the loop's next turn,
    task.interrupt()  # and only then does this strike
    eventually(lambda: story)
    settle()
    goes_on.set()
    eventually(lambda: "done" in story)
    assert story == ["begins", "gave back", "done"]


@pytest.mark.parametrize("stopped_by", ["a stop", "nobody reading"])
def test_a_stop_does_not_cut_an_applications_teardown_short(story, stopped_by):
    """Flask would skip all teardown functions that are left: a session that none of them removes is a leak."""
    goes_on = threading.Event()
    with stage(ORPHAN_GRACE=0) as (app, llm):
        client = app.test_client()

        @app.teardown_appcontext
        def remove(_):
            if mine():
                story.append("removed")

        @app.teardown_appcontext
        def roll_back(_):
            if mine():
                story.append("rolls back")
                goes_on.wait(PATIENCE)
                story.append("rolled back")

        tests_own = gevent.getcurrent()

        def mine():
            return gevent.getcurrent() is not tests_own

        answer = ask(client)
        eventually(lambda: story)
        (run,) = llm.record(app).registry.live
        if stopped_by == "a stop":
            llm.record(app).registry.stop(run)
        else:
            answer.close()
        settle()
        assert run.cancelled and story == ["rolls back"]
        goes_on.set()
        eventually(lambda: run.ended)
        assert story == ["rolls back", "rolled back", "removed"]
        answer.close()


def test_a_function_that_waits_is_interrupted_and_its_teardown_is_whole(story):
    with stage() as (app, llm):
        tests_own = gevent.getcurrent()

        @app.teardown_appcontext
        def remove(_):
            if gevent.getcurrent() is not tests_own:
                gevent.sleep(0)
                story.append("removed")

        @llm.stream("/waits")
        def waits(run):
            yield "Hel"
            story.append("waits")
            gevent.sleep(3600)

        with ask(app, "/waits") as answer:
            eventually(lambda: story)
            llm.record(app).registry.stop(llm.record(app).registry.live[0])
            assert events(answer)[-1]["cancelled"] is True
        assert story == ["waits", "removed"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_section_that_is_to_be_whole_is_interrupted_behind_its_end(story, fails):
    begun, goes_on = gevent.event.Event(), gevent.event.Event()

    def work():
        try:
            with current().whole(), current().whole():
                begun.set()
                goes_on.wait()
                story.append("whole")
                if fails:
                    raise ValueError
            story.append("not reached")
        except RunCancelled:
            story.append("interrupted")
            raise

    task = current().task(work, lambda: story.append("done"))
    task.start()
    begun.wait()
    task.interrupt()
    settle()
    goes_on.set()
    eventually(lambda: "done" in story)
    assert story == ["whole", "interrupted", "done"]
