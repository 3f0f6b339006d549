"""Reading on after the line broke: from the cursor, with nothing lost and nothing twice."""

from __future__ import annotations

import itertools
import threading

import pytest

from tests.client.server import (
    HOLD,
    RESET,
    Pause,
    Wait,
    done,
    following,
    frame,
    nothing,
    opening,
    plain,
    problem,
    sse,
    token,
    tokens,
)

pytestmark = pytest.mark.needs("chromium")

TAIL = "GET /runs/r1/events"


def test_reset_amid_a_frame(page, server):
    """What came just before a reset may be lost with it, so how far the client got is not for us to say."""
    server.will("POST /chat", sse(opening(), token(1, "Hel"), token(2, "lo")[:-9], RESET))
    server.always(TAIL, following(token(1, "Hel"), token(2, "lo"), done(3)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["text"], run["tokens"]) == ("Hello", ["Hel", "lo"])
    assert run["states"] == ["streaming", "reconnecting", "streaming", "completed"]


def test_end_amid_a_frame(page, server):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), token(2, "lost")[:-9]))
    server.will(TAIL, sse(opening(1), token(2, "lo"), done(3)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["text"], run["tokens"]) == ("Hello", ["Hel", "lo"])
    (request,) = server.came(TAIL)
    assert request.query == {"after": "r1:1-1"}
    assert request.headers["accept"] == "text/event-stream"


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "by close"])
def test_orderly_end_without_a_terminal_is_a_cut(page, server, chunked):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), chunked=chunked))
    server.will(TAIL, sse(opening(1), token(2, "lo"), done(3)))
    assert page.evaluate("outcome(stream('/chat'))")["text"] == "Hello"


def test_terminal_is_the_end_even_if_the_response_goes_on(page, server):
    server.will("POST /chat", sse(opening(), token(1, "Hi"), done(2), token(3, "no"), HOLD))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["text"], run["state"]) == ("Hi", "completed")
    assert server.requests[0].answered.wait(10), "the client kept the connection"


def test_start_that_got_no_answer_goes_out_again_under_its_key(page, server):
    """Chromium itself repeats a request on a kept connection that was reset, so the resets can't be counted."""
    good = threading.Event()
    answer = sse(opening(), token(1, "Hi"), done(2))
    server.always("POST /chat", lambda request: answer if good.is_set() else nothing(RESET))
    page.evaluate("window.run = stream('/chat', {q: 1}), until(() => run.state === 'reconnecting')")
    good.set()
    run = page.evaluate("outcome(run)")
    assert run["text"] == "Hi"
    assert run["states"] == ["reconnecting", "streaming", "completed"]
    starts = server.came("POST /chat")
    assert {start.headers["idempotency-key"] for start in starts} == {run["key"]}
    assert [start.json for start in starts] == [{"q": 1}] * len(starts)


def test_start_that_a_proxy_answered_goes_out_again(page, server):
    bad_gateway = plain(502, b"<h1>Bad gateway</h1>", "text/html")
    server.will("POST /chat", bad_gateway, sse(opening(), token(1, "Hi"), done(2)))
    assert page.evaluate("outcome(stream('/chat', {}, {retries: 2}))")["text"] == "Hi"


def test_answer_cut_before_its_first_event_is_read_from_its_beginning(page, server):
    server.will("POST /chat", sse(RESET))
    server.will(TAIL, sse(opening(), token(1, "Hi"), done(2)))
    assert page.evaluate("outcome(stream('/chat'))")["text"] == "Hi"
    assert server.came(TAIL)[0].query == {}


def test_events_read_before_are_dropped(page, server):
    server.will("POST /chat", sse(opening(), tokens("abc")))
    server.will(TAIL, sse(opening(1), tokens("bcd", start=2), done(5)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["tokens"] == ["a", "b", "c", "d"]


def test_gap_is_read_again_from_the_cursor(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a"), token(3, "c"), done(4)))
    server.will(TAIL, sse(opening(1), tokens("bc", start=2), done(4)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["tokens"] == ["a", "b", "c"]
    assert server.came(TAIL)[0].query == {"after": "r1:1-1"}


def test_gap_that_stays_is_the_servers_fault(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a"), token(3, "c")))
    server.always(TAIL, lambda request: sse(opening(1, retry=1), token(3, "c")))
    run = page.evaluate("outcome(stream('/chat', {}, {retries: 2}))")
    assert (run["error"]["name"], run["text"]) == ("ProtocolError", "a")


def test_beginning_that_is_missing_is_a_gap_too(page, server):
    server.will("POST /chat", sse(token(2, "b")))
    server.will(TAIL, sse(opening(), tokens("ab"), done(3)))
    assert page.evaluate("outcome(stream('/chat'))")["text"] == "ab"


def test_events_of_another_run(page, server):
    server.will("POST /chat", sse(opening(), frame(1, {"token": "no"}, run="r2")))
    assert page.evaluate("outcome(stream('/chat'))")["error"]["name"] == "ProtocolError"


def test_restart_voids_the_text(page, server):
    again = frame(1, {"restarted": 2}, epoch=2) + token(2, "new", epoch=2) + token(3, "!", epoch=2)
    late = token(3, "from the writer that was replaced")
    server.will("POST /chat", sse(opening(), tokens("ol")))
    server.will(TAIL, sse(opening(2), again, late, done(4, epoch=2)))
    run = page.evaluate("""outcome(window.run = stream('/chat', {}, {onRestart: () => {
        run.record.restarts.push(run.text);
    }}))""")
    assert (run["text"], run["restarts"]) == ("new!", [""])
    assert run["tokens"] == ["o", "l", "new", "!"]
    assert run["iterated"][-2:] == ["new", "!"]
    assert run["cursor"] == "r1:2-4"


def test_new_epoch_that_skips_its_first_event_is_a_gap(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a"), token(2, "c", epoch=2)))
    ends = frame(1, {"restarted": 2}, epoch=2) + token(2, "b", epoch=2) + done(3, epoch=2)
    server.will(TAIL, sse(opening(1), ends))
    assert page.evaluate("outcome(stream('/chat'))")["text"] == "b"


def test_reaper_closes_in_a_new_epoch_and_the_text_stays(page, server):
    closed = {"error": "The answer was interrupted.", "problem": {"type": "urn:x", "status": 503}}
    server.will("POST /chat", sse(opening(), token(1, "part"), frame(1, closed, epoch=2)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["error"]["type"], run["text"]) == ("urn:x", "part")


def test_silence_of_two_and_a_half_heartbeats_is_a_dead_line(page, server):
    server.will("POST /chat", sse(opening(heartbeat=1), token(1, "Hel"), HOLD))
    server.will(TAIL, sse(opening(1), token(2, "lo"), done(3)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["text"] == "Hello"
    start, tail = server.requests
    assert 2.4 < tail.at - start.at < 15  # its own connect time-out is 15
    assert start.answered.wait(10), "the dead connection was kept"


def test_heartbeats_keep_a_silent_line(page, server):
    beats = [b":\n\n", Pause(0.1)] * 30
    server.will("POST /chat", sse(opening(heartbeat=1), *beats, token(1, "Hi"), done(2)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["text"], run["states"]) == ("Hi", ["streaming", "completed"])


def test_answer_that_does_not_begin(page, server):
    server.will("POST /chat", nothing(HOLD), sse(opening(), token(1, "Hel")))
    server.will(TAIL, nothing(HOLD), sse(opening(1), token(2, "lo"), done(3)))
    run = page.evaluate("outcome(stream('/chat', {}, {connectTimeout: 300}))")
    assert run["text"] == "Hello"


def test_everything_read_yet_no_end_seen_asks_for_the_status(page, server):
    server.will(TAIL, plain(204))
    said = (
        b'{"id": "r1", "status": "incomplete", "finish_reason": "length", "usage": {"prompt_tokens": 4}, "error": null}'
    )
    server.will("GET /runs/r1", plain(200, said))
    run = page.evaluate("outcome(resume('/runs/r1', {after: 'r1:1-3', text: 'Hello'}))")
    assert (run["end"]["text"], run["state"]) == ("Hello", "completed")
    assert (run["end"]["finishReason"], run["end"]["usage"]) == ("length", {"prompt_tokens": 4})


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (b'{"status": "cancelled", "error": null}', "stopped"),
        (b'{"status": "failed", "error": {"type": "urn:x", "detail": "Broken."}}', "failed"),
    ],
)
def test_other_ends_that_the_status_tells(page, server, said, state):
    server.will(TAIL, plain(204))
    server.will("GET /runs/r1", plain(200, said))
    run = page.evaluate("outcome(resume('/runs/r1', {after: 'r1:1-3'}))")
    assert run["state"] == state
    assert state != "failed" or run["error"]["message"] == "Broken."


def test_status_that_contradicts_is_asked_again(page, server):
    server.will(TAIL, plain(204), sse(opening(3), done(4)))
    server.will("GET /runs/r1", plain(200, b'{"status": "in_progress"}'))
    assert page.evaluate("outcome(resume('/runs/r1', {after: 'r1:1-3'}))")["state"] == "completed"


@pytest.mark.parametrize(("status", "slug"), [(404, "run-not-found"), (410, "run-expired"), (401, "not-authenticated")])
def test_run_that_is_gone(page, server, status, slug):
    server.will("POST /chat", sse(opening(), token(1, "part")))
    server.will(TAIL, problem(status, slug))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["error"]["name"], run["error"]["status"]) == ("ProblemError", status)
    assert (run["text"], run["state"]) == ("part", "failed")


def test_passing_refusals_of_a_resume_are_waited_for(page, server):
    server.will("POST /chat", sse(opening(), token(1, "Hel")))
    passing = [
        problem(429, "rate-limited", retry_after=0.01),
        problem(503, "overloaded", retry_after=0.01),
        plain(502, b"<h1>", "text/html"),
        problem(500, "internal-error"),
    ]
    server.will(TAIL, *passing, sse(opening(1), token(2, "lo"), done(3)))
    assert page.evaluate("outcome(stream('/chat'))")["text"] == "Hello"


def test_retry_after_is_waited_for_whatever_wakes_the_page(page, server):
    server.will(TAIL, problem(503, "overloaded", retry_after=0.7), sse(opening(), done(1)))
    page.evaluate("window.run = resume('/runs/r1'), 0")
    server.wait_for(TAIL).answered.wait()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate("outcome(run)")
    refused, taken = server.came(TAIL)
    assert taken.at - refused.at >= 0.7


def test_server_that_restarts_says_when_to_come_back(page, server):
    server.will("POST /chat", sse(opening(retry=20), token(1, "Hel"), b"retry: 600\n\n", Pause(0.1), RESET))
    server.will(TAIL, sse(opening(1), token(2, "lo"), done(3)))
    page.evaluate("window.run = stream('/chat'), until(() => run.state === 'reconnecting')")
    page.evaluate("window.dispatchEvent(new Event('online'))")  # whatever wakes the page
    assert page.evaluate("outcome(run)")["text"] == "Hello"
    start, tail = server.requests
    assert tail.query == {"after": "r1:1-1"}
    assert 0.6 <= tail.at - start.at < 1.6


def test_being_sent_away_is_no_failure(page, server):
    server.will("POST /chat", sse(opening(), b"retry: 5\n\n", Pause(0.1), RESET))
    server.will(TAIL, *[sse(opening(), b"retry: 5\n\n", Pause(0.1), RESET)] * 3, sse(opening(), done(1)))
    assert page.evaluate("outcome(stream('/chat', {}, {retries: 0}))")["state"] == "completed"


def test_a_retry_that_opens_a_stream_sends_nobody_away(page, server):
    server.will("POST /chat", sse(opening()))
    assert page.evaluate("outcome(stream('/chat', {}, {retries: 0}))")["state"] == "failed"


def test_server_that_is_gone(page, server):
    server.will("POST /chat", sse(opening(retry=5), token(1, "part")))
    server.always(TAIL, lambda request: nothing(RESET))
    run = page.evaluate("outcome(stream('/chat', {}, {retries: 3}))")
    assert run["error"]["name"] == "ConnectionLostError"
    assert (run["text"], run["state"], run["thrown"]) == ("part", "failed", "ConnectionLostError")
    assert run["states"] == ["streaming", "reconnecting", "failed"]


def test_refusal_that_stays_is_what_surfaces(page, server):
    server.will("POST /chat", sse(opening(retry=5)))
    server.always(TAIL, lambda request: problem(503, "overloaded"))
    run = page.evaluate("outcome(stream('/chat', {}, {retries: 2}))")
    assert (run["error"]["name"], run["error"]["status"]) == ("ProblemError", 503)


def test_attempts_are_counted_anew_after_progress(page, server):
    text = "abcdefgh"
    server.will("POST /chat", sse(opening(retry=1), token(1, text[0])))
    for n, character in enumerate(text[1:], 2):
        server.will(TAIL, plain(502), sse(opening(n - 1, retry=1), token(n, character)))
    server.will(TAIL, sse(opening(len(text)), done(len(text) + 1)))
    assert page.evaluate("outcome(stream('/chat', {}, {retries: 1}))")["text"] == text


def test_retry_sets_the_time_between_attempts_and_it_doubles(page, server):
    server.will("POST /chat", sse(opening(retry=200), token(1, "a"), b":\n\n"))
    server.will(TAIL, *[sse(opening(1, retry=200))] * 3, sse(opening(1), done(2)))
    page.evaluate("outcome(stream('/chat'))")
    times = [request.at for request in server.requests]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    for wait, longest in zip(waits, (0.2, 0.4, 0.8, 1.6), strict=True):
        assert longest / 2 <= wait < longest + 0.5


@pytest.mark.parametrize(
    "event", ["window.dispatchEvent(new Event('online'))", "document.dispatchEvent(new Event('visibilitychange'))"]
)
def test_waking_up_tries_at_once(page, server, event):
    server.will("POST /chat", sse(opening(retry=600_000), token(1, "Hel")))
    server.will(TAIL, sse(opening(1), token(2, "lo"), done(3)))
    page.evaluate("window.run = stream('/chat'), until(() => run.state === 'reconnecting')")
    page.evaluate(event)
    assert page.evaluate("outcome(run)")["text"] == "Hello"


def test_attempts_are_counted_anew_once_online(page, server):
    server.will("POST /chat", sse(opening(retry=600_000), token(1, "Hel")))
    server.will(TAIL, plain(502), plain(502), sse(opening(1), token(2, "lo"), done(3)))
    page.evaluate("window.run = stream('/chat', {}, {retries: 1}), until(() => run.state === 'reconnecting')")
    for count in (1, 2, 3):
        page.evaluate("window.dispatchEvent(new Event('online'))")
        server.wait_for(TAIL, count).answered.wait()
        page.evaluate("moment(200)")  # for the answer to be read, and the next pause to begin
    assert page.evaluate("outcome(run)")["text"] == "Hello"


@pytest.mark.parametrize("type", ["online", "visibilitychange"])
def test_waking_up_checks_a_line_that_was_silent_for_more_than_a_heartbeat(page, server, type):
    server.will("POST /chat", sse(opening(heartbeat=1), token(1, "Hel"), HOLD))
    server.will(TAIL, sse(opening(1, heartbeat=600), token(2, "lo"), HOLD), sse(opening(2), done(3)))
    target = "window" if type == "online" else "document"
    page.evaluate("window.run = stream('/chat'), until(() => run.text === 'Hel')")
    page.evaluate(f"moment(1200).then(() => {target}.dispatchEvent(new Event('{type}')))")
    page.evaluate("until(() => run.text === 'Hello')")
    start, tail = server.requests
    assert tail.at - start.at < 2.4, "it was only found by 2.5 heartbeats of silence"
    page.evaluate(f"{target}.dispatchEvent(new Event('{type}'))")  # this line is good, and stays
    page.evaluate("moment(100)")
    assert len(server.came(TAIL)) == 1
    page.evaluate("Date.now = ((now) => () => now() + 601_000)(Date.now)")  # as after a sleep
    page.evaluate(f"{target}.dispatchEvent(new Event('{type}'))")
    assert page.evaluate("outcome(run)")["state"] == "completed"


def test_attempts_while_offline_do_not_count(page, server):
    release = threading.Event()
    server.will("POST /chat", sse(opening(retry=5), token(1, "Hel"), Wait(release)))
    server.will(TAIL, sse(opening(1), token(2, "lo"), done(3)))
    page.evaluate("window.run = stream('/chat', {}, {retries: 2}), until(() => run.text === 'Hel')")
    page.context.set_offline(True)
    release.set()
    page.evaluate("until(() => run.state === 'reconnecting').then(() => moment(300))")
    assert page.evaluate("run.state") == "reconnecting"
    page.context.set_offline(False)
    assert page.evaluate("outcome(run)")["text"] == "Hello"


def test_attaches_to_a_run_after_a_reload(page, server):
    server.will("POST /chat", sse(opening(), tokens("Hel"), HOLD))
    server.will(TAIL, sse(opening(3), tokens("lo", start=4), done(6)), sse(opening(), tokens("Hello"), done(6)))
    page.evaluate("window.run = stream('/chat'), until(() => run.text === 'Hel')")
    place = page.evaluate("({location: run.location, after: run.cursor, text: run.text})")
    page.reload()
    page.wait_for_function("window.ready")
    run = page.evaluate("({location, ...place}) => outcome(resume(location, place))", place)
    assert (run["text"], run["iterated"], run["key"]) == ("Hello", ["l", "o"], None)
    whole = page.evaluate("outcome(resume('/runs/r1'))")
    assert (whole["text"], whole["id"]) == ("Hello", "r1")
    assert [request.query for request in server.came(TAIL)] == [{"after": "r1:1-3"}, {}]


def test_headers_go_with_every_request(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a")))
    server.will(TAIL, sse(opening(1), done(2)))
    page.evaluate("let n = 0; outcome(stream('/chat', {}, {headers: () => ({'X-Token': `t${++n}`})}))")
    assert [request.headers["x-token"] for request in server.requests] == ["t1", "t2"]
