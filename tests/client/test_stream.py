"""A run from its start to its end, over lines that hold."""

from __future__ import annotations

import json

import pytest

from tests.client.conftest import opened
from tests.client.server import done, frame, opening, plain, problem, sse, token

pytestmark = pytest.mark.needs("chromium")


def test_gives_tokens_to_callbacks_iterator_and_end(page, server):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), token(2, "lo"), done(3, usage={"prompt_tokens": 4})))
    run = page.evaluate("outcome(stream('/chat', {messages: ['hi']}))")
    assert run["iterated"] == run["tokens"] == ["Hel", "lo"]
    assert run["text"] == run["end"]["text"] == "Hello"
    assert run["states"] == ["streaming", "completed"]
    assert (run["id"], run["cursor"]) == ("r1", "r1:1-3")
    assert run["location"] == f"{server.url}/runs/r1"
    end = run["end"]
    assert (end["cancelled"], end["finishReason"], end["tokens"]) == (False, "stop", 2)
    assert end["usage"] == {"prompt_tokens": 4}
    assert end["ttft_ms"] is None


def test_start_is_json_under_a_key(page, server):
    server.will("POST /chat", sse(opening(), done(1)))
    run = page.evaluate("outcome(stream('/chat', {messages: ['hi']}))")
    request = server.requests[0]
    assert request.json == {"messages": ["hi"]}
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["idempotency-key"] == run["key"]
    assert len(run["key"]) == 36


def test_tells_every_kind_of_event_and_ignores_the_unknown(page, server):
    events = [
        {"status": "thinking"},
        {"reasoning": "Hm."},
        {"tool": {"id": "t1", "name": "search", "arguments": "{}"}},
        {"progress": 0.4, "message": "page 2"},
        {"progress": 0.5},
        {"data": {"any": None}},
        {"from_the_future": 1},
    ]
    frames = [frame(n, event) for n, event in enumerate(events, 1)]
    server.will("POST /chat", sse(opening(), *frames, done(8, queue_ms=3, result=[1])))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["told"] == [
        ["status", "thinking"],
        ["reasoning", "Hm."],
        ["tool", events[2]["tool"]],
        ["progress", 0.4, "page 2"],
        ["progress", 0.5, None],
        ["data", {"any": None}],
    ]
    assert [event for event, _ in run["events"]][:7] == events
    assert run["events"][0][1] == "r1:1-1"
    assert (run["end"]["queue_ms"], run["end"]["result"]) == (3, [1])


def test_stopped_elsewhere_is_an_end_and_no_error(page, server):
    server.will("POST /chat", sse(opening(), token(1, "Hel"), done(2, cancelled=True, finish_reason=None)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["state"] == "stopped"
    assert (run["end"]["cancelled"], run["end"]["text"], run["end"]["finishReason"]) == (True, "Hel", None)


def test_error_event_is_a_problem_and_keeps_the_text(page, server):
    said = {"type": "urn:x", "title": "T", "status": 504, "detail": "Too slow.", "phase": "idle"}
    server.will("POST /chat", sse(opening(), token(1, "Hel"), frame(2, {"error": "Too slow.", "problem": said})))
    run = page.evaluate("outcome(stream('/chat'))")
    assert run["thrown"] == "ProblemError"
    assert (run["state"], run["text"], run["iterated"]) == ("failed", "Hel", ["Hel"])
    error = run["error"]
    assert (error["message"], error["status"], error["type"]) == ("Too slow.", 504, "urn:x")
    assert error["problem"] == said


def test_error_event_of_a_plainer_server(page, server):
    server.will("POST /chat", sse(b'data: {"error": "Out of order."}\n\n'))
    error = page.evaluate("outcome(stream('/chat'))")["error"]
    assert (error["name"], error["message"], error["status"]) == ("ProblemError", "Out of order.", None)


def test_problem_before_the_start(page, server):
    server.will("POST /chat", problem(422, "invalid-input"))
    run = page.evaluate("outcome(stream('/chat'))")
    error = run["error"]
    assert (error["name"], error["status"]) == ("ProblemError", 422)
    assert error["type"] == "urn:problem-type:flask-llmstream:invalid-input"
    assert error["message"] == "Sorry: invalid-input."
    assert run["states"] == ["failed"]


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (problem(429, "upstream-rate-limited", retry_after=1.5), 1.5),
        (problem(429, "upstream-rate-limited", Retry_After="7"), 7),
        (problem(503, "model-not-configured"), None),
        (problem(503, "overloaded"), None),
        (problem(503, "overloaded", retry_after=3600), 3600),
    ],
)
def test_refusals_surface_at_once_and_say_when_to_come_back(page, server, answer, seconds):
    server.will("POST /chat", answer)
    error = page.evaluate("outcome(stream('/chat'))")["error"]
    assert (error["status"], error["retryAfter"]) == (answer.status, seconds)
    assert len(server.requests) == 1


def test_run_that_failed_before_it_said_anything_is_known(page, server):
    server.will("POST /chat", problem(502, "upstream-unavailable", Location="/runs/r1"))
    run = page.evaluate("outcome(stream('/chat', {}, {retries: 0}))")
    assert (run["state"], run["id"], run["location"]) == ("failed", "r1", f"{server.url}/runs/r1")


def test_refused_start_is_no_run(page, server):
    server.will("POST /chat", problem(422, "invalid-input"))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["state"], run["id"], run["location"]) == ("failed", None, None)


def test_limit_that_is_reached_names_the_runs_in_the_way(page, server):
    live = [{"id": "r7", "location": "/api/runs/r7"}]
    body = {"status": 429, "detail": "One at a time.", "limit": "runs", "live": live, "retry_after": 2}
    server.will("POST /chat", plain(429, json.dumps(body).encode(), "application/problem+json"))
    error = page.evaluate("outcome(stream('/chat'))")["error"]
    assert (error["message"], error["limit"], error["retryAfter"]) == ("One at a time.", "runs", 2)
    assert error["live"] == [{"id": "r7", "location": f"{server.url}/api/runs/r7"}]


def test_other_refusals_name_no_limit(page, server):
    server.will("POST /chat", problem(403, "origin-refused"))
    error = page.evaluate("outcome(stream('/chat'))")["error"]
    assert (error["limit"], error["live"]) == (None, [])


def test_retry_after_may_be_a_date(page, server):
    answer = problem(429, "rate-limited")
    answer.headers["Retry-After"] = "Fri, 31 Dec 2100 23:59:59 GMT"
    server.will("POST /chat", answer)
    assert page.evaluate("outcome(stream('/chat'))")["error"]["retryAfter"] > 1e9


def test_error_page_that_is_no_problem_document(page, server):
    server.will("POST /chat", plain(413, b"<h1>Too large</h1>", "text/html"))
    error = page.evaluate("outcome(stream('/chat'))")["error"]
    assert (error["name"], error["status"], error["type"]) == ("ProblemError", 413, "about:blank")
    assert error["message"] == "Request Entity Too Large"


@pytest.mark.parametrize("slug", ["overloaded", "shutting-down"])
def test_server_without_a_place_is_asked_again_under_the_same_key(page, server, slug):
    busy = problem(503, slug, retry_after=0.05)
    server.will("POST /chat", busy, busy, sse(opening(), token(1, "Hi"), done(2)))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["text"], run["states"]) == ("Hi", ["streaming", "completed"])
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_overloaded_server_is_not_asked_for_ever(page, server):
    server.will("POST /chat", *[problem(503, "overloaded", retry_after=0.01)] * 4)
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["error"]["name"], run["error"]["status"]) == ("ProblemError", 503)
    assert run["states"] == ["failed"]


def test_answer_that_is_no_event_stream(page, server):
    server.will("POST /chat", plain(200, b"<h1>Please sign in</h1>", "text/html"))
    error = page.evaluate("outcome(stream('/chat'))")["error"]
    assert error["name"] == "ProtocolError"
    assert "text/html" in error["message"]


@pytest.mark.parametrize("data", [b"{", b"17", b"null", b""])
def test_event_that_is_no_json_object(page, server, data):
    server.will("POST /chat", sse(opening(), token(1, "Hi"), b"id: r1:1-2\ndata: " + data + b"\n\n"))
    run = page.evaluate("outcome(stream('/chat'))")
    assert (run["error"]["name"], run["text"]) == ("ProtocolError", "Hi")


def test_each_iterator_gets_every_token(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a"), token(2, "b"), done(3)))
    texts = page.evaluate("""async () => {
        const run = stream('/chat');
        const all = async () => { let text = ''; for await (const token of run) text += token; return text; };
        return [...await Promise.all([all(), all()]), await all()];
    }""")
    assert texts == ["ab", "ab", "ab"]


def test_leaving_the_loop_leaves_the_run_going(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a"), token(2, "b"), done(3)))
    text = page.evaluate("""async () => {
        const run = stream('/chat');
        for await (const token of run) break;
        return (await run.done).text;
    }""")
    assert text == "ab"


def test_errors_of_callbacks_are_reported_and_break_nothing(page, server):
    server.will("POST /chat", sse(opening(), token(1, "a"), token(2, "b"), done(3)))
    run = page.evaluate("outcome(stream('/chat', {}, {onToken() { throw new Error('mine'); }}))")
    assert run["end"]["text"] == "ab"
    assert page.errors == ["mine", "mine"]
    page.errors.clear()


def test_failure_that_nobody_awaits_is_no_unhandled_rejection(page, server):
    server.will("POST /chat", problem(422, "invalid-input"))
    page.evaluate("""async () => {
        const run = stream('/chat');
        await until(() => run.state === 'failed');
        await moment(50);
    }""")
    assert page.errors == []


def test_headers_may_be_a_function_and_credentials_are_passed_on(page, server):
    page.context.add_cookies([{"name": "session", "value": "s", "url": server.url}])
    server.will("POST /chat", *[sse(opening(), done(1))] * 3)
    page.evaluate("outcome(stream('/chat', 1, {headers: {Authorization: 'Bearer a', Accept: 'text/html'}}))")
    page.evaluate("outcome(stream('/chat', 2, {headers: async () => [['Authorization', 'Bearer b']]}))")
    page.evaluate("outcome(stream('/chat', 3, {credentials: 'omit'}))")
    first, second, third = (request.headers for request in server.requests)
    assert (first["authorization"], first["accept"]) == ("Bearer a", "text/event-stream")
    assert (second["authorization"], second["cookie"]) == ("Bearer b", "session=s")
    assert "cookie" not in third


def test_error_in_the_headers_function_is_the_outcome(page, server):
    error = page.evaluate("outcome(stream('/chat', 1, {headers() { throw new RangeError('no token'); }}))")["error"]
    assert (error["name"], error["message"]) == ("RangeError", "no token")
    assert server.requests == []


def test_call_that_makes_no_sense_throws_where_it_stands(page):
    for call in ("stream('http://')", "resume('/runs/r1', {after: 'nonsense'})"):
        assert page.evaluate(f"(() => {{ try {{ {call}; }} catch (error) {{ return error.name; }} }})()") == "TypeError"


def test_key_without_randomuuid_on_plain_http(blank, server):
    page = opened(blank, f"http://plain.test:{server.address[1]}")
    assert page.evaluate("isSecureContext") is False
    server.will("POST /chat", sse(opening(), done(1)), sse(opening(), done(1)))
    keys = [page.evaluate("outcome(stream('/chat'))")["key"] for _ in range(2)]
    assert [len(key) for key in keys] == [32, 32]
    assert keys[0] != keys[1]
