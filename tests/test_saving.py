"""An application that saves answers when `run_ended` tells it: what it finds on the run, however long it takes."""

from __future__ import annotations

import threading

from flask_llmstream import run_ended
from tests.conversation import QUESTION, ask, events
from tests.puppet import PATIENCE, Puppet, stage


def test_a_slow_receiver_still_has_what_was_asked(monkeypatch):
    """Whoever saves a conversation needs its question too; a database may take longer than a client waits."""
    monkeypatch.setattr("flask_llmstream.ending.END_WAITS", 0.01)
    told, saved = threading.Event(), threading.Event()
    found = []

    def save(sender, run, text, **_):
        assert told.wait(PATIENCE)
        found.append((run.input, run.context, text))
        saved.set()

    with stage(hooks={"context": lambda: {"room": "kitchen"}}) as (app, _), run_ended.connected_to(save, sender=app):
        events(ask(app))  # the client has been told of the end by now
        told.set()
        assert saved.wait(PATIENCE)
    ((question, context, answer),) = found
    assert question is not None
    assert question.messages == QUESTION["messages"]
    assert context == {"room": "kitchen"}
    assert answer == "Hello"


def test_timing_is_that_of_the_done_event():
    """Queue time, time to first token, total and rate: once for the client, once for the application."""
    times = []

    def save(sender, run, **_):
        timing = run.timing
        rate = timing.tokens_per_second
        times.append((timing.queue_ms, timing.ttft_ms, timing.total_ms, rate))

    with stage(Puppet(["Hel", "lo"])) as (app, _), run_ended.connected_to(save, sender=app):
        done = events(ask(app))[-1]
    assert times == [(done["queue_ms"], done["ttft_ms"], done["total_ms"], done["tokens_per_second"])]
    assert 0 <= done["queue_ms"] <= done["ttft_ms"] <= done["total_ms"]
