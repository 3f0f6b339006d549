from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.events import Data, Done, Event, Failed, Progress, Reasoning, Restarted, Status, Token, Tool
from flask_llmstream.outbox import Outbox


def filled(n: int, *, most: int = 100) -> Outbox:
    outbox = Outbox(most)
    for _ in range(n):
        outbox.add("pong")
    return outbox


def taken(outbox: Outbox) -> list[int]:
    """The numbers of all messages that are to be sent now."""
    numbers = []
    while (message := outbox.take()) is not None:
        numbers.append(json.loads(message)["seq"])
    return numbers


def test_messages_are_numbered_from_one():
    outbox = Outbox()
    outbox.add("ready", session="s", length=3600.0)
    outbox.add("speech_started", at_ms=120)
    assert json.loads(outbox.take() or b"") == {"type": "ready", "seq": 1, "session": "s", "length": 3600.0}
    assert json.loads(outbox.take() or b"") == {"type": "speech_started", "seq": 2, "at_ms": 120}
    assert outbox.take() is None
    assert outbox.last == 2


EVENTS: list[tuple[Event, str, dict[str, Any]]] = [
    (Token('He said: "hi"'), "token", {"token": 'He said: "hi"'}),
    (Status("thinking"), "status", {"status": "thinking"}),
    (Reasoning("so"), "reasoning", {"reasoning": "so"}),
    (
        Tool({"id": "1", "name": "look", "arguments": "{}"}),
        "tool",
        {"tool": {"id": "1", "name": "look", "arguments": "{}"}},
    ),
    (Progress(0.5, "half"), "progress", {"progress": 0.5, "message": "half"}),
    (Data({"type": "mine", "seq": 7, "run": "r"}), "data", {"data": {"type": "mine", "seq": 7, "run": "r"}}),
    (Restarted(2), "restarted", {"restarted": 2}),
    (Done(done=True, tokens=3, heard="He"), "done", {"done": True, "tokens": 3, "heard": "He"}),
    (Failed(error="no", problem={"status": 500}, tokens=0), "error", {"error": "no", "problem": {"status": 500}}),
]


@pytest.mark.parametrize(("event", "kind", "fields"), EVENTS, ids=[kind for _, kind, _ in EVENTS])
def test_event_of_a_run_is_passed_on_with_its_kind_and_its_run(event, kind, fields):
    outbox = Outbox()
    outbox.add_event("run_1", event.encode())
    message = json.loads(outbox.take() or b"")
    expected = {"type": kind, "seq": 1, "run": "run_1", **fields}
    assert message | expected == message
    assert list(message)[:3] == ["type", "seq", "run"]


def test_what_was_not_acknowledged_is_sent_again():
    outbox = filled(5)
    assert taken(outbox) == [1, 2, 3, 4, 5]
    outbox.acknowledge(2)
    assert outbox.rewind(3)
    assert taken(outbox) == [4, 5]


def test_what_was_acknowledged_is_gone():
    outbox = filled(5)
    taken(outbox)
    outbox.acknowledge(3)
    assert not outbox.rewind(2)
    assert outbox.rewind(3)


def test_client_that_claims_more_than_there_is_cannot_go_on():
    outbox = filled(2)
    assert not outbox.rewind(3)
    with pytest.raises(ValueError, match="message 3 is acknowledged, and the last one is 2"):
        outbox.acknowledge(3)
    assert taken(outbox) == [1, 2]


def test_acknowledging_twice_or_less_is_nothing():
    outbox = filled(4)
    taken(outbox)
    for last in (3, 3, 1, 0):
        outbox.acknowledge(last)
    assert outbox.rewind(3)
    assert taken(outbox) == [4]


def test_what_a_client_claims_to_have_is_not_sent():
    outbox = filled(4)
    outbox.acknowledge(2)
    assert taken(outbox) == [3, 4]


def test_it_is_overfull_when_more_is_kept_than_may_be():
    outbox = filled(4, most=4)
    assert not outbox.overfull
    outbox.add("pong")
    assert outbox.overfull
    outbox.acknowledge(1)
    assert not outbox.overfull


STEPS = st.one_of(
    st.just(("add", 0)),
    st.just(("send", 0)),
    st.tuples(st.sampled_from(["acknowledge", "reconnect"]), st.integers(0, 9)),
)


@given(st.lists(STEPS, max_size=40))
def test_client_gets_every_message_once_and_in_order(steps):
    """However lines break: it has all up to some number, and says so, now or when it comes back."""
    outbox, got, acknowledged = Outbox(), 0, 0
    on_the_way: list[int] = []
    for step, n in steps:
        if step == "add":
            outbox.add("pong")
        elif step == "send" and (message := outbox.take()) is not None:
            on_the_way.append(json.loads(message)["seq"])
        elif step == "acknowledge":
            arrived, on_the_way = on_the_way[:n], on_the_way[n:]
            assert arrived == list(range(got + 1, got + 1 + len(arrived)))
            got += len(arrived)
            acknowledged = max(acknowledged, got - n % 3)
            outbox.acknowledge(acknowledged)
        elif step == "reconnect":  # what was on the way is lost
            on_the_way.clear()
            assert outbox.rewind(got)
            acknowledged = got
    assert outbox.rewind(got)
    assert taken(outbox) == list(range(got + 1, outbox.last + 1))
