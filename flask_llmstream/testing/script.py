"""What the model server does in a realtime call, as data: one `Turn` after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .endpoint import Received
from .schedule import Gate


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the user is understood to say, and what the model answers.

    What happens `…_after` some deltas counts those of the audio, each of a tenth of a second.

    :param heard: what the user is understood to say.
    :param speech: where the server's voice activity finds it in the audio that was sent, from and to, ms; None looks
        for sound that is louder than a whisper.
    :param says: the answer. Its audio is that of the server's `tones`.
    :param tool: in its place, a function that is to be called: ``name`` and ``arguments`` (JSON text).
    :param speed: times real time in which its audio is sent; None sends it as fast as the socket takes it.
    :param delay: seconds before its first event.
    :param fails_after: the answer fails after so many deltas, with `error`.
    :param cut_after: the connection ends after so many deltas, in the way `cut` says.
    :param cut: a close code, or ``reset``: the line is cut.
    :param reason: what the server says with that code.
    :param gates: gates to wait at, by the number of deltas sent before it.
    """

    heard: str = "Hello."
    speech: tuple[int, int] | None = None
    says: str = "Hello there. How can I help?"
    tool: Mapping[str, str] | None = None
    speed: float | None = 10.0
    delay: float = 0.0
    fails_after: int | None = None
    error: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "server_error", "code": None, "message": "The server had an error."}
    )
    cut_after: int | None = None
    cut: int | Literal["reset"] = "reset"
    reason: str = ""
    gates: Mapping[int, Gate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Script:
    """A realtime call.

    :param turns: the turns, in order; the last one is what all further ones are like.
    :param status: an HTTP status from 300 on refuses the call, with `headers` and `body` as in `Schedule`.
    :param error: what the settings are answered with, in place of ``session.updated``.
    :param silence: ms without sound after which the user is through, where the session does not say.
    :param extra: further events that are sent at the beginning.
    """

    turns: Sequence[Turn] = (Turn(),)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    body: Mapping[str, Any] | bytes | None = None
    error: Mapping[str, Any] | None = None
    silence: int = 500
    extra: Sequence[Mapping[str, Any]] = ()


@dataclass(eq=False, slots=True, kw_only=True)
class Dialled(Received):
    """A realtime call that the model server got. Its pieces are deltas of audio.

    Its `state` is ``completed`` where the client has said goodbye, ``cancelled`` where it just went away.

    :param events: all that the client sent, in order; audio is left out of them.
    :param audio: what the client let the model hear, in its input format.
    :param session: its settings.
    :param generated: how much audio each answer has, ms.
    :param truncated: where answers were cut, ms.
    :param deleted: what was deleted.
    :param items: what else is in the conversation, as the client created it.
    :param errors: what the client was told to be wrong.
    :param closed: the close code that came from the client.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    audio: bytearray = field(default_factory=bytearray, repr=False)
    session: dict[str, Any] = field(default_factory=dict)
    generated: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    errors: list[Mapping[str, Any]] = field(default_factory=list)
    closed: int | None = None

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """The client's events of a type."""
        return [event for event in self.events if event["type"] == kind]
