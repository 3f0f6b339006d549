"""What the model server answers, as data: one `Schedule` an answer, and gates that a test opens by hand."""

from __future__ import annotations

import json as codec
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

BEFORE_HEADERS: Literal["headers"] = "headers"


class Gate:
    """A point in an answer where the server waits until the test lets it go on, so that no test needs to sleep. ::

        gate = Gate()
        server.schedule = Schedule(tokens=10, gates={3: gate})     # three pieces, then wait
        ...
        gate.wait()                                                # until an answer stands at the gate
        gate.release()

    One gate may stand in several schedules. Once released it stays open.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._released = False
        self._reached = False
        self._waiting: list[Callable[[], None]] = []

    @property
    def released(self) -> bool:
        return self._released

    def release(self) -> None:
        """Let every answer at this gate go on, and all that come to it later."""
        with self._changed:
            self._released = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for go_on in waiting:
            go_on()

    def wait(self, timeout: float = 5.0) -> None:
        """Block until an answer has come to this gate.

        :param timeout: seconds.
        :raises AssertionError: when none came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._reached, timeout):
                raise AssertionError(f"no answer came to the gate within {timeout:g} s")

    def arrive(self, go_on: Callable[[], None]) -> None:
        """For the server: have `go_on` called at the release, at once where it has been released already."""
        with self._changed:
            self._reached = True
            self._changed.notify_all()
            if not self._released:
                self._waiting.append(go_on)
                return
        go_on()


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One answer of the model server: what it says, how fast, and how it goes wrong.

    What counts as a *piece*, for `rate` and for everything that happens `…_after` some pieces, is each fragment
    of reasoning, refusal, text and tool call, in that order. Where there is only text a piece is a token.

    :param tokens: the text: a number of made-up tokens, a text (cut before each space), or the tokens themselves.
    :param json: the text is this value as JSON, in place of `tokens`: an answer of a certain shape.
    :param rate: pieces a second; None sends them as fast as the socket takes them.
    :param stamp: each piece's text is instead the moment of its sending, ``t<ns of time.monotonic> ``.
    :param headers_delay: seconds from the request to the response headers.
    :param first_token_delay: seconds from the headers to the first piece.
    :param reasoning: pieces of reasoning, before the text.
    :param reasoning_field: the delta's field for them: ``reasoning`` (vLLM) or ``reasoning_content`` (DeepSeek).
    :param refusal: the model declines with this text; give ``tokens=()`` for an answer that is nothing else.
    :param tool_calls: mappings with ``id``, ``name`` and ``arguments`` (JSON text), after the text.
    :param finish_reason: None leaves it out; "auto" is ``tool_calls`` where there are any, else ``stop``.
    :param usage: False reports none, even when asked; a mapping is reported in place of the real counts.
    :param done: send ``data: [DONE]``.
    :param status: an HTTP status; from 300 on `body` is the whole answer.
    :param headers: further response headers.
    :param retry_after: seconds, sent as the header ``Retry-After``.
    :param body: what such an answer says: a JSON object or bytes; a fitting OpenAI error where left out.
    :param cut_after: the answer breaks off after so many pieces, in the way `cut` says.
    :param cut: ``end`` ends the HTTP body properly (which looks like an answer without its end marker), ``close``
        closes the connection in the middle of the body, ``reset`` resets it.
    :param stall_after: silence after so many pieces, until the client goes away.
    :param malformed_after: after so many pieces comes data that is not JSON.
    :param error_after: after so many pieces comes `error` as an ``{"error": …}`` object, and the body ends.
    :param keep_alive: seconds between comments while nothing else is sent.
    :param gates: gates to wait at, by the number of pieces sent before it, or ``"headers"``: before those.
    """

    tokens: int | str | Sequence[str] = ("Hello", ",", " world", "!")
    json: Any = None
    rate: float | None = None
    stamp: bool = False
    headers_delay: float = 0.0
    first_token_delay: float = 0.0
    reasoning: Sequence[str] = ()
    reasoning_field: Literal["reasoning", "reasoning_content"] = "reasoning"
    refusal: str | None = None
    tool_calls: Sequence[Mapping[str, str]] = ()
    finish_reason: str | None = "auto"
    usage: bool | Mapping[str, Any] = True
    done: bool = True
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    body: Mapping[str, Any] | bytes | None = None
    cut_after: int | None = None
    cut: Literal["end", "close", "reset"] = "end"
    stall_after: int | None = None
    malformed_after: int | None = None
    error_after: int | None = None
    error: Mapping[str, Any] = field(
        default_factory=lambda: {"message": "The server had an error.", "type": "server_error", "code": None}
    )
    keep_alive: float | None = None
    gates: Mapping[int | Literal["headers"], Gate] = field(default_factory=dict)

    def text_tokens(self) -> Sequence[str]:
        """The tokens of the text, however they were given."""
        if self.json is not None:
            return Schedule(tokens=codec.dumps(self.json, ensure_ascii=False)).text_tokens()
        if isinstance(self.tokens, int):
            return [f"w{n} " for n in range(1, self.tokens + 1)]
        if isinstance(self.tokens, str):
            return re.findall(r"\s?\S+|\s+", self.tokens)
        return self.tokens

    @property
    def text(self) -> str:
        """The whole text of the answer."""
        return "".join(self.text_tokens())
