"""What the example asks a language model for, and where."""

from __future__ import annotations

from collections.abc import Iterator

from marshmallow import Schema

from flask_llmstream import Event, LLMStream, Run
from flask_llmstream.uploads import File

from . import preferences
from .analysis import AnalysisOutput, analyze
from .classification import SentimentOutput, TextInput, classify
from .extraction import InvoiceOutput, extract

TAKEN = ("application/pdf", "text/markdown", "text/plain")
SPOKEN = "Your answer will be spoken: say it in a few short sentences, without lists, tables, code or markup."
LARGEST = 32 << 20
"""Bytes of a file."""


class FileInput(Schema):
    """A file to be read."""

    file = File(types=TAKEN, max_size=LARGEST, required=True)


def chat(run: Run) -> Iterator[Event]:
    """The chat, as its visitor prefers it."""
    wishes = preferences.of(run)
    # What the page asks for with this one question goes before what is so with all.
    options = {name: value for name, value in wishes.options.items() if getattr(run.input, name) is None}
    return run.model.stream([*wishes.told(), *run.input.messages], **options)


def talk(run: Run) -> Iterator[Event]:
    """The chat, spoken: what nobody can listen to is left out."""
    wishes = preferences.of(run)
    return run.model.stream([*wishes.told(SPOKEN), *run.input.messages], **wishes.options)


def declare(llm: LLMStream) -> None:
    """Declare all of it."""
    llm.stream("/api/chat/stream")(chat)
    llm.voice("/api/voice")(talk)
    llm.job("/api/analyze/start", input=FileInput, result=AnalysisOutput, status="/api/analyze/<run_id>", timeout=1800)(
        analyze
    )
    llm.reply("/api/extract", input=FileInput, result=InvoiceOutput, max_tokens=2000, timeout=120)(extract)
    llm.reply("/api/classify", input=TextInput, result=SentimentOutput, max_tokens=10)(classify)
