"""The `openai` provider over HTTP, against the model server: what it yields, what it sends, and its connections."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from flask_llmstream import errors
from flask_llmstream.events import Reasoning, Token, Tool, Usage
from flask_llmstream.providers import Model
from flask_llmstream.providers.openai import DEFAULT_MODEL, OpenAI
from flask_llmstream.testing import Gate, ModelServer, Schedule
from tests.providers.calls import MESSAGES, TOOL_CALLS, ask, raw_server, text_of


def test_it_is_a_model(model: OpenAI):
    def needs(model: Model) -> str:
        return model.name

    assert needs(model) == "m"


def test_tokens_usage_and_the_reason_for_the_end(server, either):
    server.schedule = Schedule(tokens="Hello there, world", usage={
        "prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2},
    })  # fmt: skip
    accepted = []
    call = ask(on_accepted=lambda: accepted.append(server.requests[0].tokens_sent))
    events = list(either.stream(call))
    assert events == [Token("Hello"), Token(" there,"), Token(" world")]
    assert call.usage == Usage(7, 5, 4, 2)
    assert call.finish_reason == "stop"
    assert len(accepted) == 1


def test_each_token_comes_as_soon_as_it_has_arrived(server, either):
    gates = {position: Gate() for position in range(1, 4)}
    server.schedule = Schedule(tokens=4, gates=gates)
    events = either.stream(ask())
    for position, gate in gates.items():
        assert next(events) == Token(f"w{position} ")
        gate.wait()
        gate.release()
    assert list(events) == [Token("w4 ")]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_in_both_spellings(server, model, field):
    server.schedule = Schedule(tokens=["so"], reasoning=["hm", ", yes"], reasoning_field=field)
    assert list(model.stream(ask())) == [Reasoning("hm"), Reasoning(", yes"), Token("so")]


def test_tool_calls_come_whole(server, model):
    server.schedule = Schedule(tokens=["Let me see."], tool_calls=TOOL_CALLS)
    call = ask()
    assert list(model.stream(call)) == [Token("Let me see."), *map(Tool, TOOL_CALLS)]
    assert call.finish_reason == "tool_calls"


def test_the_whole_answer_at_once(server, either):
    server.schedule = Schedule(tokens="Hello", tool_calls=TOOL_CALLS)
    call = ask()
    reply = either.reply(call)
    assert (reply.text, list(reply.tool_calls), call.finish_reason) == ("Hello", TOOL_CALLS, "tool_calls")
    assert call.usage.prompt_tokens == 2
    server.schedule = Schedule(tokens=(), finish_reason="length")
    assert either.reply(call).text == ""
    assert call.finish_reason == "length"


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Schedule(done=False), "stop"),
        (Schedule(finish_reason=None), "stop"),
        (Schedule(finish_reason="length"), "length"),
        (Schedule(finish_reason="eos"), "stop"),
        (Schedule(finish_reason="function_call"), "tool_calls"),
        (Schedule(finish_reason="content_filter"), "content_filter"),
        (Schedule(refusal="I can't", tokens=("Well",), reasoning=("hm",)), "content_filter"),
    ],
    ids=["no [DONE]", "[DONE] alone", "length", "unknown", "functions", "filtered midway", "refused midway"],
)
def test_ends_that_are_no_failure(server, model, schedule, reason):
    server.schedule = schedule
    call = ask()
    assert text_of(model.stream(call)) == schedule.text
    assert call.finish_reason == reason


def test_usage_that_is_not_reported_stays_unknown(server, model):
    server.schedule = Schedule(usage=False)
    call = ask()
    list(model.stream(call))
    assert call.usage is None


# What is sent


def test_the_request(server, model):
    call = ask(model="other", max_tokens=9, temperature=0.5, options={"tools": [], "top_p": 1})
    list(model.stream(call))
    model.reply(ask())
    streamed, whole = server.requests
    assert streamed.body == {
        "model": "other",
        "messages": MESSAGES,
        "max_tokens": 9,
        "temperature": 0.5,
        "tools": [],
        "top_p": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert whole.body == {"model": "m", "messages": MESSAGES}
    assert streamed.headers["accept-encoding"] == "identity"
    assert streamed.headers["x-stainless-retry-count"] == "0"


def test_openai_itself_is_asked_in_its_own_way_and_through_the_environments_proxy(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with closing(OpenAI(base_url="http://api.openai.com/v1")) as model:
        assert text_of(model.stream(ask(max_tokens=9))) == server.schedule.text
    [request] = server.requests
    assert request.body["model"] == DEFAULT_MODEL
    assert request.body["max_completion_tokens"] == 9
    assert "max_tokens" not in request.body
    assert request.body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert request.headers["authorization"] == "Bearer sk-test"


def test_configuration_from_the_environment(server, monkeypatch):
    model = OpenAI()
    assert not model.configured
    with pytest.raises(errors.ModelNotConfigured, match=r"OPENAI_API_KEY.*OPENAI_BASE_URL"):
        list(model.stream(ask()))
    with pytest.raises(errors.ModelNotConfigured):
        model.reply(ask())
    model.warm()
    model.close()

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert model.configured
    assert model.name == DEFAULT_MODEL
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_MODEL", "mine")
    with closing(model):
        list(model.stream(ask()))
    assert server.requests[0].headers["authorization"] == "Bearer sk-test"
    assert server.requests[0].body["model"] == "mine"


def test_a_base_url_is_enough_and_the_first_model_listed_is_taken(server):
    with closing(OpenAI(base_url=server.base_url)) as model:
        assert model.configured
        assert model.name == ""
        for _ in range(2):
            list(model.stream(ask()))
    assert [request.body["model"] for request in server.requests] == ["test-model"] * 2
    assert server.connections == 1


def test_a_server_that_lists_no_model_needs_one_named():
    missing = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    empty = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 12\r\n\r\n{"data": []}'
    with raw_server(missing, empty) as base_url, closing(OpenAI(base_url=base_url)) as model:
        for _ in range(2):
            with pytest.raises(errors.ModelNotConfigured, match="OPENAI_MODEL"):
                list(model.stream(ask()))


@pytest.mark.parametrize("base_url", ["localhost:8000", "ftp://localhost/v1"])
def test_a_base_url_that_is_none(base_url):
    with pytest.raises(errors.ModelNotConfigured, match="OPENAI_BASE_URL must begin"):
        list(OpenAI("m", base_url=base_url).stream(ask()))


# Connections


def test_connections_are_used_again(server, model):
    for _ in range(3):
        list(model.stream(ask()))
        model.reply(ask())
    with pytest.raises(errors.UpstreamUnavailable):
        server.then(Schedule(status=500))
        list(model.stream(ask()))
    list(model.stream(ask()))
    assert server.connections == 1


def test_streams_side_by_side_have_one_each_and_leave_them_to_the_next(server, model):
    gate = Gate()
    server.schedule = Schedule(tokens=20, gates={5: gate})
    with ThreadPoolExecutor(10) as pool:
        running = [pool.submit(lambda: text_of(model.stream(ask()))) for _ in range(10)]
        server.wait_for(lambda s: s.active == 10)
        gate.release()
        assert {future.result() for future in running} == {server.schedule.text}
    list(model.stream(ask()))
    assert server.connections == 10


def test_a_connection_that_its_server_closed_meanwhile_is_not_used():
    with ModelServer() as server:
        model = OpenAI("m", base_url=server.base_url)
        list(model.stream(ask()))
        port = server.port
    with ModelServer(port=port) as server, closing(model):
        assert text_of(model.stream(ask())) == server.schedule.text


def test_a_stream_left_early_hangs_up(server, either):
    server.schedule = Schedule(tokens=10, stall_after=3)
    events = either.stream(ask())
    next(events)
    events.close()
    server.wait_for(lambda s: s.cancelled == 1)


def test_the_end_of_a_response_that_does_not_come_is_not_waited_for():
    """A server that sends [DONE] and leaves its response open: the answer ends, the connection goes."""
    body = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = b"%b%x\r\n%b\r\n" % (head, len(body), body)
    with raw_server(answer, hold=True) as base_url, closing(OpenAI("m", base_url=base_url)) as model:
        assert list(model.stream(ask())) == [Token("Hi")]


def test_a_server_of_the_old_kind_that_ends_by_closing():
    body = b': hello\r\n\r\ndata: {"choices": [{"delta": {"content": "Hi"}}]}\r\n\r\ndata: [DONE]\r\n\r\n'
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body
    with raw_server(answer) as base_url, closing(OpenAI("m", base_url=base_url)) as model:
        assert list(model.stream(ask())) == [Token("Hi")]


def test_warming_opens_the_connection_that_the_first_answer_takes(server, model):
    model.warm()
    server.wait_for(lambda s: s.connections == 1)
    deadline = time.monotonic() + 5
    while server.requests == [] and time.monotonic() < deadline:
        list(model.stream(ask()))
    assert text_of(model.stream(ask())) == server.schedule.text
    assert server.connections <= 2  # the first stream may have come before the list of models was read


def test_warming_where_nobody_answers_is_no_error(unused_port):
    with closing(OpenAI("m", base_url=f"http://127.0.0.1:{unused_port}/v1")) as model:
        model.warm()


def test_a_closed_model_can_be_used_again(server, model):
    list(model.stream(ask()))
    model.close()
    server.wait_for(lambda s: s.open_connections == 0)
    assert text_of(model.stream(ask())) == server.schedule.text


FORK = """
import os, sys
from flask_llmstream.providers import Call
from flask_llmstream.providers.openai import OpenAI
model = OpenAI("m", base_url=sys.argv[1])
text = lambda: "".join(event.token for event in model.stream(Call(messages=[])))
print(text())
sys.stdout.flush()
if (child := os.fork()) == 0:
    print(text(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(text())
"""


def test_after_a_fork_the_child_has_connections_of_its_own(server):
    done = subprocess.run([sys.executable, "-c", FORK, server.base_url], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [server.schedule.text] * 3, done.stderr
    assert [request.connection for request in server.requests] == [1, 2, 1]
