"""A job that is stopped, or left, at every moment of it."""

from __future__ import annotations

import threading

import pytest

from tests.client.server import (
    HOLD,
    RESET,
    Pause,
    Wait,
    accepted,
    done,
    nothing,
    opening,
    plain,
    problem,
    sse,
    status,
    token,
)

pytestmark = pytest.mark.needs("chromium")

START = "POST /analyze"
STATUS = "GET /runs/r1"
EVENTS = "GET /runs/r1/events"
CANCEL = "POST /runs/r1/cancel"


@pytest.fixture
def cancelled(server):
    """Set when the server is told to stop the run."""
    event = threading.Event()
    server.always(CANCEL, lambda request: event.set() or plain(200, b"{}"))
    return event


def test_while_it_is_followed(page, server, cancelled):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), token(1, "Hel"), Wait(cancelled), done(2, cancelled=True), location=None))
    page.evaluate("window.made = job('/analyze'), until(() => made.text)")
    page.evaluate("Promise.all([made.stop(), made.stop()])")
    job = page.evaluate("jobOutcome(made)")
    assert (job["state"], job["status"], job["text"]) == ("stopped", "cancelled", "Hel")
    assert (job["end"]["cancelled"], job["thrown"]) == (True, None)
    assert len(server.came(CANCEL)) == 1


def test_before_anything_was_sent_nothing_is(page, server):
    job = page.evaluate("""async () => {
        const made = job('/analyze');
        await made.stop();
        return jobOutcome(made);
    }""")
    assert (job["state"], job["end"]["cancelled"]) == ("stopped", True)
    assert server.requests == []


def test_in_mid_upload_it_is_broken_off(page, server):
    came, gone = threading.Event(), threading.Event()

    def slowly(there):
        came.set()
        return Pause(0.005) if there < 60_000 else Wait(gone)

    server.reading = slowly
    page.evaluate("window.made = job('/analyze', {file: bytes(30_000_000)}), until(() => made.record.uploads.length)")
    assert came.wait(10)
    page.evaluate("made.stop()")
    gone.set()
    job = page.evaluate("jobOutcome(made)")
    assert (job["state"], job["location"]) == ("stopped", None)
    assert server.requests == [], "what was broken off is no request"


def test_before_the_answer_it_is_stopped_as_soon_as_it_is_known(page, server, cancelled):
    begin = threading.Event()
    late = accepted()
    late.before = (Wait(begin),)
    server.will(START, late)
    server.always(EVENTS, lambda request: sse(opening(), Wait(cancelled), done(1, cancelled=True), location=None))
    page.evaluate("window.made = job('/analyze'), 0")
    server.wait_for(START)
    page.evaluate("until(() => made.record.uploads.length).then(() => { window.stopping = made.stop(); })")
    begin.set()
    page.evaluate("stopping")
    assert len(server.came(CANCEL)) == 1


def test_start_that_was_lost_is_repeated_to_be_stopped(page, server, cancelled):
    good = threading.Event()
    server.always(START, lambda request: accepted() if good.is_set() else nothing(RESET))
    server.always(EVENTS, lambda request: sse(opening(), Wait(cancelled), done(1, cancelled=True), location=None))
    page.evaluate("window.made = job('/analyze'), 0")
    server.wait_for(START, 3)
    page.evaluate("window.stopping = made.stop(), 0")
    good.set()
    page.evaluate("stopping")
    assert page.evaluate("jobOutcome(made)")["state"] == "stopped"
    assert len({request.headers["idempotency-key"] for request in server.came(START)}) == 1
    assert len(server.came(CANCEL)) == 1


def test_between_two_attempts_that_were_refused(page, server):
    server.will(START, problem(503, "overloaded", retry_after=30))
    page.evaluate("window.made = job('/analyze'), 0")
    server.wait_for(START).answered.wait(10)
    page.evaluate("moment(50).then(() => made.stop())")
    assert page.evaluate("jobOutcome(made)")["state"] == "stopped"
    assert len(server.requests) == 1


def test_while_its_status_is_asked_for(page, server, cancelled):
    server.will(START, accepted())
    server.will(STATUS, status('"1"', status="in_progress"), nothing(HOLD))
    server.will(
        EVENTS, sse(opening(), Wait(cancelled), done(1, cancelled=True, usage={"prompt_tokens": 4}), location=None)
    )
    page.evaluate("window.made = job('/analyze', {}, {follow: 'poll'}), 0")
    server.wait_for(STATUS, 2)
    page.evaluate("made.stop()")
    job = page.evaluate("jobOutcome(made)")
    assert (job["state"], job["end"]["usage"]) == ("stopped", {"prompt_tokens": 4})
    assert server.came(STATUS)[1].answered.wait(10), "the client kept the connection"


def test_server_that_cannot_be_told(page, server):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), token(1, "Hel"), HOLD, location=None))
    server.will(CANCEL, problem(403, "origin-refused"))
    page.evaluate("window.made = job('/analyze'), until(() => made.text)")
    assert page.evaluate("made.stop().catch((error) => error.status)") == 403
    assert page.evaluate("jobOutcome(made)")["state"] == "stopped"


def test_abort_stops_it(page, server, cancelled):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), token(1, "Hel"), Wait(cancelled), done(2, cancelled=True), location=None))
    page.evaluate("""() => {
        window.control = new AbortController();
        window.made = job('/analyze', {}, {signal: control.signal});
        return until(() => made.text);
    }""")
    page.evaluate("control.abort()")
    assert page.evaluate("jobOutcome(made)")["state"] == "stopped"
    assert len(server.came(CANCEL)) == 1


def test_left_it_goes_on_and_its_connection_is_free(page, server):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), token(1, "Hel"), HOLD, location=None))
    page.evaluate("window.made = job('/analyze', {}, {remember: 'paper'}), until(() => made.text)")
    page.evaluate("made.close()")
    job = page.evaluate("jobOutcome(made)")
    assert (job["state"], job["thrown"], job["error"]["name"]) == ("closed", None, "LLMStreamError")
    assert server.came(EVENTS)[0].answered.wait(10), "the client kept the connection"
    assert page.evaluate("made.stop().catch((error) => error.message)") == "The job is followed no longer."
    server.will(STATUS, status(status="completed", result=[1]))
    assert page.evaluate("jobOutcome(recallJob('paper'))")["end"]["result"] == [1]


def test_left_while_its_status_is_asked_for(page, server):
    server.will(STATUS, nothing(HOLD))
    page.evaluate("window.made = followJob('/runs/r1'), 0")
    request = server.wait_for(STATUS)
    page.evaluate("made.close()")
    assert page.evaluate("jobOutcome(made)")["state"] == "closed"
    assert request.answered.wait(10), "the client kept the connection"


def test_left_in_mid_upload_it_is_broken_off(page, server):
    gone = threading.Event()
    server.reading = lambda there: Pause(0.005) if there < 60_000 else Wait(gone)
    page.evaluate("window.made = job('/analyze', {file: bytes(30_000_000)}), until(() => made.record.uploads.length)")
    page.evaluate("made.close()")
    gone.set()
    assert page.evaluate("jobOutcome(made)")["state"] == "closed"
    assert server.requests == [], "what was broken off is no request"


def test_left_once_it_has_ended_nothing_changes(page, server):
    server.will(START, accepted(200, status="completed", result=[1]))
    page.evaluate("window.made = job('/analyze'), made.done")
    page.evaluate("made.close()")
    job = page.evaluate("jobOutcome(made)")
    assert (job["state"], job["end"]["result"]) == ("completed", [1])
