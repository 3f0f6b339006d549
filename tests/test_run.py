"""A run: its states, what it says of itself while it goes on, its single end, and who still wants it."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.audience import Audience
from flask_llmstream.errors import UpstreamRateLimited
from flask_llmstream.events import Data, Progress, Reasoning, Restarted, Status, Token, Tool, Usage
from flask_llmstream.log import Log, LogFull, Reader
from flask_llmstream.run import Outcome
from flask_llmstream.runtime import current
from tests.orders import make_run
from tests.puppet import PATIENCE, eventually

COMPLETED = Outcome(state="completed", finish_reason="stop")
CALL = Tool({"id": "c1", "name": "now", "arguments": "{}"})


def said(run):
    return [json.loads(payload) for payload in run.log.entries]


def end(run, outcome=COMPLETED):
    assert run.settle(outcome)
    run.close()
    return said(run)[-1]


# States


def test_it_is_queued_then_in_progress_then_ended():
    run = make_run()
    assert (run.state, run.started_at, run.ended) == ("queued", None, False)
    run.begin()
    assert run.state == "in_progress" and run.started_at >= run.created_at
    end(run)
    assert run.state == "completed" and run.ended and run.ended_at >= run.started_at


def test_a_run_that_never_began_ends_too():
    run = make_run()
    assert end(run, Outcome(state="cancelled"))["cancelled"] is True
    assert run.state == "cancelled"


def test_the_end_is_decided_first_and_made_known_after():
    run = make_run()
    run.begin()
    run.settle(COMPLETED)
    assert not run.ended and run.state == "in_progress"
    run.close()
    assert run.ended


def test_whoever_sees_that_it_has_ended_finds_the_end_in_its_log(monkeypatch):
    """Also in the midst of closing: a client that polls stops at the first state that is an end."""
    seen = []
    run = make_run()
    run.begin()
    run.settle(COMPLETED)

    def look():
        seen.append((run.state, run.ended, run.log.entries[-1] == run.terminal))

    monkeypatch.setattr(run.audience, "close", look)
    end = Log.end
    monkeypatch.setattr(Log, "end", lambda *given: (look(), end(*given), look()))
    run.close()
    assert seen == [("in_progress", False, False), ("in_progress", False, False), ("completed", True, True)]


def test_nobody_can_close_what_is_not_settled():
    run = make_run()
    with pytest.raises(AssertionError, match="settled before"):
        run.close()
    assert not run.ended


def test_the_first_to_settle_decides():
    run = make_run()
    assert run.settle(COMPLETED)
    terminal = run.terminal
    assert not run.settle(Outcome(state="cancelled"))
    assert run.outcome is COMPLETED and run.terminal is terminal


def test_of_many_at_once_one_decides():
    for _ in range(50):
        run = make_run()
        together = threading.Barrier(6)
        decided = []

        def settle(state, run=run, together=together, decided=decided):
            together.wait()
            if run.settle(Outcome(state=state)):
                decided.append(state)
                run.close()

        threads = [
            threading.Thread(target=settle, args=(state,))
            for state in ("completed", "incomplete", "failed", "cancelled", "completed", "cancelled")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(decided) == 1
        assert run.state == decided[0]
        assert sum("done" in event or "error" in event for event in said(run)) == 1


def test_the_end_lets_go_of_what_only_the_function_needed():
    run = make_run(input={"q": 1}, data={"raw": 1}, view_args={"n": 1}, context={"c": 2})
    assert (run.input, run.context, run.view_args, run.user) == ({"q": 1}, {"c": 2}, {"n": 1}, "ann")
    end(run)
    assert run.input == {"q": 1}  # those who hear of the end may want it
    run.let_go()
    assert run.input is None and run.data is None and run.context is None and run.task is None


# What it says


def test_it_says_by_itself_what_it_is_doing():
    run = make_run()
    run.begin()
    for event in (Reasoning("so"), CALL, CALL, Token("Hel"), Token("lo"), CALL, Token("!")):
        run.say(event)
    phases = [event["status"] for event in said(run) if "status" in event]
    assert phases == ["queued", "thinking", "tool", "writing", "tool", "writing"]


def test_each_status_comes_before_what_it_announces():
    run = make_run()
    run.begin()
    run.say(Token("Hel"))
    assert said(run) == [{"status": "queued"}, {"status": "thinking"}, {"status": "writing"}, {"token": "Hel"}]


def test_a_status_that_the_function_gives_is_not_given_again():
    run = make_run()
    run.begin()
    run.say(Status("writing"))
    run.say(Token("Hel"))
    assert [event["status"] for event in said(run) if "status" in event] == ["queued", "thinking", "writing"]


def test_its_cursor_is_its_last_event():
    run = make_run()
    run.begin()
    run.say(Token("Hel"))
    assert str(run.cursor) == "r1:1-4"


@given(st.lists(st.one_of(st.text(), st.sampled_from([Data({"token": "no"}), Progress(0.5), CALL, Reasoning("no")]))))
def test_its_text_is_that_of_its_tokens(items):
    run = make_run()
    for item in items:
        run.say(Token(item) if isinstance(item, str) else item)
    assert run.text == "".join(item for item in items if isinstance(item, str))


def test_a_restart_voids_the_text_before_it():
    run = make_run()
    run.say(Token("void"))
    run.say(Restarted(2))
    run.say(Token("Hel"))
    assert run.text == "Hel"


def test_a_full_log_refuses():
    run = make_run(limit=200)
    run.begin()
    with pytest.raises(LogFull):
        run.say(Token("x" * 200))
    assert run.text == ""


# When the answer begins


@pytest.mark.parametrize("event", [Token("x"), Reasoning("x"), CALL, Progress(0.1), Data(1)], ids=repr)
def test_the_answer_begins_with_the_first_event_that_is_no_status(event):
    run = make_run()
    run.begin()
    run.say(Status("tool"))
    assert not run.answering
    run.say(event)
    assert run.answering


def test_the_answer_begins_when_the_model_takes_the_request():
    """Its readers are woken though there is no event yet."""
    run = make_run()
    reader = Reader(run.log, current().bell())
    reader.take()
    woken = threading.Thread(target=reader.bell.wait, args=(PATIENCE,))
    woken.start()
    run.meter.accepted()
    woken.join(PATIENCE / 2)
    assert run.answering and not woken.is_alive()


# Its last event


def test_the_last_event_has_figures():
    run = make_run()
    run.begin()
    run.say(Token("Hel"))
    run.say(Token("lo"))
    run.timing.created, run.timing.started = 100.0, 100.01
    run.timing.first, run.timing.last = 100.5, 101.0
    done = end(run)
    assert done.pop("total_ms") > 0
    assert done == {
        "done": True,
        "tokens": 2,
        "finish_reason": "stop",
        "queue_ms": 10.0,
        "ttft_ms": 500.0,
        "tokens_per_second": 2.0,
    }


@pytest.mark.parametrize("first", [Reasoning("so"), CALL], ids=repr)
def test_reasoning_and_tool_calls_are_first_signs_of_an_answer(first):
    run = make_run()
    run.begin()
    run.say(first)
    assert run.timing.first is not None
    assert run.timing.last is None


def test_statuses_and_progress_are_no_signs_of_an_answer():
    run = make_run()
    run.begin()
    for event in (Status("tool"), Progress(0.5), Data(1)):
        run.say(event)
    assert "ttft_ms" not in end(run)


@pytest.mark.parametrize(
    ("reckoned", "told"), [(-0.5, 0.0), (0, 0), (0.5, 0.5), (1, 1), (1.0000001, 1.0), (17, 1.0), (float("inf"), 1.0)]
)
def test_progress_goes_from_0_to_1(reckoned, told):
    """Whatever a function has reckoned: 17 of 16 pages."""
    run = make_run()
    run.begin()
    run.say(Progress(reckoned, "page 17"))
    assert said(run)[-1] == {"progress": told, "message": "page 17"}
    assert run.progress == {"progress": told, "message": "page 17"}


def test_a_function_that_announces_its_writing_has_figures_too():
    run = make_run()
    run.begin()
    run.say(Status("writing"))
    run.say(Token("Hel"))
    assert "ttft_ms" in end(run)


def test_what_the_provider_counted_goes_before_what_was_counted_here():
    run = make_run()
    run.say(Token("Hello, world"))
    run.meter.usage = Usage(7, 3)
    done = end(run)
    assert done["tokens"] == 3
    assert done["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}


def test_a_result_is_in_the_last_event():
    assert end(make_run(), Outcome(state="completed", result={"a": [1]}))["result"] == {"a": [1]}


def test_an_error_is_told_as_a_problem_with_what_was_consumed():
    run = make_run()
    run.say(Token("Hel"))
    run.meter.usage = Usage(7, 1, estimated=True)
    error = UpstreamRateLimited("Slow down.", retry_after=3, diagnosis="sk-secret")
    failed = end(run, Outcome(state="failed", error=error))
    assert failed["error"] == "Slow down."
    assert failed["problem"] == error.problem()
    assert (failed["tokens"], failed["usage"]["estimated"]) == (1, True)
    assert "done" not in failed and "sk-secret" not in json.dumps(failed)


def test_an_error_that_json_cannot_hold_ends_it_all_the_same(caplog):
    run = make_run()
    failed = end(run, Outcome(state="failed", error=UpstreamRateLimited(region=object())))
    assert failed["problem"]["type"].endswith("invalid-output")
    assert run.state == "failed" and "JSON cannot hold" in caplog.text


def test_an_end_that_others_do_not_find_says_so():
    run = make_run()
    run.settle(COMPLETED)
    run.close(durable=False)
    assert said(run)[-1]["durable"] is False and "durable" not in json.loads(run.terminal)
    assert run.state == "completed"


def test_an_end_that_another_process_has_decided_is_the_one_that_readers_hear():
    """However this one would have ended it."""
    run = make_run()
    run.say(Token("Hel"))
    reader = Reader(run.log, current().bell(), epoch=1)
    run.settle(COMPLETED)
    assert run.decided == "completed"
    problem = UpstreamRateLimited().problem()
    run.close_as(2, json.dumps({"error": "It was left.", "problem": problem}).encode())
    assert (run.superseded, run.state, run.decided, str(run.cursor)) == (True, "failed", "failed", "r1:2-1")
    assert run.text == "Hel"
    assert len(reader.take()) == 3 and len(reader.take()) == 1 and reader.finished


# Who still wants it


class Abandoned(list):
    def __call__(self):
        self.append(1)


def settled():
    """Return when every timer of at most 0.1 s that has been set by now has had its turn: they share one loop."""
    over = threading.Event()
    current().timers.after(0.1, over.set)
    assert over.wait(PATIENCE)


def test_without_grace_it_is_abandoned_when_the_last_reader_leaves():
    abandoned = Abandoned()
    audience = Audience(0, abandoned)
    audience.join()
    audience.join()
    audience.leave()
    assert abandoned == []
    audience.leave()
    assert abandoned == [1]


def test_none_waits_for_ever():
    abandoned = Abandoned()
    audience = Audience(None, abandoned)
    audience.join()
    audience.leave()
    settled()
    assert abandoned == []


def test_after_the_grace_time_it_is_abandoned_once():
    abandoned = Abandoned()
    audience = Audience(0.02, abandoned)
    audience.join()
    audience.leave()
    assert abandoned == []
    eventually(lambda: abandoned)
    settled()
    assert abandoned == [1]


def test_who_comes_back_in_time_keeps_it_and_each_absence_has_the_whole_grace_time():
    audience = Audience(3600, Abandoned())
    timers = []
    for _ in range(3):
        audience.join()
        assert all(timer.action is None for timer in timers)
        audience.leave()
        timers.append(audience._timer)
        assert timers[-1].action is not None
    audience.close()


@pytest.mark.parametrize("grace", [0, 0.02])
def test_nobody_can_abandon_what_has_ended(grace):
    abandoned = Abandoned()
    audience = Audience(grace, abandoned)
    audience.join()
    audience.join()
    audience.leave()
    audience.close()
    audience.leave()
    settled()
    assert abandoned == []


def test_the_end_calls_off_a_grace_time_that_runs():
    abandoned = Abandoned()
    audience = Audience(3600, abandoned)
    audience.join()
    audience.leave()
    on_its_way = audience._timer.action
    timer = audience._timer
    audience.close()
    assert timer.action is None
    on_its_way()
    assert abandoned == []


def test_who_comes_back_while_the_timer_is_on_its_way_keeps_it():
    abandoned = Abandoned()
    audience = Audience(10, abandoned)
    audience.join()
    audience.leave()
    on_its_way = audience._timer.action
    audience.join()
    on_its_way()
    assert abandoned == []
    audience.close()
