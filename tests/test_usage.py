"""What a run has consumed is told in every case: as the upstream reports it, or estimated, which then says so."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.conversation import ask, events
from tests.puppet import stage

ANSWER = "".join(Schedule().tokens)


@contextmanager
def asked(schedule):
    """An application in front of a model's server; its second feature waits for whole answers."""
    with ModelServer(schedule) as server, stage(OpenAI("m", base_url=server.base_url, api_key="none")) as (app, llm):
        llm.stream("/api/whole")(lambda run: run.model.reply(run.input.messages).text)
        yield app, server


@pytest.mark.parametrize("url", ["/api/chat/stream", "/api/whole"])
def test_what_the_upstream_reports_is_told_as_it_is(url):
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    with asked(Schedule(usage=usage)) as (app, _):
        done = events(ask(app, url))[-1]
    assert done["usage"] == {"prompt_tokens": 11, "completion_tokens": 7}
    assert done["tokens"] == 7


@pytest.mark.parametrize("url", ["/api/chat/stream", "/api/whole"])
def test_what_it_does_not_report_is_estimated(url):
    """Many local servers report none."""
    with asked(Schedule(usage=False)) as (app, _):
        done = events(ask(app, url))[-1]
    assert done["usage"]["estimated"] is True
    assert done["usage"]["prompt_tokens"] > 0
    assert 0 < done["usage"]["completion_tokens"] == done["tokens"] <= len(ANSWER)


@pytest.mark.parametrize("said", [0, 1])
def test_a_stop_is_estimated_too_however_early(said):
    """The upstream has taken the question, and will charge for it."""
    gate = Gate()
    with asked(Schedule(tokens=3, gates={said: gate})) as (app, server):
        client = app.test_client()
        answer = ask(client)  # it begins when the upstream has taken the request
        gate.wait(5)
        run = client.post(f"{answer.headers['Location']}/cancel").json
        done = events(answer)[-1]
        server.wait_for(lambda server: server.cancelled == 1)
    assert done["cancelled"] is True
    assert run["usage"] == done["usage"]
    assert done["usage"]["estimated"] is True
    assert done["usage"]["prompt_tokens"] > 0
    assert done["tokens"] == done["usage"]["completion_tokens"] == said


def test_a_stop_before_the_upstream_took_anything_costs_nothing():
    gate = Gate()
    with asked(Schedule(gates={"headers": gate})) as (app, server):
        client = app.test_client()
        answer = ask(client)  # it begins after a second at the latest
        client.post(f"{answer.headers['Location']}/cancel")
        done = events(answer)[-1]
        server.wait_for(lambda server: server.cancelled == 1)
    assert done["cancelled"] is True
    assert "usage" not in done
    assert done["tokens"] == 0
