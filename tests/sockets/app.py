"""The application under test: what a WebSocket's handler may do, each at an address of its own."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from flask import Flask, Response, current_app, request

from flask_llmstream import LLMStream
from flask_llmstream.errors import NotAuthenticated
from flask_llmstream.problems import with_problems
from flask_llmstream.runtime import current
from flask_llmstream.websocket import Connection, ConnectionClosed, Handler, SocketLimits, add_socket_rule, serve

LARGE = SocketLimits(max_message=32 << 20, backlog=32 << 20)
QUICK = SocketLimits(ping=0.2, pong_within=0.3)
IMPATIENT = SocketLimits(send_within=0.5)

llm = LLMStream()
marks: list[str] = []
"""What handlers have noted."""


def echo(connection: Connection) -> None:
    """Say all that one hears, until the other one goes."""
    try:
        while True:
            message = connection.receive()
            assert message is not None
            connection.send(message)
    except ConnectionClosed as closed:
        marks.append(f"echo {closed.reason} {closed.message}")
        raise


def blast(connection: Connection) -> None:
    """60 times 256 KB, each of one letter."""
    for n in range(60):
        connection.send(bytes([65 + n]) * 262144)


def stream(connection: Connection) -> None:
    """As 80 s of speech, at once: 4000 packets of 20 ms, numbered."""
    try:
        for n in range(4000):
            connection.send(n.to_bytes(4, "little") * 240)
    except ConnectionClosed as closed:
        marks.append(f"stream {closed.reason} {closed.message}")
        raise


def duet(connection: Connection) -> None:
    """Two who speak at the same time."""

    def sing(letter: bytes) -> None:
        for n in range(200):
            connection.send(letter * (1 + n * 37))

    second = threading.Thread(target=sing, args=(b"b",))
    second.start()
    sing(b"a")
    second.join()


def deaf(connection: Connection) -> None:
    """Hear nothing until the other one goes."""
    while not connection.closed:
        time.sleep(0.01)
    marks.append(f"deaf {connection.code} {connection.reason}")


def late(connection: Connection) -> None:
    """Hear what was said only after the other one has gone."""
    while not connection.closed:
        time.sleep(0.01)
    try:
        while True:
            marks.append(f"late {connection.receive()!s}")
    except ConnectionClosed as closed:
        marks.append(f"late {closed.reason}")


def broken(connection: Connection) -> None:
    connection.send("one")
    raise RuntimeError("the secret is swordfish")


def leaving(connection: Connection) -> None:
    """Wait for the end, and clean up."""

    def told(within: float) -> None:
        note("told")
        connection.send("draining" if 0 < within <= 1.5 else f"draining within {within}")
        connection.wake()

    connection.on_leaving = told
    connection.send("ready")
    try:
        while True:
            message = connection.receive()
            connection.send("woken" if message is None else message)
    except ConnectionClosed as closed:
        note(f"closed {closed.reason}")
    finally:
        time.sleep(0.05)
        note("finally")


def closing(connection: Connection) -> None:
    """Close as the other one wishes: ``code reason``."""
    code, _, reason = str(connection.receive()).partition(" ")
    connection.close(int(code), reason)
    connection.close(1011, "not this")
    try:
        connection.receive()
    except ConnectionClosed as closed:
        marks.append(f"closing {closed.reason} {closed.message}")


def waking(connection: Connection) -> None:
    """Tell what `receive` returns when nothing comes: in time, and when it is woken."""
    connection.send(repr(connection.receive(timeout=0.01)))
    threading.Timer(0.01, connection.wake).start()
    connection.send(repr(connection.receive(timeout=5)))
    connection.send(repr(connection.receive()))


def note(mark: str) -> None:
    """Leave a mark that outlives the process."""
    with open(os.environ["MARKS"], "a") as file:
        print(mark, file=file)


HANDLERS: dict[str, tuple[Handler, SocketLimits | None]] = {
    "/echo": (echo, None),
    "/large": (echo, LARGE),
    "/quick": (echo, QUICK),
    "/blast": (blast, None),
    "/stream": (stream, None),
    "/impatient": (stream, IMPATIENT),
    "/duet": (duet, None),
    "/deaf": (deaf, QUICK),
    "/late": (late, None),
    "/broken": (broken, None),
    "/leaving": (leaving, None),
    "/closing": (closing, None),
    "/waking": (waking, None),
}


class OwnResponse(Response):
    """As applications have one; Flask makes every response one of its kind."""


def create_app() -> Flask:
    app = Flask(__name__)
    app.response_class = OwnResponse
    app.config.update(
        SECRET_KEY="only a test", LLMSTREAM_HEARTBEAT=1.0, LLMSTREAM_ALLOWED_ORIGINS="https://friend.test"
    )
    llm.init_app(app)
    # As somebody may have it for routes of their own; ours are not to be touched by it.
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": 1, "ping_interval": 0.01}
    for rule, (handler, limits) in HANDLERS.items():
        mount(app, rule, handler, limits)

    @app.get("/state")
    def state() -> dict[str, Any]:
        held = llm.record(app).open
        return {
            "open": len(held),
            "watched": len(current().watcher),
            "threads": sum(thread.name == "llmstream-socket" for thread in threading.enumerate()),
            "marks": marks,
            "pid": os.getpid(),
            "memory": resident(),
        }

    @app.post("/reset")
    def reset() -> str:
        marks.clear()
        return ""

    @app.get("/quickly")
    def quickly() -> str:
        return "done"

    return app


def mount(app: Flask, rule: str, handler: Handler, limits: SocketLimits | None) -> None:
    """Route a handler's address, where nobody is let in who is called so."""

    @with_problems
    def view() -> Response:
        if request.args.get("user") == "nobody":
            raise NotAuthenticated
        response = serve(llm.record(current_app), handler, subprotocols=("test.v2", "test.v1"), limits=limits)
        response.set_cookie("seen", "yes")
        return response

    add_socket_rule(app, rule, rule.strip("/"), view)


def resident() -> int:
    """Bytes of memory that the process has."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
