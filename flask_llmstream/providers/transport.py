"""The cheap way to a model's server: HTTP/1.1 by the standard library, under the official client.

The client's own transport (h11) spends as much on a token as all the rest of the path; `http.client` parses in C
where it counts. What that lacks is here: connections that are kept and used again, a socket that is known to its
`Attempt` before anyone blocks on it, and a body that can be read piece by piece as it arrives.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from time import monotonic

import httpx2

from .attempt import Attempt, current
from .failures import no_connection

KEEP = 60.0
"""Seconds that an unused connection is kept."""
KEEP_MOST = 100
"""Unused connections that are kept for each server."""
PIECE = 65536

Origin = tuple[str, str, int]


class Transport(httpx2.BaseTransport):
    """HTTP/1.1 without proxies. Each response carries its `Body` as the extension ``body``."""

    def __init__(self) -> None:
        self._idle: defaultdict[Origin, deque[Connection]] = defaultdict(deque)
        self._closed = False

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx2.create_ssl_context()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        attempt = current()
        origin = _origin(request.url)
        connection = self._idle_connection(origin)
        if connection is None:
            connection = Connection(origin, self._tls if origin[0] == "https" else None)
        try:
            connection.open(attempt)
            connection.send_request(request)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.hang_up()
            if attempt is not None:
                attempt.check()
            raise no_connection(error) from None
        except BaseException:
            connection.hang_up()
            raise
        body = Body(connection, response, self, attempt)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.getheaders()]
        return httpx2.Response(response.status, headers=headers, stream=body, extensions={"body": body})

    def take_back(self, connection: Connection) -> None:
        """Keep a connection whose response has been read to its end for the next request."""
        idle = self._idle[connection.origin]
        connection.idle_since = monotonic()
        # A body that was cut off looks read to its end to http.client: then the connection is dead.
        if self._closed or len(idle) >= KEEP_MOST or not connection.is_usable():
            connection.hang_up()
            return
        idle.append(connection)

    def close(self) -> None:
        self._closed = True
        for idle in list(self._idle.values()):
            while idle:
                idle.pop().hang_up()

    def _idle_connection(self, origin: Origin) -> Connection | None:
        """The one that was used last, since it is the likeliest to be open still."""
        idle = self._idle[origin]
        with contextlib.suppress(IndexError):  # empty, perhaps because another thread was faster
            while True:
                connection = idle.pop()
                if connection.is_usable():
                    return connection
                connection.hang_up()
        return None


class Connection(http.client.HTTPConnection):
    """A connection to one server.

    :param tls: None for plain HTTP.
    """

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None) -> None:
        super().__init__(origin[1], origin[2])
        self.origin = origin
        self.idle_since = 0.0
        self._tls = tls
        # `sock` is emptied early where the server closes after its response.
        self._wire: socket.socket | None = None

    def open(self, attempt: Attempt | None) -> None:
        """Connect, unless it is connected, and let the attempt know at each step what is waited for."""
        watch = _nobody if attempt is None else attempt.blocks_on
        if self._wire is None:
            self._dial(watch)
            if self._tls is not None:
                self._secure(self._tls, watch)
            self.sock = self._wire
        watch(self._wire)
        if attempt is not None:
            attempt.connected()

    def _dial(self, watch: Callable[[socket.socket | None], None]) -> None:
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            self._wire = wire = socket.socket(family, kind, protocol)
            wire.settimeout(None)
            watch(wire)
            try:
                wire.connect(address)
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return
            except OSError as error:
                wire.close()
                failure = error
        raise failure

    def _secure(self, tls: ssl.SSLContext, watch: Callable[[socket.socket | None], None]) -> None:
        assert self._wire is not None
        # The plain socket gives its descriptor away before the handshake, and the TLS one is not ours until after it.
        double = self._wire.dup()
        try:
            watch(double)
            self._wire = tls.wrap_socket(self._wire, server_hostname=self.host)
        finally:
            double.close()

    def send_request(self, request: httpx2.Request) -> None:
        target = request.url.raw_path.decode("ascii")
        self.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.raw:
            self.putheader(name.decode("latin-1"), value)
        self.endheaders(request.read(), encode_chunked="transfer-encoding" in request.headers)

    def is_usable(self) -> bool:
        """Whether the server has kept it open, and silent, while it was not used."""
        if self._wire is None or monotonic() - self.idle_since > KEEP:
            return False
        self._wire.settimeout(0.0)
        try:
            # The base class's, as a TLS socket cannot peek.
            socket.socket.recv(self._wire, 1, socket.MSG_PEEK)
        except BlockingIOError:
            self._wire.settimeout(None)
            return True
        except OSError:
            return False
        return False

    def hang_up(self) -> None:
        """Close it so that the server knows at once, whoever else still holds the socket. Idempotent."""
        if self._wire is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)
            self._wire.close()
        self.close()


class Body(httpx2.SyncByteStream):
    """A response's body. When it is closed after its end, its connection goes back; before it, it is hung up.

    `read` returns what has arrived, one piece of the HTTP body at most, and waits where nothing has; empty bytes
    are the end. It raises what the standard library raises.
    """

    def __init__(
        self,
        connection: Connection,
        response: http.client.HTTPResponse,
        transport: Transport,
        attempt: Attempt | None,
    ) -> None:
        self.read: Callable[[], bytes] = partial(response.read1, PIECE)
        self._connection: Connection | None = connection
        self._response = response
        self._transport = transport
        self._attempt = attempt

    def __iter__(self) -> Iterator[bytes]:
        try:
            while piece := self.read():
                yield piece
            if self._response.length:
                raise http.client.IncompleteRead(b"", self._response.length)
        except (OSError, http.client.HTTPException) as error:
            if self._attempt is not None:
                self._attempt.check()
            raise httpx2.RemoteProtocolError(f"the body broke off: {error!r}") from None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._attempt is not None:
            self._attempt.blocks_on(None)
        response = self._response
        whole = not response.length if response.length is not None else response.isclosed()
        response.close()
        if whole and not response.will_close:
            self._transport.take_back(connection)
        else:
            connection.hang_up()


def _origin(url: httpx2.URL) -> Origin:
    return url.scheme, url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)


def _nobody(sock: socket.socket | None) -> None:
    """Where no attempt wants to know."""
