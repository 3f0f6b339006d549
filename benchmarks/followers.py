"""Readers on another process than their run's, in a process of its own: they join, or come back, while tokens flow.

It reads a :class:`Following` as JSON from its command line, writes a line once all readers are there and its report
as JSON at the end.
"""

from __future__ import annotations

import gc
import json
import re
import selectors
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from benchmarks import transcript
from benchmarks.load import Stream, start
from benchmarks.transcript import Transcript

ID = re.compile(rb"id: (\S+:1-)(\d+)\n")
LOCATION = re.compile(rb"\r\nLocation: ([^\r]+)", re.IGNORECASE)
COOKIE = re.compile(rb"\r\nSet-Cookie: ([^;\r]+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Following:
    """Runs to start, and readers of theirs on another process.

    :param url: where each run is started with a POST.
    :param elsewhere: the same on the other process.
    :param runs: how many.
    :param readers: how many of each run.
    :param leave_after: tokens after which whoever started the run has lost its line, and its reader comes back
        elsewhere; with 0, readers join at once and the one who started stays.
    :param back: events that were lost on the way, which the reader asks for again.
    :param patience: seconds after which what is still open is given up.
    """

    url: str
    elsewhere: str
    runs: int
    readers: int = 1
    leave_after: int = 0
    back: int = 0
    patience: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of it.

    :param starters: one transcript a run, of whoever started it.
    :param readers: one a reader.
    :param cpu_seconds: what the load's own process used.
    """

    starters: list[Transcript] = field(repr=False)
    readers: list[Transcript] = field(repr=False)
    cpu_seconds: float


def begin(following: Following) -> subprocess.Popen[str]:
    """Start it in a process of its own; returns when all readers are there."""
    command = [sys.executable, "-m", "benchmarks.followers", json.dumps(asdict(following))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    return process


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for its end, and read its report."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit("The load process failed; its error is above.")
    report = json.loads(output)
    return Outcome(
        starters=[Transcript(**stream) for stream in report["starters"]],
        readers=[Transcript(**stream) for stream in report["readers"]],
        cpu_seconds=report["cpu_seconds"],
    )


class Starter(Stream):
    """Starts a run, and sends its readers there when their time has come."""

    def __init__(self, following: Following, number: int):
        super().__init__(following.url, start(following.url, number))
        self._following = following
        # Not all in the same moment.
        self._leave_after = following.leave_after and following.leave_after + number % 20
        self.readers: list[Stream] = []

    @property
    def due(self) -> bool:
        """Whether it is time for the readers."""
        if self.readers or not self.reads:
            return False
        if not self._leave_after:
            return any(b"\nid: " in data for _, data in self.reads)
        return sum(data.count(b'"token"') for _, data in self.reads) >= self._leave_after

    def send(self) -> list[Stream]:
        """Its readers, who are to be opened now."""
        seen = b"".join(data for _, data in self.reads)
        last = [*ID.finditer(seen)][-1]
        cursor = f"{last[1].decode()}{max(1, int(last[2]) - self._following.back)}" if self._leave_after else None
        location, cookie = LOCATION.search(seen), COOKIE.search(seen)
        if not location or not cookie:
            raise SystemExit(f"No run was started: {seen[:500]!r}")
        url = self._following.elsewhere
        request = tail(url, f"{location[1].decode()}/events", cookie[1].decode(), cursor)
        self.readers = [Stream(url, request) for _ in range(self._following.readers)]
        return self.readers


def tail(url: str, path: str, cookie: str, cursor: str | None) -> bytes:
    """The request that reads a run on."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        "Accept: text/event-stream",
        "Connection: close",
        f"Cookie: {cookie}",
    ]
    if cursor:
        lines.append(f"Last-Event-ID: {cursor}")
    return "\r\n".join([*lines, "", ""]).encode()


def run(following: Following) -> list[Starter]:
    """Start every run, send its readers to the other process, and read all to the end."""
    starters = [Starter(following, number) for number in range(following.runs)]
    readers: list[Stream] = []
    told = False
    give_up = time.monotonic() + following.patience
    with selectors.DefaultSelector() as selector:

        def open_(stream: Stream) -> None:
            stream.open()
            selector.register(stream.socket, selectors.EVENT_READ, stream)

        def close(stream: Stream) -> None:
            selector.unregister(stream.socket)
            stream.socket.close()

        for starter in starters:
            open_(starter)
        while selector.get_map() and time.monotonic() < give_up:
            for key, _ in selector.select(1):
                stream = key.data
                if stream.read():
                    close(stream)
                if isinstance(stream, Starter) and stream.due:
                    if following.leave_after and stream.socket.fileno() >= 0:
                        close(stream)
                    for reader in stream.send():
                        open_(reader)
                        readers.append(reader)
            if not told and len(readers) == following.runs * following.readers and all(r.reads for r in readers):
                told = True
                print("all are there", flush=True)
    return starters


def main() -> None:
    following = Following(**json.loads(sys.argv[1]))
    gc.disable()
    cpu_before = time.process_time()
    starters = run(following)
    cpu = time.process_time() - cpu_before
    report = {
        "starters": [asdict(transcript.read(stream.started, stream.reads)) for stream in starters],
        "readers": [asdict(transcript.read(r.started, r.reads)) for starter in starters for r in starter.readers],
        "cpu_seconds": cpu,
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
