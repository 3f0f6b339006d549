"""A page that is reloaded in the midst of a job."""

from __future__ import annotations

import threading

import pytest

from tests.client.conftest import opened
from tests.client.server import HOLD, Wait, accepted, done, frame, nothing, opening, problem, sse, status, token

pytestmark = pytest.mark.needs("chromium")

START = "POST /analyze"
STATUS = "GET /runs/r1"
EVENTS = "GET /runs/r1/events"


def test_while_it_is_followed(page, server):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), token(1, "Hel"), HOLD, location=None))
    key = page.evaluate("window.made = job('/analyze', {file: bytes(9)}, {remember: 'paper'}), made.key")
    page.evaluate("until(() => made.text)")
    opened(page, server.url)
    server.will(STATUS, status(status="in_progress", text="Hel"))
    server.will(EVENTS, sse(opening(), token(1, "Hel"), frame(2, {"progress": 1}), done(3, result=[1]), location=None))
    job = page.evaluate("jobOutcome(recallJob('paper'))")
    assert (job["text"], job["end"]["result"], job["key"]) == ("Hel", [1], key)
    assert len(server.came(START)) == 1


def test_before_the_start_was_answered(page, server):
    """The key was kept before the start went out: its repeat joins the job, if there is one."""
    server.will(START, nothing(HOLD))
    page.evaluate("job('/analyze', {text: 'a'}, {remember: 'paper'}), 0")
    server.wait_for(START)
    opened(page, server.url)
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), done(1, result=[1]), location=None))
    assert page.evaluate("jobOutcome(recallJob('paper'))")["end"]["result"] == [1]
    first, second = server.came(START)
    assert first.json == second.json == {"text": "a"}
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_before_a_start_with_files_was_answered(page, server):
    server.will(START, nothing(HOLD))
    page.evaluate("job('/analyze', {file: bytes(9)}, {remember: 'paper'}), 0")
    server.wait_for(START)
    opened(page, server.url)
    assert page.evaluate("llm.recallJob('paper')") is None


def test_after_its_end_the_result_is_there_again(page, server):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), done(1, result=[1]), location=None))
    page.evaluate("jobOutcome(job('/analyze', {}, {remember: 'paper'}))")
    opened(page, server.url)
    server.will(STATUS, status(status="completed", result=[1]))
    assert page.evaluate("jobOutcome(recallJob('paper'))")["end"]["result"] == [1]


def test_once_the_server_has_forgotten_it_so_has_the_page(page, server):
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), done(1), location=None))
    page.evaluate("jobOutcome(job('/analyze', {}, {remember: 'paper'}))")
    server.will(STATUS, problem(404, "run-not-found"))
    assert page.evaluate("jobOutcome(recallJob('paper'))")["error"]["status"] == 404
    assert page.evaluate("llm.recallJob('paper')") is None


def test_what_was_refused_is_not_remembered(page, server):
    server.will(START, problem(422, "invalid-input"))
    page.evaluate("jobOutcome(job('/analyze', {}, {remember: 'paper'}))")
    assert page.evaluate("llm.recallJob('paper')") is None


def test_the_latest_of_a_name_is_remembered(page, server):
    go_on = threading.Event()
    late = accepted(run="r1")
    late.before = (Wait(go_on),)
    server.will(START, late, accepted(location="/runs/r2", run="r2"))
    server.will(EVENTS, sse(opening(), done(1), location=None))
    server.will("GET /runs/r2/events", sse(opening(run="r2"), frame(1, {"done": True}, run="r2"), location=None))
    page.evaluate("window.first = job('/analyze', {q: 1}, {remember: 'paper'}), 0")
    server.wait_for(START)
    page.evaluate("window.second = job('/analyze', {q: 2}, {remember: 'paper'}), until(() => second.location)")
    go_on.set()
    page.evaluate("Promise.all([jobOutcome(first), second.done.catch(() => {})])")
    server.will("GET /runs/r2", status(status="completed", run="r2", result=[2]))
    assert page.evaluate("jobOutcome(recallJob('paper'))")["end"]["result"] == [2]


def test_nothing_is_remembered_under_a_name_that_was_not_used(page, server):
    assert page.evaluate("llm.recallJob('paper')") is None


def test_storage_that_is_blocked_is_done_without(blank, server):
    blank.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    )
    page = opened(blank, server.url)
    server.will(START, accepted())
    server.will(EVENTS, sse(opening(), done(1, result=[1]), location=None))
    assert page.evaluate("jobOutcome(job('/analyze', {}, {remember: 'paper'}))")["end"]["result"] == [1]
    assert page.evaluate("llm.recallJob('paper')") is None
