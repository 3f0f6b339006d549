"""What a call's client may say in words: the messages of ``llmstream.voice.v1`` that go up."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Mode = Literal["auto", "push"]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Anything that a client says. Fields that are not known are ignored."""


class AudioFormat(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of audio, by name.

    :param rate: samples a second.
    """

    format: Name
    rate: int


class Start(Message, frozen=True, tag="start"):
    """Begin a call.

    :param conversation: what it continues; None for a new one.
    :param parent: the message there that it follows.
    :param data: the fields of the feature's own input.
    """

    conversation: str | None = None
    parent: str | None = None
    mode: Mode = "auto"
    input: AudioFormat = AudioFormat(format="pcm16", rate=16000)
    output: AudioFormat = AudioFormat(format="pcm16", rate=24000)
    language: Name | None = None
    voice: Name | None = None
    model: Name | None = None
    temperature: float | None = None
    data: dict[str, Any] = {}


class Resume(Message, frozen=True, tag="resume"):
    """Go on with a call whose line was lost.

    :param seq: the last message that the client has.
    :param generation: with `played`, the audio that it has heard.
    :param played: samples.
    """

    token: str
    seq: Count
    generation: Count = 0
    played: Count = 0


class Played(Message, frozen=True, tag="played"):
    """What has been heard by now.

    :param samples: of the generation's audio.
    :param seq: the last message that the client has.
    """

    generation: Count
    samples: Count
    seq: Count | None = None


class Flushed(Message, frozen=True, tag="flushed"):
    """The client has fallen silent, and has played so much by then."""

    generation: Count
    samples: Count
    seq: Count | None = None


class Interrupt(Message, frozen=True, tag="interrupt"):
    """End the answer."""


class Talk(Message, frozen=True, tag="talk"):
    """The user holds the button, or lets go of it."""

    on: bool


class SetMode(Message, frozen=True, tag="mode"):
    """Have it found when the user speaks, or leave that to the button."""

    mode: Mode


class Typed(Message, frozen=True, tag="message"):
    """A written message."""

    text: str


class Ping(Message, frozen=True, tag="ping"):
    """Have it answered, to see how long that takes.

    :param t: the client's own time, milliseconds.
    """

    t: Milliseconds


class End(Message, frozen=True, tag="end"):
    """End the call."""


Command = Start | Resume | Played | Flushed | Interrupt | Talk | SetMode | Typed | Ping | End

SAID = 80
"""Characters of what is wrong with a message, which may have the message's own in it."""

_decode = msgspec.json.Decoder(Command).decode


def _shortened(text: str) -> str:
    return text if len(text) <= SAID else text[: SAID - 1] + "…"


def read(text: str) -> Command:
    """What a client says.

    :raises ValueError: it is not of the protocol; the sentence says in what.
    """
    try:
        command: Command = _decode(text)
    except RecursionError:
        raise ValueError("A message is nested too deeply.") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"A message is not of the protocol: {_shortened(str(error))}.") from None
    return command
