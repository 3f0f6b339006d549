"""Over a mobile line: late, stalling, half-open, reset at any byte; the answer comes whole, with nothing twice."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import closing
from urllib.request import urlopen

import pytest

from tests.client.conftest import opened
from tests.client.server import RESET, Pause, Wait, done, following, opening, sse, token, tokens
from tests.line import End, Line, Reset, Silence, Stall, storm
from tests.puppet import PATIENCE

TAIL = "GET /runs/r1/events"
LIMIT = "{connectTimeout: 1000, retries: 20}"


def answer_of(server, text: str, *, heartbeat: float = 0.2) -> None:
    """Let the server have a run of this text, a token a character, sent in pieces that take time."""
    frames = [token(n, character) for n, character in enumerate(text, 1)] + [done(len(text) + 1)]

    def rule(request):
        answer = following(*frames, heartbeat=heartbeat)(request)
        slowly = (step for frame in answer.steps[1:] for step in (frame, Pause(0.002)))
        answer.steps = (answer.steps[0], *slowly)
        return answer

    server.always("POST /chat", rule)
    server.always(TAIL, rule)


def text_of(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("aä€😀\n", k=length))


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("seed", range(6))
def test_answer_survives_a_storm(blank, server, seed):
    text = text_of(200, seed)
    answer_of(server, text)
    troubles = storm(seed, responses=8, reach=3_000, kinds=(Reset, End, Silence, Stall))
    with Line(server.address, *troubles, delay=0.01) as line:
        page = opened(blank, line.url)
        run = page.evaluate(f"outcome(stream('/chat', {{}}, {LIMIT}))")
    assert run["tokens"] == list(text)
    assert (run["text"], run["state"]) == (text, "completed")
    assert len({request.headers["idempotency-key"] for request in server.came("POST /chat")}) == 1
    assert len(server.requests) > 1, "the storm broke nothing"


@pytest.mark.needs("chromium")
def test_line_that_goes_dead_for_everyone_comes_back(blank, server):
    go_on = threading.Event()
    server.will("POST /chat", sse(opening(heartbeat=0.4), tokens("Hel"), Wait(go_on)))
    server.will(TAIL, sse(opening(3), tokens("lo", start=4), done(6)))
    with Line(server.address) as line:
        page = opened(blank, line.url)
        page.evaluate(f"window.run = stream('/chat', {{}}, {LIMIT}), until(() => run.text === 'Hel')")
        line.hush()  # and with it the connections that the browser keeps for later
        run = page.evaluate("outcome(run)")
        go_on.set()
    assert run["text"] == "Hello"


@pytest.mark.needs("chromium")
def test_line_that_is_down_for_a_while(blank, server):
    go_on = threading.Event()
    server.will("POST /chat", sse(opening(retry=10), tokens("Hel"), Wait(go_on)))
    server.will(TAIL, sse(opening(3), tokens("lo", start=4), done(6)))
    with Line(server.address) as line:
        page = opened(blank, line.url)
        page.evaluate("window.run = stream('/chat'), until(() => run.text === 'Hel')")
        line.fall()
        page.evaluate("until(() => run.state === 'reconnecting').then(() => moment(100))")
        line.rise()
        run = page.evaluate("outcome(run)")
        go_on.set()
    assert run["text"] == "Hello"


def request(line: Line, path: str = "/chat") -> socket.socket:
    """Ask for an event stream over the line."""
    end = socket.create_connection(line.address, timeout=PATIENCE)
    end.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode())
    return end


def received(end: socket.socket) -> bytes:
    """Everything up to an orderly end."""
    return b"".join(iter(lambda: end.recv(65536), b""))


@pytest.fixture
def streaming(server):
    """A server whose answer goes on for as long as the test."""
    ends = threading.Event()
    server.always("GET /chat", lambda request: sse(opening(), tokens("x" * 50), Wait(ends), done(51)))
    yield server
    ends.set()


@pytest.mark.parametrize("after", [0, 1, 300])
def test_reset_comes_at_its_byte(streaming, after):
    with Line(streaming.address, Reset(after=after)) as line, closing(request(line)) as end:
        data = b""
        with pytest.raises(ConnectionResetError):
            while piece := end.recv(65536):
                data += piece
        assert len(data) <= after  # the reset may take along what was not read yet


def test_end_comes_at_its_byte(streaming):
    with Line(streaming.address, End(after=300)) as line, closing(request(line)) as end:
        assert len(received(end)) == 300


def test_silence_is_silence_in_both_directions(streaming):
    with Line(streaming.address, Silence(after=300)) as line:
        with closing(request(line)) as end:
            data = b""
            end.settimeout(1)
            with pytest.raises(TimeoutError):
                while piece := end.recv(65536):
                    data += piece
            assert len(data) == 300
        (came,) = streaming.came("GET /chat")
        assert not came.answered.is_set(), "the server noticed that the client has gone"


def test_stall_ends(server):
    server.will("GET /chat", sse(tokens("x" * 50)))
    with Line(server.address, Stall(after=300, seconds=0.2)) as line, closing(request(line)) as end:
        assert b"r1:1-50" in end_of_chunks(end)


def end_of_chunks(end: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        data += end.recv(65536)
    return data


def test_second_event_stream_meets_the_second_trouble_and_other_requests_none(streaming):
    with Line(streaming.address, None, End(after=100)) as line:
        assert b"html" in urlopen(f"{line.url}/").read()
        with closing(request(line)) as first:
            assert first.recv(1), "the line takes it for the first"
            with closing(request(line)) as second:
                assert len(received(second)) == 100
            assert first.recv(65536)


def test_servers_reset_arrives_as_one(server):
    server.will("GET /chat", sse(RESET))
    with Line(server.address) as line, closing(request(line)) as end, pytest.raises(ConnectionResetError):
        received(end)


def test_storm_is_the_same_for_the_same_seed():
    assert storm(1, responses=5, reach=100) == storm(1, responses=5, reach=100)
    assert storm(1, responses=5, reach=100) != storm(2, responses=5, reach=100)
