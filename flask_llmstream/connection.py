"""A WebSocket that one can trust: whole messages, bounded memory, deadlines, and an end that tells the truth.

    open ──> closing ──> over

It is open from the 101 on. Whatever ends it, first come first served, has its code and its reason kept: those that the
client gave, those that this side gave, or 1006 where the connection broke. While it is closing, this side has said
Close and waits for a moment for the client's; what still comes is dropped. When it is over, the socket is shut.

flask-sock's own `Server` loses bytes under gevent, mixes the messages of two writers, and reads without bounds. Of it
remain the handshake, wsproto's state, and the interface.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from flask_sock import ConnectionClosed, Server
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from .inbox import Inbox, MessageTooLong
from .runtime import Watch, current
from .wire import SLICE, Share, Wire, rest

log = logging.getLogger("flask_llmstream")

CLOSES_WITHIN = 1.0
"""Seconds for which the client's Close is waited for, or the end of what it sends after it broke the rules."""
TIMEOUT = 3008
"""The code for a client that has fallen silent, as IANA has registered it."""
LOST = "The connection was lost."
UNINTELLIGIBLE = {CloseReason.INVALID_FRAME_PAYLOAD_DATA: "Text must be valid UTF-8."}
LONGEST_WAIT = 60.0
"""Seconds after which the reader looks at the clock in any case."""
REQUEST = """\
GET / HTTP/1.1\r
Host: here\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: {key}\r
{more}\r
"""
"""What wsproto needs to know of a request that Flask has read. No extension is asked for: deflate costs more than
audio gains by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SocketLimits:
    """What a client may do to a WebSocket, and how long it may take.

    :param max_message: bytes of the longest message that is taken; a longer one ends the connection with 1009.
    :param backlog: bytes that are received before they are asked for; then TCP stops the client.
    :param ping: seconds between two pings. Load balancers cut connections that are silent for 60.
    :param pong_within: seconds in which anything must come after a ping; otherwise the connection ends with 3008.
    :param send_within: seconds in which the client must take a message; otherwise the connection is cut.
    """

    max_message: int = 65536
    backlog: int = 262144
    ping: float = 20.0
    pong_within: float = 10.0
    send_within: float = 5.0


class Connection(Server):  # type: ignore[misc]  # it has no types
    """A WebSocket. One receives; any thread or greenlet may send and close.

    :param environ: of the WSGI request that asks for it.
    :param subprotocols: those that are spoken here.
    :param headers: go with the 101.
    :raises OSError: the client has gone.
    """

    on_leaving: Callable[[float], None] | None = None
    """Called when the server is about to go, in a task of its own, with the seconds until this is closed."""
    subprotocol: str | None
    ws: Any

    def __init__(
        self,
        environ: dict[str, Any],
        *,
        subprotocols: Iterable[str] = (),
        limits: SocketLimits | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._limits = limits or SocketLimits()
        self._headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._inbox = Inbox(self._limits.max_message, self._limits.backlog)
        self._news = current().bell()
        self._room = current().bell()
        self._woken = False
        self._state = threading.Lock()
        self._writing = threading.Lock()
        self._concluded = threading.Event()
        self._over = threading.Event()
        self._discarding = False
        self._closed_here = False
        self._gone = False
        self._end_by = inf
        self._ping_at = monotonic() + self._limits.ping
        self._pong_by = inf
        self._receiving = Share()
        self._reading = Share()
        self._spent = 0.0
        super().__init__(
            environ,
            subprotocols=list(subprotocols),
            max_message_size=self._limits.max_message,
            thread_class=partial(threading.Thread, name="llmstream-socket", daemon=True),
        )

    @property
    def closed(self) -> bool:
        """Whether it is closing or over: nothing more can be sent."""
        return not self.connected

    @property
    def code(self) -> int:
        """What it was closed with; 1006 where it broke, 1005 as long as it is open."""
        return int(self.close_reason)

    @property
    def reason(self) -> str:
        """Why it was closed, in a sentence."""
        return self.close_message or ""

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """The next message; None where none has come in time, or somebody has called `wake`.

        :param timeout: seconds; None waits for ever.
        :raises ConnectionClosed: it is closed, and all that came before was received. `reason` has the code, and
            `message` the reason.
        """
        until = None if timeout is None else monotonic() + timeout
        while True:
            if self._woken:
                self._woken = False
                return None
            if self._inbox and not self._closed_here:
                self._receiving.spend()
                return self._take()
            if self.closed:
                raise self._end()
            left = None if until is None else until - monotonic()
            if left is not None and left <= 0:
                return None
            self._news.wait(left)
            self._receiving.renew()

    def send(self, data: str | bytes) -> None:
        """Send a message, whole.

        :raises ConnectionClosed: it is closed, or the client has not taken the message in time.
        """
        began = monotonic()
        message = TextMessage(data=data) if isinstance(data, str) else BytesMessage(data=bytes(data))
        if not self._say(message, self._limits.send_within):
            raise self._end()
        self._spent += monotonic() - began
        if self._spent > SLICE:
            self._spent = 0.0
            rest()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it: wait for a moment for the client to agree, and shut the socket. Idempotent."""
        self._closed_here = True
        if not self._conclude(code, reason):
            return
        try:
            if self._say_close(code, reason):
                self._over.wait(CLOSES_WITHIN)
        finally:
            self._wire.shut()

    def wake(self) -> None:
        """Have the one who receives, now or next, return at once."""
        self._woken = True
        self._news.ring()

    def end(self) -> None:
        """Leave the socket to its server: nobody reads it or writes to it any longer."""
        self.close()
        self._over.wait(CLOSES_WITHIN)  # the reader may still be waiting for the client to go
        self._wire.shut()
        self.thread.join()
        with self._writing:
            self._wire.bury()

    def handshake(self) -> None:
        self._wire = Wire(self.sock)
        self.subprotocol = choose_subprotocol(self.environ, self.subprotocols)
        more = f"Sec-WebSocket-Protocol: {self.subprotocol}\r\n" if self.subprotocol else ""
        self.ws.receive_data(REQUEST.format(key=self.environ["HTTP_SEC_WEBSOCKET_KEY"], more=more).encode())
        list(self.ws.events())
        accepted = AcceptConnection(subprotocol=self.subprotocol, extra_headers=self._headers)
        self._wire.write(self.ws.send(accepted), self._limits.send_within)
        self.connected = True

    # What follows runs in the reader's thread, down to `_fail`.

    def _thread(self) -> None:
        watch: Watch | None = None
        try:
            watch = current().watcher.watch(self.sock, self._client_left)
            while not self._over.is_set():
                self._step()
        except OSError:
            self._conclude(CloseReason.ABNORMAL_CLOSURE, LOST)
        except Exception:
            log.exception("a WebSocket could not be read")
            self._conclude(CloseReason.INTERNAL_ERROR, "The server made an error.")
            self._wire.cut()
        finally:
            self._over.set()
            if watch is not None:
                watch.close()

    def _step(self) -> None:
        """Read once, or wait until there is a reason to."""
        due = min(min(self._ping_at, self._pong_by, self._end_by) - monotonic(), LONGEST_WAIT)
        if self._is_full():
            self._room.wait(max(0.0, due))
            self._pong_by = inf  # an answer may be behind what is not read
        elif self._wire.wait(due):
            self._reading.renew()
            self._read()
        self._look_at_the_clock()

    def _is_full(self) -> bool:
        return self._inbox.full and self.connected and not self._gone

    def _client_left(self) -> None:
        """Nothing more will come but what is already here."""
        self._gone = True
        self._room.ring()

    def _look_at_the_clock(self) -> None:
        now, limits = monotonic(), self._limits
        if now >= self._end_by:
            self._over.set()
        elif not self.connected:
            self._ping_at = self._pong_by = inf
        elif self._writing.locked():  # the client shows that it is there by taking what is written, or fails by that
            later = now + limits.ping / 10
            self._ping_at, self._pong_by = max(self._ping_at, later), max(self._pong_by, later)
        elif now >= self._pong_by:
            self._fail(TIMEOUT, f"Nothing came within {limits.pong_within:g} s of a ping.")
        elif now >= self._ping_at and self._say(Ping(), limits.send_within):
            self._ping_at = now + limits.ping
            self._pong_by = min(self._pong_by, now + limits.pong_within)

    def _read(self) -> None:
        data = self._wire.read()
        if data is None:
            return
        if not data:
            self._conclude(CloseReason.ABNORMAL_CLOSURE, LOST)
            self._over.set()
            return
        self._pong_by = inf
        if self._discarding:
            return
        self.ws.receive_data(data)
        for event in self.ws.events():
            self._meet(event)
            if self._is_through():
                return
            self._reading.spend()

    def _is_through(self) -> bool:
        """Whether nothing of what still comes is of interest."""
        return self._discarding or self._over.is_set()

    def _meet(self, event: Event) -> None:
        if isinstance(event, TextMessage | BytesMessage):
            if self.connected:
                self._keep(event)
        elif isinstance(event, Ping):
            self._say(Pong(payload=event.payload), self._limits.send_within)
        elif isinstance(event, CloseConnection):
            self._meet_close(event)

    def _meet_close(self, event: CloseConnection) -> None:
        if self.ws.state is ConnectionState.REMOTE_CLOSING:
            self._conclude(event.code, event.reason or "")
            self._say_close(event.code, event.reason or "")
            self._wire.finish()
            self._over.set()
        elif self.ws.state is ConnectionState.CLOSED:  # the answer to ours
            self._over.set()
        else:
            reason = f"{str(event.reason)[:1].upper()}{str(event.reason)[1:]}."
            self._fail(event.code, UNINTELLIGIBLE.get(CloseReason(event.code), reason))

    def _keep(self, event: TextMessage | BytesMessage) -> None:
        try:
            complete = self._inbox.put(event)
        except MessageTooLong:
            self._fail(CloseReason.MESSAGE_TOO_BIG, f"A message may have {self._limits.max_message} bytes.")
            return
        if complete:
            self._news.ring()

    def _fail(self, code: int, reason: str) -> None:
        """Close it for what the client does. It may be in the midst of sending: a reset would take the reason away."""
        if self._conclude(code, reason):
            self._say_close(code, reason)
        self._discarding = True
        self._wire.finish()
        self._end_by = monotonic() + CLOSES_WITHIN

    def _take(self) -> str | bytes:
        full = self._inbox.full
        message = self._inbox.take()
        if full:
            self._room.ring()
        return message

    def _say(self, event: Event, within: float) -> bool:
        """Write an event, whole.

        :returns: whether it was written; otherwise this is closed.
        """
        with current().whole(), self._writing:
            if not self.connected:
                return False
            try:
                data = self.ws.send(event)
            except LocalProtocolError:  # the client's Close is being read at this moment
                self._concluded.wait(CLOSES_WITHIN)
                return False
            return self._write(data, within)

    def _say_close(self, code: int, reason: str) -> bool:
        if not self._writing.acquire(timeout=CLOSES_WITHIN):
            self._wire.cut()  # a message that the client does not take is in the way
            return False
        try:
            return self._write(self.ws.send(CloseConnection(code=code, reason=reason)), CLOSES_WITHIN)
        except LocalProtocolError:
            return False
        finally:
            self._writing.release()

    def _write(self, data: bytes, within: float) -> bool:
        try:
            self._wire.write(data, within)
        except TimeoutError:
            self._conclude(CloseReason.ABNORMAL_CLOSURE, f"The client did not take a message within {within:g} s.")
        except OSError:
            self._conclude(CloseReason.ABNORMAL_CLOSURE, LOST)
        except BaseException:  # whoever was to write it was ended; half a message is in the way of every other
            self._conclude(CloseReason.ABNORMAL_CLOSURE, LOST)
            self._wire.cut()
            raise
        else:
            return True
        self._wire.cut()
        return False

    def _conclude(self, code: int, reason: str) -> bool:
        """Nothing is sent or received from here on, for this reason.

        :returns: whether that is new.
        """
        with self._state:
            if not self.connected:
                return False
            self.close_reason, self.close_message = int(code), reason
            self.connected = False
        self._concluded.set()
        self._news.ring()
        self._room.ring()
        return True

    def _end(self) -> ConnectionClosed:
        return ConnectionClosed(self.code, self.reason)


def choose_subprotocol(environ: dict[str, Any], spoken: Iterable[str]) -> str | None:
    """The first that the client asks for and that is spoken here."""
    asked = [name.strip() for name in environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "").split(",")]
    return next((name for name in asked if name in spoken), None)
