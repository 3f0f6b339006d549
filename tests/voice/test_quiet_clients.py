"""A client that hears nothing, or acknowledges nothing, holds up its own answer and nothing else."""

from __future__ import annotations

import re

from flask_llmstream.outbox import AHEAD, AHEAD_BYTES, Outbox
from tests.puppet import Pause, Puppet, eventually
from tests.voice.desk import WORD, desk, words


def test_answer_that_nobody_hears_is_ended_and_the_call_goes_on(monkeypatch):
    monkeypatch.setattr("flask_llmstream.sessions.LOOKED_AT", 0.02)
    monkeypatch.setattr("flask_llmstream.dialogue.STUCK", 0.2)
    with desk(model=Puppet(words("One two three four five six."), ["Fine."])) as calls:
        phone = calls.dial(until=0)
        phone.tell("message", text="count")
        phone.expect("speaking")
        phone.expect("flush", reason="interrupt")
        phone.expect("interrupted", heard="")
        phone.expect("turn")
        phone.play(None)
        phone.tell("message", text="are you there")
        phone.expect("token", token="Fine.")
        phone.expect("turn")


def test_answer_that_is_silent_by_itself_has_its_listener(monkeypatch):
    monkeypatch.setattr("flask_llmstream.sessions.LOOKED_AT", 0.02)
    monkeypatch.setattr("flask_llmstream.dialogue.STUCK", 0.05)
    pause = Pause()
    with desk(model=Puppet(["One two. Three", pause, " four."])) as calls:
        phone = calls.dial(until=2 * WORD)
        phone.tell("message", text="count")
        phone.until_true(lambda: phone.samples == 2 * WORD)
        [session] = calls.record.sessions._sessions.values()
        began = session._began
        eventually(lambda: session.dialogue._full_since > began + 0.2)  # it has been looked at for that long
        phone.until = None
        pause.go_on()
        phone.expect("turn")
        assert not phone.of("flush")
        assert phone.samples == 4 * WORD


def test_long_code_waits_for_the_client_which_is_not_hung_up_on():
    text = "Here it is.\n\n```python\n" + "x = 1\n" * 1500 + "```\n\nThat is all."
    tokens = re.findall(r"\S+\s*", text)
    with desk(model=Puppet(tokens)) as calls:
        phone = calls.dial()
        phone.tell("message", text="write a program")
        [session] = calls.record.sessions._sessions.values()
        most = 0
        while not phone.of("turn"):
            seq = phone.seq
            most = max(most, len(session.dialogue.delivery.outbox._kept))
            phone.tell("played", generation=phone.generation or 0, samples=phone.samples, seq=seq)
            phone.until_true(lambda seq=seq: phone.seq > seq + 500 or phone.of("turn"))
        assert phone.closed is None
        assert "".join(message["token"] for message in phone.of("token")) == text
        assert most < AHEAD + 100


def test_outbox_has_room_by_number_and_by_size():
    outbox = Outbox()
    for _ in range(AHEAD):
        assert outbox.has_room()
        outbox.add("status")
    assert not outbox.has_room()
    outbox.acknowledge(1)
    assert outbox.has_room()
    assert not outbox.has_room(1)
    outbox.acknowledge(AHEAD)
    outbox.add("data", data="x" * AHEAD_BYTES)
    assert not outbox.has_room()
    assert not outbox.overfull
    for _ in range(16):
        outbox.add("data", data="x" * AHEAD_BYTES)
    assert outbox.overfull
    assert outbox.rewind(outbox.last)
    assert outbox.has_room()
