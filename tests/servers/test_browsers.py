"""A real browser: an `EventSource` gets all of an answer once and then stops, and foreign pages start nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from flask_llmstream.testing import Gate, Schedule
from tests.line import Line, Reset
from tests.servers.serving import Server, until

pytestmark = pytest.mark.needs("chromium")

LISTEN = """(url) => new Promise((resolve) => {
  const source = new EventSource(url);
  const events = [];
  source.onmessage = ({ lastEventId, data }) => events.push([lastEventId, JSON.parse(data)]);
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(events); };
})"""
"""Everything that an EventSource receives until it gives up, which is how it obeys a 204."""

TRESPASS = """async (url) => {
  const image = new Promise((resolve) => {
    const image = Object.assign(new Image(), { src: url, onload: resolve, onerror: resolve });
    document.body.append(image);
  });
  const source = new Promise((resolve) => {
    const source = new EventSource(url);
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(); };
  });
  const script = new Promise((resolve) => {
    const script = document.createElement("script");
    document.body.append(Object.assign(script, { src: url, onload: resolve, onerror: resolve }));
  });
  await Promise.allSettled([
    image, source, script,
    fetch(url, { mode: "no-cors", headers: { Accept: "text/event-stream" } }),
    fetch(url, { mode: "no-cors", credentials: "include", headers: { Accept: "text/event-stream" } }),
    fetch(url.split("?")[0], { method: "POST", mode: "no-cors", body: '{"messages": []}' }),
  ]);
}"""
"""Every way in which a page makes a browser send a request without being asked."""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        yield page


def text(events: list) -> str:
    return "".join(event.get("token", "") for _, event in events)


def answers(server: Server) -> list[int]:
    """The statuses of the requests for the stream so far."""
    return [seen["status"] for seen in server.state()["seen"]]


def test_event_source_gets_everything_once_and_stops(page, gevent_server, upstream):
    page.goto(gevent_server.url)
    events = page.evaluate(LISTEN, "/api/chat/stream?message=Hello")
    assert text(events) == "Hello, world!"
    assert events[-1][1]["done"] is True
    assert answers(gevent_server) == [200, 204]
    assert len(upstream.requests) == 1


def test_event_source_resumes_after_a_cut(page, gevent_server, upstream):
    upstream.schedule = schedule = Schedule(tokens=40, rate=200)
    with Line(gevent_server.address, Reset(after=1500)) as line:
        page.goto(line.url)
        events = page.evaluate(LISTEN, "/api/patient?message=Hello")
    assert text(events) == schedule.text
    assert len({cursor for cursor, _ in events}) == len(events)
    assert answers(gevent_server) == [200, 200, 204]
    assert len(upstream.requests) == 1


def test_event_source_hears_of_a_final_refusal_once(page, gevent_server, upstream):
    page.goto(gevent_server.url)
    [(_, event)] = page.evaluate(LISTEN, "/api/chat/stream?message=Hello&model=another")
    assert event["problem"]["type"].endswith("invalid-input")
    assert answers(gevent_server) == [200, 204]
    assert upstream.requests == []


def test_event_source_comes_back_after_a_passing_refusal(page, gevent_server, upstream):
    gate = Gate()
    upstream.schedule = Schedule(gates={0: gate})
    small = gevent_server.at("/small")
    with small.post(X_User="a") as first, small.post(X_User="b") as second:
        small.await_state(open=2)
        page.goto(gevent_server.url)
        page.evaluate(f"() => {{ window.events = ({LISTEN})('/small/api/chat/stream?message=Hello') }}")
        until(lambda: len(small.state()["seen"]) >= 3)
        gate.release()
        assert first.text() == second.text() == "Hello, world!"
    assert text(page.evaluate("window.events")) == "Hello, world!"


def test_foreign_page_starts_nothing(page, gevent_server, upstream):
    foreign = gevent_server.url.replace("127.0.0.1", "localhost")
    page.goto(foreign)
    page.evaluate(TRESPASS, f"{gevent_server.url}/api/chat/stream?message=Hello")
    until(lambda: len(answers(gevent_server)) == 6)
    assert {*answers(gevent_server)} <= {403, 406}
    assert upstream.requests == []


def test_image_of_the_own_page_starts_nothing(page, gevent_server, upstream):
    page.goto(gevent_server.url)
    page.evaluate(
        "(src) => new Promise((resolve) => Object.assign(new Image(), { src, onerror: resolve }))",
        f"{gevent_server.url}/api/chat/stream?message=Hello",
    )
    assert answers(gevent_server) == [406]
    assert upstream.requests == []
