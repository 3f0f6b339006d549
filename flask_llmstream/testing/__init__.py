"""For testing applications that use a language model: an OpenAI-compatible server under the test's control.

`ModelServer` speaks HTTP over a real socket, so that a test runs everything its application does in production:
connections, time-outs, cut lines, a stop that reaches the model. `Schedule` says what an answer is like, `Script` what
happens in a realtime call.

As a process of its own: ``python -m flask_llmstream.testing --port 0 --tokens 400 --rate 50``.
"""

from .audio import Heard as Heard
from .audio import Spoken as Spoken
from .audio import Tones as Tones
from .endpoint import Endpoint as Endpoint
from .endpoint import Received as Received
from .schedule import Gate as Gate
from .schedule import Schedule as Schedule
from .script import Dialled as Dialled
from .script import Script as Script
from .script import Turn as Turn
from .server import ModelServer as ModelServer

__all__ = [
    "Dialled",
    "Endpoint",
    "Gate",
    "Heard",
    "ModelServer",
    "Received",
    "Schedule",
    "Script",
    "Spoken",
    "Tones",
    "Turn",
]
