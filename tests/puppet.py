"""A model that says what a test puts into its mouth, and an application where it does."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flask import Flask, request

from flask_llmstream import LLMStream
from flask_llmstream.errors import RunCancelled
from flask_llmstream.events import Event, Token, Usage
from flask_llmstream.providers import Call, Reply
from flask_llmstream.sse import Decoder

PATIENCE = 5.0
"""Seconds that a test waits for what is about to happen."""


class Pause:
    """A line at which the puppet falls silent, until the test lets it `go_on` or the call is stopped."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._over = threading.Event()

    def go_on(self) -> None:
        self._over.set()

    def take(self, call: Call) -> None:
        call.abort = self._over.set
        self.reached.set()
        if not call.cancelled:
            assert self._over.wait(PATIENCE), "nobody ended the pause"
        call.abort = None
        if call.cancelled:
            raise RunCancelled


Line = str | Event | Exception | Pause


class Puppet:
    """A model. Each call is an act of lines: text, events, exceptions to raise, pauses; an empty text says nothing but
    that the request was taken.

    :param acts: what the calls get, in order; the last one is what all further calls get.
    """

    name = "puppet"

    def __init__(self, *acts: Sequence[Line], usage: Usage | None = None, finish_reason: str | None = "stop") -> None:
        self.acts = list(acts) or [["Hel", "lo"]]
        self.usage = usage
        self.finish_reason = finish_reason
        self.calls: list[Call] = []

    def stream(self, call: Call) -> Generator[Event]:
        yield from self._play(call)

    def reply(self, call: Call) -> Reply:
        return Reply(text="".join(event.token for event in self._play(call) if isinstance(event, Token)))

    def warm(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _play(self, call: Call) -> Iterator[Event]:
        act = self.acts[min(len(self.calls), len(self.acts) - 1)]
        self.calls.append(call)
        for line in act:
            if isinstance(line, Exception):
                raise line
            if isinstance(line, Pause):
                line.take(call)
                continue
            call.accepted()
            if line:
                yield Token(line) if isinstance(line, str) else line
        call.accepted()
        call.usage = self.usage
        call.finish_reason = self.finish_reason  # type: ignore[assignment]


@contextmanager
def stage(
    model: Any = None, *, hooks: dict[str, Any] | None = None, **config: Any
) -> Iterator[tuple[Flask, LLMStream]]:
    """An application whose default chat the model answers, to visitors who give their name in a header.

    :param hooks: what else `LLMStream` is given.
    :param config: keys without their prefix.
    """
    app = Flask("stage")
    app.config.update(TESTING=True, SECRET_KEY="only a test", LLMSTREAM_RETRIES=0)
    app.config.update({f"LLMSTREAM_{name}": value for name, value in config.items()})
    hooks = {"identify": lambda: request.headers.get("X-User", "ann")} | (hooks or {})
    llm = LLMStream(app, model=model or Puppet(), **hooks)
    try:
        yield app, llm
    finally:
        llm.record(app).close()


def follow(response: Any) -> Iterator[dict[str, Any]]:
    """The events of an open response, each as it arrives."""
    decoder = Decoder()
    for chunk in response.response:
        for event in decoder.feed(chunk):
            yield json.loads(event.data)


def eventually(true: Callable[[], Any], *, timeout: float = PATIENCE) -> None:
    """Wait until something has come true."""
    deadline = time.monotonic() + timeout
    for pause in itertools.chain((0.0, 0.001, 0.002, 0.005), itertools.repeat(0.01)):
        if true():
            return
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(pause)
