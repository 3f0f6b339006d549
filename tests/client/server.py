"""A scripted HTTP server on real sockets: each request gets the next answer that the test has put down for it.

    server.will("POST /chat", sse(opening(), token(1, "Hel"), RESET))
    server.will("GET /runs/r1/events", sse(token(2, "lo"), done(3)))

An answer is sent step by step: bytes are one chunk, the other steps do something to the connection. A request that
nothing was put down for is answered 500, and the fixture's end complains of it.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import parse_qs, urlsplit

STATIC = Path(__file__).parents[2] / "flask_llmstream" / "static"
PAGE = Path(__file__).with_name("page.html")


class Break(Exception):
    """The answer is over, and with it the connection."""


class Step(ABC):
    """Something that happens to the connection in the midst of an answer."""

    @abstractmethod
    def take(self, exchange: Exchange) -> None: ...


class Reset(Step):
    """A TCP reset."""

    def take(self, exchange: Exchange) -> None:
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.connection.close()
        raise Break


class Hold(Step):
    """Silence, until the client has gone or the test ends."""

    def take(self, exchange: Exchange) -> None:
        with suppress(OSError):
            exchange.connection.recv(1)
        exchange.gone.set()
        raise Break


@dataclass(frozen=True)
class Wait(Step):
    """Silence until the test says so.

    :param signal: what it is said with.
    """

    signal: threading.Event

    def take(self, exchange: Exchange) -> None:
        assert self.signal.wait(20), "nobody let the answer go on"


@dataclass(frozen=True)
class Pause(Step):
    """Silence for a while.

    :param seconds: how long.
    """

    seconds: float

    def take(self, exchange: Exchange) -> None:
        sleep(self.seconds)


RESET = Reset()
HOLD = Hold()


@dataclass
class Answer:
    """What a request gets.

    :param steps: bytes, each sent as a chunk of its own, and steps.
    :param chunked: by HTTP/1.1's chunks; otherwise by closing the connection, as behind an HTTP/1.0 proxy.
    :param before: steps before its head.
    """

    status: int
    headers: dict[str, str]
    steps: tuple[bytes | Step, ...]
    chunked: bool = True
    before: tuple[Step, ...] = ()


@dataclass
class Request:
    """A request that came."""

    line: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=monotonic)
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    @property
    def form(self) -> list[tuple[str | None, str | None, bytes]]:
        """The fields of a multipart body: name, file name, content."""
        message = message_from_bytes(b"Content-Type: %b\r\n\r\n%b" % (self.headers["content-type"].encode(), self.body))
        parts = message.get_payload()
        assert isinstance(parts, list)
        return [(name_of(part), part.get_filename(), part.get_payload(decode=True)) for part in parts]


def name_of(part: Message) -> str | None:
    name = part.get_param("name", header="Content-Disposition")
    return name if isinstance(name, str) else None


def sse(
    *steps: bytes | Step, location: str | None = "/runs/r1", chunked: bool = True, before: tuple[Step, ...] = ()
) -> Answer:
    """An event stream that ends after its steps."""
    head = {"Content-Type": "text/event-stream; charset=utf-8"} | ({"Location": location} if location else {})
    return Answer(200, head, steps, chunked, before)


def nothing(*steps: Step) -> Answer:
    """No answer at all, but what is done to the connection."""
    return Answer(200, {}, (), before=steps)


def problem(status: int, slug: str, *, retry_after: float | None = None, **headers: str) -> Answer:
    """A problem document."""
    said: dict[str, Any] = {"type": f"urn:problem-type:flask-llmstream:{slug}", "title": slug, "status": status}
    said |= {"detail": f"Sorry: {slug}."} | ({} if retry_after is None else {"retry_after": retry_after})
    head = {"Content-Type": "application/problem+json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return Answer(status, head, (json.dumps(said).encode(),))


def plain(status: int, body: bytes = b"", type: str = "application/json", **headers: str) -> Answer:
    """Any other response."""
    return Answer(status, {"Content-Type": type} | headers, (body,))


def run_json(status: str = "queued", *, run: str = "r1", n: int = 0, **more: Any) -> dict[str, Any]:
    """A run, as its status has it."""
    links = {"self": f"/runs/{run}", "events": f"/runs/{run}/events", "cancel": f"/runs/{run}/cancel"}
    known = {"id": run, "object": "run", "feature": "analyze", "status": status, "attempt": 1, "progress": None}
    return known | {"error": None, "links": links, "cursor": f"{run}:1-{n}", "text": "", "result": None} | more


def accepted(code: int = 202, *, location: str = "/runs/r1", **more: Any) -> Answer:
    """What the start of a job gets."""
    head = {"Content-Type": "application/json", "Location": location, "Retry-After": "0"}
    return Answer(code, head, (json.dumps(run_json(**more)).encode(),))


def status(tag: str | None = None, *, retry_after: str = "0", before: tuple[Step, ...] = (), **run: Any) -> Answer:
    """What asking after a run gets."""
    head = {"Content-Type": "application/json", "Retry-After": retry_after} | ({"ETag": tag} if tag else {})
    return Answer(200, head, (json.dumps(run_json(**run)).encode(),), before=before)


def unchanged(tag: str) -> Answer:
    """What it gets where the tag is that of the run as it is."""
    return Answer(304, {"ETag": tag, "Retry-After": "0"}, ())


def opening(n: int = 0, *, epoch: int = 1, run: str = "r1", heartbeat: float = 5, retry: int = 20) -> bytes:
    """The first block of every event stream."""
    return f"retry: {retry}\nid: {run}:{epoch}-{n}\n: heartbeat={heartbeat}\n\n".encode()


def frame(n: int, event: object, *, epoch: int = 1, run: str = "r1") -> bytes:
    """One event."""
    return f"id: {run}:{epoch}-{n}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def token(n: int, text: str, *, epoch: int = 1) -> bytes:
    """A piece of text."""
    return frame(n, {"token": text}, epoch=epoch)


def tokens(text: str, *, start: int = 1, epoch: int = 1) -> bytes:
    """Each character as a token of its own."""
    return b"".join(token(n, character, epoch=epoch) for n, character in enumerate(text, start))


def done(n: int, *, epoch: int = 1, **more: Any) -> bytes:
    """The end."""
    return frame(n, {"done": True, "tokens": n - 1, "finish_reason": "stop"} | more, epoch=epoch)


def following(*frames: bytes, heartbeat: float = 5) -> Callable[[Request], Answer]:
    """A rule that answers each cursor with the frames after it: the first has number 1."""

    def rule(request: Request) -> Answer:
        n = int(request.query.get("after", "r1:1-0").rpartition("-")[2])
        return sse(opening(n, heartbeat=heartbeat), *frames[n:])

    return rule


class Exchange(BaseHTTPRequestHandler):
    """One connection of the scripted server."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.body()
        if body is None:
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(f"{self.command} {url.path}", query, headers, body)
        self.gone = self.server.gone
        try:
            self.answer(self.server.take(request, headers.get("origin")))
        except (OSError, Break):
            self.close_connection = True
        finally:
            request.answered.set()

    do_GET = do_POST = do_OPTIONS = handle_any

    def body(self) -> bytes | None:
        """The request's; None where the connection broke in the midst of it."""
        size = int(self.headers.get("Content-Length", 0))
        body = bytearray()
        with suppress(OSError, Break):
            while len(body) < size:
                piece = self.rfile.read1(min(65536, size - len(body)))
                if not piece:
                    break
                body += piece
                self.server.reading(len(body)).take(self)
            if len(body) == size:
                return bytes(body)
        self.close_connection = True
        return None

    def answer(self, answer: Answer) -> None:
        for step in answer.before:
            step.take(self)
        chunked = answer.chunked and answer.status != 204
        self.send_response(answer.status)
        framing = {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
        for name, value in (answer.headers | framing).items():
            self.send_header(name, value)
        self.end_headers()
        for step in answer.steps:
            if isinstance(step, Step):
                step.take(self)
            elif step:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(step), step) if chunked else step)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


class ScriptedServer(ThreadingHTTPServer):
    """The server, on a free loopback port.

    :param cross_origin: headers that answer pages of other origins, preflights included.
    :param reading: what is done to the connection while a body comes, by the number of bytes that have come.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.answers: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self.rules: dict[str, Callable[[Request], Answer]] = {}
        self.requests: list[Request] = []
        self.unexpected: list[str] = []
        self.gone = threading.Event()
        self.cross_origin: dict[str, str] = {}
        self.reading: Callable[[int], Step] = lambda _: Pause(0)
        self._connections: list[socket.socket] = []
        self._came = threading.Condition()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.socket.getsockname()[:2]
        return host, port

    @property
    def url(self) -> str:
        """Where it is reached, without a slash at the end."""
        return "http://{}:{}".format(*self.address)

    def will(self, line: str, *answers: Answer) -> None:
        """Put answers down for requests such as ``GET /runs/r1``, in this order."""
        self.answers[line].extend(answers)

    def always(self, line: str, rule: Callable[[Request], Answer]) -> None:
        """Answer every request of a kind by a rule, once what was put down for it is used up."""
        self.rules[line] = rule

    def take(self, request: Request, origin: str | None) -> Answer:
        """The answer that a request gets."""
        if static := self.static(request.line):
            return static
        answer = Answer(204, {}, ()) if request.line.startswith("OPTIONS ") else self.planned(request)
        with self._came:
            self.requests.append(request)
            self._came.notify_all()
        if origin:
            answer.headers.update(self.cross_origin)
        return answer

    def planned(self, request: Request) -> Answer:
        """What the test wants; 500 where it wants nothing."""
        with self._came:
            if self.answers[request.line]:
                return self.answers[request.line].popleft()
        if rule := self.rules.get(request.line):
            return rule(request)
        self.unexpected.append(f"{request.line} {request.query}")
        return plain(500)

    def static(self, line: str) -> Answer | None:
        """The page and the modules under test."""
        path = line.removeprefix("GET ")
        if path == "/":
            return plain(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        if path.startswith("/api/") and path.endswith(".js"):
            head = {"Access-Control-Allow-Origin": "*"}
            return plain(200, (STATIC / path.removeprefix("/api/")).read_bytes(), "text/javascript", **head)
        return plain(404) if path == "/favicon.ico" else None

    def came(self, line: str) -> list[Request]:
        """The requests of one kind so far."""
        return [request for request in self.requests if request.line == line]

    def wait_for(self, line: str, count: int = 1) -> Request:
        """Wait until so many of one kind have come, and return the last of them."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.came(line)) >= count, 20), f"{line} did not come"
        return self.came(line)[count - 1]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here by design; anything else is a mistake in the test."""
        if not isinstance(sys.exception(), OSError):
            self.unexpected.append(repr(sys.exception()))

    def server_close(self) -> None:
        super().server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
