"""The limits of a user hold for their calls as well."""

from __future__ import annotations

from tests.puppet import Pause, Puppet, eventually
from tests.voice.desk import Script, desk, words


def test_quota_that_is_used_up_ends_the_call():
    script = Script(*["hello there"] * 9)
    with desk(model=Puppet(words("Answer.")), voice={"transcriber": script}, STARTS_PER_USER="1/day") as calls:
        phone, other = calls.dial(), calls.dial(owner="bob")
        phone.say()
        phone.expect("turn")
        phone.say()
        assert phone.expect("problem")["problem"]["limit"] == "starts"
        assert phone.hung_up() == (4429, "You have asked for as many answers as you may at a time. Try again later.")
        other.say()
        other.expect("turn")
        assert len(script.heard) == 3


def test_user_has_as_many_calls_as_runs():
    with desk(MAX_RUNS_PER_USER=1) as calls:
        phone = calls.dial()
        second = calls.dial(ready=False)
        assert second.expect("problem")["problem"]["status"] == 429
        assert second.hung_up()[0] == 4429
        calls.dial(owner="bob")
        [session] = (
            call for call in calls.record.sessions._sessions.values() if call.id == phone.of("ready")[0]["session"]
        )
        phone.line.cut()
        eventually(lambda: not session.dialogue.delivery.attached)
        third = calls.dial()  # as where a page is loaded anew
        third.tell("message", text="hello")
        third.expect("turn")
        assert len(calls.record.sessions) == 2


def test_messages_that_are_written_faster_than_they_are_answered():
    pause = Pause()
    with desk(model=Puppet([pause], ["Fine."])) as calls:
        phone = calls.dial()
        for n in range(10):
            phone.tell("message", text=f"message {n}")
        problem = phone.expect("problem")["problem"]
        assert (problem["status"], problem["limit"]) == (429, "conversation")
        [session] = calls.record.sessions._sessions.values()
        assert len(session.dialogue._answers) <= 5
        pause.go_on()
        phone.expect("turn")
        assert phone.closed is None
