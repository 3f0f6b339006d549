"""What the example hears and speaks with: OpenAI's models where it has a key of theirs, and otherwise programs that run
right here, so that it needs neither a key nor a network."""

from __future__ import annotations

from flask_llmstream import Voice
from flask_llmstream.providers.espeak import Espeak
from flask_llmstream.providers.pocketsphinx import PocketSphinx
from flask_llmstream.providers.silero import Silero


def offline() -> Voice:
    """A voice that understands English, more or less, and speaks like a machine of the nineties.

    Its parts are made when the first call needs them, and say then if the extra `voice` is not installed.
    """
    return Voice(transcriber=PocketSphinx(), synthesizer=Espeak(), activity=Silero())
