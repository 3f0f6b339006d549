"""However a WebSocket ends, both sides are told the truth, nothing is left, and no log has an error in it."""

from __future__ import annotations

import struct
import time

import pytest
from websockets.exceptions import ConnectionClosed

from tests.servers.serving import Server, until
from tests.sockets.client import BINARY, CLOSE, FIN, PING, PONG, TEXT, Raw, close, connect, frame, text


def marks(server: Server, number: int = 1) -> list[str]:
    """What handlers have noted, as soon as there is as much of it."""
    return until(lambda: found if len(found := server.state()["marks"]) >= number else None)


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (close(1000), 1000, ""),
        (close(1001, "The page was closed."), 1001, "The page was closed."),
        (close(4001, "schön"), 4001, "schön"),
        (frame(FIN | CLOSE), 1005, ""),
    ],
    ids=["1000", "1001", "4001", "without a code"],
)
def test_the_client_closes(server, sent, code, reason):
    with Raw(server, "/echo") as client:
        client.send(sent)
        assert client.until_close() == (code, reason)
        assert client.frame() is None
    assert marks(server) == [f"echo {code} {reason}"]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1008, "Too fast."), (4400, "r" * 123)])
def test_the_handler_closes(server, code, reason):
    with connect(server, "/closing") as client:
        client.send(f"{code} {reason}")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
    assert marks(server) == [f"closing {code} {reason}"]


def test_a_client_that_does_not_answer_a_close_is_left(server):
    with Raw(server, "/closing") as client:
        client.send(text("4000 enough"))
        assert client.until_close() == (4000, "enough")
        told = time.monotonic()
        assert client.frame() is None
        assert time.monotonic() - told < 5
    assert marks(server) == ["closing 4000 enough"]


def test_what_was_said_before_the_close_is_heard(server):
    with Raw(server, "/late") as client:
        client.send(text("one") + text("two") + close(1000))
        assert client.until_close() == (1000, "")
    assert marks(server, 3) == ["late one", "late two", "late 1000"]


BREACHES = {
    "a reserved bit": (frame(FIN | 0x40 | TEXT, b"x"), 1002, "Reserved bit set unexpectedly."),
    "no mask": (frame(FIN | TEXT, b"x", masked=False), 1002, "Server received unexpected unmasked frame."),
    "an unknown opcode": (frame(FIN | 0x3), 1002, "Invalid opcode 0x3."),
    "a ping in fragments": (frame(PING), 1002, "Invalid attempt to fragment control frame."),
    "the rest of nothing": (frame(FIN, b"x"), 1002, "Unexpected CONTINUATION."),
    "half a close code": (frame(FIN | CLOSE, b"x"), 1002, "CLOSE with 1 byte payload."),
    "a close code for nobody": (close(1005), 1002, "Remote CLOSE with local-only reason."),
    "no UTF-8": (frame(FIN | TEXT, b"\xff"), 1007, "Text must be valid UTF-8."),
    "half a letter": (frame(TEXT, b"\xce") + frame(FIN, b"x"), 1007, "Text must be valid UTF-8."),
    "a byte too many": (frame(FIN | BINARY, bytes(65537)), 1009, "A message may have 65536 bytes."),
    "two large parts": (frame(TEXT, bytes(40000)) + frame(FIN, bytes(40000)), 1009, "A message may have 65536 bytes."),
    "16 MB": (frame(FIN | BINARY, bytes(16 << 20)), 1009, "A message may have 65536 bytes."),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_the_client_breaks_the_rules(server, breach):
    """It is told so even if it does not read before it has sent all of it."""
    sent, code, reason = BREACHES[breach]
    with Raw(server, "/echo") as client:
        client.send(sent)
        assert client.until_close() == (code, reason)
    assert marks(server) == [f"echo {code} {reason}"]


def test_a_client_that_falls_silent(server):
    with Raw(server, "/quick") as client:
        assert client.frame() == (PING, b"")
        assert client.until_close() == (3008, "Nothing came within 0.3 s of a ping.")
    assert marks(server) == ["echo 3008 Nothing came within 0.3 s of a ping."]


def test_a_client_that_answers_pings_stays(gevent_server):
    with Raw(gevent_server, "/quick") as client:
        for _ in range(4):
            assert client.frame() == (PING, b"")
            client.send(frame(FIN | PONG))
        client.send(text("still here"))
        assert client.frame() == (TEXT, b"still here")


def test_an_error_of_the_handler(server):
    """It is logged, once; the client learns no more than that there was one, and sees no HTTP inside its stream."""
    with Raw(server, "/broken") as client:
        assert client.frame() == (TEXT, b"one")
        assert client.frame() == (CLOSE, struct.pack("!H", 1011) + b"The server made an error.")
        client.send(close(1011))
        assert client.frame() is None
    news = server.await_news("RuntimeError: the secret is swordfish")
    assert news.count("Traceback") == news.count("swordfish") - 1 == 1  # the source line has the word, too


def test_a_line_that_ends_without_a_word(server):
    with Raw(server, "/echo"):
        pass
    assert marks(server) == ["echo 1006 The connection was lost."]


@pytest.mark.parametrize("path", ["/echo", "/stream", "/deaf"])
def test_rude_ends_leave_nothing(server, path):
    """Resets while it waits, while it writes, and while it does not read."""
    number = 200 if server.kind == "gevent" and path == "/echo" else 8
    for _ in range(number):
        client = Raw(server, path)
        client.send(text("hello"))
        client.reset()
    server.await_state(open=0, watched=0, threads=0)
    assert all(" 1006 " in mark for mark in server.state()["marks"])


def test_200_calls_at_once(gevent_server):
    clients = [Raw(gevent_server, "/echo") for _ in range(200)]
    gevent_server.await_state(open=200, threads=200)
    for n, client in enumerate(clients):
        client.send(text(str(n)))
    assert [client.frame() for client in clients] == [(TEXT, str(n).encode()) for n in range(200)]
    for client in clients:
        client.send(close(1000))
    assert {client.until_close() for client in clients} == {(1000, "")}
    for client in clients:
        client.__exit__()
