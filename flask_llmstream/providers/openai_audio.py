"""Hearing and speaking through OpenAI's audio endpoints, or any server that has them: transcriptions and speech.

As with `OpenAI`, what is left out comes from the environment, and nothing is read or opened before it is used.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .. import runtime
from ..errors import ContentTooLarge, LLMStreamError, ModelNotConfigured, RunCancelled
from . import Call, Timeouts
from .spoken import Sound

if TYPE_CHECKING:
    import openai

    from .openai_audio_session import AudioSession

LONGEST = 600.0
"""Seconds that an utterance may last."""
LARGEST = 25_000_000
"""Bytes that OpenAI takes of it."""
SHORTEST = 0.1
"""Seconds. OpenAI refuses less, and nobody has said anything in them."""
RETRIES = 2
PAUSE = 0.25
"""Seconds before the first retry; twice that before the next."""
PATIENCE = 2.0
"""Seconds that a call waits for a server that says when to come back; what takes longer is an error."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to get at the server, given or from the environment.

    :param client: the user's own, which has all else.
    """

    client: openai.OpenAI | None = None
    api_key: str | None = None
    given_url: str | None = None

    @property
    def base_url(self) -> str | None:
        """Where the server is; None for OpenAI itself."""
        return self.given_url or os.environ.get("OPENAI_BASE_URL") or None

    @property
    def configured(self) -> bool:
        """Whether a key, a base URL or a client is there. Asks nobody and opens nothing."""
        return bool(self.client or self.api_key or os.environ.get("OPENAI_API_KEY") or self.base_url)

    def check(self) -> None:
        """
        :raises ModelNotConfigured: there is neither a key nor a base URL.
        """
        if not self.configured:
            raise ModelNotConfigured(
                "Nothing can be heard or said yet: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that speaks "
                "OpenAI's protocol."
            )


class Session(Protocol):
    """The connections of the process `pid`."""

    pid: int

    def warm(self) -> None: ...
    def close(self) -> None: ...


S = TypeVar("S", bound=Session)


class Connected(Generic[S]):
    """What asks a server over connections of its own: one session for each process."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: S | None = None
        self._lock = threading.Lock()

    @property
    def configured(self) -> bool:
        """Whether a key, a base URL or a client is there. Asks nobody and opens nothing."""
        return self._access.configured

    def warm(self) -> None:
        """Load the official client, and open a connection in the background where one can be kept."""
        if self.configured:
            self._open().warm()

    def close(self) -> None:
        """Give back connections. A later call opens new ones."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _open(self) -> S:
        """This process's session: after a fork the parent's connections must not be used."""
        with self._lock:
            if self._session is None or self._session.pid != os.getpid():
                self._access.check()
                self._session = self._make(self._access)
            return self._session

    def _make(self, access: Access) -> S:
        raise NotImplementedError


class Audio(Connected["AudioSession"]):
    """What asks the audio endpoints."""

    def _make(self, access: Access) -> AudioSession:
        # Late, because the official client takes half a second and 40 MB.
        from .openai_audio_session import AudioSession

        return AudioSession("", client=access.client, api_key=access.api_key, base_url=access.base_url)


class OpenAITranscriber(Audio):
    """Transcribes by ``POST /v1/audio/transcriptions``, an utterance at a time, once it is over.

    :param model: whose ``whisper-1`` does not stream.
    :param rate: of the audio that it is fed, Hz.
    :param options: further fields of the request, such as ``prompt`` or ``keywords``.
    :param client: as in `OpenAI`.
    :param timeouts: of one request.
    """

    def __init__(
        self,
        model: str = "gpt-transcribe",
        *,
        rate: int = 16000,
        options: Mapping[str, Any] | None = None,
        client: openai.OpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        if rate not in (16000, 24000):
            raise ValueError(f"speech is transcribed at 16000 or 24000 Hz, not at {rate}")
        super().__init__(Access(client, api_key, base_url))
        self.model = model
        self.rate = rate
        self._options = dict(options or {})
        self._timeouts = timeouts or Timeouts(connect=5.0, first_token=30.0, idle=15.0, total=60.0)

    def begin(self, *, language: str | None = None) -> Utterance:
        """Listen to an utterance.

        :raises ModelNotConfigured: there is neither a key nor a base URL.
        """
        fields = self._options | {"model": self.model}
        if (code := iso_639_1(language)) is not None:
            fields["language"] = code
        call = Call(messages=(), options=fields, timeouts=self._timeouts)
        return Utterance(self._open(), call, self.rate)


class Utterance:
    """One utterance on its way to its words: collected until its end, and sent whole."""

    def __init__(self, session: AudioSession, call: Call, rate: int) -> None:
        self._session = session
        self._call = call
        self._rate = rate
        self._most = min(int(LONGEST * rate) * 2, LARGEST)
        self._pcm = bytearray()
        self._too_long = False

    def feed(self, pcm: bytes) -> None:
        """Keep it. The words come at the end, so there are none yet."""
        if len(self._pcm) + len(pcm) > self._most:
            self._too_long = True
        if not self._too_long and not self._call.cancelled:
            self._pcm += pcm

    def finish(self) -> str:
        """The words; none for less than a tenth of a second.

        :raises ContentTooLarge: it lasted longer than ten minutes, or has more bytes than the server takes.
        :raises LLMStreamError: the server did not deliver. Passing faults have been tried again.
        :raises RunCancelled: it was aborted.
        """
        if self._too_long:
            raise ContentTooLarge(f"An utterance may last {self._most / 2 / self._rate:.0f} seconds.")
        pcm, self._pcm = bytes(self._pcm), bytearray()
        if len(pcm) < 2 * SHORTEST * self._rate:
            return ""
        for failures in range(RETRIES + 1):
            try:
                return self._session.transcribe(self._call, pcm, self._rate)
            except LLMStreamError as error:
                _pause(self._call, error, failures)
        raise AssertionError("unreachable")

    def abort(self) -> None:
        """Close the connection at once: whoever blocks in `finish` gets `RunCancelled`."""
        self._call.cancel()


class OpenAISynthesizer(Audio):
    """Speaks by ``POST /v1/audio/speech``, as PCM that is passed on while it is being made.

    :param voice: for those who name none.
    :param options: further fields of the request, such as ``instructions`` or ``speed``.
    :param client: as in `OpenAI`.
    :param timeouts: of one request. Its `total` has to be long enough for a listener to listen.
    """

    rate = 24000

    def __init__(
        self,
        model: str = "gpt-4o-mini-tts",
        *,
        voice: str = "alloy",
        options: Mapping[str, Any] | None = None,
        client: openai.OpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(Access(client, api_key, base_url))
        self.model = model
        self.voice = voice
        self._options = dict(options or {})
        self._timeouts = timeouts or Timeouts(connect=5.0, first_token=15.0, idle=15.0, total=600.0)

    def speak(self, text: str, *, voice: str | None = None, language: str | None = None) -> Speaking:
        """Say a sentence. Its language is that of the text: the server is not told.

        :raises ModelNotConfigured: there is neither a key nor a base URL.
        """
        body = self._options | {
            "model": self.model,
            "voice": voice or self.voice,
            "input": text,
            "response_format": "pcm",
        }
        return Speaking(self._open(), Call(messages=(), options=body, timeouts=self._timeouts))


class Speaking(Generator[Sound, None, None]):
    """A sentence while it is being said.

    Unlike with other generators, another thread may `close` it: whoever waits for its next piece gets `RunCancelled`.
    """

    def __init__(self, session: AudioSession, call: Call) -> None:
        self._call = call
        self._pieces = _pieces(session, call)

    def send(self, value: None) -> Sound:
        try:
            return self._pieces.send(value)
        except StopIteration:
            if self._call.cancelled:  # or half a sentence would look like a whole one
                raise RunCancelled from None
            raise

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: object = None,
        tb: TracebackType | None = None,
    ) -> Sound:
        error = typ if isinstance(typ, BaseException) else typ()
        return self._pieces.throw(error)

    def close(self) -> None:
        """End it, and close its connection at once."""
        self._call.cancel()
        with contextlib.suppress(ValueError):  # it is being read at this moment, which has just been made to fail
            self._pieces.close()


def _pieces(session: AudioSession, call: Call) -> Generator[Sound]:
    begun = False
    for failures in range(RETRIES + 1):
        try:
            for pcm in session.speak(call):
                begun = True
                yield Sound(pcm=pcm)
            return
        except LLMStreamError as error:
            if begun:
                raise
            _pause(call, error, failures)


def _pause(call: Call, error: LLMStreamError, failures: int) -> None:
    """Wait before the next attempt.

    :param failures: attempts that failed before this one.
    :raises LLMStreamError: the failure itself, where none shall follow.
    """
    seconds = error.retry_after if error.retry_after is not None else PAUSE * 2**failures
    if not error.retryable or failures >= RETRIES or seconds > PATIENCE:
        raise error
    bell = runtime.current().bell()
    call.abort = bell.ring
    if not call.cancelled:
        bell.wait(seconds)
    call.abort = None


def iso_639_1(language: str | None) -> str | None:
    """What the server wants to know of a language tag (BCP 47): two letters."""
    code = (language or "").partition("-")[0].lower()
    return code if len(code) == 2 and code.isalpha() else None
