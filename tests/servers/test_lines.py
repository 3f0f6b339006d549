"""The client over a mobile line that delays, stalls, goes silent and breaks at random bytes: the page has the whole
answer in the end, nothing is lost and nothing doubled, and the model was asked once."""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import Browser

from flask_llmstream.testing import Schedule
from tests.line import End, Line, Reset, Silence, Stall, Trouble

pytestmark = pytest.mark.needs("chromium")

FOLLOW = """async (seed) => {
  const { stream } = await import("/quick/api/llmstream.js");
  const events = [];
  const states = new Set();
  const run = stream("/quick/api/patient", { messages: [{ role: "user", content: `seed ${seed}` }] }, {
    pace: false,
    connectTimeout: 2000,
    onEvent: (event, id) => events.push(id),
    onState: (state) => states.add(state),
  });
  const tokens = [];
  for await (const token of run) tokens.push(token);
  const { text } = await run.done;
  return { text, tokens, events, states: [...states], state: run.state };
}"""


def troubles(seed: int) -> list[Trouble]:
    """Three broken responses and a stalled one, at random bytes; the first may break before it has begun."""
    dice = random.Random(seed)
    broken: list[Trouble] = [
        dice.choice([Reset, End, Silence])(after=dice.randrange(least, 2500)) for least in (0, 800, 800)
    ]
    return [*broken[:2], Stall(after=dice.randrange(2500), seconds=0.3), broken[2]]


@pytest.mark.parametrize("seed", range(4))
def test_whole_answer_over_a_bad_line(browser: Browser, gevent_server, upstream, seed):
    upstream.schedule = schedule = Schedule(tokens=80, rate=80)
    with Line(gevent_server.address, *troubles(seed), delay=0.01) as line, browser.new_context() as context:
        page = context.new_page()
        page.goto(line.url)
        got = page.evaluate(FOLLOW, seed)
    assert "".join(got["tokens"]) == got["text"] == schedule.text
    assert len(set(got["events"])) == len(got["events"])
    assert got["state"] == "completed"
    assert "reconnecting" in got["states"]
    assert len(upstream.requests) == 1
