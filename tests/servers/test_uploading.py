"""Files on their way: what a server holds of them, and what is left when a client goes away or sends too much."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPResponse
from typing import Any

import pytest

from tests.servers import serving
from tests.servers.serving import APP, COMMANDS, Server
from tests.servers.uploading import LIMIT

BOUNDARY = b"frontier"
START = b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="notes.txt"\r\n\r\n'
END = b"\r\n--frontier--\r\n"
PIECE = b"A line of text, and that is all.\n" * 2048


@pytest.fixture(scope="module", params=list(COMMANDS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp(request.param)
    command = COMMANDS[request.param].replace(APP, "tests.servers.uploading:create_app")
    with serving.serve(request.param, directory, command, FLASK_LLMSTREAM_UPLOADS=str(directory / "uploads")) as server:
        yield server


def begin(server: Server, size: int) -> socket.socket:
    """Begin to send a file of so many bytes."""
    line = socket.create_connection(server.address, timeout=serving.PATIENCE)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    length = len(START) + size + len(END)
    line.sendall(
        b"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: multipart/form-data; boundary=frontier\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )
    line.sendall(START)
    return line


def answer(line: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and the body of the response."""
    response = HTTPResponse(line)
    response.begin()
    return response.status, json.loads(response.read())


def test_a_file_is_never_in_memory(server):
    count = 50 * 2**20 // len(PIECE)
    hashed = sha256()
    before = server.state()["peak"]
    assert before > 8 * 2**20
    with begin(server, count * len(PIECE)) as line:
        for _ in range(count):
            line.sendall(PIECE)
            hashed.update(PIECE)
        line.sendall(END)
        status, said = answer(line)
    assert status == 200, said
    assert said == {"size": count * len(PIECE), "on_disk": count * len(PIECE), "digest": hashed.hexdigest()}
    grown = server.state()["peak"] - before
    assert grown < 8 * 2**20, f"the process has taken {grown / 2**20:.0f} MiB more for a file of 50"


def test_a_client_that_dribbles_gets_there(server):
    content = PIECE * 4 + b"The end, byte by byte." * 10
    with begin(server, len(content)) as line:
        line.sendall(content[: 4 * len(PIECE)])
        serving.until(lambda: sum(server.state()["files"]) >= 2 * len(PIECE))
        for byte in content[4 * len(PIECE) :] + END:
            line.sendall(bytes([byte]))
        status, said = answer(line)
    assert (status, said["size"], said["digest"]) == (200, len(content), sha256(content).hexdigest())
    assert server.state()["files"] == []


def test_a_client_that_goes_away_leaves_nothing(server):
    with begin(server, 100 * len(PIECE)) as line:
        line.sendall(PIECE * 4)
        serving.until(lambda: sum(server.state()["files"]) >= 2 * len(PIECE))
    server.await_state(files=[])


def test_100_mb_are_refused_before_they_are_sent(server):
    with begin(server, 100 * 2**20) as line:
        status, said = answer(line)
    assert (status, said["title"]) == (413, "The request is too large")
    assert said["detail"] == "The request is too large: a file may have 64 MiB here."
    assert server.state()["files"] == []


def test_a_file_without_an_announced_length_is_refused_as_soon_as_it_is_too_large(server):
    """Chunked, as a stream from a browser is."""
    with socket.create_connection(server.address, timeout=serving.PATIENCE) as line:
        line.sendall(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=frontier\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        line.sendall(b"%x\r\n%b\r\n" % (len(START), START))
        with suppress(OSError):  # it hears no more
            for _ in range(LIMIT // len(PIECE) + 3):
                line.sendall(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
        status, said = answer(line)
    assert (status, said["detail"]) == (413, "notes.txt is too large: a file may have 64 MiB here.")
    assert server.state()["files"] == []
