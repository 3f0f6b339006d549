"""What is asked before the 101: a refusal is a problem, as for any other request."""

from __future__ import annotations

import socket

import pytest
from flask import Flask, Response

from flask_llmstream import LLMStream
from flask_llmstream.errors import ShuttingDown
from flask_llmstream.problems import with_problems
from flask_llmstream.websocket import Connection, add_socket_rule, serve
from tests.sockets.client import UPGRADE, Raw, connect, text


def make_app(**config: object) -> tuple[Flask, LLMStream]:
    """An application that has one WebSocket, at /talk."""
    app, llm = Flask("talking"), LLMStream()
    app.config.update({"SECRET_KEY": "only a test", "LLMSTREAM_ALLOWED_ORIGINS": "https://friend.test"} | config)
    llm.init_app(app)

    def talk(connection: Connection) -> None:
        connection.send("hello")

    @with_problems
    def view() -> Response:
        return serve(llm.record(app), talk, subprotocols=("test.v2", "test.v1"))

    add_socket_rule(app, "/talk", "talk", view)
    return app, llm


@pytest.fixture
def app():
    app, llm = make_app()
    yield app
    llm.record(app).close()


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426, "upgrade-required"),
        ({"Sec-WebSocket-Version": None}, 426, "upgrade-required"),
        ({"Upgrade": None, "Connection": None}, 426, "upgrade-required"),
        ({"Upgrade": "h2c"}, 426, "upgrade-required"),
        ({"Sec-WebSocket-Key": None}, 400, "bad-request"),
        ({"Sec-WebSocket-Key": "c2hvcnQ="}, 400, "bad-request"),
        ({"Sec-WebSocket-Protocol": "other.v1, other.v2"}, 400, "bad-request"),
        ({"Origin": "https://foe.test"}, 403, "origin-refused"),
        ({"Origin": "null"}, 403, "origin-refused"),
        ({"Origin": "https://friend.test"}, 500, "configuration-error"),
        ({"Origin": "http://app.test"}, 500, "configuration-error"),
        ({}, 500, "configuration-error"),
    ],
    ids=str,
)
def test_what_is_refused(app, headers, status, kind):
    """Flask's test client is let in so far that the server is asked for its socket, which it does not have."""
    told = {name: value for name, value in (UPGRADE | headers).items() if value is not None}
    answer = app.test_client().get("/talk", headers=told)
    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json")
    assert answer.json["type"] == f"urn:problem-type:flask-llmstream:{kind}"


def test_a_426_says_what_is_spoken_here(app):
    answer = app.test_client().get("/talk", headers=UPGRADE | {"Sec-WebSocket-Version": "14"})
    assert answer.headers["Sec-WebSocket-Version"] == "13"
    assert answer.headers["Upgrade"] == "websocket"
    assert "version 13" in answer.json["detail"]


def test_a_page_can_ask_why_its_websocket_was_refused(app):
    """A browser shows it nothing of the handshake; a plain GET has the same said by the same checks."""
    ask = app.test_client().get
    assert ask("/talk").status_code == 426
    assert ask("/talk", headers={"Origin": "https://foe.test"}).status_code == 403


def test_a_server_that_is_about_to_go_begins_no_call(app, monkeypatch):
    def admit() -> None:
        raise ShuttingDown(retry_after=2)

    record = app.extensions["llmstream"]
    [record] = record.values() if isinstance(record, dict) else [record]
    monkeypatch.setattr(record.drain, "admit", admit)
    answer = app.test_client().get("/talk", headers=UPGRADE)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")


def test_a_full_process_begins_no_call():
    app, llm = make_app(LLMSTREAM_MAX_OPEN=1)
    places = llm.record(app).open
    with places.place():
        assert app.test_client().get("/talk", headers=UPGRADE).status_code == 503
    places.give_back()
    assert app.test_client().get("/talk", headers=UPGRADE).status_code == 500  # as above
    llm.record(app).close()


def test_a_call_that_cannot_be_begun_is_cut(app, monkeypatch, caplog):
    """After its 101 it would be wrong to answer by a page."""

    def connection(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("flask_llmstream.websocket.Connection", connection)
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ConnectionResetError):
        app.test_client().get("/talk", headers=UPGRADE, environ_overrides={"gunicorn.socket": ours})
    assert "can't start new thread" in caplog.text


def test_the_address_of_a_websocket_is_one_for_pages(app):
    with app.test_request_context():
        assert app.url_for("talk") == "/talk"


def test_a_handshake(server):
    with Raw(server, "/echo", Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits") as client:
        assert client.status == 101
        assert client.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3
        assert client.headers["Set-Cookie"].startswith("seen=yes")
        assert "Sec-WebSocket-Extensions" not in client.headers
        assert "Sec-WebSocket-Protocol" not in client.headers
        client.send(text("hello"))
        assert client.frame() == (1, b"hello")
    if server.kind != "flask":  # werkzeug writes a line only for what it sends itself
        server.await_news('"GET /echo HTTP/1.1" 101')


def test_the_client_s_first_choice_among_what_is_spoken(server):
    with connect(server, "/echo", subprotocols=["other", "test.v1", "test.v2"]) as client:
        assert client.subprotocol == "test.v1"


def test_refusals_leave_an_http_connection(server):
    """Over a real socket: problems, which a browser's fetch can read."""
    with Raw(server, "/echo", Origin="https://foe.test") as client:
        assert client.status == 403
    with Raw(server, "/echo", Sec_WebSocket_Version="8") as client:
        assert (client.status, client.headers["Sec-WebSocket-Version"]) == (426, "13")
    with Raw(server, "/echo?user=nobody") as client:
        assert client.status == 401
    with server.get("/echo") as answer:
        assert (answer.status, answer.json()["type"]) == (426, "urn:problem-type:flask-llmstream:upgrade-required")
        assert answer.headers["upgrade"] == "websocket"
    with Raw(server, "/echo", Origin="https://friend.test") as client:
        assert client.status == 101
