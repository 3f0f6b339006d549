"""Streams language-model answers from Flask applications: each a run that can be stopped, resumed and shared."""

from . import errors
from .events import Data, Event, Progress, Reasoning, Status, Token, Tool, Usage
from .extension import LLMStream
from .run import Run
from .schemas import ChatInput
from .signals import run_ended
from .uploads import File, Upload
from .voices import Voice

__all__ = [
    "ChatInput",
    "Data",
    "Event",
    "File",
    "LLMStream",
    "Progress",
    "Reasoning",
    "Run",
    "Status",
    "Token",
    "Tool",
    "Upload",
    "Usage",
    "Voice",
    "errors",
    "run_ended",
]
