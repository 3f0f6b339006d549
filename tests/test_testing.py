"""The model server that ships with the package: what it sends, how it goes wrong, and what it reports."""

import gc
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager

import openai
import pytest

from flask_llmstream.testing import Gate, ModelServer, Schedule

MESSAGES = [{"role": "user", "content": "two words"}]


@contextmanager
def asked(server: ModelServer, *, stream: bool = True, **more: object) -> Iterator[http.client.HTTPResponse]:
    """The response to one request, over a connection of its own."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        body = {"model": "m", "messages": MESSAGES, "stream": stream} | more
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            yield response


@contextmanager
def official(server: ModelServer, key: str = "any") -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=key, base_url=server.base_url, max_retries=0) as client:
        yield client


def test_the_official_client_reads_its_stream():
    schedule = Schedule(tokens="Hello there, world", reasoning=["well", "?"], reasoning_field="reasoning_content")
    with ModelServer(schedule) as server, official(server) as client:
        chunks = list(
            client.chat.completions.create(
                model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(delta.content or "" for delta in deltas) == "Hello there, world"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "well?"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "stop"]
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 5)
    assert usage.completion_tokens_details.reasoning_tokens == 2


def test_the_official_client_reads_its_whole_answers():
    call = {"id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'}
    with ModelServer(Schedule(tokens="Hello", tool_calls=[call])) as server, official(server) as client:
        answer = client.chat.completions.create(model="m", messages=MESSAGES)
    [choice] = answer.choices
    assert choice.message.content == "Hello"
    assert choice.message.tool_calls[0].function.arguments == call["arguments"]
    assert choice.finish_reason == "tool_calls"


def test_tool_calls_come_in_fragments():
    call = {"id": "c1", "name": "weather", "arguments": '{"city": "Rome", "days": 3}'}
    with ModelServer(Schedule(tokens=(), tool_calls=[call])) as server, official(server) as client:
        chunks = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert (pieces[0].id, pieces[0].function.name) == ("c1", "weather")
    assert len(pieces) > 2
    assert "".join(piece.function.arguments for piece in pieces) == call["arguments"]


def test_models_and_what_is_not_there():
    with ModelServer() as server, official(server) as client:
        assert [model.id for model in client.models.list()] == ["test-model"]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="m", input="x")
        assert server.requests == []


def test_the_key_is_checked_where_one_is_set():
    with ModelServer(key="right") as server:
        with official(server, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="m", messages=MESSAGES)
        with official(server, "right") as client:
            client.chat.completions.create(model="m", messages=MESSAGES)
        assert [request.state for request in server.requests] == ["refused", "completed"]


def test_refusals_have_status_headers_and_body():
    with ModelServer() as server:
        server.then(
            Schedule(status=429, retry_after=7, headers={"X-Extra": "1"}),
            Schedule(status=400, body={"error": {"code": "content_filter"}}),
            Schedule(status=502, body=b"<html>"),
        )
        with asked(server) as response:
            assert (response.status, response.headers["Retry-After"], response.headers["X-Extra"]) == (429, "7", "1")
            assert json.load(response)["error"]["code"] == "rate_limit_exceeded"
        with asked(server) as response:
            assert json.load(response) == {"error": {"code": "content_filter"}}
        with asked(server) as response:
            assert (response.status, response.read()) == (502, b"<html>")
        with asked(server) as response:
            assert response.status == 200  # the queue is used up
            response.read()


def test_a_schedule_may_depend_on_the_request():
    with (
        ModelServer(lambda received: Schedule(tokens=received.body["messages"][0]["content"])) as server,
        official(server) as client,
    ):
        answer = client.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "two words"


def test_it_keeps_connections_and_tells_them_apart():
    with ModelServer() as server, closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        for _ in range(3):
            connection.request("POST", "/v1/chat/completions", json.dumps({"messages": [], "stream": True}))
            assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
        with asked(server) as response:
            response.read()
        assert [request.connection for request in server.requests] == [1, 1, 1, 2]
        assert server.connections == 2
        server.wait_for(lambda s: s.open_connections == 1)


def test_requests_may_be_sent_before_the_answer_to_the_last():
    body = b'{"messages": [], "stream": true}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    gate = Gate()
    with ModelServer(Schedule(gates={2: gate})) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall((head + body) * 2)
        gate.wait()
        gate.release()
        server.wait_for(lambda s: s.completed == 2)
        assert server.connections == 1


def test_a_gate_holds_an_answer_until_it_is_released():
    before_headers, before_third = Gate(), Gate()
    with ModelServer(Schedule(tokens=5, gates={"headers": before_headers, 2: before_third})) as server:
        before_headers.release()  # before anybody has come to it
        with asked(server) as response:
            before_third.wait()
            assert server.requests[0].tokens_sent == 2
            assert server.active == 1
            before_third.release()
            assert response.read().count(b'"content": "w') == 5
    with pytest.raises(AssertionError, match="no answer came"):
        Gate().wait(timeout=0.01)


@pytest.mark.parametrize("where", ["headers", 0, 2, 4], ids=str)
def test_a_client_that_closes_is_noticed_while_nothing_is_sent(where):
    gate = Gate()
    schedule = Schedule(stall_after=4) if where == 4 else Schedule(gates={where: gate})
    with ModelServer(schedule) as server:
        sock = socket.create_connection(("127.0.0.1", server.port))
        body = b'{"messages": [], "stream": true}'
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if where == 4:
            server.wait_for(lambda s: s.requests and s.requests[0].tokens_sent == 4)
        else:
            gate.wait()
        closed_at = time.monotonic()
        sock.close()
        server.wait_for(lambda s: s.cancelled == 1)
        [request] = server.requests
        assert 0 <= request.ended_at - closed_at < 1
        assert server.active == server.completed == 0


def test_the_end_is_in_the_books_before_the_client_sees_it():
    with ModelServer(Schedule(tokens=1)) as server:
        for count in range(1, 40):
            with asked(server, stream=count % 2) as response:
                response.read()
            assert server.completed == count


@pytest.mark.parametrize("cut", ["end", "close", "reset"])
def test_answers_break_off_in_three_ways(cut):
    with ModelServer(Schedule(cut_after=2, cut=cut)) as server, asked(server) as response:
        if cut == "end":
            assert b"[DONE]" not in response.read()
        else:
            broken = http.client.IncompleteRead if cut == "close" else ConnectionResetError
            with pytest.raises(broken):
                response.read()
        assert server.requests[0].state == "cut"


def test_whole_answers_break_off_too():
    with ModelServer() as server:
        server.then(
            Schedule(cut_after=0, cut="close"),
            Schedule(cut_after=0),
            Schedule(error_after=0),
            Schedule(malformed_after=0),
        )
        with asked(server, stream=False) as response, pytest.raises(http.client.IncompleteRead):
            response.read()
        with asked(server, stream=False) as response, pytest.raises(json.JSONDecodeError):
            json.load(response)
        with asked(server, stream=False) as response:
            assert (response.status, "error" in json.load(response)) == (500, True)
        with asked(server, stream=False) as response, pytest.raises(json.JSONDecodeError):
            json.load(response)


def test_errors_and_nonsense_in_mid_stream():
    with ModelServer() as server:
        server.then(Schedule(error_after=1, error={"message": "sorry"}), Schedule(malformed_after=1))
        with asked(server) as response:
            assert response.read().endswith(b'data: {"error": {"message": "sorry"}}\n\n')
        with asked(server) as response:
            for block in response.read().split(b"\n\n"):
                if block.startswith(b'data: {"id": "chatcmpl-1", "choices": [{"delta": {"content": '):
                    with pytest.raises(json.JSONDecodeError):
                        json.loads(block[6:])
                    break
            else:
                pytest.fail("all of it is JSON")


def test_marks_and_usage_can_be_left_out():
    asking = {"stream_options": {"include_usage": True}}
    bare = Schedule(done=False, finish_reason=None, usage=False)
    with ModelServer(bare) as server, asked(server, **asking) as response:
        body = response.read()
    assert b"[DONE]" not in body and b'"finish_reason": "' not in body and b"prompt_tokens" not in body
    with ModelServer(Schedule(usage={"prompt_tokens": 99})) as server:
        with asked(server, **asking) as response:
            assert b'"usage": {"prompt_tokens": 99}' in response.read()
        with asked(server) as response:
            assert b"usage" not in response.read()


def test_comments_flow_while_it_is_silent():
    with ModelServer(Schedule(stall_after=1, keep_alive=0.01)) as server, asked(server) as response:
        seen = b""
        while seen.count(b": keep-alive\n\n") < 3:
            seen += response.read1()


def test_pieces_come_at_their_rate():
    with ModelServer(Schedule(tokens=11, rate=50, first_token_delay=0.1, headers_delay=0.1)) as server:
        start = time.monotonic()
        with asked(server) as response:
            response.read()
        assert 0.39 < time.monotonic() - start < 2


def test_wait_for_says_what_it_saw_instead():
    with ModelServer() as server:
        with asked(server) as response:
            response.read()
        with pytest.raises(AssertionError, match="1: completed after 4 pieces"):
            server.wait_for(lambda s: s.cancelled == 1, timeout=0.01)
        server.reset()
        assert server.requests == [] and server.completed == 0


def test_starting_and_stopping():
    server = ModelServer()
    with server:
        with pytest.raises(RuntimeError, match="make another"):
            server.start()
        idle = socket.create_connection(("127.0.0.1", server.port))
        server.wait_for(lambda s: s.open_connections == 1)
    assert idle.recv(1) == b""
    idle.close()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_no_connection_is_left_open_however_early_it_stops():
    for _ in range(20):
        with ModelServer() as server:
            sock = socket.create_connection(("127.0.0.1", server.port))
        sock.close()
    gc.collect()  # a socket that was left open is a warning here, and warnings are errors


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (3, ["w1 ", "w2 ", "w3 "]),
        ("Hello big  world\n\nbye ", ["Hello", " big", "  ", "world", "\n\n", "bye", " "]),
        ("", []),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_texts_are_cut_into_tokens_and_lose_nothing(tokens, expected):
    schedule = Schedule(tokens=tokens)
    assert list(schedule.text_tokens()) == expected
    assert schedule.text == "".join(expected)


# Answers of a certain shape

STRICT = {
    "type": "object",
    "properties": {"total": {"type": ["number", "null"]}},
    "required": ["total"],
    "additionalProperties": False,
}


def response_format(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "bill", "strict": True, "schema": schema} | more}


def test_answers_in_json_come_in_the_order_in_which_they_are_given():
    with ModelServer(Schedule(json={"total": 3})) as server, official(server) as client:
        server.then(Schedule(json={"total": "größer"}), Schedule(json=[]))
        texts = [
            client.chat.completions.create(model="m", messages=MESSAGES, response_format=response_format(STRICT))
            .choices[0].message.content
            for _ in range(3)
        ]  # fmt: skip
        assert texts == ['{"total": "größer"}', "[]", '{"total": 3}']
        assert [request.json_schema for request in server.requests] == [STRICT] * 3


def test_a_request_for_plain_text_has_no_schema():
    with ModelServer() as server, official(server) as client:
        client.chat.completions.create(model="m", messages=MESSAGES)
        client.chat.completions.create(model="m", messages=MESSAGES, response_format={"type": "json_object"})
        assert [request.json_schema for request in server.requests] == [None, None]


LEAF = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "items": LEAF}, "must be a JSON Schema of"),
        (STRICT | {"additionalProperties": True}, "'additionalProperties'"),
        (STRICT | {"required": []}, "Missing"),
        (STRICT | {"properties": {"total": LEAF | {"default": "x"}}}, "default"),
        (STRICT | {"properties": {"total": LEAF | {"minLength": 1}}}, "minLength"),
        (STRICT | {"properties": {"total": LEAF | {"format": "uri"}}}, "'uri' is not a valid format"),
        (STRICT | {"properties": {"total": {}}}, "must have a 'type' key"),
        (STRICT | {"properties": {"total": {"type": "array"}}}, "missing items"),
        (STRICT | {"properties": {"total": {"$ref": "#/$defs/A"}}}, "leads nowhere"),
        (STRICT | {"properties": {"total": {"$ref": "#", "description": "x"}}}, "keywords beside it"),
        (STRICT | {"properties": {"total": {"anyOf": [LEAF, {"type": "odd"}]}}}, "anyOf"),
        (STRICT | {"$defs": {"A": {"type": "object", "properties": {}}}}, "'additionalProperties'"),
    ],
    ids=str,
)
def test_a_schema_that_strict_mode_does_not_take_is_refused_as_openai_does(schema, message):
    with ModelServer(Schedule(json={})) as server, official(server) as client:
        with pytest.raises(openai.BadRequestError, match="Invalid schema for response_format 'bill'") as refused:
            client.chat.completions.create(model="m", messages=MESSAGES, response_format=response_format(schema))
        assert message in str(refused.value)
        assert refused.value.param == "response_format"
        lax = response_format(schema, strict=False)
        assert client.chat.completions.create(model="m", messages=MESSAGES, response_format=lax)


def test_the_name_of_a_schema_is_held_to_its_rule():
    with ModelServer() as server, official(server) as client, pytest.raises(openai.BadRequestError, match="name"):
        client.chat.completions.create(
            model="m", messages=MESSAGES, response_format=response_format(STRICT, name="a bill")
        )


def test_it_runs_as_a_process():
    command = [sys.executable, "-m", "flask_llmstream.testing", "--tokens", "7", "--rate", "0", "--key", "k"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            base_url = process.stdout.readline().strip()
            with openai.OpenAI(api_key="k", base_url=base_url, max_retries=0) as client:
                stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
                assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).split()[-1] == "w7"
            with urllib.request.urlopen(base_url.replace("/v1", "/stats")) as response:
                stats = json.load(response)
            assert (stats["requests"], stats["completed"], stats["tokens"]) == (1, 1, 7)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


UNDER_GEVENT = """
import http.client, json
from flask_llmstream.testing import ModelServer, Schedule
with ModelServer(Schedule(stall_after=2)) as server:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/v1/chat/completions", json.dumps({"messages": [], "stream": True}))
    connection.getresponse().read1()
    connection.sock.close()
    connection.close()
    server.wait_for(lambda s: s.cancelled == 1)
print("noticed")
"""


def test_it_works_in_a_process_that_gevent_has_patched():
    program = "from gevent import monkey; monkey.patch_all()\n" + UNDER_GEVENT
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "noticed\n", done.stderr
