"""Leaving the `openai` provider early: its time-outs, a stop from another thread, and a kill under gevent."""

import itertools
import random
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import openai
import pytest

from flask_llmstream import errors
from flask_llmstream.providers import Timeouts
from flask_llmstream.providers.openai import OpenAI
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.providers.calls import answer, ask, cancelled_soon, mute_server, text_of


def timed_out(model: OpenAI, timeouts: Timeouts) -> str:
    started = time.monotonic()
    with pytest.raises(errors.UpstreamTimeout) as caught:
        list(model.stream(ask(timeouts=timeouts)))
    assert time.monotonic() - started < 5
    return caught.value.phase


@pytest.mark.parametrize(
    ("schedule", "timeouts", "phase"),
    [
        (Schedule(headers_delay=20), Timeouts(first_token=0.2), "first_token"),
        (Schedule(first_token_delay=20), Timeouts(first_token=0.2), "first_token"),
        (Schedule(first_token_delay=20, keep_alive=0.01), Timeouts(first_token=0.2), "first_token"),
        (Schedule(stall_after=2), Timeouts(idle=0.2), "idle"),
        (Schedule(stall_after=2, keep_alive=0.01), Timeouts(idle=0.2), "idle"),
        (Schedule(tokens=9999, rate=50), Timeouts(total=0.3), "total"),
        (Schedule(headers_delay=20), Timeouts(connect=None, first_token=None, idle=None, total=0.2), "total"),
    ],
    ids=["headers", "first token", "comments only", "silence", "comments between", "total", "total only"],
)
def test_time_outs(server, model, schedule, timeouts, phase):
    server.schedule = schedule
    assert timed_out(model, timeouts) == phase
    server.wait_for(lambda s: s.cancelled == 1)


@pytest.mark.parametrize(
    ("schedule", "timeouts", "phase"),
    [
        (Schedule(headers_delay=20), Timeouts(first_token=0.2), "first_token"),
        (Schedule(stall_after=2), Timeouts(idle=0.2), "idle"),
    ],
    ids=["headers", "silence"],
)
def test_time_outs_over_the_clients_own_transport(server, schedule, timeouts, phase):
    server.schedule = schedule
    with openai.OpenAI(api_key="k", base_url=server.base_url) as client:
        assert timed_out(OpenAI("m", client=client), timeouts) == phase


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_that_does_not_come_about(scheme):
    with mute_server() as address, closing(OpenAI("m", base_url=f"{scheme}://{address}/v1")) as model:
        assert timed_out(model, Timeouts(connect=0.2)) == "connect"


def test_a_tls_handshake_that_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        model = OpenAI("m", base_url=f"https://127.0.0.1:{listener.getsockname()[1]}/v1")
        assert timed_out(model, Timeouts(connect=0.2)) == "connect"
        call = ask()
        with cancelled_soon(call):
            list(model.stream(call))
        model.close()


def test_a_whole_answer_may_take_as_long_as_all_of_a_streams_pieces(server, model):
    server.schedule = Schedule(headers_delay=0.3)
    limits = Timeouts(first_token=0.1, idle=0.1, total=5)
    assert model.reply(ask(timeouts=limits)).text == server.schedule.text
    server.schedule = Schedule(headers_delay=20)
    with pytest.raises(errors.UpstreamTimeout) as caught:
        model.reply(ask(timeouts=Timeouts(total=0.2)))
    assert caught.value.phase == "total"


def test_the_consumers_own_time_is_not_the_models(server, model):
    server.schedule = Schedule(tokens=3)
    for _ in model.stream(ask(timeouts=Timeouts(first_token=0.5, idle=0.5))):
        time.sleep(0.6)


# Stopping, in threads


@pytest.mark.parametrize(
    "schedule",
    [Schedule(headers_delay=20), Schedule(first_token_delay=20), Schedule(stall_after=2)],
    ids=["headers", "first token", "silence"],
)
@pytest.mark.parametrize("way", ["stream", "reply"])
def test_a_stop_breaks_every_wait(server, model, schedule, way):
    server.schedule = schedule
    call = ask()
    with cancelled_soon(call, once=lambda: server.wait_for(lambda s: s.active == 1)):
        answer(model, call, way)
    server.wait_for(lambda s: s.cancelled == 1)
    server.schedule = Schedule()
    assert text_of(model.stream(ask())) == server.schedule.text


def test_a_stop_breaks_the_wait_for_a_connection():
    with mute_server() as address, closing(OpenAI("m", base_url=f"http://{address}/v1")) as model:
        call = ask(timeouts=Timeouts(connect=30))
        with cancelled_soon(call):
            list(model.stream(call))


def test_a_stop_that_came_first_makes_no_request(server, model):
    call = ask()
    call.cancel()
    with pytest.raises(errors.RunCancelled):
        list(model.stream(call))
    with pytest.raises(errors.RunCancelled):
        model.reply(call)
    assert server.requests == []


def test_a_stop_over_the_clients_own_transport(server):
    server.schedule = Schedule(stall_after=2)
    with openai.OpenAI(api_key="k", base_url=server.base_url) as client:
        call = ask()
        with cancelled_soon(call, once=lambda: server.wait_for(lambda s: s.active == 1)):
            list(OpenAI("m", client=client).stream(call))
    server.wait_for(lambda s: s.cancelled == 1)


def test_a_stop_at_any_moment(server, model):
    """Between looking at the flag and blocking is a moment too."""
    server.schedule = Schedule(stall_after=1)
    chance = random.Random(7)

    def one(delay: float) -> float:
        call = ask()
        timer = threading.Timer(delay, call.cancel)
        timer.start()
        with pytest.raises(errors.RunCancelled):
            list(model.stream(call))
        timer.join()
        return time.monotonic()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, [chance.uniform(0, 0.01) for _ in range(200)]))
    server.wait_for(lambda s: s.active == 0)


def test_a_stop_after_the_end_spares_the_connections_next_user(server, model):
    ended = ask()
    list(model.stream(ended))
    gate = Gate()
    server.schedule = Schedule(gates={2: gate})
    events = model.stream(ask())
    next(events)
    ended.cancel()
    gate.release()
    assert text_of(events) == "".join(itertools.islice(server.schedule.text_tokens(), 1, None))


# Under gevent

GEVENT = """
from gevent import monkey; monkey.patch_all()
import random, sys, time, warnings
import gevent
warnings.simplefilter("error")
from flask_llmstream.errors import RunCancelled
from flask_llmstream.providers import Call
from flask_llmstream.providers.openai import OpenAI

model = OpenAI("m", base_url=sys.argv[1])

def read(words):
    call = Call(messages=[{"role": "user", "content": words}])
    try:
        return "".join(event.token for event in model.stream(call))
    except RunCancelled:
        return "cancelled"
"""
SIDE_BY_SIDE = """
for _ in range(2):
    started = time.monotonic()
    streams = [gevent.spawn(read, "answer") for _ in range(30)]
    gevent.joinall(streams, raise_error=True)
    assert {stream.value for stream in streams} == {"w1 w2 w3 w4 w5 "}, streams[0].value
    assert time.monotonic() - started < 5, time.monotonic() - started
"""
STOPPED = """
assert read("answer") == "w1 w2 w3 w4 w5 "
chance = random.Random(3)
streams = [gevent.spawn(read, chance.choice(["silence", "headers", "answer"])) for _ in range(100)]
for stream in streams:
    gevent.spawn_later(chance.uniform(0, 0.5), stream.kill, RunCancelled, block=False)
gevent.joinall(streams, timeout=20)
assert all(stream.ready() for stream in streams)
# One that was killed before it had begun has raised it in the reader's place.
assert all(stream.successful() or isinstance(stream.exception, RunCancelled) for stream in streams)
assert read("answer") == "w1 w2 w3 w4 w5 "
stream = gevent.spawn(read, "silence")
gevent.sleep(0.1)
stream.kill(RunCancelled)
assert stream.value == "cancelled"
call = Call(messages=[{"role": "user", "content": "silence"}])
gevent.spawn_later(0.1, call.cancel)
try:
    list(model.stream(call))
except RunCancelled:
    model.close()
    print("ok")
"""


def by_the_question(received):
    """Answers that take 0.1 s, silence in the middle, or silence from the start."""
    return {
        "answer": Schedule(tokens=5, rate=50),
        "silence": Schedule(stall_after=1),
        "headers": Schedule(headers_delay=60),
    }[received.body["messages"][0]["content"]]


def under_gevent(program: str, server: ModelServer) -> None:
    command = [sys.executable, "-c", GEVENT + program, server.base_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_under_gevent_streams_run_side_by_side_over_connections_that_are_kept():
    with ModelServer(by_the_question) as server:
        under_gevent(SIDE_BY_SIDE, server)
        assert server.completed == 60
        assert server.connections == 30


def test_under_gevent_a_kill_reaches_the_server_whatever_is_waited_for():
    with ModelServer(by_the_question) as server:
        under_gevent(STOPPED, server)
        server.wait_for(lambda s: s.active == 0 and s.open_connections == 0)
        assert server.cancelled > 10
