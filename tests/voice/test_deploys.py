"""Workers that go, in order or not: calls go on with another one, in the same conversation."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from websockets.exceptions import InvalidStatus

from flask_llmstream.testing import ModelServer, Schedule
from tests.redis_server import RedisServer
from tests.servers.serving import TROUBLE, Server, until
from tests.voice.caller import Phone
from tests.voice.conftest import ANSWER, PATIENT, Serve
from tests.voice.desk import WORD
from tests.voice.sockets import Socket, call

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture(scope="module")
def two_workers(serve: Serve, redis_process: RedisServer) -> Iterator[Server]:
    """A gunicorn of two workers, which share what was said by Redis."""
    with serve("deployed", FLASK_LLMSTREAM_REDIS_URL=f'"{redis_process.url}"') as server:
        yield server


@pytest.fixture
def workers(two_workers: Server, model: ModelServer) -> Server:
    model.reset()
    model.schedule = Schedule(tokens=ANSWER)
    return two_workers


def in_mid_answer(server: Server) -> tuple[ExitStack, Phone]:
    """A call in which four words of an answer have been heard."""
    stack = ExitStack()
    phone = stack.enter_context(call(server, until=4 * WORD, mode="push"))
    phone.talk()
    phone.until_true(lambda: phone.samples == 4 * WORD)
    return stack, phone


def come_back(server: Server, phone: Phone) -> None:
    """Resume, elsewhere or later, until there is somebody who takes it."""

    def reached() -> bool:
        try:
            phone.resume(Socket(server, phone), phone.of("ready")[0]["token"])
        except (OSError, InvalidStatus):  # one that is about to go may still be asked
            return False
        return True

    until(reached)


def test_worker_that_is_told_to_go(workers, model):
    with ExitStack() as stack:
        opened, phone = in_mid_answer(workers)
        stack.enter_context(opened)
        [first] = phone.of("ready")
        os.kill(phone.line.worker, signal.SIGTERM)
        assert phone.expect("draining")["within"] > 0
        assert phone.hung_up()[0] == 1012
        phone.play(None)
        come_back(workers, phone)
        ready = phone.expect("ready", restored="history")
        assert ready["conversation"] == first["conversation"]
        assert ready["mode"] == "push"
        assert ready["session"] != first["session"]
        phone.tell("message", text="where were we?")
        phone.expect("turn")
        assert phone.mistakes == []
        said = [(m["role"], m["content"]) for m in model.requests[-1].body["messages"]]
        assert said == [("user", "tell me"), ("assistant", "One two three. Four"), ("user", "where were we?")]
    trouble = TROUBLE.findall(workers.news())
    assert not trouble


def test_worker_that_is_killed(workers, model):
    with ExitStack() as stack:
        opened, phone = in_mid_answer(workers)
        stack.enter_context(opened)
        [first] = phone.of("ready")
        os.kill(phone.line.worker, signal.SIGKILL)
        assert phone.hung_up()[0] == 1006
        phone.play(None)
        come_back(workers, phone)
        ready = phone.expect("ready", restored="history")
        assert ready["conversation"] == first["conversation"]
        phone.tell("message", text="where were we?")
        phone.expect("turn")
        assert phone.mistakes == []
        assert [m["content"] for m in model.requests[-1].body["messages"] if m["role"] == "user"] == [
            "tell me",
            "where were we?",
        ]
    workers.await_news("SIGKILL")


def test_call_in_which_nothing_was_said_yet_is_resumed_elsewhere(workers):
    with call(workers, input={"format": "pcmu", "rate": 8000}) as phone:
        [first] = phone.of("ready")
        os.kill(phone.line.worker, signal.SIGTERM)
        assert phone.hung_up()[0] == 1012
        come_back(workers, phone)
        ready = phone.expect("ready", restored="history")
        assert ready["conversation"] == first["conversation"]
        assert ready["input"] == {"format": "pcmu", "rate": 8000}
        phone.tell("message", text="hello")
        phone.expect("turn")


def test_worker_waits_for_nobody_who_cannot_come_back(serve):
    """An answer whose line is lost ends with its worker's orders, and not with its patience."""
    with serve("patient") as server:
        with call(server, until=WORD) as phone:
            phone.say()
            phone.until_true(lambda: phone.samples == WORD)
            phone.line.cut()
        server.await_state(sessions=1, open=0, live=1)
        began = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: "Shutting down: Master" in server.news())
        assert time.monotonic() - began < PATIENT / 2
