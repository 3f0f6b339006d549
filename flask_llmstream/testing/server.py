"""An OpenAI-compatible server for tests: real HTTP over a real socket, with a schedule that the test sets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from .audio import Heard, Spoken, Tones
from .endpoint import Endpoint, Received
from .exchange import Exchange
from .schedule import Schedule
from .script import Dialled, Script


class ModelServer:
    """A model's server that does as it is told and reports what it saw.

    It answers ``/v1/chat/completions`` (streaming and not), ``/v1/models``, ``/v1/audio/transcriptions``,
    ``/v1/audio/speech`` and, as a WebSocket, ``/v1/realtime`` on a free port of the loopback
    interface, from a thread of its own, over keep-alive connections. A client that closes is noticed at once,
    also while nothing is being sent. ::

        with ModelServer(Schedule(tokens=20, rate=50)) as server:
            llm = LLMStream(app, model=OpenAI(base_url=server.base_url))
            server.then(Schedule(status=503), Schedule(tokens=5))     # for the next two requests
            ...
            server.wait_for(lambda s: s.completed == 1)

    In a process that gevent has patched it runs in a greenlet and shares the hub with the code under test. That
    works; where times are measured, start it as a process of its own: ``python -m flask_llmstream.testing``.

    :param schedule: what each request gets, or a function of the `Received` request that returns it. It may be
        replaced at any time.
    :param key: the API key that requests must bear; None accepts any.
    :param tones: what its speech sounds like.
    :param host: the address to listen on.
    :param port: 0 takes a free one.
    :param tls: serve HTTPS with this context.
    """

    def __init__(
        self,
        schedule: Schedule | Callable[[Received], Schedule] | None = None,
        *,
        key: str | None = None,
        tones: Tones | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.key = key
        self.tones = tones or Tones()
        self.chat: Endpoint[Received, Schedule] = Endpoint(schedule or Schedule())
        self.transcriptions: Endpoint[Heard, Schedule] = Endpoint(Schedule(tokens="Hello there."))
        self.speech: Endpoint[Spoken, Schedule] = Endpoint(Schedule())
        self.realtime: Endpoint[Dialled, Script] = Endpoint(Script())
        self.connections = 0
        self.open_connections = 0
        self._host = host
        self._port = port
        self._tls = tls
        self._changed = threading.Condition()
        self._watchers = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """What a client takes as its base URL."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{self._host}:{self._port}/v1"

    @property
    def port(self) -> int:
        return self._port

    @property
    def schedule(self) -> Schedule | Callable[[Received], Schedule]:
        """What each request for a chat completion gets."""
        return self.chat.schedule

    @schedule.setter
    def schedule(self, schedule: Schedule | Callable[[Received], Schedule]) -> None:
        self.chat.schedule = schedule

    @property
    def requests(self) -> list[Received]:
        """The requests for chat completions."""
        return self.chat.requests

    @property
    def active(self) -> int:
        """How many answers of any endpoint are under way."""
        return sum(endpoint.active for endpoint in self._endpoints)

    @property
    def completed(self) -> int:
        """How many answers of any endpoint were sent to their end."""
        return sum(endpoint.completed for endpoint in self._endpoints)

    @property
    def cancelled(self) -> int:
        """How many answers of any endpoint ended early because the client closed its connection."""
        return sum(endpoint.cancelled for endpoint in self._endpoints)

    def then(self, *schedules: Schedule) -> None:
        """Answer the next requests for chat completions with these, in order, and only then with `schedule` again."""
        self.chat.then(*schedules)

    def wait_for(self, predicate: Callable[[Self], bool], timeout: float = 5.0) -> None:
        """Block until the predicate is true of this server.

        :param predicate: is given the server; it is asked again whenever something changes.
        :param timeout: seconds.
        :raises AssertionError: when it has not come true; the message says what the server saw.
        """
        with self._changed:
            self._watchers += 1
            try:
                if not self._changed.wait_for(lambda: predicate(self), timeout):
                    raise AssertionError(f"not within {timeout:g} s; the server saw {self._story()}")
            finally:
                self._watchers -= 1

    def reset(self) -> None:
        """Forget the requests and the queues. Connections stay."""
        for endpoint in self._endpoints:
            endpoint.reset()

    def start(self) -> None:
        """Listen. Returns once connections are accepted."""
        if self._thread is not None:
            raise RuntimeError("this ModelServer has been started already; make another one")
        # Bound here, so that an address in use is raised here.
        listener = socket.create_server((self._host, self._port), backlog=1024)
        # asyncio sets it only where a socket names its protocol; accepted ones inherit it from the listener.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, ready)), name="model-server", daemon=True
        )
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Close all connections and the port. Idempotent."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def changed(self) -> None:
        """For a connection: something that a test may be waiting for has happened."""
        if self._watchers:
            with self._changed:
                self._changed.notify_all()

    def statistics(self) -> Mapping[str, int]:
        """The counts, as ``GET /stats`` gives them to another process."""
        return {
            "requests": sum(1 for _ in self._all),
            "active": self.active,
            "completed": self.completed,
            "cancelled": self.cancelled,
            "connections": self.connections,
            "open_connections": self.open_connections,
            "tokens": sum(request.tokens_sent for request in self._all),
        }

    @property
    def _endpoints(self) -> tuple[Endpoint[Any, Any], ...]:
        return self.chat, self.transcriptions, self.speech, self.realtime

    @property
    def _all(self) -> Iterator[Received]:
        """The requests to all endpoints."""
        for endpoint in self._endpoints:
            yield from endpoint.requests

    def _story(self) -> str:
        requests = ", ".join(f"{r.number}: {r.state} after {r.tokens_sent} pieces" for r in self._all)
        return f"requests [{requests}], {self.connections} connections, {self.open_connections} of them open"

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=listener, ssl=self._tls, backlog=1024)
        ready.set()
        try:
            await self._stopping.wait()
        finally:
            await _some_rounds()  # before it is closed, or asyncio drops the socket that it has just accepted
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await _some_rounds()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        self.changed()
        try:
            await Exchange(self.connections, reader, writer, self).serve()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self.open_connections -= 1
            self.changed()


async def _some_rounds() -> None:
    """As many of the loop as asyncio takes to hand an accepted connection over, or to close an aborted one."""
    for _ in range(5):
        await asyncio.sleep(0)
