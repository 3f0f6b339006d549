"""One click, one run: which calls share an idempotency key."""

from __future__ import annotations

import threading

import pytest

from tests.client.server import Wait, done, opening, plain, problem, sse, token

pytestmark = pytest.mark.needs("chromium")


def test_same_question_while_one_is_open_shares_its_key(page, server):
    go_on = threading.Event()
    answer = sse(opening(), token(1, "Hi"), Wait(go_on), done(2))
    server.will("POST /chat", answer, answer)
    page.evaluate("window.both = [stream('/chat', {q: 1}), stream('/chat', {q: 1})]")
    server.wait_for("POST /chat", 2)
    go_on.set()
    first, second = page.evaluate("Promise.all(both.map(outcome))")
    assert first["key"] == second["key"]
    assert first["tokens"] == second["tokens"] == ["Hi"]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_other_question_other_key(page, server):
    server.will("POST /chat", *[sse(opening(), done(1))] * 2)
    server.will("POST /other", sse(opening(), done(1)))
    runs = "stream('/chat', {q: 1}), stream('/chat', {q: 2}), stream('/other', {q: 1})"
    keys = page.evaluate(f"Promise.all([{runs}].map(outcome))")
    assert len({run["key"] for run in keys}) == 3


@pytest.mark.parametrize("answer", [sse(opening(), done(1)), problem(500, "feature-failed")], ids=["end", "error"])
def test_asked_again_after_it_ended_it_is_another_run(page, server, answer):
    server.will("POST /chat", answer, sse(opening(), done(1)))
    keys = page.evaluate("""async () => {
        const again = new Promise((resolve) => {
            const first = stream('/chat', {q: 1}, {onState(state) {
                if (state === 'completed' || state === 'failed') resolve([first, stream('/chat', {q: 1})]);
            }});
        });
        return (await Promise.all((await again).map(outcome))).map((run) => run.key);
    }""")
    assert keys[0] != keys[1]


def test_asked_again_once_stop_was_pressed_it_is_another_run(page, server):
    cancelled = threading.Event()
    first = sse(opening(), Wait(cancelled), done(1, cancelled=True))
    server.will("POST /chat", first, sse(opening(run="r2"), done(1), location="/runs/r2"))
    server.will("POST /runs/r1/cancel", plain(200, b"{}"))
    page.evaluate("window.first = stream('/chat', {q: 1})")
    server.wait_for("POST /chat")
    page.evaluate("window.stopping = first.stop(), window.second = stream('/chat', {q: 1}), 0")
    server.wait_for("POST /runs/r1/cancel")
    cancelled.set()
    keys = page.evaluate("Promise.all([first, second].map(outcome)).then((runs) => runs.map((run) => run.key))")
    assert keys[0] != keys[1]


def test_given_key_is_used_and_shared(page, server):
    server.will("POST /chat", *[sse(opening(), done(1))] * 2)
    key = "3q2-7wAAAAAAAAAAAAAAAA"
    runs = page.evaluate(f"Promise.all([stream('/chat', 1, {{key: '{key}'}}), stream('/chat', 1)].map(outcome))")
    assert [run["key"] for run in runs] == [key, key]
    assert {request.headers["idempotency-key"] for request in server.requests} == {key}
