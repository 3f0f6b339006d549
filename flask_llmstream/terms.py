"""What a client and a call have agreed on."""

from __future__ import annotations

from dataclasses import dataclass

from .audio import Format
from .commands import Mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How a call is held.

    :param input: the audio that the client sends.
    :param output: the audio that it takes.
    :param language: as in BCP 47; None leaves it to the providers.
    """

    input: Format
    output: Format
    mode: Mode = "auto"
    language: str | None = None
    voice: str | None = None
