"""How a schedule looks in OpenAI's wire format (chat completions): pure functions, no I/O."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from .schedule import Schedule

DONE = b"data: [DONE]\n\n"
MALFORMED = b'data: {"id": "chatcmpl-1", "choices": [{"delta": {"content": \n\n'
KEEP_ALIVE = b": keep-alive\n\n"
ROLE = {"role": "assistant", "content": ""}

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
ERRORS = {
    400: ("invalid_request_error", None, "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Country not supported."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached."),
    500: ("server_error", None, "The server had an error while processing your request."),
    503: ("server_error", None, "The engine is currently overloaded."),
}


def deltas(schedule: Schedule) -> list[dict[str, Any]]:
    """The pieces of the answer, in the order in which they are sent."""
    pieces: list[dict[str, Any]] = [{schedule.reasoning_field: piece} for piece in schedule.reasoning]
    if schedule.refusal:
        pieces += [{"refusal": piece} for piece in Schedule(tokens=schedule.refusal).text_tokens()]
    pieces += [{"content": token} for token in schedule.text_tokens()]
    for index, call in enumerate(schedule.tool_calls):
        pieces += [{"tool_calls": [piece]} for piece in _tool_pieces(index, call)]
    return pieces


def _tool_pieces(index: int, call: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A tool call as OpenAI sends it: id and name once, then its arguments in fragments."""
    function = {"name": call["name"], "arguments": ""}
    yield {"index": index, "id": call["id"], "type": "function", "function": function}
    arguments = call["arguments"]
    for start in range(0, len(arguments), 8):
        yield {"index": index, "function": {"arguments": arguments[start : start + 8]}}


def finish_reason(schedule: Schedule) -> str | None:
    if schedule.finish_reason != "auto":
        return schedule.finish_reason
    return "tool_calls" if schedule.tool_calls else "stop"


def usage(schedule: Schedule, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Words of the messages for the prompt, pieces for the completion: exact enough to be told apart."""
    if isinstance(schedule.usage, Mapping):
        return schedule.usage
    prompt = sum(len(str(message.get("content", "")).split()) for message in request.get("messages", ()))
    completion = len(deltas(schedule))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": len(schedule.reasoning)},
    }


class Chat:
    """The form of a chat completion. Its pieces are those of the schedule, as chunks in server-sent events."""

    content_type = "text/event-stream; charset=utf-8"
    comments = True

    def __init__(self, schedule: Schedule, number: int, request: Mapping[str, Any]) -> None:
        self._schedule = schedule
        self._number = number
        self._request = request
        self._meta = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.get("model", "test-model"),
        }
        options = request.get("stream_options") or {}
        self._with_usage = bool(options.get("include_usage"))
        self._tail = {"usage": None} if self._with_usage else {}
        # The same for each token but for the delta, so it is rendered once.
        self._before, self._after = self._render("\0", None).split(json.dumps("\0").encode())
        self._deltas = deltas(schedule)
        self.streams = bool(request.get("stream"))
        self.count = len(self._deltas)

    def piece(self, number: int) -> bytes:
        delta = self._deltas[number]
        if self._schedule.stamp:
            delta = {"content": f"t{time.monotonic_ns()} "}
        return (self._chunk(ROLE) if number == 0 else b"") + self._chunk(delta)

    def last(self) -> bytes:
        schedule = self._schedule
        last = b""
        if (reason := finish_reason(schedule)) is not None:
            last += self._render({}, reason)
        if self._with_usage and schedule.usage is not False:
            last += _event(self._meta | {"choices": [], "usage": usage(schedule, self._request)})
        if schedule.done:
            last += DONE
        return last

    def whole(self) -> bytes:
        return completion(self._number, self._schedule, self._request)

    def _chunk(self, delta: Mapping[str, Any]) -> bytes:
        return b"".join((self._before, json.dumps(delta).encode(), self._after))

    def _render(self, delta: object, reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._meta | {"choices": [choice]} | self._tail)


def error_event(error: Mapping[str, Any]) -> bytes:
    return _event({"error": error})


def completion(number: int, schedule: Schedule, request: Mapping[str, Any]) -> bytes:
    """The answer to a request that does not stream."""
    message: dict[str, Any] = {"role": "assistant", "content": schedule.text, "refusal": schedule.refusal}
    if schedule.refusal and not schedule.text:
        message["content"] = None
    if schedule.reasoning:
        message[schedule.reasoning_field] = "".join(schedule.reasoning)
    if schedule.tool_calls:
        message["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {k: call[k] for k in ("name", "arguments")}}
            for call in schedule.tool_calls
        ]
    answer: dict[str, Any] = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.get("model", "test-model"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason(schedule)}],
    }
    if schedule.usage is not False:
        answer["usage"] = usage(schedule, request)
    return json.dumps(answer).encode()


def refusal_body(schedule: Schedule) -> bytes:
    """What an answer with an error status says."""
    if isinstance(schedule.body, bytes):
        return schedule.body
    if schedule.body is not None:
        return json.dumps(schedule.body).encode()
    fallback = ERRORS[500] if schedule.status >= 500 else ERRORS[400]
    kind, code, message = ERRORS.get(schedule.status, fallback)
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def head(status: int, content_type: str, headers: Mapping[str, str], length: int | None) -> bytes:
    """Status line and headers.

    :param length: bytes of the body; None for a chunked one.
    """
    fields = {"Content-Type": content_type, "X-Request-Id": "req_test"} | dict(headers)
    if length is None:
        fields["Transfer-Encoding"] = "chunked"
    else:
        fields["Content-Length"] = str(length)
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Error' if status >= 400 else 'OK')}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunked(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding; the last one for empty data."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
