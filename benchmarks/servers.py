"""The processes that a benchmark starts: the model server upstream, Redis, and the servers it compares."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from redis import Redis as Client
from redis.exceptions import ConnectionError as NotConnected

ROOT = Path(__file__).parent.parent
START_TIME = 30
STOP_TIME = 10
MODEL_SERVER = (sys.executable, "-m", "flask_llmstream.testing", "--stamp")
HOST = "127.0.0.1"
CHAT = "/api/chat/stream"


@dataclass(frozen=True)
class Redis:
    """A running Redis of the benchmark's own."""

    url: str
    client: Client

    def cpu_seconds(self) -> float:
        """User and system time that it has used, by its own account, which is finer than the kernel's ticks."""
        used = self.client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    def messages(self) -> int:
        """How often it has found something to read; a pipeline that comes at once counts once."""
        return int(self.client.info("stats")["total_reads_processed"])

    @property
    def port(self) -> int:
        return int(self.client.connection_pool.connection_kwargs["port"])

    def connections(self) -> str:
        """How many there are of each kind, but for the benchmark's own."""
        clients = [client for client in self.client.client_list() if client["name"] == "llmstream"]
        listening = sum("P" in client["flags"] for client in clients)
        return f"{len(clients) - listening} for commands, {listening} for pub/sub"


@dataclass(frozen=True)
class Server:
    """A running server.

    :param name: as printed.
    :param url: where a stream is started.
    :param pid: the top of its tree of processes.
    :param model: to be named in requests, where they go to the model server itself.
    :param redis: what it shares with other processes, if it does.
    """

    name: str
    url: str
    pid: int
    model: str | None = None
    redis: Redis | None = None


@contextmanager
def upstream(*, tokens: int, rate: float, first_token: float = 0) -> Iterator[Server]:
    """The package's testing server; each of its tokens is the moment at which it was sent.

    :param tokens: how many each answer has.
    :param rate: tokens a second of each answer.
    :param first_token: seconds of silence before the first.
    """
    answer = ["--tokens", str(tokens), "--rate", str(rate), "--first-token", str(first_token)]
    command = [*MODEL_SERVER, "--port", "0", *answer]
    with running(command, os.environ, stdout=subprocess.PIPE) as server:
        assert server.stdout
        base_url = server.stdout.readline().decode().strip()
        if not base_url:
            raise SystemExit("The testing server did not start; its error is above.")
        yield Server("upstream alone", f"{base_url}/chat/completions", server.pid, model="benchmark")


@contextmanager
def redis() -> Iterator[Redis]:
    """A Redis that keeps nothing on disk, on a free port."""
    program = next(filter(None, map(shutil.which, ("redis-server", "valkey-server"))), None)
    if program is None:
        raise SystemExit("There is no redis-server and no valkey-server on the PATH.")
    port = _free_port()
    with TemporaryDirectory() as directory:
        command = [program, "--port", str(port), "--bind", HOST, "--save", "", "--dir", directory, "--logfile", "log"]
        with running(command, os.environ), Client(host=HOST, port=port) as client:
            _wait_until_answering(client)
            yield Redis(f"redis://{HOST}:{port}/0", client)


def flask(
    model: Server | None,
    redis: Redis | None = None,
    *,
    name: str = "flask_llmstream",
    app: str = "example_app",
    settings: Mapping[str, str] | None = None,
    stderr: IO[str] | None = None,
) -> AbstractContextManager[Server]:
    """An application under gunicorn, one gevent worker.

    :param app: the module that has its factory.
    :param settings: what else it finds in its environment.
    :param stderr: where it writes what goes wrong; None for where the benchmark does.
    """
    command = ["gunicorn", "-k", "gevent", "-w", "1", "--worker-connections", "2000", "--log-level", "warning"]
    command += ["--no-control-socket", f"{app}:create_app()"]
    given = environment(model, redis) | dict(settings or {})
    return _web(name, lambda port: [*command, "--bind", f"{HOST}:{port}"], given, redis, stderr)


def fastapi(model: Server) -> AbstractContextManager[Server]:
    """FastAPI, AsyncOpenAI and sse-starlette under uvicorn at its fastest."""
    command = ["uvicorn", "--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log"]
    command.append("benchmarks.fastapi_app:app")
    return _web("FastAPI", lambda port: [*command, "--host", HOST, "--port", str(port)], environment(model, None))


COMPARED: Mapping[str, Callable[[Server], AbstractContextManager[Server]]] = {"flask": flask, "fastapi": fastapi}


def environment(model: Server | None, redis: Redis | None) -> dict[str, str]:
    """What a process of an application finds in its environment."""
    found = {
        **os.environ,
        "FLASK_SECRET_KEY": "benchmark",
        "FLASK_LLMSTREAM_ALLOW_ANONYMOUS": "true",
        # A proxy for the outside world would change the client's transport, and has no business on loopback.
        "NO_PROXY": "*",
    }
    if model is not None:
        found |= {"OPENAI_BASE_URL": model.url.removesuffix("/chat/completions"), "OPENAI_API_KEY": "benchmark"}
    if redis is not None:
        found["FLASK_LLMSTREAM_REDIS_URL"] = redis.url
    return found


@contextmanager
def running(
    command: list[str],
    environment: Mapping[str, str],
    *,
    stdout: int | None = None,
    stderr: IO[str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which is ended with what it has started."""
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=stdout, stderr=stderr, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout:
            process.stdout.close()


@contextmanager
def _web(
    name: str,
    arguments: Callable[[int], list[str]],
    environment: Mapping[str, str],
    redis: Redis | None = None,
    stderr: IO[str] | None = None,
) -> Iterator[Server]:
    port = _free_port()
    with running([sys.executable, "-m", *arguments(port)], environment, stderr=stderr) as process:
        _wait_until_serving(port, process)
        print(f"{name}: process {process.pid} on port {port}", file=sys.stderr)
        yield Server(name, f"http://{HOST}:{port}{CHAT}", process.pid, redis=redis)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_answering(client: Client) -> None:
    give_up = time.monotonic() + START_TIME
    while time.monotonic() < give_up:
        try:
            client.ping()
        except NotConnected:
            time.sleep(0.02)
        else:
            return
    raise SystemExit("Redis did not start; its error is above.")


def _wait_until_serving(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until any answer comes: a master process may listen long before its worker can answer."""
    give_up = time.monotonic() + START_TIME
    while time.monotonic() < give_up and process.poll() is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=START_TIME)
        try:
            connection.request("HEAD", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        else:
            return
        finally:
            connection.close()
    raise SystemExit(f"{' '.join(map(str, process.args))!r} did not start; its error is above.")  # type: ignore[arg-type]
