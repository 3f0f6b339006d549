"""Telling another server that something happened: signed as Standard Webhooks, and never sent into our own network.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import functools
import hashlib
import hmac
import http.client
import io
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from typing import Any, Self

from . import runtime
from .errors import WebhookFailed, WebhookRefused
from .targets import AllowedHosts, Target

TOLERANCE = 300.0
"""Seconds that the clocks of sender and receiver may differ by, the time on the way included."""
SECRET_SIZES = range(24, 65)
RETRY_AFTER_MOST = 3600.0
"""Seconds; what is kept of a delivery that is yet to be made lives a day."""
BODY_MOST = 4096
"""Bytes of a response's body that are read."""
INCOMING_MOST = 65536
"""Bytes of a response, its headers included."""
SHOWN = 300
"""Bytes of them that get into the log, where the delivery failed."""

KIND = re.compile(r"[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*")
EVENT_ID = re.compile(r"[a-zA-Z0-9_-]{1,200}")
"""Without full stops, as they separate what is signed."""


def event_body(kind: str, data: Mapping[str, Any], created: float) -> bytes:
    """What is sent of an event, as JSON; it is signed as it stands, so it is made once.

    :param kind: names separated by full stops, such as ``run.completed``.
    :param created: when it happened, in seconds since 1970.
    :raises ValueError: the kind is none, or a number in the data is none of JSON's.
    :raises TypeError: there is something else in the data that JSON does not know.
    """
    if not KIND.fullmatch(kind):
        raise ValueError(f"a kind of event is written like 'run.completed', which {kind!r} is not")
    timestamp = datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    # In ASCII, as halves of a character may come from a model.
    said = {"type": kind, "timestamp": timestamp, "data": data}
    return json.dumps(said, allow_nan=False, separators=(",", ":")).encode()


class Signer:
    """Signs with each of its secrets, so that a receiver may know the old one or the new one while they are changed.

    :param secrets: each ``whsec_`` and the base64 of 24 to 64 random bytes.
    :raises ValueError: there is none, or one is no such thing. The message does not contain it.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets or isinstance(secrets, str):
            raise ValueError("a webhook is signed: give a list of secrets")
        self._keys = [_key(secret) for secret in secrets]

    def headers(self, event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """What is sent besides the body.

        :param event_id: stays the same in each attempt to deliver the event.
        :param timestamp: of the attempt, in seconds since 1970.
        :raises ValueError: the id has other characters than letters, digits, ``-`` and ``_``.
        """
        if not EVENT_ID.fullmatch(event_id):
            raise ValueError("the id of an event has letters, digits, '-' and '_' alone")
        return {
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(self.signatures(event_id, timestamp, body)),
        }

    def signatures(self, event_id: str, timestamp: int, body: bytes) -> list[str]:
        content = f"{event_id}.{timestamp}.".encode() + body
        return ["v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in self._keys]


def verify(
    body: bytes,
    headers: Mapping[str, str],
    *,
    secrets: Sequence[str],
    tolerance: float = TOLERANCE,
    now: Callable[[], float] = time.time,
) -> str:
    """For whoever receives webhooks: whether this one was sent by someone who knows a secret, and just now.

    :param body: as it arrived, before anything parsed it.
    :param headers: all headers of the request.
    :param tolerance: seconds that its timestamp may be off.
    :return: the event's id. An event can be delivered more than once; its id tells.
    :raises ValueError: it is not to be believed, or a secret is none.
    """
    named = {name.lower(): value for name, value in headers.items()}
    event_id, timestamp = named.get("webhook-id", ""), named.get("webhook-timestamp", "")
    if not EVENT_ID.fullmatch(event_id) or not re.fullmatch("[0-9]{1,12}", timestamp):
        raise ValueError("this is no signed webhook")
    if abs(now() - int(timestamp)) > tolerance:
        raise ValueError("this webhook is too old, or one of the clocks is wrong")
    given = [signature.encode() for signature in named.get("webhook-signature", "").split()]
    for expected in Signer(secrets).signatures(event_id, int(timestamp), body):
        if any(hmac.compare_digest(expected.encode(), signature) for signature in given):
            return event_id
    raise ValueError("the signature of this webhook is not right")


def deliver(
    url: str,
    event_id: str,
    body: bytes,
    *,
    secrets: Sequence[str],
    allowed_hosts: Iterable[str] = (),
    timeout: float = 10.0,
    now: Callable[[], float] = time.time,
) -> None:
    """Try once to deliver an event.

    It goes over TLS, to an address that was looked up and found public, and nowhere else: redirects are not followed
    and proxies not used. As the specification has it, each status from 200 to 299 is success, 410 tells to stop, and
    all else is a failure that may pass: 404 and 401 too, which a receiver gives while it is being deployed.

    :param url: of the receiver.
    :param event_id: the same for each attempt, so that the receiver can tell that it knows the event.
    :param body: as `event_body` makes it.
    :param secrets: as in `Signer`.
    :param allowed_hosts: as in `AllowedHosts`.
    :param timeout: seconds that it may take in all. Only the look-up of the host has time-outs of its own.
    :raises WebhookRefused: it was not delivered and never will be. Its `reason` is ``url`` or ``address`` where nothing
        was sent, and ``gone`` where the receiver answered 410: send it nothing more.
    :raises WebhookFailed: it was not delivered this time; `retry_after` is what the receiver asked for.
    :raises ValueError: secrets, id or allowed hosts are not what they should be.
    """
    target, allowed = Target.of(url), AllowedHosts(allowed_hosts)
    with _Deadline(timeout) as deadline:
        headers = {
            "Host": target.authority,
            "User-Agent": "flask-llmstream",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **Signer(secrets).headers(event_id, int(now()), body),
        }
        try:
            answer = _post(target, target.addresses(allowed), headers, body, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise _no_answer(error, target, deadline) from None
    if 200 <= answer.status <= 299:
        return
    diagnosis = f"{target.authority} answered {answer.status}: {answer.start[:SHOWN]!r}"
    if answer.status == 410:
        raise WebhookRefused("The receiver wants no more webhooks.", reason="gone", diagnosis=diagnosis)
    retry_after = _retry_after(answer.headers, now())
    raise WebhookFailed(f"The receiver answered {answer.status}.", retry_after=retry_after, diagnosis=diagnosis)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Message
    start: bytes


class _Deadline:
    """Breaks a connection off when the time is up. A socket's own time-out would begin anew with each byte."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.expired = False
        self._due = time.monotonic() + seconds
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._timer = runtime.current().timers.after(self.seconds, self._break_off)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()
        self.blocks_on(None)

    @property
    def left(self) -> float:
        """Seconds."""
        return self._due - time.monotonic()

    def blocks_on(self, sock: socket.socket | None) -> None:
        """
        :raises TimeoutError: it is too late for that.
        """
        with self._lock:
            self._socket = sock
            if sock is not None and self.expired:
                raise TimeoutError

    def _break_off(self) -> None:
        with self._lock, suppress(OSError):
            self.expired = True
            if self._socket is not None:
                # The base class's: a TLS socket's own shutdown drops its state first, and wakes nobody.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _post(target: Target, addresses: list[str], headers: dict[str, str], body: bytes, deadline: _Deadline) -> _Answer:
    wire = _dial(addresses, target.port, deadline)
    try:
        deadline.blocks_on(wire)
        if target.secure:
            wire = _secure(wire, target.host, deadline)
            deadline.blocks_on(wire)
        lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        wire.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        with closing(http.client.HTTPResponse(_Incoming(wire), method="POST")) as response:  # type: ignore[arg-type]
            response.begin()
            deadline.blocks_on(wire)  # http.client takes headers that were broken off for all of them
            return _Answer(response.status, response.msg, _start(response))
    finally:
        deadline.blocks_on(None)
        wire.close()


class _Incoming(io.RawIOBase):
    """What a socket receives, up to a size: one that was shut down still gives whatever a busy server goes on sending,
    and a greenlet that always finds something to read lets no other one work.
    """

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._room = INCOMING_MOST

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._room <= 0:
            raise http.client.HTTPException("the response is too long")
        count = self._wire.recv_into(buffer)
        self._room -= count
        return count


def _dial(addresses: list[str], port: int, deadline: _Deadline) -> socket.socket:
    """Connect to the first of the addresses that lets us; each has its share of the time."""
    failure: OSError = OSError("no address")
    for number, address in enumerate(addresses):
        if (left := deadline.left) <= 0:
            raise TimeoutError
        wire = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            wire.settimeout(left / (len(addresses) - number))
            wire.connect((address, port))
            wire.settimeout(None)
            return wire
        except OSError as error:
            wire.close()
            failure = error
        except BaseException:
            wire.close()
            raise
    raise failure


def _secure(wire: socket.socket, host: str, deadline: _Deadline) -> ssl.SSLSocket:
    # The plain socket gives its descriptor away before the handshake, and the TLS one is not ours until after it.
    with wire.dup() as double:
        deadline.blocks_on(double)
        try:
            return _tls().wrap_socket(wire, server_hostname=host)
        finally:
            deadline.blocks_on(None)


@functools.cache
def _tls() -> ssl.SSLContext:
    """That of the requests to models, so that both trust the same authorities."""
    import httpx2

    return httpx2.create_ssl_context()


def _start(response: http.client.HTTPResponse) -> bytes:
    """The first of the body. To take a short one spares the receiver a reset; what becomes of it changes nothing."""
    start = b""
    with suppress(OSError, ValueError, http.client.HTTPException):
        # Not `read`: given a chunk of negative size, it reads whatever comes.
        while len(start) < BODY_MOST and (piece := response.read1(BODY_MOST)):
            start += piece
    return start[:BODY_MOST]


def _no_answer(error: Exception, target: Target, deadline: _Deadline) -> WebhookFailed:
    diagnosis = f"{target.authority}: {error!r}"
    if deadline.expired or isinstance(error, TimeoutError):
        return WebhookFailed(f"The receiver did not answer within {deadline.seconds:g} s.", diagnosis=diagnosis)
    if isinstance(error, ssl.SSLError):
        return WebhookFailed("No secure connection to the receiver could be made.", diagnosis=diagnosis)
    if isinstance(error, OSError) and not isinstance(error, http.client.HTTPException):
        return WebhookFailed("The receiver cannot be reached.", diagnosis=diagnosis)
    return WebhookFailed("The receiver did not answer as HTTP has it.", diagnosis=diagnosis)


def _retry_after(headers: Message, now: float) -> float | None:
    """Seconds or a date (RFC 9110, section 10.2.3)."""
    value = str(headers.get("retry-after", "")).strip()
    if re.fullmatch("[0-9]+", value):
        return min(float(value[:10]), RETRY_AFTER_MOST)
    with suppress(ValueError, OverflowError):
        date = email.utils.parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return min(max(0.0, date.timestamp() - now), RETRY_AFTER_MOST)
    return None


def _key(secret: str) -> bytes:
    encoded = secret.removeprefix("whsec_")
    with suppress(binascii.Error, ValueError):
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        if secret != encoded and len(key) in SECRET_SIZES:
            return key
    sizes = f"{SECRET_SIZES[0]} to {SECRET_SIZES[-1]}"
    raise ValueError(f"a webhook's secret is whsec_ and the base64 of {sizes} random bytes")
