"""The writer: what a function may yield and return, how it is stopped, and what becomes of its errors."""

import json
import logging
from asyncio import CancelledError
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace

import pytest

from flask_llmstream.errors import FeatureFailed, InvalidOutput, RunCancelled, RunInterrupted, UpstreamForbidden
from flask_llmstream.events import Data, Done, Failed, Progress, Status
from flask_llmstream.writer import Writer
from tests.orders import make_run


def write(function, *, run=None, enter=nullcontext, after=lambda run: None):
    """Perform a function; returns its run and its outcome."""
    run = run or make_run(input="input")
    outcomes = []
    writer = Writer(run, function, enter, lambda run, outcome: outcomes.append(outcome))
    with suppress(RunCancelled):
        writer.perform()
    after(run)
    writer.finish()
    (outcome,) = outcomes
    return run, outcome


def said(run):
    return [json.loads(payload) for payload in run.log.entries if not payload.startswith(b'{"status"')]


# What it may produce


def test_text_and_events():
    def function(run):
        yield "Hel"
        yield Progress(0.5)
        yield ""
        yield Data({"a": 1})
        yield "lo"

    run, outcome = write(function)
    assert said(run) == [{"token": "Hel"}, {"progress": 0.5}, {"data": {"a": 1}}, {"token": "lo"}]
    assert (outcome.state, outcome.result) == ("completed", None)


@pytest.mark.parametrize("iterator", [iter(["Hel", "lo"]), (text for text in ("Hel", "lo"))], ids=["list", "generator"])
def test_an_iterator_that_it_returns_is_consumed(iterator):
    assert write(lambda run: iterator)[0].text == "Hello"


@pytest.mark.parametrize("value", ["text", ["Hel", "lo"], {"a": 1}, 0, None], ids=repr)
def test_any_other_value_is_the_result(value):
    run, outcome = write(lambda run: value)
    assert said(run) == []
    assert outcome.result == value and outcome.state == "completed"


def test_the_return_value_of_a_generator_is_the_result():
    def function(run):
        yield "Hel"
        return {"a": 1}

    assert write(function)[1].result == {"a": 1}


def test_it_is_given_its_run():
    assert write(lambda run: [run.input, run.state])[1].result == ["input", "in_progress"]


def test_it_runs_inside_its_context_to_the_end():
    story = []

    @contextmanager
    def enter():
        story.append("enter")
        yield
        story.append("leave")

    def function(run):
        story.append("first")
        yield "a"
        story.append("last")

    write(function, enter=enter)
    assert story == ["enter", "first", "last", "leave"]


@pytest.mark.parametrize(
    "item",
    [1, b"Hel", None, ["Hel"], Done(done=True, tokens=0), Failed(error="", problem={})],
    ids=lambda item: type(item).__name__,
)
def test_anything_else_that_it_yields_is_its_error(item, caplog):
    closed = []

    def function(run):
        try:
            yield "Hel"
            yield item
        finally:
            closed.append(1)

    run, outcome = write(function)
    assert isinstance(outcome.error, InvalidOutput) and outcome.state == "failed"
    assert run.text == "Hel" and closed == [1]
    assert type(item).__name__ in caplog.text
    assert type(item).__name__ not in json.dumps(outcome.error.problem())


LOOP: list[object] = []
LOOP.append(LOOP)
NO_JSON = pytest.mark.parametrize(
    "value", [object(), {"a": {1: object()}}, "\ud800", LOOP], ids=["object", "nested", "surrogate", "loop"]
)


@NO_JSON
def test_a_result_that_json_cannot_hold_is_its_error(value, caplog):
    outcome = write(lambda run: value)[1]
    assert isinstance(outcome.error, InvalidOutput) and outcome.state == "failed"
    assert "chat returned" in caplog.text


@NO_JSON
def test_an_event_that_json_cannot_hold_is_its_error(value, caplog):
    run, outcome = write(lambda run: iter(["Hel", Data(value)]))
    assert isinstance(outcome.error, InvalidOutput) and run.text == "Hel"
    assert "chat yielded" in caplog.text


def test_the_result_is_what_was_returned_and_not_what_becomes_of_it():
    pages = [1]
    outcome = write(lambda run: pages)[1]
    pages.append(2)
    assert outcome.result == [1]


# Its errors


def test_an_exception_is_told_to_the_log_and_not_to_the_client(caplog):
    def function(run):
        yield "Hel"
        raise ZeroDivisionError("sk-secret in /srv/app.py")

    run, outcome = write(function)
    assert isinstance(outcome.error, FeatureFailed) and outcome.state == "failed"
    assert "sk-secret" not in json.dumps(outcome.error.problem())
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "ZeroDivisionError: sk-secret" in caplog.text
    assert run.id in record.getMessage()


def test_an_exception_before_the_first_yield_too():
    assert isinstance(write(lambda run: 1 / 0)[1].error, FeatureFailed)


def test_an_error_of_the_package_stays_what_it_is(caplog):
    error = UpstreamForbidden(diagnosis="HTTP 403: no")

    def function(run):
        yield "Hel"
        raise error

    assert write(function)[1].error is error
    assert "HTTP 403: no" in caplog.text
    assert "Traceback" not in caplog.text


class TimeUp(BaseException):
    """What gevent's time-outs are: no Exception, so that functions don't catch them by mistake."""


@pytest.mark.parametrize("error", [SystemExit(3), CancelledError(), TimeUp("2 seconds")], ids=repr)
def test_what_is_no_exception_ends_its_run_and_nothing_else(error, caplog):
    def function(run):
        yield "Hel"
        raise error

    run, outcome = write(function)
    assert isinstance(outcome.error, FeatureFailed) and outcome.state == "failed"
    (record,) = caplog.records
    assert record.exc_info[1] is error and run.id in record.getMessage()


def test_a_context_that_cannot_be_opened_fails_the_run():
    @contextmanager
    def enter():
        raise OSError("no database")
        yield

    assert isinstance(write(lambda run: None, enter=enter)[1].error, FeatureFailed)


def test_a_generator_expression_that_catches_everything_cannot_swallow_a_full_log():
    def function(run):
        yield "x" * 1000

    run, outcome = write(function, run=make_run(limit=800))
    assert (outcome.state, outcome.finish_reason, outcome.error) == ("incomplete", "log_full", None)
    assert run.text == ""


def test_a_full_log_keeps_what_it_has():
    def function(run):
        while True:
            yield "x"

    run, outcome = write(function, run=make_run(limit=2000))
    assert outcome.finish_reason == "log_full"
    assert run.text.strip("x") == "" and len(run.text) > 10


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("stop", "completed"),
        ("tool_calls", "completed"),
        (None, "completed"),
        ("length", "incomplete"),
        ("content_filter", "incomplete"),
    ],
)
def test_the_models_reason_to_finish_decides_whether_the_answer_is_complete(reason, state):
    def function(run):
        run.meter.finish_reason = reason
        yield "Hel"

    outcome = write(function)[1]
    assert (outcome.state, outcome.finish_reason) == (state, reason)


# Its stop


def test_a_stop_is_raised_at_the_yield_and_what_was_yielded_is_not_sent():
    story = []

    def function(run):
        yield "Hel"
        run.meter.cancel()
        try:
            yield "lo"
        except RunCancelled:
            story.append("stopped")
            raise
        finally:
            story.append("cleaned up")

    run, outcome = write(function)
    assert story == ["stopped", "cleaned up"]
    assert (outcome.state, run.text) == ("cancelled", "Hel")


def test_a_function_that_swallows_the_stop_is_left_all_the_same():
    story = []

    def function(run):
        run.meter.cancel()
        try:
            while True:
                try:
                    yield "more"
                except RunCancelled:
                    story.append("swallowed")
        finally:
            story.append("closed")

    run, outcome = write(function)
    assert story == ["swallowed", "closed"]
    assert (outcome.state, run.text) == ("cancelled", "")


def test_a_function_that_returns_when_it_is_stopped_was_stopped():
    def function(run):
        run.meter.cancel()
        try:
            yield "more"
        except RunCancelled:
            return "done"

    outcome = write(function)[1]
    assert (outcome.state, outcome.result) == ("cancelled", None)


def test_an_iterator_that_is_no_generator_is_stopped_too():
    run = make_run()

    def items():
        run.meter.cancel()
        return "a"

    assert write(lambda run: iter(items, None), run=run)[1].state == "cancelled"


def test_an_error_that_the_stop_has_caused_is_no_error(caplog):
    def function(run):
        run.meter.cancel()
        raise ConnectionError("the socket was closed under me")
        yield

    assert write(function)[1].state == "cancelled"
    assert caplog.records == []


def test_a_function_that_looks_for_the_stop_and_returns_was_stopped():
    def function(run):
        yield "Hel"
        run.meter.cancel()
        if run.cancelled:
            return {"pages": 3}

    run, outcome = write(function)
    assert (outcome.state, outcome.result, run.text) == ("cancelled", {"pages": 3}, "Hel")


def test_a_run_that_was_stopped_before_it_began_is_cancelled():
    run = make_run()
    run.meter.cancel()
    outcomes = []
    Writer(run, lambda run: None, nullcontext, lambda run, outcome: outcomes.append(outcome)).finish()
    assert [outcome.state for outcome in outcomes] == ["cancelled"]


def test_what_was_stopped_before_it_began_does_nothing():
    """A thread that has been started can't be called back; its function can be left out."""
    run, story = make_run(), []
    run.meter.cancel()
    run, outcome = write(lambda run: story.append("paid for"), run=run)
    assert story == []
    assert (outcome.state, run.started_at) == ("cancelled", None)


def is_stopped(run):
    raise RunCancelled


@pytest.mark.parametrize(
    "function", [lambda run: None, lambda run: 1 / 0, is_stopped], ids=["ends", "fails", "stopped"]
)
def test_no_stop_interrupts_what_its_context_gives_back(function):
    """Such as a database session, in Flask's teardown: what a stop cuts short there is not done by anybody else."""
    run, story = make_run(), []
    run.task = SimpleNamespace(shelter=lambda: story.append("shelter"))

    @contextmanager
    def enter():
        try:
            yield
        finally:
            story.append("teardown")

    write(function, run=run, enter=enter)
    assert story == ["shelter", "teardown"]


def test_a_run_that_something_else_ended_was_interrupted():
    outcomes = []
    Writer(make_run(), lambda run: None, nullcontext, lambda run, outcome: outcomes.append(outcome)).finish()
    assert outcomes[0].state == "failed" and isinstance(outcomes[0].error, RunInterrupted)


def test_a_status_does_not_hide_a_stop():
    def function(run):
        run.meter.cancel()
        yield Status("tool")

    assert write(function)[1].state == "cancelled"
