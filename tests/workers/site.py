"""Web and worker processes on one Redis: started, watched and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flask_llmstream.testing import ModelServer
from tests.components import spawn
from tests.redis_server import RedisServer
from tests.servers import serving
from tests.servers.client import QUESTION
from tests.servers.serving import KEY, ROOT, Server, spelled, until

APP = "tests.workers.app:create_app"
WEB = f"-m flask --app {APP} run --port 0"
RQ = "-m rq.cli worker --url {url} --worker-class flask_llmstream.worker.{kind} {queues}"
COMMANDS = {
    "flask": "-m flask --app {app} llmstream worker {queues}",
    "flask threads": "-m flask --app {app} llmstream worker --threads {queues}",
    "greenlets": "-m gevent.monkey --module rq.cli " + RQ.removeprefix("-m rq.cli ").replace("{kind}", "Worker"),
    "threads": RQ.replace("{kind}", "Worker"),
    "fork": RQ.replace("{kind}", "ForkWorker"),
}
QUEUES = {"flask": "", "flask threads": "", "greenlets": "llmstream", "threads": "llmstream", "fork": "llmstream-cpu"}
PATIENCE = 40.0
"""Seconds that what a test waits for may take: several processes start in that time, on a busy machine too."""


class Beginning(NamedTuple):
    """What a function has written down when it began."""

    run: str
    attempt: int
    pid: int
    name: str


class Ending(NamedTuple):
    """What the application was told of a run's end."""

    run: str
    state: str
    pid: int
    length: int


class Worker:
    """A worker process under test."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tell(self, signum: signal.Signals = signal.SIGTERM) -> None:
        os.kill(self.pid, signum)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code, once it has ended.

        :param timeout: seconds.
        """
        return self._process.wait(timeout)

    def horse(self) -> int:
        """The process that it has forked for a run."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return int(until(lambda: children.read_text().split())[0])

    def await_log(self, said: str, *, patience: float = PATIENCE) -> None:
        until(lambda: said in self.log, patience=patience)


@dataclass(frozen=True)
class Site:
    """A web process, its Redis and its model.

    :param directory: where logs and notes are.
    """

    web: Server
    redis: RedisServer
    upstream: ModelServer
    directory: Path
    environment: Mapping[str, str]

    def submit(self, path: str = "/api/tell", json: Any = None, **headers: str) -> str:
        """Have a job done; returns its path."""
        headers.setdefault("Idempotency_Key", os.urandom(16).hex())
        with self.web.ask("POST", path, json=QUESTION if json is None else json, headers=spelled(headers)) as answer:
            assert answer.status == 202, answer.read()
            return answer.location

    def run(self, location: str) -> dict[str, Any]:
        return self.web.run(location)

    def await_run(self, location: str, *, patience: float = PATIENCE, **expected: Any) -> dict[str, Any]:
        """Wait until the status says just so, and return it."""

        def reached() -> dict[str, Any] | None:
            nonlocal last
            last = self.run(location)
            return last if {name: last.get(name) for name in expected} == expected else None

        last: dict[str, Any] = {}
        try:
            return until(reached, patience=patience)
        except AssertionError:
            raise AssertionError(f"expected {expected}, it is {last}") from None

    def cancel(self, location: str) -> None:
        with self.web.post(f"{location}/cancel") as answer:
            answer.read()
            assert answer.status in (200, 202)

    def beginnings(self, location: str | None = None) -> list[Beginning]:
        """Whenever a function began, of one run or of all."""
        noted = [Beginning(run, int(attempt), int(pid), name) for run, attempt, pid, name in self._noted("began", 5)]
        return [beginning for beginning in noted if location is None or beginning.run == run_id(location)]

    def endings(self, location: str) -> list[Ending]:
        noted = [Ending(run, state, int(pid), int(length)) for run, state, pid, length in self._noted("ended", 5)]
        return [ending for ending in noted if ending.run == run_id(location)]

    def await_ending(self, location: str) -> Ending:
        """The one end that the application was told of."""
        [ending] = until(lambda: self.endings(location))
        return ending

    @contextmanager
    def worker(
        self,
        kind: str = "flask",
        options: str = "",
        *,
        queues: str | None = None,
        app: str = APP,
        ready: bool = True,
        **environment: str,
    ) -> Iterator[Worker]:
        """Start a worker, and see to its end.

        :param kind: a key of `COMMANDS`.
        :param ready: whether to wait until it works.
        """
        command = COMMANDS[kind].format(app=app, url=self.redis.url, queues=QUEUES[kind] if queues is None else queues)
        with self.process(f"{command} {options}", app=app, **environment) as worker:
            if ready:
                self.await_at_work(worker)
            yield worker

    def await_at_work(self, worker: Worker) -> None:
        """Wait until it works."""
        until(lambda: self._is_at_work(worker), patience=60)

    @contextmanager
    def process(self, command: str, *, app: str = APP, **environment: str) -> Iterator[Worker]:
        """Start Python with a command line, and see to the process' end."""
        log = self.directory / f"process-{time.monotonic_ns()}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "OPENAI_"))}
        environment = clean | dict(self.environment) | {"FLASK_APP": app, "OPENAI_API_KEY": KEY} | environment
        process = spawn([sys.executable, *command.split()], log, cwd=ROOT, env=environment)
        try:
            yield Worker(process, log)
        finally:
            process.kill()
            process.wait()

    def queue(self, name: str = "llmstream") -> list[str]:
        """The ids in one of RQ's queues."""
        return self.redis.client().lrange(f"rq:queue:{name}", 0, -1)

    def _is_at_work(self, worker: Worker) -> bool:
        assert worker.running, f"the worker did not start: {worker.log}"
        client = self.redis.client()
        told = (client.hmget(key, "pid", "state") for key in client.smembers("rq:workers"))
        return any(pid == str(worker.pid) and state for pid, state in told)

    def _noted(self, kind: str, length: int) -> list[list[str]]:
        lines = [line.split(" ") for line in Path(self.environment["NOTES"]).read_text().splitlines()]
        return [line[1:length] for line in lines if line[0] == kind]


def run_id(location: str) -> str:
    return location.rpartition("/")[2]


@contextmanager
def site(
    redis: RedisServer, upstream: ModelServer, directory: Path, *, web: str = WEB, **environment: str
) -> Iterator[Site]:
    """Start a web process that looks after what workers leave.

    :param web: its command line.
    """
    notes = directory / "notes"
    notes.touch()
    environment |= {
        "FLASK_LLMSTREAM_REDIS_URL": f'"{redis.url}"',
        "OPENAI_BASE_URL": upstream.base_url,
        "NOTES": str(notes),
    }
    with serving.serve("web", directory, web, **environment) as server:
        yield Site(server, redis, upstream, directory, environment)
