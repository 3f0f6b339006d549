"""Jobs that one process admits and others perform: what these cannot carry out, put back, or leave behind."""

import logging
import threading

import pytest

from flask_llmstream import run_ended
from flask_llmstream.errors import StoreUnavailable
from flask_llmstream.events import Usage
from tests.conversation import KEY, events
from tests.jobs.house import Hands, ending, submit
from tests.puppet import PATIENCE, Pause, Puppet, eventually, stage

pytestmark = pytest.mark.needs("redis-server")

BODY = {"messages": [{"role": "user", "content": "Hello?"}]}


def answering(llm, **options):
    """A job in which the model answers."""

    @llm.job("/api/analyze", **options)
    def analyze(run):
        return run.model.stream([])


# What cannot be carried out


def test_a_feature_that_is_gone_fails_the_run_and_says_so(workshop, caplog):
    client = workshop.open(answering, working=False)
    url = submit(client, "/api/analyze", BODY)
    with stage(REDIS_URL=workshop.server.url) as (app, llm):
        Hands(workshop.server, llm.record(app).registry).take()
        run = ending(client, url)
    assert run["status"] == "failed" and run["error"]["type"].endswith(":configuration-error")
    assert "there is no feature analyze: it was renamed or removed" in caplog.text


def test_an_input_that_is_no_longer_valid_fails_the_run(workshop):
    client = workshop.open(answering, working=False)
    url = submit(client, "/api/analyze", BODY | {"max_tokens": 5})
    with stage(REDIS_URL=workshop.server.url, MAX_MESSAGE=2) as (app, llm):
        answering(llm)
        Hands(workshop.server, llm.record(app).registry).take()
        run = ending(client, url)
    assert run["status"] == "failed" and run["error"]["type"].endswith(":invalid-input")
    assert run["error"]["errors"]


# A process that goes, or is lost


def test_what_its_process_cannot_finish_is_put_back_and_no_attempt_is_lost(workshop):
    pauses = [Pause() for _ in range(4)]
    model = Puppet(*([pause, "Hello"] for pause in pauses))
    client = workshop.open(lambda llm: answering(llm, attempts=1), model)
    url = submit(client, "/api/analyze", BODY)
    for pause in pauses[:3]:
        assert pause.reached.wait(PATIENCE)
        workshop.performer.break_off()
    pauses[3].go_on()
    run = ending(client, url)
    assert (run["status"], run["attempt"], run["text"]) == ("completed", 4, "Hello")


def be_left(workshop, url):
    """Have its process be silent for longer than a lease, and another one look after that."""
    registry, run_id = workshop.record.registry, url.rsplit("/", 1)[1]
    store = registry.ledger.store
    store.command("ZADD", store.key("leases"), "XX", 1, run_id)
    registry._reap(run_id)


def test_one_that_its_process_has_left_is_taken_over(workshop, caplog):
    pauses = [Pause(), Pause()]
    client = workshop.open(answering, Puppet(["Hel", pauses[0]], ["Good ", pauses[1], "bye"], usage=Usage(3, 2)))
    url = submit(client, "/api/analyze", BODY)
    eventually(lambda: client.get(url).json["text"] == "Hel")
    first = performed_at(workshop, url)
    be_left(workshop, url)
    assert pauses[1].reached.wait(PATIENCE)
    assert "was left by its process: attempt 2 follows" in caplog.text
    eventually(lambda: first.cancelled)
    pauses[1].go_on()
    run = ending(client, url)
    assert (run["status"], run["attempt"], run["text"]) == ("completed", 2, "Good bye")
    usage = run["usage"]  # of the first attempt only its text and the question are known
    assert usage["estimated"] and usage["completion_tokens"] == 3 and usage["prompt_tokens"] > 3


def performed_at(workshop, url):
    """The run itself, where it is performed."""
    return workshop.performer._runs[url.rsplit("/", 1)[1]]


def test_an_attempt_that_lost_its_hold_has_no_say_in_the_next(workshop):
    """Not over its log, its lease or its end, although both are made in one process."""
    pauses = [Pause(), Pause()]
    told = []
    client = workshop.open(answering, Puppet(["old", pauses[0], "old"], ["new", pauses[1], " text"]))

    def hear(sender, run, **more):
        told.append(run.attempt)

    with run_ended.connected_to(hear):
        url = submit(client, "/api/analyze", BODY)
        eventually(lambda: client.get(url).json["text"] == "old")
        first = performed_at(workshop, url)
        be_left(workshop, url)
        assert pauses[1].reached.wait(PATIENCE)
        eventually(lambda: first.task is None or first.meter.cancelled)
        assert workshop.performer._leases.holds(first.id)
        pauses[1].go_on()
        assert ending(client, url)["text"] == "new text"
        assert "".join(event.get("token", "") for event in events(client.get(f"{url}/events"))) == "oldnew text"
        eventually(lambda: told)
    assert told == [2]


def test_a_run_that_is_lost_again_and_again_is_closed(workshop):
    pauses = [Pause() for _ in range(3)]
    client = workshop.open(lambda llm: answering(llm, attempts=2), Puppet(*(["Hel", pause] for pause in pauses)))
    url = submit(client, "/api/analyze", BODY)
    for pause in pauses[:2]:
        assert pause.reached.wait(PATIENCE)
        eventually(lambda: client.get(url).json["text"] == "Hel")
        be_left(workshop, url)
    run = ending(client, url)
    assert (run["status"], run["attempt"]) == ("failed", 2)
    assert run["error"]["type"].endswith(":run-interrupted")
    assert run["usage"]["completion_tokens"] == 2  # one of each attempt


@pytest.mark.parametrize("attempt", [0, 2, 7])
def test_another_attempt_than_the_next_is_not_made(workshop, attempt, caplog):
    caplog.set_level(logging.INFO)
    client = workshop.open(answering, working=False)
    url = submit(client, "/api/analyze", BODY)
    assert workshop.performer.perform(url.rsplit("/", 1)[1], attempt) is None
    assert "stale" in caplog.text and client.get(url).json["status"] == "queued"


def test_who_joins_while_it_is_put_into_its_queue_hears_its_end(workshop, monkeypatch):
    client = workshop.open(answering)
    headers = {"Idempotency-Key": KEY}
    queue, open_ = workshop.record.queue, workshop.record.open
    put, answers = queue.put, []

    def click():
        response = client.application.test_client().post(
            "/api/analyze", json=BODY, headers=headers | {"Prefer": "wait=10"}
        )
        answers.append((response.status_code, response.json["text"]))

    def put_late(place):
        second.start()
        eventually(lambda: len(open_) == 1)
        put(place)

    second = threading.Thread(target=click)
    monkeypatch.setattr(queue, "put", put_late)
    submit(client, "/api/analyze", BODY, headers=headers)
    second.join(2 * PATIENCE)
    assert answers == [(200, "Hello")]


def test_one_that_its_queue_does_not_take_was_never_started(workshop, monkeypatch):
    client = workshop.open(answering, working=False)

    def away(place):
        raise StoreUnavailable(retry_after=2.0)

    monkeypatch.setattr(workshop.record.queue, "put", away)
    refused = client.post("/api/analyze", json=BODY, headers={"Idempotency-Key": KEY})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    monkeypatch.undo()
    assert client.get("/api/runs").json["data"] == []
    url = submit(client, "/api/analyze", BODY, headers={"Idempotency-Key": KEY})
    workshop.hands.take()
    assert ending(client, url)["text"] == "Hello"


def test_one_that_was_left_for_dead_learns_it_and_tells_nobody_of_its_end(workshop):
    pauses, told = [Pause(), Pause()], []
    model = Puppet(["old", pauses[0]], ["new", pauses[1]])

    def hear(sender, run, **more):
        told.append((run.attempt, run.text))

    client = workshop.open(answering, model, working=False)
    with (
        stage(model, REDIS_URL=workshop.server.url) as (app, llm),
        run_ended.connected_to(hear),
    ):
        answering(llm)
        url = submit(client, "/api/analyze", BODY)
        workshop.hands.take()
        assert pauses[0].reached.wait(PATIENCE)
        be_left(workshop, url)
        Hands(workshop.server, llm.record(app).registry).take()
        assert pauses[1].reached.wait(PATIENCE)
        eventually(lambda: not workshop.performer.live)
        assert told == []
        pauses[1].go_on()
        assert ending(client, url)["text"] == "new"
        eventually(lambda: told == [(2, "new")])
