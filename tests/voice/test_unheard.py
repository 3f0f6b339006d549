"""What nobody has heard was never said: not in the history, not to the application, not to the model."""

from __future__ import annotations

from flask_llmstream import Run, run_ended
from flask_llmstream.audio import Format
from flask_llmstream.delivery import Delivery
from tests.puppet import Puppet, eventually
from tests.voice.caller import LOUD, QUIET
from tests.voice.desk import WORD, Script, desk, words

ANSWER = "One two three four five six seven eight nine ten eleven twelve."


class Nobody:
    """A line of which nothing comes back."""

    def send(self, data: str | bytes) -> None:
        pass

    def close(self, code: int = 1000, reason: str = "") -> None:
        pass


def test_answer_that_was_begun_early_is_gone_with_the_call():
    script = Script("what is the weather", partial=True)
    with desk(model=Puppet(words("It rains.")), voice={"transcriber": script, "anticipates": True}) as calls:
        phone = calls.dial()
        phone.sound(LOUD, 400)
        phone.sound(QUIET, 300)
        eventually(lambda: calls.record.registry.live)
        phone.tell("end")
        phone.hung_up()
        eventually(lambda: not calls.record.registry.live)
        url = f"/api/conversations/{phone.of('ready')[0]['conversation']}"

        def is_gone() -> bool:
            response = calls.app.test_client().get(url, headers={"X-User": "ann"})
            return response.status_code == 404 or response.json["messages"] == []

        eventually(is_gone)
        assert not phone.of("run")


def test_application_is_told_what_was_heard():
    told: list[tuple[str, str | None, str]] = []
    with desk(model=Puppet(words(ANSWER), ["Fine."])) as calls:

        @run_ended.connect_via(calls.app)
        def ended(sender: object, run: Run, text: str, **more: object) -> None:
            told.append((text, run.heard, run.text))

        phone = calls.dial(until=2 * WORD)
        phone.tell("message", text="count")
        phone.until_true(lambda: phone.samples == 2 * WORD)
        phone.tell("interrupt")
        phone.expect("turn")
        phone.play(None)
        phone.tell("message", text="well")
        phone.expect("turn")
    assert told == [("One two", "One two", ANSWER), ("Fine.", None, "Fine.")]


def test_model_is_told_what_was_heard_of_an_answer_that_goes_on():
    with desk(model=Puppet(words(ANSWER))) as calls:
        phone = calls.dial(until=2 * WORD)
        phone.tell("message", text="count")
        phone.until_true(lambda: phone.samples == 2 * WORD)
        record, [session] = calls.record, calls.record.sessions._sessions.values()

        def known() -> list[str]:
            conversation = phone.of("ready")[0]["conversation"]
            _, messages = record.conversations.recall(
                session.owner,
                conversation,
                None,
                room=1000,
                so_far=lambda run_id: record._text_so_far(run_id, session.owner),
            )
            return [message["content"] for message in messages]

        eventually(lambda: known() == ["count", "One two"])
        phone.play(None)
        phone.expect("turn")
        assert known() == ["count", ANSWER]


def test_silence_after_a_false_alarm_is_timed_by_its_own_flush():
    with desk("", model=Puppet(words(ANSWER))) as calls:
        phone = calls.dial(until=WORD)
        phone.tell("message", text="count")
        phone.until_true(lambda: phone.samples == WORD)
        phone.say(ms=200)
        phone.expect("speaking", continues=True)
        phone.flushes = False
        phone.tell("interrupt")
        assert "silence_ms" not in phone.expect("turn")["timing"]


def test_late_answer_to_an_earlier_flush_is_none_to_the_next():
    delivery = Delivery(Format("pcm16", 24000))
    delivery.attach(Nobody())
    playout = delivery.page()
    playout.sentence(ANSWER, 0)
    playout.add(bytes(2 * 24000))
    delivery.begin("run", playout)
    first = delivery.generation
    for generation in (first, first + 1):
        assert delivery._packet()
        delivery.played(generation, 480)
        delivery.hush("speech")
        assert not delivery.silent
        assert delivery.flushed_at is None
        if generation == first:
            delivery.go_on()
    delivery.flushed(first, 480)
    assert not delivery.silent
    delivery.flushed(first + 1, 960)
    assert delivery.silent
    assert delivery.flushed_at is not None
    assert playout.samples_heard == 480 + 960 - 480 + 480


def test_flush_before_anything_of_it_was_heard_may_be_answered_with_what_was_heard_before():
    delivery = Delivery(Format("pcm16", 24000))
    delivery.attach(Nobody())
    playout = delivery.page()
    playout.add(bytes(2 * 24000))
    delivery.begin("run", playout)
    delivery.hush("interrupt")
    delivery.flushed(0, 0)
    assert delivery.silent
