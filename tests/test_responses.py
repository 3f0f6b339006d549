"""Responses inside an application that has ways of its own: its response class, and what it does after requests."""

from __future__ import annotations

import pytest
from flask import Response, copy_current_request_context, session

from flask_llmstream import LLMStream, Token
from flask_llmstream.errors import UpstreamAuthenticationFailed
from flask_llmstream.events import Event
from flask_llmstream.runtime import current
from tests.conversation import QUESTION, ask, events, new_app, problem, text
from tests.puppet import PATIENCE, Pause, Puppet, eventually, follow, stage
from tests.runtime.connection import connection


class House(Response):
    """What an application may set as its `response_class`."""

    default_mimetype = "application/json"


def test_an_early_refusal_keeps_its_status_whatever_class_the_application_answers_with():
    with stage(Puppet([UpstreamAuthenticationFailed()])) as (app, _):
        app.response_class = House
        assert problem(ask(app))["status"] == 502


def test_a_stream_is_of_the_applications_class():
    with stage() as (app, _):
        app.response_class = House
        kinds = []
        app.after_request(lambda response: kinds.append(isinstance(response, House)) or response)
        assert text(ask(app)) == "Hello"
        assert kinds == [True]


def fail_afterwards(app):
    @app.after_request
    def fail(response):
        raise RuntimeError("in after_request")


def fail_to_save_the_session(app):
    @app.before_request
    def remember():
        session["what no cookie can hold"] = object()


def answer_with_something_else(app):
    app.after_request(lambda response: Response("Closed for today.", 503))


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("spoil", [fail_afterwards, fail_to_save_the_session, answer_with_something_else])
def test_a_stream_that_the_application_drops_keeps_neither_its_place_nor_its_run(spoil, method):
    """Nobody will ever read it, and Flask does not close a response that it does not send."""
    with stage(Puppet(["Hel", Pause()]), ORPHAN_GRACE=0, HEARTBEAT=0.1) as (app, llm):
        app.config.update(TESTING=False, PROPAGATE_EXCEPTIONS=False)
        spoil(app)
        client = app.test_client()
        if method == "POST":
            answer = ask(client)
        else:
            answer = client.get("/api/chat/stream?message=Hi", headers={"Accept": "text/event-stream"})
        with answer:
            assert answer.status_code >= 500
        record = llm.record(app)
        eventually(lambda: not record.registry.live)
        assert len(record.open) == 0


def test_a_stream_that_is_sent_keeps_its_place_until_it_is_closed():
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"]), ORPHAN_GRACE=0) as (app, llm):
        with ask(app) as answer:
            assert pause.reached.wait(5)
            assert len(llm.record(app).open) == 1
            assert [run.state for run in llm.record(app).registry.live] == ["in_progress"]
            pause.go_on()
            assert text(answer) == "Hello"
        assert len(llm.record(app).open) == 0


def test_an_event_is_encoded_once_however_many_read_it(monkeypatch):
    encoded = []
    encode = Event.encode
    monkeypatch.setattr(Event, "encode", lambda event: encoded.append(event) or encode(event))
    app = new_app()
    llm = LLMStream(app, model=Puppet())
    client = app.test_client()
    answer = ask(client)
    readers = [client.get(answer.headers["Location"] + "/events") for _ in range(3)]
    heard = [events(reader) for reader in (answer, *readers)]
    assert heard[1:] == [heard[0]] * 3
    assert [event for event in encoded if isinstance(event, Token)] == [Token("Hel"), Token("lo")]
    assert len(encoded) == len(heard[0]) - 1  # the first, which is always the same, is encoded when it is imported
    llm.record(app).close()


def refuse(*_):
    raise RuntimeError("can't start new thread")


@pytest.fixture(params=["its socket is watched", "it is looked after"])
def breaking(request, monkeypatch):
    """A process that is out of threads at the moment when a stream is made."""
    with monkeypatch.context() as patch:
        if request.param == "its socket is watched":
            patch.setattr(current().watcher, "watch", refuse)
        else:
            patch.setattr(current().timers, "every", refuse)
        yield


def nothing_is_left(record, run):
    eventually(lambda: run.ended)
    assert run.state == "cancelled"
    assert len(record.open) == 0 and not record.open._responses
    assert run.log.readers == 0
    assert len(current().watcher) == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.usefixtures("breaking")
def test_a_run_whose_stream_cannot_be_made_is_stopped(method):
    """Nobody would ever read it, and it had no reader yet whose leaving could end it."""
    with stage(Puppet(["Hel", Pause()])) as (app, llm), connection() as (server, _):
        app.config.update(TESTING=False, PROPAGATE_EXCEPTIONS=False)
        started = []
        start = llm.record(app).registry.start
        llm.record(app).registry.start = lambda *order: started.append(start(*order)) or started[-1]
        question = {"environ_overrides": {"werkzeug.socket": server}}
        if method == "POST":
            answer = ask(app, **question)
        else:
            accept = {"Accept": "text/event-stream"}
            answer = app.test_client().get("/api/chat/stream?message=Hi", headers=accept, **question)
        assert answer.status_code == 500
        ((run, _),) = started
        nothing_is_left(llm.record(app), run)


def test_a_run_whose_second_stream_cannot_be_made_goes_on_for_the_first(monkeypatch):
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"])) as (app, llm), connection() as (server, _):
        app.config.update(TESTING=False, PROPAGATE_EXCEPTIONS=False)
        client, record = app.test_client(), llm.record(app)
        with ask(client) as first:
            (run,) = record.registry.live
            with monkeypatch.context() as patch:
                patch.setattr(current().watcher, "watch", refuse)
                for url in ("/api/chat/stream", f"{first.headers['Location']}/events"):
                    method = "POST" if url.endswith("stream") else "GET"
                    broken = {"method": method, "environ_overrides": {"werkzeug.socket": server}}
                    body = {"json": QUESTION} if method == "POST" else {}
                    assert client.open(url, **broken, **body).status_code == 500
            assert (run.log.readers, len(record.open), len(record.open._responses)) == (1, 1, 1)
            assert not run.cancelled
            pause.go_on()
            assert text(first) == "Hello"


def test_a_client_that_has_gone_is_written_nothing():
    """It can go between a token's arrival and its write, which nothing would wake: nobody reads the socket."""
    pause = Pause()
    with stage(Puppet(["Hel", pause, "lo"])) as (app, llm), connection() as (server, client):
        with ask(app, environ_overrides={"werkzeug.socket": server}) as response:
            (stream,) = llm.record(app).open._responses
            heard = follow(response)
            while next(heard) != {"token": "Hel"}:
                pass
            assert pause.reached.wait(PATIENCE)
            client.close()
            eventually(lambda: stream._attendance.gone)
            (run,) = llm.record(app).registry.live
            pause.go_on()
            eventually(lambda: run.ended)
            with pytest.raises(ConnectionResetError):
                next(response.response)
        assert len(llm.record(app).open) == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_stream_that_goes_out_in_another_response_is_read_to_its_end(method):
    """As middleware of an application's own may do it: the body is ours, what is around it is not."""
    with stage(Puppet(["Hel", "lo"]), HEARTBEAT=0.1) as (app, llm):
        app.after_request(lambda response: Response(response.response, headers=response.headers))
        client = app.test_client()
        if method == "POST":
            answer = ask(client)
        else:
            answer = client.get("/api/chat/stream?message=Hi", headers={"Accept": "text/event-stream"})
        with answer:
            assert '"done":true' in answer.text
        eventually(lambda: len(llm.record(app).open) == 0)


def test_a_stream_outlives_a_copy_of_its_request():
    """`copy_current_request_context` ends a request's context once more, in a thread and perhaps before it."""
    with stage(Puppet(["Hel", "lo"])) as (app, llm):

        @app.after_request
        def copy(response):
            copy_current_request_context(lambda: None)()
            return response

        with ask(app.test_client()) as answer:
            assert '"done":true' in answer.text
        eventually(lambda: len(llm.record(app).open) == 0)
