"""Flask-SQLAlchemy: read first, in a context of its own, then stream; save the answer when the run has ended.

The pool holds a single connection, so whoever keeps it keeps it from everybody.
"""

from __future__ import annotations

import threading

import httpx2
import pytest
from flask import request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_llmstream import LLMStream, run_ended
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.conversation import QUESTION, new_app


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Note(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture
def app(tmp_path):
    app = new_app(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'notes.db'}",
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1},
    )
    db.init_app(app)
    app.add_url_rule("/notes/<int:id>", "note", lambda id: db.get_or_404(Note, id).text)
    with app.app_context():
        db.create_all()
        db.session.add(Note(text="E = mc²"))
        db.session.commit()
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def model(monkeypatch):
    """A model's server that stops after its first token until the test lets it go on."""
    gate = Gate()
    with ModelServer(Schedule(tokens=["It ", "says ", "so."], gates={1: gate})) as server:
        server.gate = gate
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server
        gate.release()


def explain(text):
    return [{"role": "user", "content": f"Explain: {text}"}]


def read_until(lines, wanted):
    """The lines of a stream up to the one that has `wanted` in it."""
    for line in lines:
        if wanted in line:
            return
    raise AssertionError(f"the stream ended without {wanted}")


def test_a_session_of_a_short_context_is_given_back_before_the_stream(app, model, serve):
    llm = LLMStream(app)

    @llm.stream("/api/notes/<int:note_id>/explain")
    def explain_note(run):
        with run.app_context():
            note = db.session.get_one(Note, run.view_args["note_id"]).text
        return run.model.stream(explain(note))

    url = serve(app)
    with httpx2.stream("POST", f"{url}/api/notes/1/explain", json=QUESTION) as answer:
        lines = answer.iter_lines()
        read_until(lines, '{"token":"It "}')
        assert httpx2.get(f"{url}/notes/1").text == "E = mc²"  # while the stream is open
        model.gate.release()
        read_until(lines, '"done":true')
    assert model.requests[0].body["messages"] == explain("E = mc²")


def test_a_session_held_across_yields_keeps_everybody_out(app, model, serve):
    llm = LLMStream(app)
    app.register_error_handler(PoolTimeout, lambda error: ("no connection is free", 503))

    @llm.stream("/api/notes/<int:note_id>/explain")
    def explain_note(run):
        note = db.session.get_one(Note, run.view_args["note_id"]).text
        yield from run.model.stream(explain(note))

    url = serve(app)
    with httpx2.stream("POST", f"{url}/api/notes/1/explain", json=QUESTION) as answer:
        lines = answer.iter_lines()
        read_until(lines, '{"token":"It "}')
        assert httpx2.get(f"{url}/notes/1").status_code == 503
        model.gate.release()
        read_until(lines, '"done":true')
    assert httpx2.get(f"{url}/notes/1").status_code == 200  # given back at the function's end


def test_what_the_request_reads_is_given_back_before_the_function_needs_it(app, model, serve, monkeypatch):
    """As with Flask-Login, whose user loader asks the database who this is."""
    # However long a response waits to see what it will be, it does so without the request's session.
    monkeypatch.setattr("flask_llmstream.streams.HEADERS_WITHIN", 30.0)
    llm = LLMStream(app, identify=lambda: db.session.get(Note, int(request.headers["User"])).id)

    @llm.stream("/api/notes/<int:note_id>/explain")
    def explain_note(run):
        with run.app_context():
            note = db.session.get_one(Note, run.view_args["note_id"]).text
        return run.model.stream(explain(note))

    url = serve(app)
    model.gate.release()
    answer = httpx2.post(f"{url}/api/notes/1/explain", json=QUESTION, headers={"User": "1"})
    assert answer.status_code == 200, answer.text
    assert '"done":true' in answer.text


def test_an_answer_is_saved_when_its_run_has_ended(app, model, serve):
    LLMStream(app)
    model.gate.release()

    def save(sender, text, **_):
        db.session.add(Note(text=text))
        db.session.commit()

    url = serve(app)
    with run_ended.connected_to(save, sender=app):
        answer = httpx2.post(f"{url}/api/chat/stream", json=QUESTION)
        assert '"done":true' in answer.text
        # Whoever has heard of the end finds the answer saved.
        assert httpx2.get(f"{url}/notes/2").text == "It says so."


def test_what_was_written_before_a_stop_is_saved_too(app, model, serve):
    LLMStream(app)
    saved = threading.Event()

    def save(sender, text, state, **_):
        db.session.add(Note(text=f"{state}: {text}"))
        db.session.commit()
        saved.set()

    url = serve(app)
    with run_ended.connected_to(save, sender=app), httpx2.Client(base_url=url) as client:
        with client.stream("POST", "/api/chat/stream", json=QUESTION) as answer:
            read_until(answer.iter_lines(), '{"token":"It "}')
            client.post(f"{answer.headers['Location']}/cancel", headers={"Connection": "close"})
        assert saved.wait(5)
        assert client.get("/notes/2").text == "cancelled: It "
