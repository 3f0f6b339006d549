"""For testing applications that use a language model: an OpenAI-compatible server under the test's control.

`ModelServer` speaks HTTP over a real socket, so that a test runs everything its application does in production:
connections, time-outs, cut lines, a stop that reaches the model. `Schedule` says what an answer is like.

As a process of its own: ``python -m flask_llmstream.testing --port 0 --tokens 400 --rate 50``.
"""

from .exchange import Received as Received
from .schedule import Gate as Gate
from .schedule import Schedule as Schedule
from .server import ModelServer as ModelServer

__all__ = ["Gate", "ModelServer", "Received", "Schedule"]
