"""Messages arrive whole, in order, and at nobody else's expense."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from contextlib import suppress

import pytest

from tests.servers.serving import Server, until
from tests.sockets.client import BINARY, FIN, PING, PONG, TEXT, Raw, connect, frame, text

MB = 1 << 20


def test_an_echo_of_any_size(server):
    with connect(server, "/large") as client:
        for size in (0, 1, 125, 126, 65535, 65536, MB, 4 * MB):
            for message in ("é" * (size // 2), bytes(range(256)) * (size // 256) + bytes(size % 256)):
                client.send(message)
                assert client.recv() == message


def test_a_fragmented_message_with_a_ping_inside(server):
    said = "schön".encode()
    with Raw(server, "/echo") as client:
        client.send(frame(TEXT, said[:4]))  # in the middle of a letter
        client.send(frame(FIN | PING, b"?"))
        client.send(frame(0, b""))
        client.send(frame(FIN, said[4:]))
        assert client.frame() == (PONG, b"?")
        assert client.frame() == (TEXT, said)


def test_what_arrives_byte_by_byte(gevent_server):
    with Raw(gevent_server, "/echo") as client:
        for byte in text("hello") + frame(FIN | BINARY, b"world"):
            client.send(bytes([byte]))
        assert [client.frame(), client.frame()] == [(TEXT, b"hello"), (BINARY, b"world")]


def test_60_times_256_kb(server):
    with connect(server, "/blast") as client:
        assert [message == bytes([65 + n]) * 262144 for n, message in enumerate(client)] == [True] * 60


def test_two_writers_do_not_mix(server):
    with connect(server, "/duet") as client:
        songs = list(client)
    for letter in b"ab":
        assert [len(song) for song in songs if song[0] == letter] == [1 + n * 37 for n in range(200)]
    assert all(len(set(song)) == 1 for song in songs)


def test_a_reader_who_stalls_gets_all_of_it(server):
    with Raw(server, "/stream", receive_buffer=4096) as client:
        time.sleep(0.5)  # what the kernel takes for it is used up by then
        for n in range(4000):
            assert client.frame() == (BINARY, n.to_bytes(4, "little") * 240)
        assert client.until_close() == (1000, "")


def test_a_reader_who_stalls_for_too_long_is_cut(server):
    """What it had got by then is whole, and no end that could be taken for one follows."""
    with Raw(server, "/impatient", receive_buffer=4096) as client:
        assert marks(server) == ["stream 1006 The client did not take a message within 0.5 s."]
        with suppress(ConnectionResetError):
            n = 0
            while (got := client.frame()) is not None:
                assert got == (BINARY, n.to_bytes(4, "little") * 240)
                n += 1
            assert n < 4000


def test_who_does_not_read_stops_the_sender(server):
    """Memory is bounded, however much is sent, and the end is seen all the same."""
    before = server.state()["memory"]
    with Raw(server, "/deaf") as client:
        client.socket.settimeout(0.4)
        block, sent = frame(FIN | BINARY, bytes(640)) * 100, 0
        with suppress(TimeoutError):
            while sent < 64 * MB:
                sent += client.socket.send(block)
        assert sent < 32 * MB, "nobody stopped it"
        assert server.state()["memory"] - before < 8 * MB
        client.reset()
    [mark] = marks(server)
    assert mark.startswith("deaf 1006")


@pytest.mark.parametrize("size", [0, 640, 60000])
def test_a_flood_does_not_hold_up_others(gevent_server, size):
    def flooded() -> float:
        with Flood(gevent_server, size):
            return median(gevent_server)

    quiet = median(gevent_server)
    until(lambda: flooded() - quiet < 0.010, patience=20)


class Flood:
    """A client that sends as fast as it can, and drops what comes back."""

    def __init__(self, server: Server, size: int) -> None:
        self._client = Raw(server, "/echo")
        self._block = frame(FIN | BINARY, bytes(size)) * (65536 // (size + 6) + 1)
        self._threads = [threading.Thread(target=work) for work in (self._send, self._drop)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exception: object) -> None:
        self._client.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._client.reset()

    def _send(self) -> None:
        with suppress(OSError):
            while True:
                self._client.socket.send(self._block)

    def _drop(self) -> None:
        with suppress(OSError):
            while self._client.socket.recv(MB):
                pass


def median(server: Server) -> float:
    """Seconds that a request takes, in the middle of 30."""

    def one() -> float:
        began = time.perf_counter()
        with server.get("/quickly", Connection="close") as answer:
            answer.read()
        return time.perf_counter() - began

    return statistics.median(one() for _ in range(30))


def marks(server: Server) -> list[str]:
    """What handlers have noted, as soon as there is something."""
    return until(lambda: server.state()["marks"])


def test_receive_gives_up_in_time_or_when_it_is_woken(server):
    with connect(server, "/waking") as client:
        assert [client.recv(), client.recv()] == ["None", "None"]
        client.send("hello")
        assert client.recv() == "'hello'"
