"""What the calls of an application hear and speak with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from .answering import Performs
from .errors import ModelNotConfigured
from .hearing import Ears, Hearing, Hears, Listener
from .providers import Message
from .providers.spoken import Synthesizer, Transcriber, VoiceActivity
from .relay import RealtimeProvider, Relay
from .speech import Mouth, Speaking
from .terms import Terms
from .turns import BACKCHANNELS

Part = TypeVar("Part")

NOT_CONFIGURED = (
    "No speech is configured: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that speaks OpenAI's protocol, or "
    "give LLMStream a voice= of its own."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """What calls hear and speak with. What is not given is OpenAI's, but for voice activity, which is silero's here.

    :param transcriber: turns speech into text.
    :param synthesizer: turns text into speech.
    :param activity: finds when somebody speaks.
    :param realtime: a model that hears and speaks by itself, to which calls are relayed instead; the feature's
        function has no part in its answers.
    :param instructions: how that model is to behave.
    :param name: whose voice it is, as the synthesizer has it, where the client does not say.
    :param language: as in BCP 47, where the client does not say; None leaves it to the providers.
    :param silence: seconds of silence after which a user has finished.
    :param threshold: probability from which on a sound is speech.
    :param anticipates: whether an answer is begun while the user merely pauses. It is heard sooner, and paid for in
        vain where the user goes on; it takes a transcriber that tells words while they are said.
    :param backchannels: words with which a listener does not interrupt, in lower case.
    """

    transcriber: Transcriber | None = None
    synthesizer: Synthesizer | None = None
    activity: VoiceActivity | None = None
    realtime: RealtimeProvider | None = None
    instructions: str | None = None
    name: str | None = None
    language: str | None = None
    silence: float = 0.5
    threshold: float = 0.5
    anticipates: bool = False
    backchannels: frozenset[str] = BACKCHANNELS


class Providers:
    """A voice's providers, made when they are first needed: their libraries are large."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self._made: dict[str, Any] = {}
        self._checked = False
        self._lock = threading.Lock()

    def parts(self, terms: Terms, history: Sequence[Message]) -> tuple[Callable[[Listener], Hears], Performs]:
        """What a call hears with, and how it answers.

        :param history: what was said before.
        :raises ConfigurationError: something is not installed, or not configured.
        :raises LLMStreamError: the model cannot be reached that is to hear and speak.
        """
        voice = self.voice
        language = terms.language or voice.language
        if voice.realtime is not None:
            relay = Relay(
                voice.realtime,
                terms.input,
                silence=voice.silence,
                threshold=voice.threshold,
                instructions=voice.instructions,
                voice=terms.voice or voice.name,
                language=language,
                history=history,
            )
            return relay.hearing, relay.performs
        ears = Ears(
            transcriber=self._transcriber(), activity=self._activity(), silence=voice.silence, threshold=voice.threshold
        )
        mouth = Mouth(synthesizer=self._synthesizer(), voice=terms.voice or voice.name, language=language)
        return (
            lambda listener: Hearing(ears, terms.input, listener, language=language),
            partial(Speaking, mouth),
        )

    def check(self) -> None:
        """See to it, once, that a call could be held.

        :raises ConfigurationError: something is not installed, or not configured.
        """
        if self._checked:
            return
        parts = [self.voice.realtime] if self.voice.realtime else [self._transcriber(), self._synthesizer()]
        if not all(getattr(part, "configured", True) for part in parts):
            raise ModelNotConfigured(NOT_CONFIGURED)
        if self.voice.realtime is None:
            self._activity().detector().close()
        self._checked = True

    def warm(self) -> None:
        """Load what takes long to load, as far as the application has given it."""
        voice = self.voice
        for part in (voice.transcriber, voice.synthesizer, voice.activity, voice.realtime):
            warm = getattr(part, "warm", None)
            if warm is not None:
                warm()

    def close(self) -> None:
        """Give back what was made here; what was given is the application's."""
        for provider in self._made.values():
            provider.close()
        self._made.clear()

    def _transcriber(self) -> Transcriber:
        def make() -> Transcriber:
            from .providers.openai_audio import OpenAITranscriber

            return OpenAITranscriber()

        return self.voice.transcriber or self._made_once("transcriber", make)

    def _synthesizer(self) -> Synthesizer:
        def make() -> Synthesizer:
            from .providers.openai_audio import OpenAISynthesizer

            return OpenAISynthesizer()

        return self.voice.synthesizer or self._made_once("synthesizer", make)

    def _activity(self) -> VoiceActivity:
        def make() -> VoiceActivity:
            from .providers.silero import Silero

            return Silero()

        return self.voice.activity or self._made_once("activity", make)

    def _made_once(self, name: str, make: Callable[[], Part]) -> Part:
        with self._lock:
            if name not in self._made:
                self._made[name] = make()
            part: Part = self._made[name]
            return part
