"""One process's way to a Realtime API, and the calls that it makes there: the official client over `websockets`."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import httpx2
import msgspec
import openai
from openai.resources.realtime.realtime import RealtimeConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection

from .. import runtime
from ..audio import Format
from ..errors import (
    LLMStreamError,
    UpstreamForbidden,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnavailable,
)
from . import Message
from .failures import no_connection, redact, refused
from .openai_realtime_events import Conversation, items
from .openai_session import Session
from .realtime import RealtimeError, RealtimeEvent

log = logging.getLogger(__name__)

CONNECT = 5.0
"""Seconds until there is a connection."""
SETTLE = 10.0
"""Seconds until the server has taken the settings of a call."""
FAREWELL = 0.1
"""Seconds that a closed call waits for the server's leave."""
STUCK = 20.0
"""Seconds after which a server that takes nothing more is given up."""
MOST = 4 * 1024 * 1024
"""Bytes of a message of the server's."""
AHEAD = 64
"""Messages that are read ahead of their reader."""
LARGEST = 1024 * 1024
"""Bytes of audio in one message to the server, which takes 15 MiB of base64."""
KINDS: Mapping[int, type[LLMStreamError]] = {
    1001: UpstreamUnavailable,
    1002: UpstreamMalformed,
    1003: UpstreamMalformed,
    1007: UpstreamMalformed,
    1008: UpstreamForbidden,
    1009: UpstreamMalformed,
    1011: UpstreamUnavailable,
    1012: UpstreamUnavailable,
    1013: UpstreamUnavailable,
    3000: UpstreamForbidden,
    3003: UpstreamForbidden,
}
"""What the close codes of the server mean (RFC 6455, section 7.4, and IANA's registry)."""


class Discreet(logging.LoggerAdapter[logging.Logger]):
    """A log without debugging: that of `websockets` has the headers in it, and among them the key."""

    def isEnabledFor(self, level: int) -> bool:
        return level > logging.DEBUG and super().isEnabledFor(level)


class Line(ClientConnection):
    """A WebSocket that can be cut off, whoever is waiting for it."""

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK * 1000))
        super().__init__(sock, *args, **more)

    def maybe_raise_legacy_warning(self) -> None:
        """The official client connects in the way that websockets 17.1 warns of."""

    def cut(self) -> None:
        """Make all that wait for it fail at once."""
        with contextlib.suppress(OSError):
            # The base class's: a TLS socket's own shutdown drops its state first, and wakes nobody.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class RealtimeSession(Session):
    """The official client, for calls."""

    def warm(self) -> None:
        """Have made what the first connection makes: the client's ways to build a request."""
        with contextlib.suppress(Exception):
            self._client.realtime.connect(model="")

    def call(self, model: str, session: Mapping[str, Any], history: Sequence[Message], output: Format) -> RealtimeCall:
        """A call whose settings the server has taken."""
        with self._connected(model) as (connection, line):
            conversation = Conversation(output, self._key)
            call = RealtimeCall(connection, line, conversation, self._key)
            call.settle(session)
            for item in items(history):
                call.send(item)
            return call

    @contextlib.contextmanager
    def _connected(self, model: str) -> Iterator[tuple[RealtimeConnection, Line]]:
        lines: list[Line] = []

        def create(*args: Any, **more: Any) -> Line:
            lines.append(Line(*args, **more))
            return lines[-1]

        options: Any = {
            "create_connection": create,
            "open_timeout": CONNECT,
            "close_timeout": FAREWELL,
            "max_size": MOST,
            "max_queue": AHEAD,
            "compression": None,
            "logger": Discreet(log),
        }
        try:
            yield self._enter(model, options), lines[-1]
        except BaseException:  # websockets itself leaves its socket behind where a greenlet is killed
            for line in lines:
                line.close_socket()
            raise

    def _enter(self, model: str, options: Any) -> RealtimeConnection:
        try:
            return self._client.realtime.connect(model=model, websocket_connection_options=options).enter()
        except InvalidStatus as error:
            raise self._refused(error) from None
        except TimeoutError:
            raise UpstreamTimeout("connect") from None
        except (OSError, InvalidHandshake, EOFError, openai.OpenAIError) as error:
            failure = no_connection(error)
            failure.diagnosis = redact(failure.diagnosis or "", self._key)
            raise failure from None

    def _refused(self, error: InvalidStatus) -> LLMStreamError:
        answer = error.response
        response = httpx2.Response(
            answer.status_code,
            headers=list(answer.headers.raw_items()),
            content=bytes(answer.body or b""),
            request=httpx2.Request("GET", "https://realtime"),
        )
        try:
            body = json.loads(response.content)["error"]
        except (ValueError, LookupError, TypeError):
            body = None
        return refused(openai.APIStatusError(f"HTTP {answer.status_code}", response=response, body=body), self._key)


class RealtimeCall:
    """A call with a model. One reads its `events`; all else may be called from any thread.

    What is sent after `close` goes nowhere. Where the connection is lost, sending and reading say why.
    """

    def __init__(self, connection: RealtimeConnection, line: Line, conversation: Conversation, key: str | None) -> None:
        self._connection = connection
        self._line = line
        self._conversation = conversation
        self._key = key
        self._closed = False
        self._lock = threading.Lock()

    def send_audio(self, audio: bytes) -> None:
        """Let the model hear some more, in the call's input format."""
        for start in range(0, len(audio), LARGEST):
            piece = base64.b64encode(audio[start : start + LARGEST]).decode("ascii")
            self.send({"type": "input_audio_buffer.append", "audio": piece})

    def commit(self) -> None:
        """What was heard so far is what the user said. For calls without turn detection."""
        self.send({"type": "input_audio_buffer.commit"})

    def clear(self) -> None:
        """What was heard so far is not meant for the model."""
        self.send({"type": "input_audio_buffer.clear"})

    def create_response(self) -> None:
        """Have the model answer."""
        self.send({"type": "response.create"})

    def cancel(self) -> None:
        """Have it stop its answer, if it is giving one. `truncate` says what of that was heard."""
        self.send({"type": "response.cancel"})

    def truncate(self, item: str, heard_ms: float) -> int:
        """Tell the model how much of its answer was heard: it forgets the rest, which does not come any more either.

        :param heard_ms: no more counts than there is audio. An item of which nothing was heard is deleted.
        :returns: how much the model takes for heard, ms.
        """
        message, kept = self._conversation.cut(item, heard_ms)
        if message is not None:
            self.send(message)
        return kept

    def say(self, text: str) -> None:
        """Tell the model something in writing, as the user. `create_response` has it answer."""
        for item in items([{"role": "user", "content": text}]):
            self.send(item)

    def answer_tool(self, call_id: str, output: str) -> None:
        """Give it what a function returned. `create_response` has it go on."""
        item = {"type": "function_call_output", "call_id": call_id, "output": output}
        self.send({"type": "conversation.item.create", "item": item})

    def events(self) -> Generator[RealtimeEvent]:
        """What happens, until the call is closed here.

        :raises LLMStreamError: it ended otherwise: the connection was lost, or the server has closed it.
        """
        while (data := self._receive()) is not None:
            yield from self._conversation.take(data)

    def close(self) -> None:
        """End the call, at once. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # Somebody may be stuck in sending, and a server that has gone says no farewell.
        timer = runtime.current().timers.after(2 * FAREWELL, self._line.cut)
        try:
            with contextlib.suppress(OSError, ConnectionClosed):
                self._connection.close()
        finally:
            timer.cancel()
            self._line.close_socket()

    def send(self, message: Mapping[str, Any]) -> None:
        """A message of the protocol's own, for what is not offered here.

        :raises LLMStreamError: the connection is lost.
        """
        if self._closed:
            return
        try:
            self._connection.send_raw(msgspec.json.encode(message).decode())
        except (ConnectionClosed, OSError, openai.OpenAIError) as error:
            if not self._closed:
                raise self._lost(error) from None

    def settle(self, session: Mapping[str, Any]) -> None:
        """Have the server take the settings.

        :raises LLMStreamError: it does not.
        """
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            self._line.cut()

        timer = runtime.current().timers.after(SETTLE, give_up)
        try:
            self.send({"type": "session.update", "session": session})
            while (data := self._receive()) is not None:
                for event in self._conversation.take(data):
                    if isinstance(event, RealtimeError):
                        raise event.error
                if self._conversation.settled:
                    return
        except LLMStreamError:
            if late:
                raise UpstreamTimeout("first_token") from None
            raise
        finally:
            timer.cancel()

    def _receive(self) -> bytes | None:
        """The next message; None after the end."""
        try:
            return self._connection.recv_bytes()
        except (ConnectionClosed, OSError) as error:
            if self._closed:
                return None
            raise self._lost(error) from None

    def _lost(self, error: BaseException) -> LLMStreamError:
        """Why the connection is no more."""
        code, why = 1006, repr(error)
        if isinstance(error, ConnectionClosed):
            # One that we had to close, as the server broke the rules, has no code of the server's.
            said = error.sent if error.sent is not None and not error.rcvd_then_sent else error.rcvd
            code, why = (said.code, f"{said.code} {said.reason}") if said is not None else (1006, repr(error))
        return KINDS.get(code, UpstreamTruncated)(diagnosis=redact(f"the call was closed: {why}", self._key))
