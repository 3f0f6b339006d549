"""The load, a process of its own: opens streams on a schedule and notes when each byte came.

It reads a :class:`Load` as JSON from its command line and writes its report as JSON to standard output. While it
runs it only waits, reads and looks at the clock, so that it stays far cheaper than what it measures.
"""

from __future__ import annotations

import gc
import json
import selectors
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from benchmarks import transcript
from benchmarks.transcript import Transcript

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Streams to open.

    :param url: where each stream is started with a POST.
    :param streams: how many.
    :param apart: seconds between two starts; 0 opens all of them at once.
    :param patience: seconds after the last start at which what is still open is given up.
    :param model: for an upstream that is asked directly: the model's name, which asks for a stream as well.
    """

    url: str
    streams: int
    apart: float
    patience: float
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a load.

    :param transcripts: one a stream.
    :param seconds: wall time from the first start to the last end.
    :param cpu_seconds: what the load's own process used meanwhile.
    """

    transcripts: list[Transcript] = field(repr=False)
    seconds: float
    cpu_seconds: float


def put_on(load: Load) -> Outcome:
    """Run a load in a process of its own and wait for its end."""
    return finish(begin(load))


def begin(load: Load) -> subprocess.Popen[str]:
    """Start a load in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(load))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a load that was begun, and read its report."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit("The load process failed; its error is above.")
    report = json.loads(output)
    return Outcome(
        transcripts=[Transcript(**stream) for stream in report["transcripts"]],
        seconds=report["seconds"],
        cpu_seconds=report["cpu_seconds"],
    )


class Stream:
    """One response being read, without a look at what it says.

    :param url: whose host is asked.
    """

    def __init__(self, url: str, request: bytes):
        self._request = request
        target = urlsplit(url)
        self._address = (target.hostname or "127.0.0.1", target.port or 80)
        self._tail = b""
        self.reads: list[tuple[int, bytes]] = []
        self.started = 0

    def open(self) -> None:
        self.started = time.monotonic_ns()
        self.socket = socket.create_connection(self._address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(self._request)
        self.socket.setblocking(False)

    def read(self) -> bool:
        """Take what is there; true if that was the end."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        self.reads.append((time.monotonic_ns(), data))
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        return not data or self._tail == LAST_CHUNK


def run(load: Load) -> tuple[list[Stream], float]:
    """Open and read every stream of a load; also returns the seconds this took."""
    streams = [Stream(load.url, start(load.url, number, model=load.model)) for number in range(load.streams)]
    waiting = streams[::-1]
    begun = time.monotonic()
    give_up = begun + load.apart * load.streams + load.patience
    with selectors.DefaultSelector() as selector:
        while (waiting or selector.get_map()) and time.monotonic() < give_up:
            due = begun + (load.streams - len(waiting)) * load.apart if waiting else give_up
            if waiting and due <= time.monotonic():
                stream = waiting.pop()
                stream.open()
                selector.register(stream.socket, selectors.EVENT_READ, stream)
                continue
            for key, _ in selector.select(max(0, due - time.monotonic())):
                if key.data.read():
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
    return streams, time.monotonic() - begun


def start(url: str, number: int, *, model: str | None = None) -> bytes:
    """The request that starts a stream. Every one has its own key and question: equal ones would rightly be one run."""
    target = urlsplit(url)
    key = uuid.uuid4()
    question = {"role": "user", "content": f"Question {number}: what is {key}?"}
    body: dict[str, object] = {"messages": [question]}
    if model:
        body |= {"model": model, "stream": True}
    content = json.dumps(body).encode()
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {target.netloc}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        # The end of a stream shows in its last chunk; the end of a refusal, which has none, in the close.
        "Connection: close",
        "Authorization: Bearer benchmark",
        f"Idempotency-Key: {key}",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def main() -> None:
    load = Load(**json.loads(sys.argv[1]))
    gc.disable()
    cpu_before = time.process_time()
    streams, seconds = run(load)
    cpu = time.process_time() - cpu_before
    report = {
        "transcripts": [asdict(transcript.read(stream.started, stream.reads)) for stream in streams],
        "seconds": seconds,
        "cpu_seconds": cpu,
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
