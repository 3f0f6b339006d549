"""The model that is none: honest, at a real model's pace, and as easy to interrupt as one on a socket."""

import itertools
import logging
import math
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_llmstream.errors import (
    ContentFiltered,
    RunCancelled,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from flask_llmstream.events import Reasoning, Token, Tool
from flask_llmstream.providers import Call, Model, Timeouts
from flask_llmstream.providers.simulated import COMMANDS, Simulated, parse_commands, pieces


@pytest.fixture
def model() -> Simulated:
    """One that does not wait, so that a test sees what is said and not when."""
    return Simulated(first_token=0, rate=math.inf, seed=1)


def ask(question: str, **more: object) -> Call:
    return Call(messages=[{"role": "user", "content": question}], **more)  # type: ignore[arg-type]


def text_of(events: list[object]) -> str:
    return "".join(event.token for event in events if isinstance(event, Token))


def test_it_is_a_model(model):
    filled: Model = model
    assert filled.name == "simulation"


def test_the_first_answer_of_a_conversation_says_that_it_is_a_simulation(model):
    first = text_of(list(model.stream(ask("Hello"))))
    assert "simulation" in first and "OPENAI_API_KEY" in first and "OPENAI_BASE_URL" in first

    later = Call(
        messages=[
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "Go on"},
        ]
    )
    assert "OPENAI_API_KEY" not in text_of(list(model.stream(later)))


def test_the_log_says_it_once(model, caplog):
    caplog.set_level(logging.WARNING)
    model.warm()
    list(model.stream(ask("Hello")))
    list(model.stream(ask("Hello again")))
    said = [record for record in caplog.records if "simulation" in record.message]
    assert len(said) == 1
    assert "OPENAI_API_KEY" in said[0].message


def test_the_answer_fits_the_words_of_the_question(model):
    assert "```python" in text_of(list(model.stream(ask("Show me some code"))))
    assert "|---|" in text_of(list(model.stream(ask("Compare them, please"))))
    assert "```http" in text_of(list(model.stream(ask("Why do you STREAM?"))))
    assert "](https://" in text_of(list(model.stream(ask("Show me some code"))))


def test_a_question_in_content_parts_is_read(model):
    parts = [{"type": "text", "text": "Show me some code"}]
    assert "```python" in text_of(list(model.stream(Call(messages=[{"role": "user", "content": parts}]))))


def test_a_seed_repeats_an_answer_and_no_seed_varies_it():
    def openings(seed: int | None) -> set[str]:
        answers = [
            text_of(list(Simulated(first_token=0, rate=math.inf, seed=seed).stream(ask("Compare A and B"))))
            for _ in range(40)
        ]
        return set(answers)

    assert len(openings(7)) == 1
    assert len(openings(None)) > 1


def test_pieces_lose_nothing():
    text = "Tokens:\r\n\n  déjà-vu, 日本語 and 🎉!\tan  extraordinarily long_word\n"
    assert "".join(pieces(text)) == text
    assert max(map(len, pieces(text))) <= 9


def test_usage_and_the_reason_of_the_end_are_reported(model):
    call = ask("/think Show me some code")
    events = list(model.stream(call))
    assert call.finish_reason == "stop"
    assert call.usage is not None
    assert call.usage.completion_tokens == len(events)
    assert call.usage.reasoning_tokens == sum(isinstance(event, Reasoning) for event in events) > 10
    assert call.usage.prompt_tokens == len(pieces("/think Show me some code"))


def test_max_tokens_cuts_the_answer(model):
    call = ask("/long", max_tokens=17)
    assert len(list(model.stream(call))) == 17
    assert call.finish_reason == "length"
    assert call.usage is not None and call.usage.completion_tokens == 17


def test_max_tokens_that_suffice_cut_nothing(model):
    call = ask("/echo one two", max_tokens=2)
    assert text_of(list(model.stream(call))) == "one two"
    assert call.finish_reason == "stop"


def test_a_reply_is_the_whole_answer(model):
    call = ask("/echo Hello there")
    assert model.reply(call).text == "Hello there"
    assert call.finish_reason == "stop"


def test_the_model_accepts_before_it_answers(model):
    accepted = []
    call = ask("/echo Hello", on_accepted=lambda: accepted.append(True))
    events = model.stream(call)
    next(events)
    assert accepted == [True]
    events.close()
    assert call.abort is None


@pytest.mark.parametrize(
    ("question", "commands", "rest"),
    [
        ("How do plants fail?", {}, "How do plants fail?"),
        ("/fail", {"/fail": ""}, ""),
        ("/fail midway please", {"/fail": "midway"}, "please"),
        ("/fail first", {"/fail": ""}, "first"),
        ("/stall 5 /think\nWhy?", {"/stall": "5", "/think": ""}, "Why?"),
        ("/stall midway", {"/stall": ""}, "midway"),
        ("/echo /nonsense", {"/echo": ""}, "/nonsense"),
        ("/failing", {}, "/failing"),
    ],
)
def test_commands_open_a_question(question, commands, rest):
    assert parse_commands(question) == (commands, rest)


def test_the_notice_names_every_command(model):
    notice = text_of(list(model.stream(ask("Hello"))))
    assert all(f"`{command}`" in notice for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "error"),
    [("/fail", UpstreamUnavailable), ("/fail limit", UpstreamRateLimited), ("/fail filter", ContentFiltered)],
)
def test_it_fails_before_the_first_word(model, command, error):
    accepted = []
    with pytest.raises(error):
        list(model.stream(ask(command, on_accepted=lambda: accepted.append(True))))
    assert accepted == []


@pytest.mark.parametrize("question", ["/fail midway", "/fail midway /echo short"])
def test_it_fails_midway(model, question):
    seen = []
    with pytest.raises(UpstreamTruncated):
        seen.extend(model.stream(ask(question)))
    assert text_of(seen)


def test_it_asks_for_a_tool(model):
    call = ask("/tool weather in Bergen")
    events = list(model.stream(call))
    assert isinstance(events[-1], Tool)
    assert events[-1].tool["name"] == "search"
    assert "weather in Bergen" in events[-1].tool["arguments"]
    assert call.finish_reason == "tool_calls"
    assert len(model.reply(ask("/tool weather")).tool_calls) == 1


@pytest.mark.parametrize("question", ["/stall first", "/stall", "/long"])
def test_cancel_from_another_thread_ends_it_at_once(question):
    model = Simulated(first_token=0, rate=1000)
    call = ask(question)
    waiting = threading.Event()

    def consume() -> float:
        with pytest.raises(RunCancelled):
            for number, _ in enumerate(model.stream(call)):
                if number == 20:
                    waiting.set()
        return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(consume)
        if question == "/stall first":
            while call.abort is None:
                time.sleep(0.001)
        else:
            assert waiting.wait(5)
        asked = time.monotonic()
        call.cancel()
        assert left.result(timeout=5) - asked < 0.5
    assert call.abort is None


def test_a_call_that_was_cancelled_before_it_began_says_nothing(model):
    call = ask("Hello")
    call.cancel()
    with pytest.raises(RunCancelled):
        list(model.stream(call))


def test_killing_its_greenlet_ends_it_at_once():
    program = """
        from gevent import monkey; monkey.patch_all()
        import gevent
        from flask_llmstream.providers import Call
        from flask_llmstream.providers.simulated import Simulated

        model, seen = Simulated(first_token=0, rate=1000), []

        def consume(command):
            for event in model.stream(Call(messages=[{"role": "user", "content": command}])):
                seen.append(event)

        stalled = [gevent.spawn(consume, command) for command in ("/stall first", "/stall", "/long")]
        with gevent.Timeout(10):
            while len(seen) < 50:
                gevent.sleep(0.001)
            gevent.killall(stalled)
        assert all(one.dead for one in stalled)
        print("all gone")
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30)
    assert ended.stdout.strip() == "all gone", ended.stderr


@pytest.mark.parametrize(
    ("question", "timeouts", "phase"),
    [
        ("/stall first", Timeouts(first_token=0.05), "first_token"),
        ("/stall", Timeouts(idle=0.05), "idle"),
        ("/stall 5", Timeouts(idle=0.05), "idle"),
        ("/stall", Timeouts(idle=None, total=0.05), "total"),
    ],
)
def test_time_outs_are_those_of_the_call(question, timeouts, phase):
    model = Simulated(first_token=0, rate=10_000)
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout) as caught:
        list(model.stream(ask(question, timeouts=timeouts)))
    assert caught.value.phase == phase
    assert 0.05 <= time.monotonic() - began < 2


def test_the_pace_is_that_of_a_model():
    """A schedule, so that the average holds however late each wake-up is; bounds that a busy machine keeps."""
    call = ask("/long", max_tokens=60)
    began = time.monotonic()
    arrivals = [time.monotonic() - began for _ in Simulated(first_token=0.2, rate=100, seed=3).stream(call)]
    assert 0.12 <= arrivals[0] < 1
    assert 0.4 <= arrivals[-1] - arrivals[0] < 3
    assert len({round(later - earlier, 3) for earlier, later in itertools.pairwise(arrivals)}) > 3


def test_a_slow_reader_gets_what_was_due_in_one_go():
    events = Simulated(first_token=0, rate=200, seed=3).stream(ask("/long", max_tokens=40))
    next(events)
    time.sleep(0.5)  # the reader's own slowness is what is tested
    began = time.monotonic()
    list(events)
    assert time.monotonic() - began < 0.15
