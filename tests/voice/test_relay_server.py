"""Relayed calls on gunicorn with gevent, over real sockets on both sides."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from flask_llmstream.testing import ModelServer
from flask_llmstream.testing.script import Script
from tests.servers import serving
from tests.servers.serving import Server, until
from tests.voice.caller import Phone
from tests.voice.relays import ANSWER, FAST, FINE, KEY, WORD, second_turn

CALLS = 20
COMMAND = (
    "-m gunicorn tests.voice.relay_app:create_app() -b 127.0.0.1:0 --no-control-socket --graceful-timeout 1 -k gevent"
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ModelServer]:
    with ModelServer(key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def running(upstream: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("relay")
    environment = {"REALTIME_KEY": KEY, "REALTIME_URL": upstream.base_url}
    with serving.serve("gevent", directory, COMMAND, **environment) as server:
        with dialled(server) as phone:  # the first of a process is slow
            phone.tell("end")
            phone.hung_up()
        server.await_state(calls=0)
        yield server


@contextmanager
def line_of(phone: Phone, server: Server, user: str) -> Iterator[ClientConnection]:
    """A WebSocket, by which the phone hears."""
    with connect(
        server.url.replace("http", "ws") + "/api/voice",
        subprotocols=["llmstream.voice.v1"],  # type: ignore[list-item]
        additional_headers={"X-User": user},
        compression=None,
        proxy=None,
    ) as line:
        reader = threading.Thread(target=_read, args=(line, phone))
        reader.start()
        try:
            yield line
        finally:
            line.close()
            reader.join(5)


@contextmanager
def dialled(server: Server, user: str = "ann") -> Iterator[Phone]:
    """A call."""
    phone = Phone()
    with line_of(phone, server, user) as line:
        phone.line = line
        phone.tell("start")
        phone.expect("ready")
        yield phone


def _read(line: ClientConnection, phone: Phone) -> None:
    try:
        while True:
            phone.meet(line.recv())
    except ConnectionClosed as closed:
        received = closed.rcvd
        phone.end(received.code if received else 1006, received.reason if received else "")


def test_20_calls_that_are_interrupted_at_once(upstream, running):
    upstream.reset()
    upstream.realtime.schedule = Script(turns=[FAST, FINE])
    before = running.state()
    answering = threading.Barrier(CALLS)

    def call(number: int) -> Phone:
        with dialled(running, f"user {number}") as phone:
            phone.until = WORD
            phone.say()
            phone.expect("speaking")
            phone.until_true(lambda: phone.samples == WORD and phone.got[phone.generation or 0] > WORD)
            answering.wait(10)
            phone.say()
            assert phone.expect("interrupted")["heard"] == "One"
            phone.play(None)
            second_turn(phone)
            phone.tell("end")
            assert phone.hung_up()[0] == 1000
            return phone

    with ThreadPoolExecutor(CALLS) as crowd:
        phones = list(crowd.map(call, range(CALLS)))
    for phone in phones:
        assert phone.mistakes == [] and phone.of("problem") == []
        assert "".join(token["token"] for token in phone.of("token")) == ANSWER + "Fine."
        assert len(phone.heard) == 2 * (WORD + WORD)
    until(lambda: upstream.realtime.active == 0)
    assert [list(told.truncated.values()) for told in upstream.realtime.requests] == [[300]] * CALLS
    assert all(told.errors == [] and told.closed == 1000 for told in upstream.realtime.requests)
    # Our own share of the time from the words to the first audio; the machine has other things to do as well.
    shares = sorted(
        turn["timing"]["first_audio_ms"] - turn["timing"]["transcript_ms"]
        for phone in phones
        for turn in phone.of("turn")
    )
    assert shares[len(shares) // 2] < 500, shares
    running.await_state(calls=0, runs=0)
    until(lambda: running.state()["descriptors"] <= before["descriptors"])
    until(lambda: running.state()["greenlets"] <= before["greenlets"])
    assert not serving.TROUBLE.search(news := running.news()) and KEY not in news


def test_line_of_the_client_that_breaks(upstream, running):
    upstream.reset()
    upstream.realtime.schedule = Script(turns=[FAST])
    with dialled(running) as phone:
        phone.until = WORD
        phone.say()
        phone.expect("speaking")
        [ready] = phone.of("ready")
        phone.until_true(lambda: phone.samples == WORD)
        phone.line.socket.shutdown(socket.SHUT_RDWR)
    with line_of(phone, running, "ann") as line:
        phone.resume(line, ready["token"])
        phone.expect("resumed", restored="full")
        phone.play(None)
        phone.expect("speaking", continues=True)
        phone.expect("turn")
        assert len(upstream.realtime.requests) == 1, "it is still the same call to the model"
        assert [told.truncated for told in upstream.realtime.requests] == [{}]
        phone.tell("end")
        phone.hung_up()
    until(lambda: upstream.realtime.active == 0)
    running.await_state(calls=0)
