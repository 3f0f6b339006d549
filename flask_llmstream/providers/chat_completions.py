"""OpenAI's chat completions on the wire, without I/O: JSON data in, events out.

Only what is used is decoded. Compatible servers differ in the rest, and each field that is not read is one that
can't be wrong; reading costs a third of a microsecond a token in this way, a hundred and more in the client's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ..errors import ContentFiltered, UpstreamMalformed, UpstreamTruncated, UpstreamUnavailable
from ..events import Event, FinishReason, Reasoning, Token, Tool
from ..events import Usage as UsageEvent
from . import Call, Reply

FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
"""Any other is a `stop`, whatever the server calls it."""
FAULTS = {"error", "abort", "insufficient_system_resource"}
"""What some servers (OpenRouter, vLLM, DeepSeek) give as the finish reason of an answer that they broke off."""

SAMPLE = 200
"""Bytes of what could not be understood that the log gets to see."""


class Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    """A piece of the answer or, in one that is not streamed, the whole message."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    def event(self) -> UsageEvent:
        return UsageEvent(
            self.prompt_tokens or 0,
            self.completion_tokens or 0,
            (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0,
            (self.completion_tokens_details and self.completion_tokens_details.reasoning_tokens) or 0,
        )


class Chunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class ErrorReported(Exception):
    """The server sent an error in place of the answer.

    :param error: as it was sent.
    """

    def __init__(self, error: Any) -> None:
        super().__init__("the server reported an error")
        self.error = error


class Answer:
    """Takes one answer together.

    What it learns besides the text it sets on the call: `usage` and `finish_reason`.
    """

    def __init__(self, call: Call) -> None:
        self.started = False
        """Whether any of the answer has come."""
        self._call = call
        self._yielded = False
        self._refusal = ""
        self._finish_reason: str | None = None
        self._tool: dict[str, str] | None = None
        self._tool_index: int | None = None

    def take(self, data: bytes) -> Iterable[Event]:
        """The events that a chunk of the stream amounts to.

        :raises UpstreamMalformed: it is not a chunk.
        :raises ErrorReported: it is an error.
        """
        chunk = _decode(data)
        choices = chunk.choices
        if choices:
            choice = choices[0]
            delta = choice.delta
            if choice.finish_reason is None and delta is not None:
                content = delta.content
                if content and not (delta.reasoning or delta.reasoning_content or delta.tool_calls or self._tool):
                    self.started = self._yielded = True
                    return (Token(content),)
            return list(self._rest(chunk, choice))
        if chunk.error is not None:
            raise ErrorReported(chunk.error)
        if chunk.usage is not None:
            self._call.usage = chunk.usage.event()
        return ()

    def end(self, *, marked: bool) -> Iterable[Event]:
        """The events that were still held back when the stream ended.

        :param marked: it ended with ``[DONE]``. Some servers say no more than a finish reason, others only this.
        :raises UpstreamTruncated: it ended without saying that it would.
        :raises UpstreamUnavailable: the server broke the answer off.
        :raises ContentFiltered: there is no answer, because a filter or the model itself withheld it.
        """
        reason = self._finish_reason
        if reason is None and not marked:
            raise UpstreamTruncated
        if reason in FAULTS:
            raise UpstreamUnavailable(diagnosis=f"finish_reason: {reason}")
        events = list(self._finished_tool())
        finish_reason = FINISH_REASONS.get(reason or "stop", "stop")
        if self._refusal or finish_reason == "content_filter":
            if not self._yielded:
                raise ContentFiltered(diagnosis=self._refusal or "finish_reason: content_filter")
            finish_reason = "content_filter"
        self._call.finish_reason = finish_reason
        return events

    def take_whole(self, data: bytes) -> Reply:
        """The answer to a request that did not stream.

        :raises LLMStreamError: as `take` and `end`.
        :raises ErrorReported: it is an error.
        """
        completion = _decode(data)
        if completion.error is not None:
            raise ErrorReported(completion.error)
        if not completion.choices or completion.choices[0].message is None:
            raise UpstreamMalformed(diagnosis=f"no completion: {data[:SAMPLE]!r}")
        choice = completion.choices[0]
        choice.delta = choice.message
        events = [*self._rest(completion, choice), *self.end(marked=True)]
        text = "".join(event.token for event in events if isinstance(event, Token))
        return Reply(text=text, tool_calls=[event.tool for event in events if isinstance(event, Tool)])

    def _rest(self, chunk: Chunk, choice: Choice) -> Iterator[Event]:
        if chunk.error is not None:
            raise ErrorReported(chunk.error)
        delta = choice.delta
        if delta is not None:
            yield from self._pieces(delta)
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
            yield from self._finished_tool()
        if chunk.usage is not None:
            self._call.usage = chunk.usage.event()

    def _pieces(self, delta: Delta) -> Iterator[Event]:
        if reasoning := delta.reasoning or delta.reasoning_content:
            self.started = self._yielded = True
            yield Reasoning(reasoning)
        if delta.content:
            self.started = self._yielded = True
            yield Token(delta.content)
        if delta.refusal:
            self.started = True
            self._refusal += delta.refusal
        for piece in delta.tool_calls or ():
            self.started = True
            yield from self._tool_piece(piece)

    def _tool_piece(self, piece: ToolCall) -> Iterator[Event]:
        """Fragments of one call share its index; servers that leave that out send each call whole, with an id."""
        tool = self._tool
        another = piece.index != self._tool_index or (piece.id and tool and piece.id != tool["id"])
        if tool is None or another:
            yield from self._finished_tool()
            self._tool = tool = {"id": "", "name": "", "arguments": ""}
            self._tool_index = piece.index
        tool["id"] = piece.id or tool["id"]
        if piece.function is not None:
            tool["name"] = piece.function.name or tool["name"]
            tool["arguments"] += piece.function.arguments or ""

    def _finished_tool(self) -> Iterator[Event]:
        tool, self._tool = self._tool, None
        if tool is not None:
            self._yielded = True
            yield Tool(tool)


def _decode(data: bytes) -> Chunk:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamMalformed(diagnosis=f"{error} in {data[:SAMPLE]!r}") from None


_decoder = msgspec.json.Decoder(Chunk)
