"""Answers in a conversation: while they are given, when they end, and where another process has to do with them."""

from __future__ import annotations

import threading

import pytest

from flask_llmstream import run_ended
from flask_llmstream.errors import UpstreamUnavailable
from tests.conversation import KEY, ask, events, problem, text
from tests.history.talk import CHAT, ONE, REFUSED, TALK, contents, processes, read, say, sent
from tests.puppet import PATIENCE, Pause, Puppet, eventually, follow, stage

# While it is being answered


def test_a_refresh_shows_the_question_and_where_the_answer_is(config):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"]), **config) as (app, _), say(app, "Hi") as response:
        assert pause.reached.wait(PATIENCE)
        found = read(app)
        question, answer = found["messages"]
        assert (question["content"], answer["content"], answer["status"]) == ("Hi", "", "in_progress")
        assert response.headers["Location"] == f"/api/runs/{found['run']}"
        assert found["run"] == found["head"] == answer["id"]
        pause.go_on()
        with app.test_client().get(f"/api/runs/{found['run']}/events") as other_tab:
            assert text(other_tab) == "Hello"
        assert (contents(app), read(app)["run"]) == (["Hi", "Hello"], None)


def test_one_answer_at_a_time(config):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"], ["Yes"]), **config) as (app, _), say(app, "Hi") as response:
        assert pause.reached.wait(PATIENCE)
        refused = say(app, "Are you there?")
        assert (refused.status_code, problem(refused)["limit"]) == (429, "conversation")
        assert text(say(app, "Hello", conversation="another-conversation")) == "Yes"
        pause.go_on()
        events(response)
        assert contents(app) == ["Hi", "Hello"], "a refused question is not kept"


def test_a_new_question_may_take_the_place_of_the_answer(config):
    pause = Pause()
    puppet = Puppet(["Hel", pause, "lo"], ["Yes"])
    with stage(puppet, WHEN_BUSY="replace", **config) as (app, _), say(app, "Hi") as response:
        assert pause.reached.wait(PATIENCE)
        assert text(say(app, "Are you there?")) == "Yes"
        assert events(response)[-1]["cancelled"] is True
        found = read(app)
    assert sent(puppet) == ["Hi", "Hel", "Are you there?"]
    assert [(message["content"], message["status"]) for message in found["messages"]] == [
        ("Hi", "completed"),
        ("Hel", "cancelled"),
        ("Are you there?", "completed"),
        ("Yes", "completed"),
    ]
    assert found["run"] is None


def test_a_second_tab_may_be_shown_the_answer(config):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"]), WHEN_BUSY="join", **config) as (app, _), say(app, "Hi") as response:
        assert pause.reached.wait(PATIENCE)
        with say(app, "Are you there?") as other_tab:
            assert other_tab.headers["Location"] == response.headers["Location"]
            pause.go_on()
            assert text(other_tab) == "Hello"
        assert contents(app) == ["Hi", "Hello"]


def test_a_tab_of_another_feature_is_not_shown_the_answer(config):
    """It is of another form; who asks is told which run it is."""
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"]), WHEN_BUSY="join", **config) as (app, llm):
        llm.stream("/api/explain")(lambda run: run.model.stream(run.input.messages))
        with say(app, "Hi") as response:
            assert pause.reached.wait(PATIENCE)
            refused = ask(app, "/api/explain", body={"conversation": TALK, "message": "What is that?"})
            assert refused.status_code == 429
            said = problem(refused)
            assert (said["type"], said["limit"]) == (REFUSED + "limit-reached", "conversation")
            assert [live["location"] for live in said["live"]] == [response.headers["Location"]]
            pause.go_on()
            assert text(response) == "Hello"
        assert contents(app) == ["Hi", "Hello"]


@pytest.mark.parametrize("headers", [{"Idempotency-Key": KEY}, {}], ids=["same key", "same click"])
def test_a_repeat_joins_and_adds_nothing(config, headers):
    pause = Pause()
    puppet = Puppet(["Hel", pause, "lo"])
    with stage(puppet, **config) as (app, _), say(app, "Hi", headers=headers) as one:
        assert pause.reached.wait(PATIENCE)
        with say(app, "Hi", headers=headers) as two:
            assert one.headers["Location"] == two.headers["Location"]
            pause.go_on()
            assert text(two) == "Hello"
        assert contents(app) == ["Hi", "Hello"]
    assert len(puppet.calls) == 1


def test_a_key_holds_for_one_message_of_one_conversation(config):
    keyed = {"Idempotency-Key": KEY}
    with stage(**config) as (app, _):
        events(say(app, "Hi", headers=keyed))
        assert text(say(app, "Hi", headers=keyed)) == "Hello", "also after its end"
        for other in ({"message": "Ho"}, {"message": "Hi", "conversation": "another-conversation"}):
            refused = say(app, headers=keyed, **other)
            assert problem(refused)["type"] == REFUSED + "idempotency-key-reused"
        assert contents(app) == ["Hi", "Hello"]


def test_of_many_clicks_one_is_kept(config):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"]), **config) as (app, _):
        together = threading.Barrier(5)
        answers = []

        def click():
            together.wait()
            answers.append(say(app, "Hi"))

        threads = [threading.Thread(target=click) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert pause.reached.wait(PATIENCE)
        pause.go_on()
        assert [text(answer) for answer in answers] == ["Hello"] * 5
        assert contents(app) == ["Hi", "Hello"]


# How answers end


def test_a_stopped_answer_is_kept_as_far_as_it_got(config):
    pause = Pause()
    puppet = Puppet(["Hel", pause, "lo"], ["Yes"])
    with stage(puppet, **config) as (app, _):
        with say(app, "Hi") as response:
            assert pause.reached.wait(PATIENCE)
            app.test_client().post(response.headers["Location"] + "/cancel")
            events(response)
        answer = read(app)["messages"][1]
        assert (answer["content"], answer["status"], answer["finish_reason"]) == ("Hel", "cancelled", None)
        assert answer["usage"]["estimated"] is True
        events(say(app, "Go on"))
    assert sent(puppet) == ["Hi", "Hel", "Go on"]


def test_a_broken_answer_is_kept_as_far_as_it_got(config):
    puppet = Puppet(["Hel", UpstreamUnavailable()], [UpstreamUnavailable()], ["Yes"])
    with stage(puppet, **config) as (app, _):
        assert "error" in events(say(app, "Hi"))[-1]
        assert say(app, "Go on").status_code == 502
        events(say(app, "Once more"))
        assert [message["status"] for message in read(app)["messages"]][1::2] == ["failed", "failed", "completed"]
    assert sent(puppet) == ["Hi", "Hel", "Go on", "Once more"]


def test_it_is_there_when_the_client_hears_of_the_end(config):
    with stage(Puppet(["Noon"]), **config) as (app, _), say(app, "The time?") as response:
        for event in follow(response):
            if "done" in event:
                assert contents(app) == ["The time?", "Noon"]


def test_a_forgotten_run_leaves_its_messages(config):
    with stage(**config) as (app, _):
        response = say(app, "Hi")
        events(response)
        assert app.test_client().delete(response.headers["Location"]).status_code == 204
        assert contents(app) == ["Hi", "Hello"]


# From the other process


@pytest.mark.needs("redis-server")
def test_another_process_goes_on_with_it(shared):
    one, two = Puppet(["Noon"]), Puppet(["Still noon"])
    with processes(shared, one, two) as [(first, _), (second, _)]:
        events(say(first, "What is the time?"))
        assert contents(second) == ["What is the time?", "Noon"]
        assert text(say(second, "And now?")) == "Still noon"
        assert read(first) == read(second)
    assert sent(two) == ["What is the time?", "Noon", "And now?"]


@pytest.mark.needs("redis-server")
def test_a_question_to_another_process_takes_the_place_of_the_answer(shared):
    pause = Pause()
    two = Puppet(["Yes"])
    with processes(shared, Puppet(["Hel", pause, "lo"]), two, WHEN_BUSY="replace") as [(first, _), (second, _)]:
        with say(first, "Hi") as response:
            stream = follow(response)
            assert next(event for event in stream if "token" in event) == {"token": "Hel"}
            eventually(lambda: second.test_client().get(response.headers["Location"]).json["text"] == "Hel")
            assert text(say(second, "Are you there?")) == "Yes"
            assert list(stream)[-1]["cancelled"] is True
        assert contents(second) == ["Hi", "Hel", "Are you there?", "Yes"]
    assert sent(two) == ["Hi", "Hel", "Are you there?"]


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("url", [CHAT, "/talk"])
def test_an_answer_whose_process_is_gone_is_kept_as_far_as_it_got(shared, redis_server, url):
    pause = Pause()
    heard = []

    def told(sender, run, **_):
        heard.append((run.conversation, [message["content"] for message in run.input.messages]))

    with processes(shared, Puppet(["Noon"], ["Hel", pause, "lo"])) as [(first, one), (second, two)]:
        for llm in (one, two):
            llm.stream("/talk")(talk)
        events(ask(first, url, {"conversation": TALK, "message": "The time?"}))
        with ask(first, url, {"conversation": TALK, "message": "Hi"}) as response:
            assert pause.reached.wait(PATIENCE)
            eventually(lambda: second.test_client().get(response.headers["Location"]).json["text"] == "Hel")
            run_id = read(second)["run"]
            with run_ended.connected_to(told, sender=second):
                reap(redis_server, two.record(second).registry, run_id)
            answer = read(second)["messages"][3]
            assert (answer["content"], answer["status"]) == ("Hel", "failed")
            assert read(second)["run"] is None
            pause.go_on()
            list(follow(response))  # its writer is there after all, and through
    assert heard == [(TALK, ["The time?", "Noon", "Hi"])], "the application is told all that its function was"


def talk(run):
    return run.model.stream(run.input.messages)


def reap(server, registry, run_id):
    """Have a run closed whose lease has lapsed, however often its writer renews it."""

    def ended():
        server.client().zadd("llmstream:leases", {run_id: 1})
        registry._reap(run_id)
        return server.client().hget(f"llmstream:run:{run_id}", "ended_at")

    eventually(ended)


@pytest.mark.needs("redis-server")
def test_an_exchange_outlives_a_redis_that_forgets(shared, redis_server):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"]), **shared) as (app, _), say(app, "Hi") as response:
        assert pause.reached.wait(PATIENCE)
        redis_server.client().flushall()
        pause.go_on()
        list(follow(response))
        eventually(lambda: app.test_client().get(ONE).status_code == 200)
        assert contents(app) == ["Hi", "Hello"]
