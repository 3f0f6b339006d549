"""A WebSocket as a route: what is asked before the 101, and what surrounds the call that follows it."""

from __future__ import annotations

import errno
import functools
import logging
import random
import re
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, Response, current_app, request
from flask_sock import ConnectionClosed
from werkzeug.wsgi import ClosingIterator

from .attendance import client_socket
from .connection import Connection, SocketLimits, choose_subprotocol
from .errors import ConfigurationError, Overloaded, RequestRefused, UpgradeRequired
from .features import View
from .problems import problem_response
from .record import Record
from .requests import require_own_origin
from .runtime import current
from .server import gunicorn_worker
from .streams import cut

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["Connection", "ConnectionClosed", "Handler", "SocketLimits", "add_socket_rule", "serve"]

log = logging.getLogger("flask_llmstream")

Handler = Callable[[Connection], object]
"""Carries on a call, in no context of Flask's: no database session is held for as long as it lasts."""

VERSION = "13"
SPOKEN = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": VERSION}
"""What a 426 says (RFC 9110, section 15.5.22; RFC 6455, section 4.4)."""
KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
"""16 random bytes."""
LEAVES_WITHIN = 1.5
"""Seconds, at most, between telling a call that the server is about to go and closing it."""
SHARE_OF_GRACE = 8
"""That time is so much less than what the server gives its workers: they are told late, and have to clean up yet."""
LEFT = (0.5, 1.0)
"""The parts of it, drawn at random, after which a call is closed: those who come back don't come together."""
KEPT_BACK = {"content-type", "content-length", "connection", "upgrade", "transfer-encoding"}
"""The headers of a response that do not go with a 101."""
RESTART = 1012, "The server is about to restart. Please come back."
FAILED = 1011, "The server made an error."


def add_socket_rule(place: Flask | Blueprint, rule: str, endpoint: str, view: View, **options: Any) -> None:
    """Route both the upgrade and the plain GET of an address to a view, which ends by `serve`.

    The plain GET is there for pages: to them a browser shows nothing of a handshake that was refused.
    """
    place.add_url_rule(rule, endpoint, view, methods=["GET"], **options)
    place.add_url_rule(rule, endpoint, view, websocket=True, **options)


def serve(
    record: Record, handler: Handler, *, subprotocols: Sequence[str] = (), limits: SocketLimits | None = None
) -> Response:
    """A response that becomes a WebSocket, for a view that has nothing against it; or what says why it does not.

    :param subprotocols: those that are spoken here; a client that asks for others only is refused.
    :raises OriginRefused: it is asked for by a page of another origin.
    :raises ShuttingDown: the server is about to restart.
    :raises Overloaded: the process has as many open responses as it can carry.
    :raises RequestRefused: this is no WebSocket's request, or a bad one.
    """
    require_own_origin(request, record)
    record.drain.admit()
    record.open.take_place()  # what follows after the request takes one for good
    record.open.give_back()
    try:
        _require_upgrade(subprotocols)
    except UpgradeRequired as error:
        return problem_response(error, **SPOKEN)
    kind: Any = _kind  # mypy takes a class for an instance of it here
    response = kind(current_app.response_class)(status=101)
    assert isinstance(response, SocketResponse)
    response.call = Call(record, handler, tuple(subprotocols), limits or SocketLimits())
    return response


class Call:
    """One WebSocket from its 101 to its end. It counts as an open response."""

    def __init__(self, record: Record, handler: Handler, subprotocols: Sequence[str], limits: SocketLimits) -> None:
        self._open = record.open
        self._handler = handler
        self._subprotocols = subprotocols
        self._limits = limits
        self._connection: Connection | None = None
        self._told = False

    def carry_on(self, environ: WSGIEnvironment, headers: list[tuple[str, str]]) -> None:
        """Say 101, have the handler do its work, and leave the socket to its server, shut.

        :param headers: go with the 101.
        :raises OSError: the client has gone before it was begun.
        """
        self._connection = connection = Connection(
            environ, subprotocols=self._subprotocols, limits=self._limits, headers=headers
        )
        try:
            self._open.look_after(self)
            self._handler(connection)
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("the WebSocket at %s failed", environ.get("PATH_INFO"))
            connection.close(*FAILED)
        except BaseException:  # the server ends its greenlets
            connection.close(*RESTART)
            raise
        finally:
            self._open.let_go(self)
            connection.end()

    def pulse(self, beat: int) -> None:
        """It looks after itself: its pings have an interval of their own."""

    def send_away(self) -> None:
        connection = self._connection
        if self._told or connection is None:
            return
        self._told = True
        within = _leaves_within() * random.uniform(*LEFT)
        if connection.on_leaving is not None:
            current().task(lambda: self._tell(connection, within), lambda: None).start()
        closing = current().task(lambda: connection.close(*RESTART), lambda: None)
        current().timers.after(within, closing.start)

    @staticmethod
    def _tell(connection: Connection, within: float) -> None:
        try:
            if connection.on_leaving is not None:
                connection.on_leaving(within)
        except ConnectionClosed:
            pass
        except Exception:
            log.exception("a WebSocket could not be told that the server is about to go")


class SocketResponse(Response):
    """The response that becomes a WebSocket when the server asks for its first piece: Flask is through by then."""

    call: Call

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> ClosingIterator:
        return ClosingIterator(self._begin(environ, start_response), self.close)

    def _begin(self, environ: WSGIEnvironment, start_response: StartResponse) -> Generator[bytes]:
        call, places = self.call, self.call._open
        try:
            places.take_place()
        except Overloaded as error:
            refusal = problem_response(error)
            start_response(refusal.status, refusal.get_wsgi_headers(environ).to_wsgi_list())
            yield refusal.get_data()
            return
        try:
            # For the server's log only: it would add headers of its own to what it sends.
            start_response("101 Switching Protocols", [])
            call.carry_on(environ, [(name, value) for name, value in self.headers if name.lower() not in KEPT_BACK])
        except OSError:
            raise cut(client_socket(environ)) from None
        except Exception:  # the server would write its own page into the stream
            log.exception("a WebSocket could not be begun")
            raise cut(client_socket(environ)) from None
        finally:
            places.give_back()
        # A server that meets this drops the connection and stays quiet about it.
        raise ConnectionResetError(errno.ECONNRESET, "the WebSocket has ended")


def _require_upgrade(subprotocols: Sequence[str]) -> None:
    headers = request.headers
    if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in headers.get("Connection", "").lower():
        raise UpgradeRequired(
            "Open this address as a WebSocket. Behind a proxy, have the proxy pass the Upgrade header on."
        )
    if headers.get("Sec-WebSocket-Version") != VERSION:
        raise UpgradeRequired(f"Use version {VERSION} of the WebSocket protocol.")
    if not KEY.fullmatch(headers.get("Sec-WebSocket-Key", "")):
        raise RequestRefused("The header Sec-WebSocket-Key is not 16 bytes in base64.")
    asked = headers.get("Sec-WebSocket-Protocol")
    if asked and subprotocols and choose_subprotocol(request.environ, subprotocols) is None:
        raise RequestRefused(f"None of the subprotocols is spoken here. Ask for {' or '.join(subprotocols)}.")
    if client_socket(request.environ) is None:
        raise ConfigurationError("The server shows no sockets. Run the application by gunicorn or `flask run`.")


def _leaves_within() -> float:
    worker = gunicorn_worker()
    return LEAVES_WITHIN if worker is None else min(LEAVES_WITHIN, worker.cfg.graceful_timeout / SHARE_OF_GRACE)


@functools.cache
def _kind(application: type[Response]) -> type[Response]:
    """`SocketResponse` as the application's own kind of response, or Flask would make it one and lose its methods."""
    return SocketResponse if application is Response else type("SocketResponse", (SocketResponse, application), {})
