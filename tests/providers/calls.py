"""What the tests of the `openai` provider share: calls, what becomes of them, and servers that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest

from flask_llmstream import errors
from flask_llmstream.events import Token
from flask_llmstream.providers import Call
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import Schedule

MESSAGES = [{"role": "user", "content": "two words"}]
TOOL_CALLS = [
    {"id": "c1", "name": "weather", "arguments": '{"city": "Rome", "days": 3}'},
    {"id": "c2", "name": "time", "arguments": "{}"},
]
PROMPTLY = 0.5  # seconds; a stop takes about a millisecond, but machines that run tests are busy


def ask(**more: object) -> Call:
    return Call(messages=MESSAGES, **more)  # type: ignore[arg-type]


def text_of(events: Iterable[object]) -> str:
    return "".join(event.token for event in events if isinstance(event, Token))


def answer(model: OpenAI, call: Call, way: str) -> object:
    """All of it, by ``stream`` or ``reply``."""
    return list(model.stream(call)) if way == "stream" else model.reply(call)


def label(value: object) -> str | None:
    """A parameter's name in pytest's output: of a schedule, what sets it apart."""
    if isinstance(value, Schedule):
        usual = vars(Schedule())
        return " ".join(f"{name}={given}" for name, given in vars(value).items() if given != usual[name])
    return value.__name__ if isinstance(value, type) else None


@contextmanager
def cancelled_soon(call: Call, once: Callable[[], object] = lambda: time.sleep(0.05)) -> Iterator[None]:
    """Cancel the call from another thread while the block runs; the block must leave promptly, cancelled.

    :param once: returns when it is to be cancelled. Where nobody hears of the call it is after a moment.
    """
    at = []

    def cancel() -> None:
        once()
        at.append(time.monotonic())
        call.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(errors.RunCancelled):
        yield
    assert time.monotonic() - at[0] < PROMPTLY
    canceller.join()


@contextmanager
def raw_server(*answers: bytes, hold: bool = False) -> Iterator[str]:
    """The base URL of a server that gives each connection the bytes of one answer, and hangs up.

    :param hold: keep the last connection open until the client closes it, which it must.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for number, answer in enumerate(answers, 1):
                sock, _ = listener.accept()
                with sock:
                    read_request(sock)  # all of it: to hang up on the rest would be a reset
                    sock.sendall(answer)
                    while hold and number == len(answers) and sock.recv(1):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join(5)
        assert not thread.is_alive()


def read_request(sock: socket.socket) -> None:
    with sock.makefile("rb") as stream:
        if not stream.peek(1)[:1].isalpha():
            return  # TLS, which begins with a handshake
        length = 0
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        stream.read(length)


@contextmanager
def mute_server() -> Iterator[str]:
    """An address that completes no TCP handshake: its queue is full, so the kernel drops what comes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for filler in fillers:
                filler.close()
