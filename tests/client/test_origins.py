"""A page of one origin, its runs on another."""

from __future__ import annotations

import threading

import pytest

from tests.client.server import HOLD, Wait, accepted, done, opening, plain, sse, token

pytestmark = pytest.mark.needs("chromium")

ALLOWED = {
    "Access-Control-Allow-Headers": "content-type, idempotency-key, authorization",
    "Access-Control-Allow-Methods": "GET, POST",
}


@pytest.fixture
def api(foreign, server):
    foreign.cross_origin = ALLOWED | {"Access-Control-Allow-Origin": server.url}
    return foreign


def test_resumes_and_stops_without_a_preflight(page, api):
    api.cross_origin |= {"Access-Control-Expose-Headers": "Location"}
    stopped = threading.Event()
    end = sse(opening(2), Wait(stopped), done(3, cancelled=True))
    api.will("POST /chat", sse(opening(), token(1, "Hel")))
    api.will("GET /runs/r1/events", sse(opening(1), token(2, "lo")), end)
    api.always("POST /runs/r1/cancel", lambda request: stopped.set() or plain(200, b"{}"))
    page.evaluate("(url) => { window.run = stream(`${url}/chat`); }", api.url)
    page.evaluate("until(() => run.text === 'Hello').then(() => run.stop())")
    run = page.evaluate("outcome(run)")
    assert (run["location"], run["text"]) == (f"{api.url}/runs/r1", "Hello")
    assert len(api.came("POST /runs/r1/cancel")) == 1
    assert [request.line for request in api.requests if request.line.startswith("OPTIONS")] == ["OPTIONS /chat"]


def test_hidden_location_is_made_up_for_by_the_cursor(page, api):
    api.will("POST /chat", sse(opening(), token(1, "Hel")))
    api.will("GET /chat", sse(opening(1), token(2, "lo"), done(3)))
    run = page.evaluate("(url) => outcome(stream(`${url}/chat?lang=en`))", api.url)
    assert (run["text"], run["id"], run["location"]) == ("Hello", "r1", None)
    request = api.came("GET /chat")[0]
    assert request.query == {"lang": "en", "after": "r1:1-1"}
    assert request.headers["accept"] == "text/event-stream"


def test_hidden_location_and_no_event_starts_again_under_the_same_key(page, api):
    api.will("POST /chat", sse(), sse(opening(), token(1, "Hi"), done(2)))
    run = page.evaluate("(url) => outcome(stream(`${url}/chat`))", api.url)
    assert run["text"] == "Hi"
    assert len({request.headers["idempotency-key"] for request in api.came("POST /chat")}) == 1


def test_stop_with_a_hidden_location_says_what_is_missing(page, api):
    api.will("POST /chat", sse(opening(), token(1, "Hel"), HOLD))
    page.evaluate("(url) => { window.run = stream(`${url}/chat`); return until(() => run.text); }", api.url)
    name, message = page.evaluate("run.stop().catch((error) => [error.name, error.message])")
    assert name == "ProtocolError"
    assert "CORS must expose the header Location" in message
    assert api.came("POST /chat")[0].answered.wait(10), "the client kept the connection"


def test_cookies_go_along_where_credentials_say_so(page, api):
    api.cross_origin |= {"Access-Control-Allow-Credentials": "true", "Access-Control-Expose-Headers": "Location"}
    page.context.add_cookies([{"name": "session", "value": "s", "url": api.url}])
    api.will("POST /chat", sse(opening(), token(1, "Hel")))
    api.will("GET /runs/r1/events", sse(opening(1), done(2)))
    page.evaluate("(url) => outcome(stream(`${url}/chat`, {}, {credentials: 'include'}))", api.url)
    calls = [request for request in api.requests if not request.line.startswith("OPTIONS")]
    assert [request.headers.get("cookie") for request in calls] == ["session=s", "session=s"]


def test_job_whose_location_is_hidden_is_found_by_its_links(page, api):
    api.will("POST /analyze", accepted())
    api.will("GET /runs/r1/events", sse(opening(), done(1, result=[1]), location=None))
    job = page.evaluate("(url) => jobOutcome(job(`${url}/analyze`, {file: bytes(9)}))", api.url)
    assert (job["location"], job["end"]["result"]) == (f"{api.url}/runs/r1", [1])
    assert [request.line for request in api.requests if request.line.startswith("OPTIONS")] == ["OPTIONS /analyze"]
