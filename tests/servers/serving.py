"""Real servers as processes: what people run the extension under, and nginx in front of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.components import spawn
from tests.servers.client import PATIENCE, QUESTION, Answer, ask

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
APP = "tests.servers.app:create_app"
GUNICORN = "-m gunicorn {}() -b 127.0.0.1:0 --no-control-socket --graceful-timeout 1"
COMMANDS = {
    "gevent": f"{GUNICORN.format(APP)} -w 1 -k gevent --worker-connections 100",
    "gthread": f"{GUNICORN.format(APP)} -w 1 -k gthread --threads 12",
    "flask": f"-m flask --app {APP} run --port 0",
}
CAPACITY = {"gevent": 80, "gthread": 10, "flask": 64}
"""What the extension derives from the commands, and for `flask run` from the number of descriptors."""
DESCRIPTORS = {"gevent": 1024, "gthread": 1024, "flask": 160}
KEY = "swordfish0123456789abcdef"
"""Looks like no key of anybody's, so that only he who knows it can take it out of a text."""
TROUBLE = re.compile(r"^.*(?:ERROR|CRITICAL|Traceback|Exception|WARNING: This is a dev).*$", re.MULTILINE)
ADDRESS = re.compile(r"http://([\d.]+):(\d+)")


def until(probe: Callable[[], T], *, patience: float = PATIENCE) -> T:
    """Ask again and again until the answer is true, and return it.

    :param patience: seconds.
    """
    deadline = time.monotonic() + patience
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"not within {patience:g} s; the last answer was {answer!r}"
        time.sleep(0.01)
    return answer


class Server:
    """A server under test; `edition` says which of its applications is meant (see `app.EDITIONS`).

    :param kind: a key of `COMMANDS`.
    :param pid: its process.
    :param log: the file that it writes to.
    """

    def __init__(self, kind: str, pid: int, address: tuple[str, int], log: Path, edition: str = "") -> None:
        self.kind = kind
        self.pid = pid
        self.address = address
        self.edition = edition
        self._log = log
        self._read = 0

    @property
    def url(self) -> str:
        """Where it is reached, without a slash at the end."""
        return "http://{}:{}{}".format(*self.address, self.edition)

    def at(self, edition: str) -> Server:
        """The same process, with another of its applications."""
        return Server(self.kind, self.pid, self.address, self._log, edition)

    def ask(self, method: str, path: str, **more: Any) -> Answer:
        return ask(self.address, method, path if path.startswith(self.edition) else self.edition + path, **more)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=spelled(headers))

    def post(self, path: str = "/api/chat/stream", json: Any = QUESTION, **headers: str) -> Answer:
        return self.ask("POST", path, json=json, headers=spelled(headers))

    def do(self, path: str, method: str = "POST") -> None:
        """A request of which only the success is of interest."""
        with self.ask(method, path, headers={"Connection": "close"}) as answer:
            answer.read()
            assert answer.status < 300, (answer.status, answer.body)

    def run(self, location: str) -> dict[str, Any]:
        """What the server says about a run."""
        with self.get(location, Connection="close") as answer:
            return answer.json()

    def state(self) -> dict[str, Any]:
        """What the process holds (see `app.held`)."""
        with self.get("/state", Connection="close") as answer:
            return answer.json()

    def await_state(self, **expected: Any) -> dict[str, Any]:
        """Wait until the process holds just so much."""

        def reached() -> dict[str, Any] | None:
            nonlocal last
            last = self.state()
            return last if {name: last[name] for name in expected} == expected else None

        last: dict[str, Any] = {}
        try:
            return until(reached)
        except AssertionError:
            raise AssertionError(f"expected {expected}, it holds {last}") from None

    def news(self) -> str:
        """What the log has got since it was last asked for."""
        with self._log.open() as log:
            log.seek(self._read)
            text = log.read()
            self._read = log.tell()
        return text

    def await_news(self, said: str) -> str:
        """Wait until the log has got something, and return all that it has got since it was last asked for."""
        text = ""

        def reached() -> bool:
            nonlocal text
            text += self.news()
            return said in text

        until(reached)
        return text


def spelled(headers: Mapping[str, str]) -> dict[str, str]:
    """Keyword arguments as header names."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def serve(kind: str, directory: Path, command: str | None = None, **environment: str) -> Iterator[Server]:
    """Start a server on a free port, and end it.

    :param command: what to run, for a kind that is none of `COMMANDS`.
    """
    log = directory / f"{kind}.log"
    limit = ["/bin/sh", "-c", f'ulimit -n {DESCRIPTORS.get(kind, 1024)} && exec "$@"', "sh"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "OPENAI_"))}
    process = spawn(
        [*limit, sys.executable, *(command or COMMANDS[kind]).split()],
        log,
        cwd=ROOT,
        env=clean | {"OPENAI_API_KEY": KEY} | environment,
    )
    try:
        server = Server(kind, process.pid, listening(process, log), log)
        until(lambda: answers(server, process, log), patience=60)
        yield server
    finally:
        process.terminate()
        process.wait(PATIENCE)


def listening(process: subprocess.Popen[bytes], log: Path) -> tuple[str, int]:
    """Wait until the server says where it listens."""

    def found() -> re.Match[str] | None:
        assert process.poll() is None, f"the server did not start: {log.read_text()}"
        return ADDRESS.search(log.read_text())

    match = until(found, patience=60)
    return match[1], int(match[2])


def answers(server: Server, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether it answers: a master listens before it has a worker that does."""
    try:
        with server.get("/state", Connection="close") as answer:
            answer.read()
    except OSError:
        assert process.poll() is None, f"the server did not start: {log.read_text()}"
        return False
    return True


NGINX = """
worker_processes 1;
pid nginx.pid;
error_log error.log info;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path temporary;
  proxy_temp_path temporary;
  fastcgi_temp_path temporary;
  uwsgi_temp_path temporary;
  scgi_temp_path temporary;
  server {{
    listen 127.0.0.1:{port} sndbuf=16k;  # so that a client that does not read is felt behind it
    location /default/ {{ proxy_pass http://{upstream}/; }}
    location /http11/ {{ proxy_pass http://{upstream}/; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    location /gzip/ {{
      proxy_pass http://{upstream}/; gzip on; gzip_types *; gzip_proxied any; gzip_min_length 0;
    }}
  }}
}}
"""


@contextmanager
def nginx(program: str, server: Server, directory: Path) -> Iterator[tuple[str, int]]:
    """Start nginx in front of a server, with a location for each way of passing on."""
    (directory / "temporary").mkdir()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        port = listener.getsockname()[1]
        upstream = "{}:{}".format(*server.address)
        (directory / "nginx.conf").write_text(NGINX.format(port=port, upstream=upstream))
        process = subprocess.Popen(
            [program, "-p", str(directory), "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"],
            # How nginx hands its sockets on to a new binary: so the port is ours all the time.
            env={"NGINX": f"{listener.fileno()};"},
            pass_fds=[listener.fileno()],
        )
    try:
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait(PATIENCE)
