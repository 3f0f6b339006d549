"""The model as a run sees it: bound, retried, metered, stoppable."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream import models
from flask_llmstream.errors import (
    AnswerCut,
    ContentFiltered,
    InvalidAnswer,
    RunCancelled,
    UpstreamAuthenticationFailed,
    UpstreamMalformed,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from flask_llmstream.events import Token, Tool, Usage
from flask_llmstream.models import (
    BACKOFF,
    BACKOFF_MOST,
    CORRECTION_MOST,
    RETRY_AFTER_MOST,
    BoundModel,
    Meter,
    Misfit,
    ModelSettings,
)
from flask_llmstream.providers import CORRECTION, Timeouts
from tests.puppet import PATIENCE, Pause, Puppet

QUESTION = [{"role": "user", "content": "12345678"}]


def bind(puppet, **settings):
    meter = Meter()
    return BoundModel(puppet, ModelSettings(**{"max_tokens": 100, **settings}), meter), meter


def answer(bound, /, **options):
    return "".join(event.token for event in bound.stream(QUESTION, **options) if isinstance(event, Token))


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between attempts, which are not waited for."""
    made = []
    monkeypatch.setattr(Meter, "pause", lambda self, seconds: made.append(seconds))
    return made


# Retries


def test_what_failed_before_its_first_token_is_tried_again(pauses):
    puppet = Puppet([UpstreamUnavailable()], [UpstreamRateLimited()], ["Hel", "lo"])
    model, _ = bind(puppet, retries=2)
    assert answer(model) == "Hello"
    assert len(puppet.calls) == 3 and len(pauses) == 2


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_last_error_counts_after_so_many_retries(pauses, retries):
    puppet = Puppet([UpstreamRateLimited()], [UpstreamUnavailable()])
    model, _ = bind(puppet, retries=retries)
    with pytest.raises(UpstreamUnavailable if retries else UpstreamRateLimited):
        answer(model)
    assert len(puppet.calls) == retries + 1 and len(pauses) == retries


@pytest.mark.parametrize("first", ["Hel", Tool({"id": "c", "name": "n", "arguments": ""})], ids=["token", "tool"])
def test_after_its_first_piece_an_answer_is_not_begun_again(pauses, first):
    puppet = Puppet([first, UpstreamUnavailable()], ["again"])
    model, _ = bind(puppet, retries=2)
    with pytest.raises(UpstreamUnavailable):
        answer(model)
    assert len(puppet.calls) == 1 and pauses == []


@pytest.mark.parametrize(
    "error",
    [UpstreamAuthenticationFailed(), UpstreamMalformed(), ContentFiltered(), UpstreamTimeout("first_token")],
    ids=repr,
)
def test_what_no_repeat_can_mend_is_not_repeated(pauses, error):
    puppet = Puppet([error], ["Hello"])
    with pytest.raises(type(error)):
        answer(bind(puppet, retries=2)[0])
    assert len(puppet.calls) == 1


def test_a_mistake_of_the_providers_is_not_repeated(pauses):
    puppet = Puppet([ZeroDivisionError()], ["Hello"])
    with pytest.raises(ZeroDivisionError):
        answer(bind(puppet, retries=2)[0])
    assert len(puppet.calls) == 1


def test_a_whole_reply_is_retried_too(pauses):
    puppet = Puppet([UpstreamUnavailable()], ["Hel", "lo"], usage=Usage(2, 2))
    model, meter = bind(puppet, retries=1)
    assert model.reply(QUESTION).text == "Hello"
    assert meter.usage == Usage(2, 2)


def test_the_wait_before_a_retry_is_drawn_from_a_range_that_doubles(pauses, monkeypatch):
    """Full jitter: those who failed together don't come back together."""
    ranges = []

    def uniform(low, high):
        ranges.append((low, high))
        return high / 2

    monkeypatch.setattr(models.random, "uniform", uniform)
    with pytest.raises(UpstreamUnavailable):
        answer(bind(Puppet([UpstreamUnavailable()]), retries=7)[0])
    assert ranges == [(0, min(BACKOFF * 2**n, BACKOFF_MOST)) for n in range(7)]
    assert pauses == [high / 2 for _, high in ranges]
    assert ranges[-1][1] == BACKOFF_MOST


@given(st.floats(0, RETRY_AFTER_MOST))
def test_it_never_comes_back_before_the_server_wants_it(asked):
    model, meter = bind(Puppet([UpstreamRateLimited(retry_after=asked)], ["Hello"]), retries=1)
    waited = []
    meter.pause = waited.append
    assert answer(model) == "Hello"
    assert asked <= waited[0] <= asked + BACKOFF


def test_those_whom_it_sent_away_together_do_not_come_back_together(pauses):
    for _ in range(20):
        answer(bind(Puppet([UpstreamRateLimited(retry_after=7)], ["Hello"]), retries=1)[0])
    assert len(set(pauses)) > 10


def test_a_server_that_wants_too_long_a_wait_is_not_waited_for(pauses):
    puppet = Puppet([UpstreamRateLimited(retry_after=RETRY_AFTER_MOST + 0.1)], ["Hello"])
    with pytest.raises(UpstreamRateLimited):
        answer(bind(puppet, retries=2)[0])
    assert len(puppet.calls) == 1 and pauses == []


def test_the_log_tells_why_an_attempt_is_repeated(pauses, caplog):
    caplog.set_level("INFO", "flask_llmstream")
    puppet = Puppet([UpstreamUnavailable(diagnosis="HTTP 503: overloaded")], ["Hello"])
    answer(bind(puppet, retries=1)[0])
    assert "HTTP 503: overloaded; attempt 2 follows" in caplog.text


# Stop


def test_a_stop_ends_the_wait_between_two_attempts(monkeypatch):
    monkeypatch.setattr(models.random, "uniform", lambda low, high: 3600)
    puppet = Puppet([UpstreamUnavailable()], ["Hello"])
    model, meter = bind(puppet, retries=1)
    waiting = threading.Event()
    pause = meter.pause
    meter.pause = lambda seconds: (waiting.set(), pause(seconds))
    stopped = []

    def read():
        try:
            answer(model)
        except RunCancelled:
            stopped.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    assert waiting.wait(PATIENCE)
    meter.cancel()
    reader.join(PATIENCE)
    assert stopped == [1] and len(puppet.calls) == 1


def test_a_stop_reaches_every_call_that_is_going_on():
    pauses = [Pause(), Pause()]
    model, meter = bind(Puppet(["a", pauses[0]], ["b", pauses[1]]))
    stopped = []

    def read():
        try:
            answer(model)
        except RunCancelled:
            stopped.append(1)

    readers = [threading.Thread(target=read) for _ in pauses]
    for reader in readers:
        reader.start()
    assert all(pause.reached.wait(PATIENCE) for pause in pauses)
    meter.cancel()
    meter.cancel()
    for reader in readers:
        reader.join(PATIENCE)
    assert stopped == [1, 1]


def test_a_run_that_was_stopped_makes_no_calls():
    puppet = Puppet()
    model, meter = bind(puppet)
    meter.cancel()
    with pytest.raises(RunCancelled):
        answer(model)
    with pytest.raises(RunCancelled):
        model.reply(QUESTION)
    assert puppet.calls == [] and meter.usage is None


def test_a_call_that_has_ended_is_not_stopped():
    puppet = Puppet()
    model, meter = bind(puppet)
    answer(model)
    meter.cancel()
    assert not puppet.calls[0].cancelled


def test_whoever_stops_reading_ends_the_request():
    """At once, and not when the collector comes by."""
    streams = []

    class Kept(Puppet):
        def stream(self, call):
            streams.append(super().stream(call))
            return streams[-1]

    model, meter = bind(Kept())
    with closing(model.stream(QUESTION)) as stream:
        next(stream)
        assert streams[0].gi_frame is not None
    assert streams[0].gi_frame is None, "the provider's generator is still open"
    assert meter.usage == Usage(2, 1, estimated=True)


# Bounds


@pytest.mark.parametrize(("asked", "given"), [(None, 100), (0, 100), (50, 50), (100, 100), (101, 100), (10**9, 100)])
def test_nobody_gets_more_tokens_than_the_run_is_bound_to(asked, given):
    puppet = Puppet()
    options = {} if asked is None else {"max_tokens": asked}
    answer(bind(puppet)[0], **options)
    assert puppet.calls[0].max_tokens == given


def test_a_call_has_the_runs_settings():
    puppet = Puppet()
    limits = Timeouts(idle=3)
    model, _ = bind(puppet, model="large", temperature=0.5, timeouts=limits)
    answer(model)
    (call,) = puppet.calls
    assert (call.model, call.temperature, call.timeouts, call.options) == ("large", 0.5, limits, {})
    assert call.messages == QUESTION
    assert model.name == "large"


def test_the_function_may_choose_otherwise_and_pass_options_on():
    puppet = Puppet()
    answer(bind(puppet, model="large", temperature=0.5)[0], model="small", temperature=0, tools=[1], seed=2)
    (call,) = puppet.calls
    assert (call.model, call.temperature, call.options) == ("small", 0, {"tools": [1], "seed": 2})


def test_options_of_one_call_are_not_those_of_the_next(pauses):
    puppet = Puppet([UpstreamUnavailable()], ["Hello"])
    model, _ = bind(puppet, retries=1)
    answer(model, seed=2, max_tokens=7)
    answer(model)
    assert [(call.options, call.max_tokens) for call in puppet.calls] == [({"seed": 2}, 7)] * 2 + [({}, 100)]


def test_without_a_name_it_is_the_providers():
    assert bind(Puppet())[0].name == "puppet"


# What it came to


def test_what_the_provider_reports_counts():
    model, meter = bind(Puppet(["Hel", "lo"], usage=Usage(11, 7, 3, 2)))
    answer(model)
    assert meter.usage == Usage(11, 7, 3, 2)


def test_where_it_reports_nothing_the_tokens_are_counted_and_the_question_is_measured():
    model, meter = bind(Puppet(["a", "b", "c"]))
    answer(model)
    assert meter.usage == Usage(2, 3, estimated=True)


def test_an_attempt_that_brought_nothing_cost_nothing(pauses):
    model, meter = bind(Puppet([UpstreamUnavailable()]), retries=1)
    with pytest.raises(UpstreamUnavailable):
        answer(model)
    assert meter.usage is None


def test_an_answer_that_broke_off_counts_as_far_as_it_came():
    model, meter = bind(Puppet(["a", UpstreamUnavailable()]))
    with pytest.raises(UpstreamUnavailable):
        answer(model)
    assert meter.usage == Usage(2, 1, estimated=True)


def test_the_calls_of_a_run_add_up():
    model, meter = bind(Puppet(usage=Usage(10, 5)))
    answer(model)
    model.reply(QUESTION)
    answer(model)
    assert meter.usage == Usage(30, 15)
    assert meter.finish_reason == "stop"


def test_calls_in_several_threads_add_up():
    model, meter = bind(Puppet([""], usage=Usage(1, 1)))
    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: model.reply(QUESTION), range(10_000)))
    finally:
        sys.setswitchinterval(patience)
    assert meter.usage == meter.by_model["puppet"] == Usage(10_000, 10_000)


def test_the_last_call_says_why_the_answer_ended():
    puppet = Puppet()
    model, meter = bind(puppet)
    for reason in ("tool_calls", "length"):
        puppet.finish_reason = reason
        answer(model)
        assert meter.finish_reason == reason


def test_the_run_hears_when_the_server_has_taken_a_request():
    accepted = []
    model = BoundModel(Puppet(), ModelSettings(max_tokens=1), Meter(lambda: accepted.append(1)))
    answer(model)
    assert accepted


# Answers of a certain shape


class Even:
    """The least that a shape can be: an even number in JSON."""

    name = "even"
    json_schema = {"type": "object"}  # noqa: RUF012

    def load(self, text):
        try:
            number = json.loads(text)
        except ValueError:
            raise Misfit({"_schema": ["Not JSON."]}) from None
        if number % 2:
            raise Misfit({"number": [f"{number} is odd."]})
        return number


def test_with_a_shape_it_is_what_the_shape_makes_of_the_answer():
    puppet = Puppet(["1", "2"])
    assert bind(puppet)[0].reply(QUESTION, Even()) == 12
    form = {"name": "even", "strict": True, "schema": {"type": "object"}}
    assert puppet.calls[0].options == {"response_format": {"type": "json_schema", "json_schema": form}}


def test_a_server_without_structured_outputs_gets_the_response_format_that_the_function_names():
    puppet = Puppet(["12"])
    bind(puppet)[0].reply(QUESTION, Even(), response_format={"type": "json_object"}, seed=2)
    assert puppet.calls[0].options == {"response_format": {"type": "json_object"}, "seed": 2}


def test_an_answer_that_does_not_fit_goes_back_with_what_is_wrong_with_it():
    puppet = Puppet(["1"], ["3"], ["4"])
    assert bind(puppet)[0].reply(QUESTION, Even()) == 4
    first, second, third = (list(call.messages) for call in puppet.calls)
    assert first == QUESTION
    assert second == [
        *QUESTION,
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": CORRECTION + '\n{"number":["1 is odd."]}'},
    ]
    # The last one alone goes back, so that the question does not grow with each attempt.
    assert [message["content"] for message in third[1:]] == ["3", CORRECTION + '\n{"number":["3 is odd."]}']
    assert puppet.calls[1].options == puppet.calls[0].options


def test_an_empty_answer_is_not_sent_back():
    puppet = Puppet([""], ["2"])
    bind(puppet)[0].reply(QUESTION, Even())
    assert [message["role"] for message in puppet.calls[1].messages] == ["user", "user"]


def test_what_is_said_of_an_answer_is_no_longer_than_it_may_be():
    class Severe(Even):
        def load(self, text):
            raise Misfit({"a": ["wrong " * 10_000]})

    puppet = Puppet()
    with pytest.raises(InvalidAnswer):
        bind(puppet, attempts=2)[0].reply(QUESTION, Severe())
    assert len(puppet.calls[1].messages[-1]["content"]) == len(CORRECTION) + 1 + CORRECTION_MOST


@pytest.mark.parametrize(("bound", "asked", "made"), [(3, None, 3), (1, None, 1), (3, 2, 2), (1, 4, 4)])
def test_after_so_many_attempts_the_answer_is_invalid(bound, asked, made):
    puppet = Puppet(["1"])
    with pytest.raises(InvalidAnswer) as invalid:
        bind(puppet, attempts=bound)[0].reply(QUESTION, Even(), attempts=asked)
    assert len(puppet.calls) == made
    problem = invalid.value.problem()
    assert (problem["status"], problem["attempts"], problem["errors"]) == (502, made, {"number": ["1 is odd."]})


def test_the_run_hears_of_each_answer_that_is_tried_again(caplog):
    caplog.set_level("INFO", "flask_llmstream")
    heard = []
    meter = Meter(rejected=lambda attempt, errors: heard.append((attempt, errors)))
    model = BoundModel(Puppet(["1"], ["no"], ["3"]), ModelSettings(max_tokens=9), meter)
    with pytest.raises(InvalidAnswer):
        model.reply(QUESTION, Even())
    assert heard == [(1, {"number": ["1 is odd."]}), (2, {"_schema": ["Not JSON."]})]  # the third is in the error
    assert "does not fit even: {'number': ['1 is odd.']}; attempt 2 follows" in caplog.text


def test_all_attempts_are_metered():
    model, meter = bind(Puppet(["1"], ["2"], usage=Usage(10, 5)))
    model.reply(QUESTION, Even())
    assert meter.usage == Usage(20, 10)


def test_an_answer_that_was_cut_is_no_invalid_one_and_not_tried_again():
    puppet = Puppet(["[1, 2"], finish_reason="length")
    with pytest.raises(AnswerCut) as cut:
        bind(puppet, max_tokens=7)[0].reply(QUESTION, Even())
    assert len(puppet.calls) == 1
    assert cut.value.problem()["max_tokens"] == 7


def test_an_answer_that_was_complete_when_it_was_cut_is_one():
    """Some servers go on with blanks until they are stopped."""
    assert bind(Puppet(["2", "   "], finish_reason="length"))[0].reply(QUESTION, Even()) == 2


def test_an_answer_that_a_filter_cut_off_is_neither(pauses):
    puppet = Puppet(["2"], finish_reason="content_filter")
    with pytest.raises(ContentFiltered):
        bind(puppet)[0].reply(QUESTION, Even())
    assert len(puppet.calls) == 1


def test_retries_and_attempts_are_counted_apart(pauses):
    """A server that is down for a moment takes none of the model's attempts, and the other way round."""
    puppet = Puppet([UpstreamRateLimited(retry_after=2)], ["1"], [UpstreamUnavailable()], ["3"], ["4"])
    assert bind(puppet, retries=1, attempts=3)[0].reply(QUESTION, Even()) == 4
    assert len(puppet.calls) == 5 and len(pauses) == 2
    assert pauses[0] >= 2


def test_a_server_that_stays_down_ends_it_after_its_retries(pauses):
    puppet = Puppet(["1"], [UpstreamUnavailable()])
    with pytest.raises(UpstreamUnavailable):
        bind(puppet, retries=2, attempts=5)[0].reply(QUESTION, Even())
    assert len(puppet.calls) == 4


def test_a_stop_between_two_attempts_makes_no_further_one():
    puppet = Puppet(["1"])
    meter = Meter(rejected=lambda attempt, errors: meter.cancel())
    with pytest.raises(RunCancelled):
        BoundModel(puppet, ModelSettings(max_tokens=9), meter).reply(QUESTION, Even())
    assert len(puppet.calls) == 1
