"""The feed of what an owner's runs do: told once each, for ever, and given up while nobody sees the page."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.client.conftest import opened
from tests.client.server import HOLD, RESET, Pause, nothing, plain, problem, sse

pytestmark = pytest.mark.needs("chromium")

FEED = "GET /api/runs/events"
WATCH = "window.feed = watch('/api/runs/events'), 0"
HIDE = "Object.defineProperty(document, 'visibilityState', {configurable: true, value: '%s'})"
CHANGE = "document.dispatchEvent(new Event('visibilitychange'))"


def run(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "feature": "chat", "links": {"self": f"/api/runs/{name}"}} | more


def opening(place: str = "100-0", *, retry: int = 20, heartbeat: float = 5) -> bytes:
    return f"retry: {retry}\nid: runs:{place}\n: heartbeat={heartbeat}\n\n".encode()


def live(*names: str, place: str = "100-0") -> bytes:
    return news(place, runs=[run(name) for name in names])


def news(place: str, **event: Any) -> bytes:
    return f"id: runs:{place}\ndata: {json.dumps(event)}\n\n".encode()


def started(place: str, name: str) -> bytes:
    return news(place, started=run(name, conversation="c1"))


def ended(place: str, name: str) -> bytes:
    return news(place, ended=run(name, status="completed"))


def told(page, kinds: str = "started ended forgotten") -> list[list[str]]:
    """What the feed has told of runs, one by one."""
    return [[kind, what["id"]] for kind, what in page.evaluate("feed.news") if kind in kinds.split()]


def wait_until(page, condition: str) -> None:
    page.wait_for_function(condition)


def test_tells_what_is_live_and_then_what_changes(page, server):
    forgotten = news("103-0", forgotten={"id": "r1"})
    server.will(FEED, sse(opening(), live("r1"), started("101-0", "r2"), ended("102-0", "r2"), forgotten, HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.news.length === 5")
    state, runs, *rest = page.evaluate("feed.news")
    assert state == ["state", "streaming"]
    assert runs == ["runs", [run("r1") | {"location": f"{server.url}/api/runs/r1"}]]
    assert [kind for kind, _ in rest] == ["started", "ended", "forgotten"]
    assert rest[0][1]["location"] == f"{server.url}/api/runs/r2"
    assert (rest[0][1]["conversation"], rest[1][1]["status"]) == ("c1", "completed")
    assert page.evaluate("feed.runs") == []
    assert server.requests[0].headers["accept"] == "text/event-stream"


def test_keeps_who_is_live_in_step(page, server):
    server.will(FEED, sse(opening(), live("r1"), started("101-0", "r2"), started("101-1", "r1"), HOLD))
    page.evaluate("window.seen = []")
    page.evaluate("""window.feed = watch('/api/runs/events', {
        onStarted: () => seen.push(feed.runs.map(({ id }) => id)),
    }), 0""")
    wait_until(page, "seen.length === 2")
    assert page.evaluate("seen") == [["r1", "r2"], ["r2", "r1"]]


def test_a_run_that_it_tells_of_can_be_read(page, server):
    server.will(FEED, sse(opening(), started("101-0", "r1"), HOLD))
    opens = b'id: r1:1-1\ndata: {"token": "Hi"}\n\nid: r1:1-2\ndata: {"done": true}\n\n'
    server.will("GET /api/runs/r1/events", sse(opens))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs.length")
    assert page.evaluate("outcome(resume(feed.runs[0].location))")["text"] == "Hi"


def test_goes_on_where_the_line_broke_and_tells_nothing_twice(page, server):
    server.will(
        FEED,
        sse(opening(), live(), started("101-0", "r1"), started("101-1", "r2")),
        sse(opening("101-1"), started("101-1", "r2"), ended("101-2", "r1"), Pause(0.2), RESET),
        sse(opening("101-2"), ended("101-2", "r1"), started("102-0", "r3"), HOLD),
    )
    page.evaluate(WATCH)
    wait_until(page, "feed.news.some(([kind, run]) => kind === 'started' && run.id === 'r3')")
    assert told(page) == [["started", "r1"], ["started", "r2"], ["ended", "r1"], ["started", "r3"]]
    first, second, _ = server.came(FEED)
    assert (first.query, second.query) == ({}, {"after": "runs:101-1"})
    states = [what for kind, what in page.evaluate("feed.news") if kind == "state"]
    assert states == ["streaming", "reconnecting", "streaming", "reconnecting", "streaming"]


def test_a_clean_end_is_a_cut_too(page, server):
    server.will(FEED, sse(opening(), live("r1"), chunked=False), sse(opening(), started("101-0", "r2"), HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs.length === 2")


def test_what_is_told_anew_counts_even_if_it_is_older(page, server):
    """A server that has lost what was before, and begins again."""
    server.will(FEED, sse(opening(), started("900-0", "r1")), sse(live("r2", place="7-0"), started("8-0", "r3"), HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs.length === 2")
    assert page.evaluate("feed.runs.map(({ id }) => id)") == ["r2", "r3"]


@pytest.mark.parametrize(("status", "slug"), [(400, "invalid-cursor"), (410, "run-expired"), (404, "run-not-found")])
def test_a_cursor_that_is_refused_is_given_up(page, server, status, slug):
    server.will(FEED, sse(opening(), started("101-0", "r1")), problem(status, slug), sse(live("r2"), HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs[0]?.id === 'r2'")
    assert [request.query for request in server.came(FEED)] == [{}, {"after": "runs:101-0"}, {}]


def test_tries_for_ever(page, server):
    """A run would be given up after 8 attempts."""
    server.will(FEED, sse(opening(retry=1)), *[nothing(RESET), plain(502), problem(503, "overloaded")] * 4)
    server.will(FEED, sse(opening(), live("r1"), HOLD))
    page.evaluate(f"{WATCH}, window.hurrying = setInterval(() => {CHANGE}, 20), 0")
    wait_until(page, "feed.runs.length")
    page.evaluate("clearInterval(hurrying)")


def test_waits_longer_with_each_failure(page, server):
    server.will(FEED, sse(opening(retry=200)), *[plain(502)] * 2, sse(opening(), live("r1"), HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs.length")
    waits = [after.at - before.at for before, after in itertools.pairwise(server.came(FEED))]
    for wait, longest in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert longest / 2 <= wait < longest + 0.5


def test_comes_back_when_the_server_says_as_it_restarts(page, server):
    server.will(FEED, sse(opening(), started("101-0", "r1"), b"retry: 600\n\n"), sse(opening("101-0"), HOLD))
    page.evaluate(WATCH)
    first, second = server.wait_for(FEED), server.wait_for(FEED, 2)
    assert second.query == {"after": "runs:101-0"}
    assert 0.6 <= second.at - first.at < 1.5


def test_silence_of_two_and_a_half_heartbeats_is_a_dead_line(page, server):
    server.will(FEED, sse(opening(heartbeat=0.4), HOLD), sse(opening(), live("r1"), HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs.length")
    first, second = server.came(FEED)
    assert 0.95 < second.at - first.at < 5


@pytest.mark.parametrize(("status", "slug"), [(401, "not-authenticated"), (403, "origin-refused"), (404, "gone")])
def test_who_is_not_let_in_does_not_ask_again(page, server, status, slug):
    server.will(FEED, problem(status, slug))
    page.evaluate(WATCH)
    wait_until(page, "feed.state === 'failed'")
    (_, failed), (_, error) = page.evaluate("feed.news")
    assert (failed, error["name"], error["status"]) == ("failed", "ProblemError", status)


def test_a_closed_one_lets_its_connection_go(page, server):
    server.will(FEED, sse(opening(), live("r1"), HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs.length")
    page.evaluate("feed.close(), feed.close()")
    assert server.requests[0].answered.wait(10), "the connection was kept"
    assert page.evaluate("moment(100).then(() => feed.state)") == "closed"
    assert [what for kind, what in page.evaluate("feed.news") if kind == "state"] == ["streaming", "closed"]


def test_one_that_is_closed_between_two_attempts_stays_so(page, server):
    server.will(FEED, sse(opening(retry=60)))
    page.evaluate(f"{WATCH}, until(() => feed.state === 'reconnecting').then(() => feed.close())")
    page.evaluate("moment(200)")
    assert len(server.came(FEED)) == 1


def test_gives_its_connection_up_while_nobody_sees_the_page(page, server):
    """Six tabs would use up what a browser allows."""
    server.will(FEED, sse(opening(), live("r1"), HOLD), sse(opening(), started("101-0", "r2"), HOLD))
    page.evaluate(WATCH)
    wait_until(page, "feed.runs.length")
    page.evaluate(f"{HIDE % 'hidden'}, {CHANGE}")
    assert server.requests[0].answered.wait(10), "the connection was kept"
    page.evaluate("moment(200)")
    assert len(server.came(FEED)) == 1
    page.evaluate(f"{HIDE % 'visible'}, {CHANGE}")
    wait_until(page, "feed.runs.length === 2")
    assert server.came(FEED)[1].query == {"after": "runs:100-0"}


def test_begins_when_the_page_is_seen(page, server):
    server.will(FEED, sse(opening(), live("r1"), HOLD))
    page.evaluate(f"{HIDE % 'hidden'}, {WATCH}")
    page.evaluate("moment(100)")
    assert server.requests == []
    page.evaluate(f"{HIDE % 'visible'}, {CHANGE}")
    wait_until(page, "feed.runs.length")


def test_headers_and_cookies_of_another_origin(blank, server, foreign):
    page = opened(blank, server.url)
    foreign.cross_origin = {
        "Access-Control-Allow-Origin": server.url,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Headers": "x-token",
    }
    foreign.will(FEED, sse(opening(), live("r1"), HOLD))
    page.evaluate(f"""window.feed = watch('{foreign.url}/api/runs/events', {{
        headers: async () => ({{'X-Token': 't'}}), credentials: 'include',
    }}), 0""")
    wait_until(page, "feed.runs.length")
    assert page.evaluate("feed.runs[0].location") == f"{foreign.url}/api/runs/r1"
    assert foreign.came(FEED)[0].headers["x-token"] == "t"


def test_what_a_callback_throws_does_not_end_it(page, server):
    server.will(FEED, sse(opening(), live("r1"), started("101-0", "r2"), HOLD))
    page.evaluate("""window.feed = watch('/api/runs/events', {onRuns: () => { throw new Error('ours'); }}), 0""")
    wait_until(page, "feed.runs.length === 2")
    assert page.errors == ["ours"]
    page.errors.clear()
