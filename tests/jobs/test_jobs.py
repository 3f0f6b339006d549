"""Jobs as a client sees them: 202 and a status, whoever performs them."""

from functools import wraps

import pytest
from flask import abort
from marshmallow import Schema, fields, validate

from flask_llmstream import Data, Progress
from flask_llmstream.events import Usage
from tests.conversation import KEY, events, problem
from tests.jobs.house import ending, submit
from tests.puppet import PATIENCE, Pause, Puppet, eventually, follow

OTHER = {"X-User": "bob"}


class Document(Schema):
    title = fields.String(required=True, validate=validate.Length(max=20))
    pages = fields.Integer(load_default=1)


def answering(llm):
    """A job in which the model answers."""

    @llm.job("/api/analyze", input=Document, status="/api/analyze/<run_id>")
    def analyze(run):
        yield Progress(0.5, run.input["title"])
        text = ""
        for event in run.model.stream([{"role": "user", "content": run.input["title"]}]):
            text += event.token
            yield event
        yield Data({"pages": run.input["pages"]})
        return {"summary": text}

    @llm.job("/api/other", input=Document)
    def other(run):
        return run.input["title"]


BODY = {"title": "Moby Dick"}


@pytest.fixture
def pause():
    return Pause()


@pytest.fixture
def client(house, pause):
    """A client of jobs that say "Hel", and go on when the test lets them."""
    client = house.open(answering, Puppet(["Hel", pause, "lo"], usage=Usage(3, 2)))
    yield client
    pause.go_on()


# The start


@pytest.mark.parametrize(
    ("status", "location"), [(None, "/api/runs/{}"), ("/api/<int:year>/analyses/<run_id>", "/api/2026/analyses/{}")]
)
def test_what_a_rule_captures_is_in_the_status_own_rule_where_that_has_a_place_for_it(house, status, location):
    def declare(llm):
        llm.job("/api/<kind>/<int:year>", input=Document, status=status)(analyze)

    def analyze(run):
        return dict(run.view_args)

    client = house.open(declare)
    response = client.post("/api/whales/2026", json=BODY)
    assert response.headers["Location"] == location.format(response.json["id"])
    assert ending(client, response.headers["Location"])["result"] == {"kind": "whales", "year": 2026}


def test_a_start_is_answered_with_where_its_status_is(client, pause):
    response = client.post("/api/analyze", json=BODY)
    assert response.status_code == 202
    run = response.json
    assert response.headers["Location"] == f"/api/analyze/{run['id']}"
    assert response.headers["Retry-After"] == "2"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Preference-Applied" not in response.headers and "Idempotent-Replayed" not in response.headers
    assert (run["object"], run["feature"], run["attempt"]) == ("run", "analyze", 1)
    assert run["status"] in ("queued", "in_progress")
    url = f"/api/runs/{run['id']}"
    assert run["links"] == {"self": url, "events": f"{url}/events", "cancel": f"{url}/cancel"}
    pause.go_on()
    done = ending(client, url)
    assert (done["status"], done["text"], done["result"]) == ("completed", "Hello", {"summary": "Hello"})
    assert done["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}
    assert done["created_at"] <= done["started_at"] <= done["ended_at"] < done["expires_at"]


def test_without_a_status_rule_of_its_own_it_is_where_all_runs_are(client):
    assert submit(client, "/api/other", BODY).startswith("/api/runs/")


def test_who_prefers_to_wait_gets_the_result(client, pause):
    pause.go_on()
    response = client.post("/api/analyze", json=BODY, headers={"Prefer": "respond-async, wait=10"})
    assert (response.status_code, response.headers["Preference-Applied"]) == (200, "wait=10")
    assert "Retry-After" not in response.headers and "Location" in response.headers
    run = response.json
    assert (run["status"], run["result"]) == ("completed", {"summary": "Hello"})
    assert run["ended_at"] is not None and run["usage"] == {"prompt_tokens": 3, "completion_tokens": 2}


def test_what_is_not_done_in_time_is_answered_as_ever(client):
    response = client.post("/api/analyze", json=BODY, headers={"Prefer": "wait=0"})
    assert (response.status_code, response.headers["Retry-After"]) == (202, "2")
    assert "Preference-Applied" not in response.headers


def test_a_wait_ends_as_soon_as_the_job_does(client, pause):
    url = submit(client, "/api/analyze", BODY)
    assert pause.reached.wait(PATIENCE)
    pause.go_on()
    assert client.get(f"{url}?wait=30").json["status"] == "completed"


@pytest.mark.parametrize("body", [{}, {"title": 1}, {"title": "x" * 21}, {"title": "x", "pages": "many"}, {"a": 1}])
def test_input_that_is_not_valid_starts_nothing(client, body):
    response = client.post("/api/analyze", json=body)
    assert response.status_code == 422
    assert problem(response)["errors"]
    assert client.get("/api/runs").json["data"] == []


def test_input_that_is_no_json_is_refused(client):
    assert problem(client.post("/api/analyze", data="title=x"))["type"].endswith(":not-json")
    assert problem(client.post("/api/analyze", data="{", content_type="application/json"))["status"] == 400
    assert client.get("/api/analyze").status_code == 405


def test_decorators_are_around_the_start_and_the_status_of_its_own(house):
    seen = []

    def members_only(view):
        @wraps(view)
        def wrapped(**view_args):
            seen.append(view.__name__)
            abort(403, "Members only.")

        return wrapped

    def declare(llm):
        llm.job("/api/secret", input=Document, status="/api/secret/<run_id>", decorators=[members_only])(secret)

    def secret(run):
        raise AssertionError("it was performed")

    client = house.open(declare)
    assert problem(client.post("/api/secret", json=BODY))["detail"] == "Members only."
    assert client.get("/api/secret/any").status_code == 403
    assert seen == ["secret", "secret_status"]


def test_the_function_gets_what_the_request_said(house):
    heard = []

    def declare(llm):
        @llm.job("/api/<folder>/analyze", input=Document)
        def analyze(run):
            heard.append((run.input, run.user, dict(run.view_args), run.attempt, run.feature))

    client = house.open(declare)
    url = submit(client, "/api/letters/analyze", BODY, headers={"X-User": "ann"})
    assert ending(client, url)["status"] == "completed"
    assert heard == [({"title": "Moby Dick", "pages": 1}, "ann", {"folder": "letters"}, 1, "analyze")]


# The status


def test_the_status_is_the_same_wherever_it_is_asked_for(client, pause):
    own = submit(client, "/api/analyze", BODY)
    assert pause.reached.wait(PATIENCE)
    run_id = own.rsplit("/", 1)[1]
    eventually(lambda: client.get(own).json["text"] == "Hel")
    eventually(lambda: client.get(f"/api/runs/{run_id}").json == client.get(f"/api/status/{run_id}").json)
    said = client.get(own).json
    assert client.get(f"/api/status/{run_id}").json == said
    assert said["progress"] == {"progress": 0.5, "message": "Moby Dick"}
    assert said["status"] == "in_progress" and said["result"] is None
    assert client.get(own).headers["Retry-After"] == "2"


def test_who_knows_the_status_is_told_when_it_changes(client, pause):
    url = submit(client, "/api/analyze", BODY)
    eventually(lambda: client.get(url).json["text"] == "Hel")
    known = client.get(url).headers["ETag"]
    same = client.get(url, headers={"If-None-Match": known})
    assert (same.status_code, same.data, same.headers["Retry-After"]) == (304, b"", "2")
    pause.go_on()
    news = client.get(f"{url}?wait=30", headers={"If-None-Match": known})
    assert news.status_code == 200 and news.headers["ETag"] != known
    ending(client, url)
    assert "Retry-After" not in client.get(url).headers


def test_its_events_are_those_of_any_run(client, pause):
    url = submit(client, "/api/analyze", BODY)
    pause.go_on()
    *heard, done = events(client.get(client.get(url).json["links"]["events"]))
    assert [event for event in heard if "status" not in event] == [
        {"progress": 0.5, "message": "Moby Dick"},
        {"token": "Hel"},
        {"token": "lo"},
        {"data": {"pages": 1}},
    ]
    assert [event["status"] for event in heard if "status" in event] == ["queued", "thinking", "writing"]
    assert done["result"] == {"summary": "Hello"}


def test_a_stream_follows_a_job_from_the_queue_to_its_end(client, pause):
    links = client.get(submit(client, "/api/analyze", BODY)).json["links"]
    with client.get(links["events"]) as response:
        heard = follow(response)
        assert next(heard) == {"status": "queued"}
        while next(heard) != {"token": "Hel"}:
            pass
        pause.go_on()
        assert list(heard)[-1]["done"] is True


def test_jobs_are_listed_by_their_feature(client, pause):
    pause.go_on()
    one, two = submit(client, "/api/other", BODY), submit(client, "/api/analyze", BODY)
    for url in (one, two):
        ending(client, url)
    ids = [url.rsplit("/", 1)[1] for url in (two, one)]
    assert [run["id"] for run in client.get("/api/runs").json["data"]] == ids
    assert [run["id"] for run in client.get("/api/runs?feature=other").json["data"]] == ids[1:]


# Whose it is


@pytest.mark.parametrize("place", ["/api/runs/{id}", "/api/status/{id}", "/api/analyze/{id}", "/api/runs/{id}/events"])
def test_nobody_else_is_told_of_it(client, place):
    run_id = submit(client, "/api/analyze", BODY).rsplit("/", 1)[1]
    assert client.get(place.format(id=run_id), headers=OTHER).status_code == 404
    assert client.get("/api/runs", headers=OTHER).json["data"] == []


def test_nobody_else_stops_or_deletes_it(client):
    url = submit(client, "/api/analyze", BODY).replace("/analyze/", "/runs/")
    assert client.post(f"{url}/cancel", headers=OTHER).status_code == 404
    assert client.delete(url, headers=OTHER).status_code == 404
    assert client.get(url).json["status"] != "cancelled"


def test_a_status_of_its_own_is_of_its_own_runs_alone(client):
    another = submit(client, "/api/other", BODY).rsplit("/", 1)[1]
    assert problem(client.get(f"/api/analyze/{another}"))["type"].endswith(":run-not-found")


# Cancel and delete


def test_a_job_that_runs_is_cancelled_at_once(client, pause):
    url = submit(client, "/api/analyze", BODY)
    assert pause.reached.wait(PATIENCE)
    cancel = client.get(url).json["links"]["cancel"]
    response = client.post(cancel)
    assert (response.status_code, response.json["status"], response.json["text"]) == (200, "cancelled", "Hel")
    again = client.post(cancel)
    assert (again.status_code, again.json["status"]) == (200, "cancelled")
    assert client.get(url).json["error"] is None


@pytest.fixture
def waiting(house, pause):
    """A client, and where a job is that waits, behind another one or for somebody who works."""
    client = house.open(answering, Puppet([pause]), working=False, CONCURRENCY=1)
    submit(client, "/api/analyze", BODY)
    yield client, submit(client, "/api/other", BODY)
    pause.go_on()


def test_a_job_that_waits_is_cancelled_and_never_performed(waiting, house, pause):
    client, url = waiting
    assert client.get(url).json["status"] == "queued"
    assert client.get(url).json["started_at"] is None
    response = client.post(f"{url}/cancel")
    assert (response.status_code, response.json["status"]) == (200, "cancelled")
    assert client.post(f"{url}/cancel").json["status"] == "cancelled"
    perform_all(house, pause)
    assert client.get(url).json["status"] == "cancelled"
    assert client.get(url).json["usage"] is None


def perform_all(house, pause):
    """Have all be performed that waits."""
    pause.go_on()
    if house.hands:
        while house.hands.waiting():
            house.hands.take()
    eventually(lambda: not house.performer.live)


def test_a_job_that_waits_is_deleted_and_never_performed(waiting, house, pause):
    client, url = waiting
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert len(client.get("/api/runs").json["data"]) == 1
    run_id = url.rsplit("/", 1)[1]
    store = house.record.registry.ledger.store
    assert store.command("EXISTS", store.key("run", run_id)) == 0
    assert store.command("ZSCORE", store.key("leases"), run_id) is None
    perform_all(house, pause)
    assert client.get(url).status_code == 404


def test_a_job_that_has_ended_is_deleted(client, pause):
    pause.go_on()
    url = submit(client, "/api/other", BODY)
    ending(client, url)
    assert client.delete(url).status_code == 204
    assert client.get(url).status_code == 404
    assert client.delete(url).status_code == 404


# Idempotency


def test_the_same_key_joins(client, pause):
    headers = {"Idempotency-Key": KEY}
    first = client.post("/api/analyze", json=BODY, headers=headers)
    second = client.post("/api/analyze", json=BODY, headers=headers)
    assert (second.status_code, second.headers["Location"]) == (202, first.headers["Location"])
    assert second.headers["Idempotent-Replayed"] == "true"
    pause.go_on()
    ending(client, first.headers["Location"])
    third = client.post("/api/analyze", json=BODY, headers=headers | {"Prefer": "wait=5"})
    assert (third.status_code, third.json["id"]) == (200, first.json["id"])
    assert third.json["result"] == {"summary": "Hello"}
    assert len(client.get("/api/runs").json["data"]) == 1


def test_the_same_key_is_not_for_another_input(client):
    headers = {"Idempotency-Key": KEY}
    client.post("/api/analyze", json=BODY, headers=headers)
    other = client.post("/api/analyze", json=BODY | {"pages": 2}, headers=headers)
    assert other.status_code == 422
    assert problem(other)["type"].endswith(":idempotency-key-reused")
    assert client.post("/api/other", json=BODY, headers=headers).status_code == 422
