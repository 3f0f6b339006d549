"""What ends a run from outside: stop, and forget."""

import threading

import pytest

from flask_llmstream import status
from tests.conversation import KEY, ask, events
from tests.puppet import PATIENCE, Puppet, eventually, stage

# Stop


def test_a_stop_ends_it_and_tells_the_end(live):
    client, url = live
    response = client.post(f"{url}/cancel")
    assert response.status_code == 200
    assert (response.json["status"], response.json["text"]) == ("cancelled", "Hel")
    assert response.json["usage"]["estimated"] is True
    last = events(client.get(f"{url}/events"))[-1]
    assert last["done"] is last["cancelled"] is True


def test_to_stop_twice_is_to_stop_once(live):
    client, url = live
    first = client.post(f"{url}/cancel")
    assert client.post(f"{url}/cancel").json == first.json


def test_what_has_ended_stays_as_it_is(ended):
    client, url = ended
    response = client.post(f"{url}/cancel")
    assert (response.status_code, response.json["status"]) == (200, "completed")


def test_a_function_that_does_not_stop_at_once_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(status, "STOP_WITHIN", 0.02)
    goes_on = threading.Event()
    with stage() as (app, llm):

        @llm.stream("/stubborn")
        def stubborn(run):
            yield "Hel"
            goes_on.wait(PATIENCE)
            yield "lo"

        client = app.test_client()
        with ask(client, "/stubborn") as response:
            url = response.headers["Location"]
            stopping = client.post(f"{url}/cancel")
            assert (stopping.status_code, stopping.json["status"]) == (202, "in_progress")
            goes_on.set()
            assert events(response)[-1]["cancelled"] is True


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_only_a_post_stops(live, method):
    client, url = live
    assert client.open(f"{url}/cancel", method=method).status_code == 405
    assert client.get(url).json["status"] == "in_progress"


# Forget


def test_what_is_forgotten_never_was(ended):
    client, url = ended
    response = client.delete(url)
    assert (response.status_code, response.data) == (204, b"")
    for again in (client.get(url), client.get(f"{url}/events"), client.post(f"{url}/cancel"), client.delete(url)):
        assert again.status_code == 404


def test_to_forget_a_run_that_goes_on_stops_it(live):
    client, url = live
    (run,) = client.application.extensions["llmstream"]["llmstream"].registry.live
    assert client.delete(url).status_code == 204
    eventually(lambda: run.ended)
    assert run.state == "cancelled"
    assert client.get(url).status_code == 404


def test_its_key_is_free_again():
    puppet = Puppet()
    with stage(puppet) as (app, _):
        client = app.test_client()
        first = ask(client, headers={"Idempotency-Key": KEY})
        events(first)
        client.delete(first.headers["Location"])
        second = ask(client, headers={"Idempotency-Key": KEY})
        events(second)
        assert second.headers["Location"] != first.headers["Location"]
    assert len(puppet.calls) == 2
