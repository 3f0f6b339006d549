"""One answer, asked for under one key until there is one."""

from __future__ import annotations

import json
import threading

import pytest

from tests.client.server import HOLD, RESET, Wait, nothing, plain, problem

pytestmark = pytest.mark.needs("chromium")

ASK = "POST /classify"
POSITIVE = plain(200, b'{"sentiment": "positive"}')


def keys_of(server):
    return [request.headers["idempotency-key"] for request in server.came(ASK)]


def test_is_the_object_that_the_feature_answers(page, server):
    server.will(ASK, POSITIVE)
    assert page.evaluate("llm.reply('/classify', {text: 'Fine.'})") == {"sentiment": "positive"}
    (request,) = server.requests
    assert request.json == {"text": "Fine."}
    assert request.headers["accept"] == "application/json"
    assert len(request.headers["idempotency-key"]) == 36


def test_files_make_it_a_form(page, server):
    server.will(ASK, POSITIVE)
    page.evaluate("llm.reply('/classify', {text: 'a', n: 1, none: null, left: undefined, file: bytes(3)})")
    fields = [("text", None, b"a"), ("n", None, b"1"), ("none", None, b"null"), ("file", "paper.txt", b"\0\0\0")]
    assert server.requests[0].form == fields


def test_array_of_files_is_so_many_fields(page, server):
    server.will(ASK, POSITIVE)
    page.evaluate("llm.reply('/classify', {files: [bytes(1, 'a'), bytes(2, 'b')], tags: ['x']})")
    fields = [("files", "a", b"\0"), ("files", "b", b"\0\0"), ("tags", None, b'["x"]')]
    assert server.requests[0].form == fields


def test_form_goes_as_it_is(page, server):
    server.will(ASK, POSITIVE)
    page.evaluate("() => { const form = new FormData(); form.append('a', '1'); return llm.reply('/classify', form); }")
    assert server.requests[0].form == [("a", None, b"1")]


@pytest.mark.parametrize(
    "refusal",
    [
        problem(429, "limit-reached", retry_after=0.1),
        problem(429, "limit-reached", Retry_After="0"),
        problem(503, "overloaded", retry_after=0.1),
        problem(503, "store-unavailable"),
        plain(502, b"<h1>Bad gateway</h1>", "text/html"),
        plain(503, b"busy", "text/plain"),
        plain(429, b"slow down", "text/plain"),
    ],
    ids=["limit", "limit by header", "overloaded", "store", "proxy 502", "proxy 503", "proxy 429"],
)
def test_refusal_that_passes_is_followed_by_another_attempt_under_its_key(page, server, refusal):
    server.will(ASK, refusal, refusal, POSITIVE)
    assert page.evaluate("llm.reply('/classify', {text: 'Fine.'})") == {"sentiment": "positive"}
    keys = keys_of(server)
    assert len(keys) == 3
    assert len(set(keys)) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        problem(422, "invalid-input"),
        problem(429, "limit-reached"),
        problem(429, "limit-reached", retry_after=3600),
        problem(503, "model-not-configured"),
        problem(502, "invalid-answer", Location="/runs/r1"),
        problem(504, "run-timeout", Location="/runs/r1"),
        plain(500, b"{}"),
    ],
    ids=["input", "limit that stays", "limit for long", "no model", "answer", "time-out", "fault"],
)
def test_refusal_that_stays_surfaces_at_once(page, server, refusal):
    server.will(ASK, refusal)
    error = page.evaluate("reply('/classify')")["error"]
    assert (error["name"], error["status"]) == ("ProblemError", refusal.status)
    assert len(server.requests) == 1


def test_waits_as_long_as_it_is_told(page, server):
    server.will(ASK, problem(429, "limit-reached", retry_after=0.7), POSITIVE)
    page.evaluate("llm.reply('/classify')")
    first, second = server.came(ASK)
    assert 0.7 <= second.at - first.at < 2


def test_gives_up_after_so_many_attempts(page, server):
    server.will(ASK, *[problem(503, "overloaded", retry_after=0.05)] * 3)
    error = page.evaluate("reply('/classify', {}, {retries: 2})")["error"]
    assert (error["name"], error["status"], error["retryAfter"]) == ("ProblemError", 503, 0.05)


def test_failure_that_the_key_keeps_surfaces_when_it_is_told_again(page, server):
    limited = problem(429, "upstream-rate-limited", retry_after=0.05, Location="/runs/r1")
    server.will(ASK, limited, limited)
    assert page.evaluate("reply('/classify')")["error"]["status"] == 429


def test_failure_that_the_key_does_not_keep_is_made_good(page, server):
    limited = [problem(429, "upstream-rate-limited", retry_after=0.05, Location=f"/runs/{run}") for run in "ab"]
    server.will(ASK, *limited, POSITIVE)
    assert page.evaluate("llm.reply('/classify')") == {"sentiment": "positive"}
    assert len(set(keys_of(server))) == 1


def test_dropped_connection_is_asked_again_under_its_key(page, server):
    """Chromium itself repeats a request on a kept connection that was reset, so the resets can't be counted."""
    good = threading.Event()
    server.always(ASK, lambda request: POSITIVE if good.is_set() else nothing(RESET))
    page.evaluate("window.answer = llm.reply('/classify', {q: 1}), 0")
    server.wait_for(ASK, 3)
    good.set()
    assert page.evaluate("answer") == {"sentiment": "positive"}
    assert len(set(keys_of(server))) == 1


def test_answer_that_was_cut_is_asked_for_again(page, server):
    cut = plain(200, b'{"sentiment": "posi')
    cut.steps = (*cut.steps, RESET)
    server.will(ASK, cut, POSITIVE)
    assert page.evaluate("llm.reply('/classify')") == {"sentiment": "positive"}


def test_same_question_while_it_is_open_shares_its_key(page, server):
    go_on = threading.Event()
    late = plain(200, b"{}")
    late.before = (Wait(go_on),)
    server.will(ASK, late, late, late)
    page.evaluate("window.all = [1, 1, 2].map((q) => llm.reply('/classify', {q})), 0")
    server.wait_for(ASK, 3)
    go_on.set()
    page.evaluate("Promise.all(all)")
    by_question = {(request.json["q"], request.headers["idempotency-key"]) for request in server.came(ASK)}
    assert len(by_question) == 2
    server.will(ASK, POSITIVE)
    page.evaluate("llm.reply('/classify', {q: 1})")
    assert len(set(keys_of(server))) == 3, "asked again, it is another question"


def test_abort_closes_the_connection(page, server):
    server.will(ASK, nothing(HOLD))
    page.evaluate(
        "window.stop = new AbortController(), window.answer = reply('/classify', {}, {signal: stop.signal}), 0"
    )
    request = server.wait_for(ASK)
    page.evaluate("stop.abort()")
    assert page.evaluate("answer")["error"]["name"] == "AbortError"
    assert request.answered.wait(10), "the client kept the connection"


def test_abort_ends_the_pause_between_two_attempts(page, server):
    server.will(ASK, problem(503, "overloaded", retry_after=30))
    page.evaluate(
        "window.stop = new AbortController(), window.answer = reply('/classify', {}, {signal: stop.signal}), 0"
    )
    server.wait_for(ASK).answered.wait(10)
    page.evaluate("moment(50).then(() => stop.abort())")
    assert page.evaluate("answer")["error"]["name"] == "AbortError"


def test_aborted_before_it_began_it_asks_nothing(page, server):
    error = page.evaluate("reply('/classify', {}, {signal: AbortSignal.abort()})")["error"]
    assert error["name"] == "AbortError"
    assert server.requests == []


def test_no_answer_in_time(page, server):
    server.will(ASK, nothing(HOLD))
    error = page.evaluate("reply('/classify', {}, {timeout: 300})")["error"]
    assert (error["name"], error["message"]) == ("ConnectionLostError", "There was no answer within 300 ms.")


@pytest.mark.parametrize("answer", [plain(200, b"<p>Sign in", "text/html"), plain(200, b"{")], ids=["page", "broken"])
def test_answer_of_another_protocol(page, server, answer):
    server.will(ASK, answer)
    assert page.evaluate("reply('/classify')")["error"]["name"] == "ProtocolError"


def test_errors_of_a_rejected_answer_are_in_the_problem(page, server):
    said = {"status": 502, "detail": "No.", "errors": {"sentiment": ["Not a valid choice."]}, "attempts": 3}
    server.will(ASK, plain(502, json.dumps(said).encode(), "application/problem+json"))
    error = page.evaluate("reply('/classify')")["error"]
    assert (error["problem"]["errors"], error["problem"]["attempts"]) == (said["errors"], 3)


def test_headers_are_asked_for_before_each_attempt(page, server):
    server.will(ASK, problem(503, "overloaded", retry_after=0.05), POSITIVE)
    page.evaluate("() => { let n = 0; return llm.reply('/classify', {}, {headers: async () => ({'X-N': `${++n}`})}); }")
    assert [request.headers["x-n"] for request in server.requests] == ["1", "2"]


def test_file_that_was_removed_since_it_was_chosen_says_so(page, server, tmp_path):
    paper = tmp_path / "paper.txt"
    paper.write_text("one")
    page.evaluate("document.body.innerHTML = '<input type=file>'")
    page.set_input_files("input", paper)
    paper.unlink()
    error = page.evaluate("reply('/classify', {file: document.querySelector('input').files[0]})")["error"]
    assert error["message"] == "The file paper.txt can't be read any more. Choose it again."
    assert server.requests == []
