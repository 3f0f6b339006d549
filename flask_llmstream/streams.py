"""The open event stream: a response that is one reader of something, for as long as its client is there."""

from __future__ import annotations

import errno
import functools
import logging
import random
import socket
import threading
from collections.abc import Generator, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from flask import Response, current_app, request, url_for
from werkzeug.wsgi import ClosingIterator

from .anyrun import AnyRun
from .attendance import Attendance, Reading, RunReading, client_socket
from .codecs.native import HEARTBEAT, MEDIA_TYPE, NativeCodec
from .cursor import Cursor
from .errors import LLMStreamError
from .problems import problem_response
from .record import Record
from .runtime import current, hang_up, reset

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger("flask_llmstream")

HEADERS = {
    "Cache-Control": "no-cache, no-transform",
    # nginx gathers a response before it passes it on, unless told not to.
    "X-Accel-Buffering": "no",
    # Compressors leave a response alone that says how it is encoded.
    "Content-Encoding": "identity",
}
RETRY = (2000, 3000)
"""Milliseconds; an EventSource that has lost its line comes back after a time between these."""
RETRY_ELSEWHERE = (2000, 4000)
"""Milliseconds; the same for those who are sent away: a worker that is told to go still accepts for up to a second."""
LEAVES_WITHIN = (0.1, 1.0)
"""Seconds after which the line of one who was sent away is cut: not all at the same time, and the last words arrive."""
HEARD_WITHIN = 0.2
"""Seconds that a page has to take what it was told, before the line is cut: a browser drops the rest."""
HEADERS_WITHIN = 1.0
"""Seconds after which a response begins, whatever the model does."""
UNSENT = "flask_llmstream.stream"
"""Where the WSGI environment keeps the stream of a request."""
SENT_WITHIN = 2
"""Heartbeats; a stream that nobody has begun to send by then is sent by nobody."""


def stream_response(body: Iterator[bytes], kind: type[Response] = Response) -> Response:
    """An event stream."""
    response = kind(body, content_type=MEDIA_TYPE)
    response.headers.update(HEADERS)
    return response


def follow(record: Record, run: AnyRun, cursor: Cursor | None) -> Response:
    """A response that reads a run from behind a cursor: 204, which an EventSource obeys, if nothing follows.

    :raises Overloaded: the process has as many open responses as it can carry.
    """
    with record.open.place():
        stream = RunStream(record, run, cursor)
    if stream.finished:
        stream.close()
        return Response(status=204)
    return stream.response()


def come_back(error: LLMStreamError) -> Response:
    """Send an EventSource away for a while. After an HTTP error it would never come back."""
    wait = (error.retry_after or 1.0) * 1000 + random.randint(0, RETRY[1] - RETRY[0])
    sock = client_socket(request.environ)

    def body() -> Generator[bytes]:
        yield b"retry: %d\n\n" % wait
        current().bell().wait(HEARD_WITHIN)  # a browser drops what it has not handed to the page by the reset
        raise cut(sock)

    return stream_response(body())


class Source(Reading, Protocol):
    """What an event stream sends: a place in something, and the bytes in which a client is told of it."""

    @property
    def finished(self) -> bool:
        """Whether nothing will ever follow."""

    def opening(self, *, retry: int, heartbeat: float) -> bytes:
        """The first bytes of the response (see `NativeCodec.opening`)."""

    def take(self) -> bytes:
        """What follows what was taken before; empty when there is nothing now."""


class RunSource(RunReading):
    """The events of a run."""

    def __init__(self, record: Record, run: AnyRun, cursor: Cursor | None = None) -> None:
        super().__init__(record, run, cursor)
        self._codec = NativeCodec(run.id)

    def __str__(self) -> str:
        return f"run {self.run.id}"

    def opening(self, *, retry: int, heartbeat: float) -> bytes:
        return self._codec.opening(self.reader.epoch, self.reader.n, retry=retry, heartbeat=heartbeat)

    def take(self) -> bytes:
        reader = self.reader
        news = reader.take()
        return self._codec.encode(reader.epoch, reader.n, news) if news else b""


class EventStream:
    """One open response. It holds one of the process's places for them, which its maker has taken.

    It is closed by its body's end, or by its response's (a generator that was never started runs no `finally`).
    Where Flask has answered otherwise, neither comes: then `close_unsent` does it or, at last, the pulse.

    :param source: what it sends, which is closed with it.
    """

    location: str | None = None
    """The address of what is sent, where it has one of its own."""

    def __init__(self, record: Record, source: Source) -> None:
        self._source = source
        self._open = record.open
        self._opened_at = self._open.beat
        self._begun = False
        self._lock = threading.Lock()
        self._write_timeout = record.settings.write_timeout
        self._beat_due = False
        self._farewell: bytes | None = None
        self._written_at = self._open.beat
        self._writing_since: int | None = None
        self._attendance = Attendance(source, left=self._client_left)
        self._closed = False
        try:
            self._open.look_after(self)
        except BaseException:
            self._open.let_go(self)
            self._attendance.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether nothing follows what the client has."""
        return self._source.finished

    def await_beginning(self) -> LLMStreamError | None:
        """Wait until it is clear what the response will be.

        :returns: what there is to say instead of the stream: then the error can be the response.
        """
        self._begin()
        return None

    def response(self, *, refusable: bool = False) -> Response:
        """The response that sends it.

        :param refusable: the response may yet become the refusal of what fails before it has said anything.
        """
        request.environ[UNSENT] = self
        response = stream_response(self.body(), _kind(current_app.response_class))  # type: ignore[arg-type]
        assert isinstance(response, StreamResponse)
        response.source, response.refusable = self, refusable
        if self.location is not None:
            response.headers["Location"] = self.location
        response.call_on_close(self.close)
        return response

    def close(self) -> None:
        """Stop reading, and give the place back. Idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        self._open.let_go(self)
        self._open.give_back()
        self._attendance.close()

    def close_unsent(self) -> None:
        """Close it, unless its sending has begun."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
        log.warning("the stream of %s is not sent: its response was dropped", self._source)
        self.close()

    def pulse(self, beat: int) -> None:
        """Have a heartbeat sent where it has been silent, and end a write that takes too long."""
        limit, since = self._write_timeout, self._writing_since
        if not self._begun:
            if beat - self._opened_at > SENT_WITHIN * self._open.BEATS:
                self.close_unsent()
        elif since is not None:
            if limit is not None and (beat - since) * self._open.heartbeat / self._open.BEATS > limit:
                self._hang_up()
        elif beat - self._written_at >= self._open.BEATS:
            self._beat_due = True
            self._source.bell.ring()

    def send_away(self) -> None:
        """Have the client come back by another connection, unless nothing will follow what it is about to get anyway.
        Idempotent."""
        if self._farewell is None and not self._is_ending():
            self._farewell = b"retry: %d\n\n" % random.randint(*RETRY_ELSEWHERE)
            self._beat_due = True
            self._source.bell.ring()

    def body(self) -> Generator[bytes]:
        """The bytes of the response."""
        attendance, source, opened = self._attendance, self._source, self._open
        try:
            self._begin()
            piece = source.opening(retry=random.randint(*RETRY), heartbeat=opened.heartbeat) + source.take()
            while True:
                self._written_at = self._writing_since = opened.beat
                if attendance.over:
                    raise cut(attendance.socket)
                yield piece
                self._writing_since = None
                while not (piece := source.take()):
                    if source.finished:
                        return
                    if attendance.over:
                        raise cut(attendance.socket)
                    if self._beat_due:
                        piece = HEARTBEAT
                        break
                    source.bell.wait()
                self._beat_due = False
                if self._farewell:
                    piece += self._say_farewell()
        except OSError:
            raise
        except Exception:
            log.exception("the stream of %s broke", source)
            raise cut(attendance.socket) from None
        finally:
            if self._writing_since is not None or not source.finished:
                cut(attendance.socket)  # also where a server ends its greenlets, or closes this early
            self.close()  # not every server closes a response that it has read to its end

    def _begin(self) -> None:
        with self._lock:
            self._begun = True
            closed = self._closed
        if closed:
            raise cut(self._attendance.socket)

    def _is_ending(self) -> bool:
        """Whether all that will ever follow is there, so that the stream is about to end by itself."""
        return False

    def _say_farewell(self) -> bytes:
        current().timers.after(random.uniform(*LEAVES_WITHIN), self._part)
        farewell, self._farewell = self._farewell, b""
        return farewell or b""

    def _part(self) -> None:
        if not self._is_ending():
            self._attendance.gone = True
            self._source.bell.ring()

    def _client_left(self) -> None:
        if self._writing_since is not None:
            self._hang_up()  # a write to a client that no longer reads would never end

    def _hang_up(self) -> None:
        self._attendance.gone = True
        if self._attendance.socket is not None:
            hang_up(self._attendance.socket)


class RunStream(EventStream):
    """The stream of a run.

    :param cursor: the last event that the client has.
    """

    def __init__(self, record: Record, run: AnyRun, cursor: Cursor | None = None) -> None:
        self.location = url_for(f"{record.name}.run", run_id=run.id)
        self._run = run
        super().__init__(record, RunSource(record, run, cursor))

    def await_beginning(self) -> LLMStreamError | None:
        """As above: the model answers, something was said, the run has ended, or a second has passed.

        :returns: what the run failed by before it had said anything.
        """
        attendance, run = self._attendance, self._run
        self._begin()
        until = monotonic() + HEADERS_WITHIN
        while not (run.answering or run.ended or attendance.gone):
            left = until - monotonic()
            if left <= 0:
                return None
            self._source.bell.wait(left)
        return run.error if run.ended and not run.answering else None

    def _is_ending(self) -> bool:
        return self._run.ended


class StreamResponse(Response):
    """The response of an event stream; it begins when it is clear what it will be.

    That is when the server asks for the first piece (PEP 3333 lets a response begin there), so Flask is through with
    the request by then, and what the request held, such as a database connection, is free for the run. Functions
    that run after the request see the status of the stream; the headers that they set go with a refusal too.
    """

    source: EventStream
    refusable: bool

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> ClosingIterator:
        return ClosingIterator(self._begin(environ, start_response), self.close)

    def _begin(self, environ: WSGIEnvironment, start_response: StartResponse) -> Generator[bytes]:
        error = self.source.await_beginning() if self.refusable else None
        begun: Response = self
        if error is not None:
            begun = problem_response(error)
            own = {name.lower() for name in (*HEADERS, *begun.headers.keys())}
            for name, value in self.headers:
                if name.lower() not in own:
                    begun.headers.add(name, value)
            self.source.close()
        start_response(begun.status, begun.get_wsgi_headers(environ).to_wsgi_list())
        yield from cast("Iterable[bytes]", begun.response)


def close_unsent(error: BaseException | None) -> None:
    """Close the stream of a request that has failed after its view: Flask answers by a page of its own."""
    stream: EventStream | None = request.environ.get(UNSENT)
    if stream is not None and error is not None:
        stream.close_unsent()


def cut(sock: socket.socket | None) -> OSError:
    """End a response so that no client takes it for complete; raise what this returns, for the server's sake.

    A server that meets ECONNRESET drops the connection and stays quiet about it.
    """
    if sock is not None:
        reset(sock, cooperative=current().cooperative)
    return ConnectionResetError(errno.ECONNRESET, "the response was cut")


@functools.cache
def _kind(application: type[Response]) -> type[Response]:
    """`StreamResponse` as the application's own kind of response, or Flask would make it one and lose its methods."""
    return StreamResponse if application is Response else type("StreamResponse", (StreamResponse, application), {})
