"""Bursts are spread over frames, and nothing is more than 400 ms behind."""

from __future__ import annotations

import threading

import pytest

from tests.client.server import Pause, Wait, done, opening, sse, token, tokens

pytestmark = pytest.mark.needs("chromium")

# When each token was handed out, in milliseconds from the first byte's arrival (the opening's id makes no event).
TIMED = """async ([options, hidden]) => {
    const times = [];
    if (hidden) Object.defineProperty(document, 'visibilityState', { value: 'hidden' });
    const run = stream('/chat', {}, { ...options, onToken: () => times.push(performance.now()) });
    await run.done;
    times.push(performance.now());
    return { text: run.text, times: times.map((time) => time - times[0]) };
}"""


def test_burst_is_spread_over_frames_in_order(page, server):
    text = "".join(chr(ord("a") + n % 26) for n in range(200))
    server.will("POST /chat", sse(opening(), tokens(text) + done(201)))
    run = page.evaluate(TIMED, [{}, False])
    assert run["text"] == text
    *times, end = run["times"]
    assert len({round(time) for time in times}) >= 5, "handed out in fewer than 5 frames"
    assert end < 400 + 100, "the end came later than that"  # a crowded machine gets 100 ms


@pytest.mark.parametrize(("options", "hidden"), [({"pace": False}, False), ({}, True)], ids=["off", "hidden"])
def test_without_pacing_a_burst_is_there_at_once(page, server, options, hidden):
    server.will("POST /chat", sse(opening(), tokens("x" * 200) + done(201)))
    page.evaluate("window.requestAnimationFrame = () => { window.framed = true; return 1; }, 0")
    assert page.evaluate(TIMED, [options, hidden])["text"] == "x" * 200
    assert not page.evaluate("window.framed"), "it waited for a frame"


def test_tokens_that_come_one_by_one_are_not_held(page, server):
    """Each is there before the next is sent, though frames never come."""
    arrived = [threading.Event() for _ in range(6)]
    steps = [step for n, event in enumerate(arrived, 1) for step in (token(n, "x"), Wait(event))]
    server.will("POST /chat", sse(opening(), *steps, done(len(arrived) + 1)))
    page.evaluate("window.requestAnimationFrame = () => { window.framed = true; return 1; }, 0")
    page.evaluate("window.run = stream('/chat'), 0")
    for n, event in enumerate(arrived, 1):
        page.evaluate(f"until(() => run.text.length === {n}).then(() => moment(20))")
        event.set()
    page.evaluate("outcome(run)")
    assert page.evaluate("window.framed") is None


def test_frames_that_stop_coming_stop_nothing(page, server):
    """As in a frame that is scrolled out of sight."""
    server.will("POST /chat", sse(opening(), tokens("x" * 50), done(51)))
    page.evaluate("window.requestAnimationFrame = () => 1, 0")
    run = page.evaluate(TIMED, [{}, False])
    assert run["text"] == "x" * 50
    assert run["times"][-1] < 500


def test_page_that_is_hidden_amid_a_burst_gets_the_rest(page, server):
    server.will("POST /chat", sse(opening(), tokens("x" * 200), Pause(3), done(201)))
    text = page.evaluate("""async () => {
        const run = stream('/chat');
        await until(() => run.text);
        Object.defineProperty(document, 'visibilityState', { value: 'hidden' });
        document.dispatchEvent(new Event('visibilitychange'));
        return run.text;
    }""")
    assert len(text) == 200


def test_text_and_cursor_say_the_same(page, server):
    server.will("POST /chat", sse(opening(), tokens("x" * 200) + done(201)))
    wrong = page.evaluate("""async () => {
        let wrong = 0;
        const run = stream('/chat', {}, {
            onToken: () => { if (run.cursor !== `r1:1-${run.text.length}`) wrong += 1; },
        });
        await run.done;
        return wrong;
    }""")
    assert wrong == 0
