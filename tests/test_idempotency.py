"""One click, one run (promise 4): what repeats a request joins its run, and nothing else does."""

import threading
from contextlib import ExitStack

import pytest

from flask_llmstream import streams
from flask_llmstream.errors import UpstreamRateLimited, UpstreamUnavailable
from tests.conversation import KEY, QUESTION, ask, events, problem, text
from tests.puppet import PATIENCE, Pause, Puppet, eventually, follow, stage

OTHER_KEY = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
OTHER_QUESTION = {"messages": [{"role": "user", "content": "Another"}]}
KEYED = {"Idempotency-Key": KEY}


def run_of(response):
    return response.headers["Location"]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not make a response begin for want of anything else."""
    monkeypatch.setattr(streams, "HEADERS_WITHIN", 3600)


@pytest.fixture
def pause():
    return Pause()


@pytest.fixture
def puppet(pause):
    """Says "Hel" and waits, the first time; then speaks freely."""
    return Puppet(["Hel", pause, "lo"], ["Hello"])


@pytest.fixture
def app(puppet):
    with stage(puppet) as (app, _):
        yield app


# With a key


@pytest.mark.parametrize("again", [KEY, f'"{KEY}"'], ids=["bare", "quoted"])
@pytest.mark.parametrize("first", [KEY, f'"{KEY}"'], ids=["bare", "quoted"])
def test_a_repeat_joins_the_live_run_and_replays_it_from_its_first_event(app, puppet, pause, first, again):
    with (
        ask(app, headers={"Idempotency-Key": first}) as one,
        ask(app, headers={"Idempotency-Key": again}) as two,
    ):
        assert run_of(one) == run_of(two)
        heard = follow(two)
        assert [next(heard) for _ in range(4)][-1] == {"token": "Hel"}
        pause.go_on()
        assert events(one)[4:] == list(heard)
    assert len(puppet.calls) == 1


def test_after_the_end_it_replays_the_whole(app, puppet, pause):
    pause.go_on()
    first = ask(app, headers=KEYED)
    heard = events(first)
    second = ask(app, headers=KEYED)
    assert run_of(first) == run_of(second)
    assert events(second) == heard
    assert len(puppet.calls) == 1


def test_a_stopped_run_is_replayed_too(app, puppet):
    with ask(app, headers=KEYED) as first:
        app.test_client().post(run_of(first) + "/cancel")
        heard = events(first)
    assert events(ask(app, headers=KEYED)) == heard
    assert heard[-1]["cancelled"] is True and len(puppet.calls) == 1


def test_an_event_source_has_its_key_in_the_address(app, puppet, pause):
    with (
        ask(app, headers=KEYED) as posted,
        app.test_client().get(
            "/api/chat/stream",
            query_string={"message": QUESTION["messages"][0]["content"], "key": KEY},
            headers={"Accept": "text/event-stream"},
        ) as got,
    ):
        assert run_of(posted) == run_of(got)
        pause.go_on()
    assert len(puppet.calls) == 1


def test_of_many_clicks_at_once_one_starts_a_run(app, puppet, pause):
    together = threading.Barrier(6)
    answers = []

    def click():
        together.wait()
        answers.append(ask(app, headers=KEYED))

    threads = [threading.Thread(target=click) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len({run_of(answer) for answer in answers}) == 1
    pause.go_on()
    assert [text(answer) for answer in answers] == ["Hello"] * 6
    assert len(puppet.calls) == 1


def test_another_body_under_the_same_key_is_a_mistake(app, puppet, pause):
    with ask(app, headers=KEYED):
        refused = ask(app, body=OTHER_QUESTION, headers=KEYED)
        assert refused.status_code == 422
        assert problem(refused)["type"].endswith("idempotency-key-reused")
        pause.go_on()
    assert len(puppet.calls) == 1


def test_the_same_body_to_another_feature_is_another_body(puppet, pause):
    with stage(puppet) as (app, llm):

        @llm.stream("/other/<int:number>")
        def other(run):
            return run.model.stream(run.input.messages)

        pause.go_on()
        events(ask(app, headers=KEYED))
        assert ask(app, "/other/1", headers=KEYED).status_code == 422
        events(ask(app, "/other/1", headers={"Idempotency-Key": OTHER_KEY}))
        assert ask(app, "/other/2", headers={"Idempotency-Key": OTHER_KEY}).status_code == 422


def test_how_a_body_is_written_does_not_matter(app, puppet, pause):
    pause.go_on()
    written = [
        b'{"messages":[{"role":"user","content":"\\u00e9"}]}',
        b'{ "messages": [{"content": "\xc3\xa9", "role": "user"}] }',
    ]
    runs = []
    for body in written:
        response = app.test_client().post("/api/chat/stream", data=body, content_type="application/json", headers=KEYED)
        events(response)
        runs.append(run_of(response))
    assert runs[0] == runs[1]


def test_another_key_is_another_run(app, puppet, pause):
    """A retry button uses a new key; a reconnect the old one."""
    with ask(app, headers=KEYED) as first:
        second = ask(app, headers={"Idempotency-Key": OTHER_KEY})
        assert run_of(first) != run_of(second)
        assert text(second) == "Hello"
        pause.go_on()
    assert len(puppet.calls) == 2


def test_the_same_key_of_another_owner_is_another_run(app, puppet, pause):
    with ask(app, headers=KEYED) as anns:
        bobs = ask(app, headers=KEYED | {"X-User": "bob"})
        assert run_of(anns) != run_of(bobs)
        assert text(bobs) == "Hello"
        other = ask(app, body=OTHER_QUESTION, headers=KEYED | {"X-User": "eve"})
        assert other.status_code == 200, "nor does anybody learn that it is taken"
        events(other)
        pause.go_on()


@pytest.mark.parametrize("key", ["short", "x" * 21, "x" * 256, "with a space in the middle of it"])
def test_a_key_that_can_be_guessed_is_refused(app, puppet, key):
    refused = ask(app, headers={"Idempotency-Key": key})
    assert refused.status_code == 400
    assert problem(refused)["type"].endswith("invalid-idempotency-key")
    assert puppet.calls == []


def test_a_key_lives_as_long_as_its_run_is_kept(puppet, pause):
    pause.go_on()
    with stage(puppet, RETENTION=0.05) as (app, llm):
        first = ask(app, headers=KEYED)
        events(first)
        eventually(lambda: not llm.record(app).registry._runs)
        second = ask(app, headers=KEYED)
        events(second)
        assert run_of(first) != run_of(second)


def test_an_early_failure_is_told_again_and_a_new_key_tries_anew():
    puppet = Puppet([UpstreamRateLimited(retry_after=7)], ["Hello"])
    with stage(puppet) as (app, _):
        first, second = (ask(app, headers=KEYED) for _ in range(2))
        assert first.status_code == second.status_code == 429
        assert run_of(first) == run_of(second)
        assert second.headers["Retry-After"] == "7"
        assert problem(first) == problem(second)
        assert len(puppet.calls) == 1
        assert text(ask(app, headers={"Idempotency-Key": OTHER_KEY})) == "Hello"


def test_a_late_failure_is_replayed():
    puppet = Puppet(["Hel", UpstreamUnavailable()], ["Hello"])
    with stage(puppet) as (app, _):
        assert events(ask(app, headers=KEYED)) == events(ask(app, headers=KEYED))
    assert len(puppet.calls) == 1


def test_a_refused_request_takes_no_key():
    with stage() as (app, _):
        assert ask(app, body={"messages": []}, headers=KEYED).status_code == 422
        assert text(ask(app, headers=KEYED)) == "Hello"


def test_nor_does_one_for_which_there_is_no_place(puppet, pause):
    with stage(puppet, MAX_OPEN=1) as (app, _):
        with ask(app, headers={"Idempotency-Key": OTHER_KEY}):
            assert ask(app, headers=KEYED).status_code == 503
            pause.go_on()
        assert text(ask(app, headers=KEYED)) == "Hello"


# Without a key


def test_a_second_click_joins_the_run_while_it_is_live(app, puppet, pause):
    with ask(app) as one, ask(app) as two:
        assert run_of(one) == run_of(two)
        pause.go_on()
        assert events(one) == events(two)
    assert len(puppet.calls) == 1


def test_once_it_has_ended_the_same_question_is_a_new_one(app, puppet, pause):
    pause.go_on()
    first = ask(app)
    events(first)
    second = ask(app)
    assert run_of(first) != run_of(second)
    assert text(second) == "Hello"
    assert len(puppet.calls) == 2


def test_once_it_has_failed_too():
    puppet = Puppet([UpstreamRateLimited()], ["Hello"])
    with stage(puppet) as (app, _):
        assert ask(app).status_code == 429
        assert text(ask(app)) == "Hello"


@pytest.mark.parametrize(
    "other",
    [{"body": OTHER_QUESTION}, {"headers": {"X-User": "bob"}}, {"headers": KEYED}],
    ids=["body", "owner", "one with a key"],
)
def test_any_other_request_is_one_of_its_own(app, puppet, pause, other):
    with ask(app) as first:
        second = ask(app, **other)
        assert run_of(first) != run_of(second)
        assert text(second) == "Hello"
        pause.go_on()


def test_it_can_be_switched_off(puppet, pause):
    with stage(puppet, JOIN_IDENTICAL=False) as (app, _), ask(app) as first:
        second = ask(app)
        assert run_of(first) != run_of(second)
        assert text(second) == "Hello"
        pause.go_on()
    assert len(puppet.calls) == 2


def test_a_reader_that_joined_keeps_the_run_when_the_first_one_leaves(puppet, pause):
    with stage(puppet, ORPHAN_GRACE=0) as (app, _), ExitStack() as stack:
        first = ask(app)
        second = stack.enter_context(ask(app))
        first.close()
        pause.go_on()
        assert text(second) == "Hello"
