"""One process's way to a server that speaks OpenAI's protocol: the official client, and what reads its answers."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from math import inf
from time import monotonic
from typing import Any

import httpx2
import openai

from .. import runtime
from ..errors import (
    LLMStreamError,
    ModelNotConfigured,
    RunCancelled,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTruncated,
)
from ..events import Event
from ..sse import Decoder, EventTooLarge
from . import Call, Reply, Timeouts
from .attempt import Attempt, making
from .chat_completions import Answer, ErrorReported
from .failures import no_connection, redact, refused, reported
from .transport import Transport

log = logging.getLogger(__name__)

DONE = b"[DONE]"
DRAIN = 0.1
"""Seconds that the end of a response is waited for after that of its answer, so that its connection can serve
again."""
NO_KEY = "none"
"""The official client insists on a key, where local servers need none."""
HEADERS = {
    "Accept-Encoding": "identity",
    "X-Stainless-Raw-Response": "stream",  # tells the client to leave the body unread
}
BROKEN_OFF = (OSError, http.client.HTTPException, httpx2.HTTPError, httpx2.StreamError)
WARMING = Timeouts(connect=5.0, first_token=10.0, idle=10.0, total=10.0)


class Session:
    """The official client and its connections, for the process `pid`.

    :param name: the model for calls that name none; empty for the first that the server lists.
    :param client: one of the user's own, which keeps its transport.
    """

    def __init__(self, name: str, *, client: openai.OpenAI | None, api_key: str | None, base_url: str | None) -> None:
        self.pid = os.getpid()
        self._name = name
        self._made_here = client is None
        self._direct = client is None and not _behind_proxy(base_url or "https://api.openai.com")
        self._client = client or openai.OpenAI(
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or NO_KEY,
            base_url=base_url,
            http_client=openai.DefaultHttpxClient(transport=Transport()) if self._direct else None,
        )
        if self._client.base_url.scheme not in ("http", "https"):
            raise ModelNotConfigured(f"OPENAI_BASE_URL must begin with http:// or https://, not {base_url!r}.")
        host = self._client.base_url.host
        self._is_openai = host == "api.openai.com" or host.endswith(".api.openai.com")
        self._limit = "max_completion_tokens" if self._is_openai or host.endswith(".azure.com") else "max_tokens"

    def stream(self, call: Call) -> Generator[Event]:
        with self._attempt(call, call.timeouts) as attempt:
            body = self._body(call, attempt) | {"stream": True, "stream_options": self._stream_options()}
            response = self._post(body, attempt)
            try:
                read = self._reader(response, attempt)
                call.accepted()
                yield from self._events(call, attempt, read)
            except (ErrorReported, EventTooLarge) as error:
                raise self._named(error) from None
            finally:
                response.close()

    def reply(self, call: Call) -> Reply:
        # All of it comes at once, so there is no first token and nothing between two.
        with self._attempt(call, replace(call.timeouts, first_token=None, idle=None)) as attempt:
            response = self._post(self._body(call, attempt), attempt)
            try:
                call.accepted()
                return Answer(call).take_whole(response.read())
            except (ErrorReported, *BROKEN_OFF) as error:
                attempt.check()
                raise self._named(error) from None
            finally:
                response.close()

    def warm(self) -> None:
        """Ask for the list of models, in the background: any answer leaves an open connection behind."""

        def ask() -> None:
            with contextlib.suppress(Exception, RunCancelled), self._attempt(Call(messages=()), WARMING) as attempt:
                self._models(attempt)

        runtime.current().task(ask, lambda: None).start()

    def close(self) -> None:
        if self._made_here:
            self._client.close()

    @property
    def _key(self) -> str | None:
        return None if self._client.api_key == NO_KEY else self._client.api_key

    @contextlib.contextmanager
    def _attempt(self, call: Call, limits: Timeouts) -> Iterator[Attempt]:
        """One request. Whatever of the server's words its failure quotes, the log sees them without the key."""
        with Attempt(call, limits, runtime.current().timers) as attempt:
            try:
                yield attempt
            except LLMStreamError as error:
                if error.diagnosis is not None:
                    error.diagnosis = redact(error.diagnosis, self._key)
                raise

    def _body(self, call: Call, attempt: Attempt) -> dict[str, Any]:
        body = dict(call.options)
        body["model"] = call.model or self._name or self._first_listed(attempt)
        body["messages"] = list(call.messages)
        if call.max_tokens is not None:
            body[self._limit] = call.max_tokens
        if call.temperature is not None:
            body["temperature"] = call.temperature
        return body

    def _stream_options(self) -> dict[str, bool]:
        # OpenAI pads each chunk against listeners who count bytes, which doubles the traffic. Others don't know it,
        # and some refuse what they don't know.
        return {"include_usage": True} | ({"include_obfuscation": False} if self._is_openai else {})

    def _first_listed(self, attempt: Attempt) -> str:
        try:
            self._name = str(self._models(attempt).json()["data"][0]["id"])
        except (UpstreamRefused, ValueError, LookupError, TypeError):
            raise ModelNotConfigured("The server lists no models to choose from: set OPENAI_MODEL.") from None
        return self._name

    def _post(self, body: dict[str, Any], attempt: Attempt) -> httpx2.Response:
        options = self._options(attempt) | {"headers": HEADERS}
        return self._ask(
            attempt,
            lambda: self._client.post("/chat/completions", cast_to=httpx2.Response, body=body, options=options),
        )

    def _models(self, attempt: Attempt) -> httpx2.Response:
        options = self._options(attempt)
        return self._ask(attempt, lambda: self._client.get("/models", cast_to=httpx2.Response, options=options))

    def _options(self, attempt: Attempt) -> Any:
        if self._direct:
            return {"max_retries": 0}
        # Its own transport has its own time-outs; which socket it is about to block on it does not tell.
        attempt.connected()
        connect, answer = attempt.limits.connect, attempt.limits.first_token or attempt.limits.total
        return {"max_retries": 0, "timeout": httpx2.Timeout(answer, connect=connect, pool=connect)}

    def _ask(self, attempt: Attempt, request: Callable[[], httpx2.Response]) -> httpx2.Response:
        try:
            with making(attempt):
                return request()
        except openai.APIStatusError as error:
            raise refused(error, self._key) from None
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            attempt.check()
            raise no_connection(error, "first_token" if attempt.limits.first_token else "total") from None

    def _reader(self, response: httpx2.Response, attempt: Attempt) -> Callable[[], bytes]:
        """What reads the next piece of a response's body, whatever transport it came by."""
        content_type = response.headers.get("content-type", "text/event-stream")
        if not content_type.startswith("text/"):
            raise UpstreamMalformed(diagnosis=f"not an event stream but {content_type}")
        stream = response.extensions.get("network_stream")
        if stream is not None and response.http_version != "HTTP/2":  # whose socket other answers share
            attempt.blocks_on(stream.get_extra_info("socket"))
        if (body := response.extensions.get("body")) and "content-encoding" not in response.headers:
            read: Callable[[], bytes] = body.read
            return read
        pieces = response.iter_bytes()
        return lambda: next(pieces, b"")

    def _events(self, call: Call, attempt: Attempt, read: Callable[[], bytes]) -> Generator[Event]:
        answer = Answer(call)
        take, feed = answer.take, Decoder().feed
        marked = False
        attempt.waiting_since = monotonic()
        while not marked:
            try:
                chunk = read()
            except httpx2.TimeoutException:  # the client's own transport keeps the time, too
                raise UpstreamTimeout(attempt.phase) from None
            except BROKEN_OFF as error:
                log.debug("the model's answer broke off: %r", error)
                break
            if not chunk:
                break
            arrived = feed(chunk)
            if not arrived:  # a comment, or half of something: neither is an answer
                continue
            attempt.waiting_since = inf
            for event in arrived:
                if event.data == DONE:
                    marked = True
                    break
                if event.event == "error":
                    raise ErrorReported(event.data.decode("utf-8", "replace"))
                pieces = take(event.data)
                if answer.started:
                    attempt.phase = "idle"
                yield from pieces
            attempt.waiting_since = monotonic()
        attempt.check()
        yield from answer.end(marked=marked)
        if marked:
            attempt.give_up_after(DRAIN)
            with contextlib.suppress(*BROKEN_OFF):
                while read():
                    pass

    def _named(self, error: Exception) -> LLMStreamError:
        if isinstance(error, ErrorReported):
            return reported(error.error, self._key)
        kind = UpstreamMalformed if isinstance(error, EventTooLarge) else UpstreamTruncated
        return kind(diagnosis=redact(repr(error), self._key))


def _behind_proxy(url: str) -> bool:
    """Whether the environment sends requests for this address through a proxy."""
    parsed = httpx2.URL(url)
    proxies = urllib.request.getproxies()
    return bool(proxies.get(parsed.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(parsed.host)
