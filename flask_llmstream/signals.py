"""The signals that this package sends (https://blinker.readthedocs.io)."""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

run_ended = _signals.signal(
    "run-ended",
    """Sent when a run has ended, however it did, in an application context of its own. Its sender is the application;
    it brings ``run``, ``text`` (the answer as far as it got), ``state`` and ``usage``. The client hears of the end
    when all receivers are through, or after a second.""",
)
