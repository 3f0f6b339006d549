"""What anybody can ask of a run, whichever process writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from .admission import Standing
from .cursor import Cursor
from .errors import LLMStreamError, Retold
from .events import Usage
from .log import Log
from .order import About, Claim

State = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

CUT_SHORT = ("length", "content_filter", "log_full")
"""Finish reasons that leave an answer incomplete."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class AnyRun:
    """What anybody can ask of a run, whichever process writes it: it is in the run's log, and in what was ordered."""

    id: str
    owner: str
    feature: str
    user: Any
    input: Any
    view_args: Mapping[str, Any]
    context: Any
    conversation: str | None
    about: About
    log: Log
    attempt: int
    """1, and one more each time that it is tried again."""
    created_at: float
    started_at: float | None
    ended_at: float | None
    standing: Sequence[Standing] = ()
    """How its owner's quotas stood when it was admitted, in the process that did."""

    @property
    def claim(self) -> Claim:
        """Its claim to an idempotency key."""
        return self.about.claim

    @property
    def ended(self) -> bool:
        """Whether its terminal event is out."""
        return self.log.ended

    @property
    def ending(self) -> dict[str, Any]:
        """Its terminal event; empty while there is none."""
        return _decode(self.log.entries[-1]) if self.log.ended else {}

    @property
    def state(self) -> State:
        """Where it stands; it has ended when its terminal event is out."""
        if self.log.ended:
            return _state_after(self.ending)
        return "queued" if self.started_at is None else "in_progress"

    @property
    def decided(self) -> State | None:
        """The state in which it ends, as soon as that is decided."""
        return self.state if self.log.ended else None

    @property
    def text(self) -> str:
        """The answer's text so far."""
        text: list[str] = []
        for payload in list(self.log.entries):
            if payload.startswith(b'{"token"'):
                text.append(_decode(payload)["token"])
            elif payload.startswith(b'{"restarted"'):
                text.clear()
        return "".join(text)

    @property
    def progress(self) -> dict[str, Any] | None:
        """The last that it said of how far it is, in this attempt: a fraction as ``progress``, and a ``message``."""
        for payload in reversed(list(self.log.entries)):
            if payload.startswith(b'{"progress"'):
                return _decode(payload)
            if payload.startswith(b'{"restarted"'):
                return None
        return None

    @property
    def result(self) -> Any:
        """What its function returned, as soon as that is known; not where it is too large for the log."""
        return self.ending.get("result")

    @property
    def usage(self) -> Usage | None:
        """What its model calls have consumed."""
        usage = self.ending.get("usage")
        return None if usage is None else msgspec.convert(usage, Usage)

    @property
    def usage_by_model(self) -> Mapping[str, Usage]:
        """The same, by model."""
        usage = self.usage
        if usage is None:
            return {}
        return usage.models or {self.about.model: usage}

    @property
    def cursor(self) -> Cursor:
        """Its last event."""
        return Cursor(self.id, self.log.epoch, self.log.n)

    @property
    def heard(self) -> str | None:
        """What its user has heard of the text, where it was spoken and cut short; None otherwise."""
        return self.ending.get("heard")

    @property
    def answering(self) -> bool:
        """Whether the answer is an open stream by now: an error can no longer become its HTTP status."""
        return any(not entry.startswith((b'{"status"', b'{"error"')) for entry in list(self.log.entries))

    @property
    def error(self) -> LLMStreamError | None:
        """What it failed by."""
        problem = self.ending.get("problem")
        return None if problem is None else Retold(problem)

    def join(self) -> None:
        """Somebody reads it.

        :raises StoreUnavailable: it lives elsewhere, and cannot be reached.
        """
        raise NotImplementedError

    def leave(self) -> None:
        """Somebody reads it no longer."""
        raise NotImplementedError


def _state_after(ending: Mapping[str, Any]) -> State:
    """The state of a run whose terminal event is this."""
    if "done" not in ending:
        return "failed"
    if ending.get("cancelled"):
        return "cancelled"
    return "incomplete" if ending.get("finish_reason") in CUT_SHORT else "completed"
