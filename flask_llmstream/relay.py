"""A call that is relayed to a model which hears and speaks by itself.

The model's server finds out when the user speaks, and what was said; whose turn it is, what an answer may cost and how
much of it was heard is decided here, as in any other call. So the server answers only when it is told to, and falls
silent only when it is told to: an answer is a run, which is admitted before it begins, and of which the model keeps
what its user has heard.

    receiver ──audio──> server ──speech, words──> the dialogue's turns ──(a run is admitted)──> "answer" ──> server
    playout <──audio─── reader <────────────────────────────────────────────────────────────────────────────────┘

The model hears for itself: it can answer what nobody has written down. So where the words of an utterance do not come,
its turn goes on without them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from .audio import Format, Resampler
from .delivery import Delivery
from .errors import LLMStreamError, RunCancelled, UpstreamTruncated
from .hearing import SAMPLE, Listener
from .playout import Playout
from .providers import Message
from .providers.openai_audio import iso_639_1
from .providers.realtime import (
    AudioDelta,
    AudioEnded,
    Call,
    InputTranscript,
    OutputTranscript,
    RealtimeError,
    RealtimeEvent,
    ResponseDone,
    ResponseStarted,
    SpeechStarted,
    SpeechStopped,
)
from .providers.realtime import RealtimeProvider as RealtimeProvider
from .rendition import PCM, Rendition
from .run import Run
from .runtime import current
from .utterances import SPOKEN, Utterances

log = logging.getLogger("flask_llmstream")

WORDS_WITHIN = 4.0
"""Seconds that the words of an utterance may take."""
PREFIX_MS = 300
"""Milliseconds of audio that the server takes to belong to an utterance before it begins."""
LEAST_MS = 100
"""Milliseconds of audio below which the server takes no utterance."""
RENEWED_AFTER = 60.0
"""Seconds that a connection must have lasted to be made anew when it is lost."""
FAILED_WITHIN = 1.5
"""Seconds that an answer has to fail, before its call does."""
REMEMBERED = 200
"""Messages of the call that a new connection is told of, at most."""


class Relay:
    """One call's way to its model.

    :param input: the audio that the client sends.
    :param silence: seconds of silence after which a user has finished.
    :param threshold: from which on a sound is speech, 0 to 1.
    :param history: what was said before.
    """

    def __init__(
        self,
        provider: RealtimeProvider,
        input: Format,
        *,
        silence: float,
        threshold: float,
        history: Sequence[Message] = (),
        **more: Any,
    ) -> None:
        self._provider = provider
        self._input = input
        self._more = more
        self._history = list(history)
        self._silence_ms = round(silence * 1000)
        self._detection = {
            "type": "server_vad",
            "threshold": threshold,
            "prefix_padding_ms": PREFIX_MS,
            "silence_duration_ms": self._silence_ms,
            "create_response": False,
            "interrupt_response": False,
        }
        self._to_model = Resampler(input.rate, PCM.rate)
        self._received = 0
        self._kept_back_ms = 0
        """Of the audio, what the server has not got."""
        self._waiting_ms = 0.0
        """Of the audio, what may belong to the next utterance."""
        self._watching = self._listens = True
        self._utterances = Utterances()
        self._sound: tuple[str, int] | None = None
        """What the user is saying: its item, and where it began."""
        self._asked: deque[Rendition] = deque()
        self._answering: Rendition | None = None
        self._response: str | None = None
        """What the server is giving, whether it was asked for or not."""
        self._lost: LLMStreamError | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._call = self._connect()

    def hearing(self, listener: Listener) -> Relay:
        """Begin to tell somebody what is heard."""
        self._listener = listener
        current().task(self._read, lambda: None).start()
        return self

    def performs(self, run: Run, delivery: Delivery, playout: Playout) -> Rendition:
        """The answer of a run, as the model gives it."""
        return Rendition(self, run, delivery, playout)

    # How the call hears

    @property
    def at_ms(self) -> int:
        return self._received * 1000 // self._input.rate

    def watch(self, watching: bool) -> None:
        if watching == self._watching:
            return
        self._watching = watching
        self._listens = watching or self._sound is not None
        self._sound = None
        self._detect(watching)

    def feed(self, payload: bytes) -> None:
        pcm = self._input.decode(payload)
        self._received += len(pcm) // SAMPLE
        audio, duration = self._to_model.feed(pcm), len(pcm) / SAMPLE * 1000 / self._input.rate
        if self._listens:
            self._waiting_ms += duration
            self._send(lambda: self._call.send_audio(audio))
        else:
            self._kept_back_ms += round(duration)

    def talk(self, on: bool) -> None:
        if on:
            self._listens, self._waiting_ms = True, 0.0
            self._send(self._call.clear)
            return
        if self._waiting_ms < LEAST_MS:
            self._utterances.end(None, "")
        else:
            self._utterances.end(None)
            self._commit()
        self._listens, self._waiting_ms = self._watching, 0.0

    def typed(self, text: str) -> None:
        if text.strip():
            self._remember("user", text)
            self._send(lambda: self._call.say(text))

    def settle(self, number: int) -> None:
        words = self._utterances.settle(number)
        if words is not None:
            self._tell(number, words)
        elif self._provider.transcription is None:
            self._go_without(number)
        else:
            current().timers.after(WORDS_WITHIN, lambda: current().hand_over(lambda: self._go_without(number)))

    def close(self) -> None:
        self._closed = True
        for answer in self._answers:
            answer.abandon()
        self._call.close()

    def _commit(self) -> None:
        """What the server has got is an utterance, though it did not find its end."""
        self._sound = None
        if self._watching:
            self._detect(False)
        self._send(self._call.commit)
        if self._watching:
            self._detect(True)

    def _detect(self, watching: bool) -> None:
        # With all else that belongs to the input: what is left out may be taken for its default.
        hears: dict[str, Any] = {
            "format": {"type": "audio/pcm", "rate": PCM.rate},
            "turn_detection": self._detection if watching else None,
        }
        if self._provider.transcription is not None:
            code = iso_639_1(self._more.get("language"))
            hears["transcription"] = {"model": self._provider.transcription} | ({"language": code} if code else {})
        session = {"type": "realtime", "audio": {"input": hears}}
        self._send(lambda: self._call.send({"type": "session.update", "session": session}))

    def _go_without(self, number: int) -> None:
        if self._utterances.give_up(number) and not self._closed:
            self._tell(number, SPOKEN)

    def _tell(self, number: int, words: str) -> None:
        if words:
            self._remember("user", words)
        self._listener.heard(number, words, None)

    # How it answers

    def ask(self, answer: Rendition, max_tokens: int) -> None:
        with self._lock:  # while the connection is made anew, it waits
            if self._lost is not None:
                raise self._lost
            self._asked.append(answer)
            answer.given_by = self._call
            self._call.send({"type": "response.create", "response": {"max_output_tokens": max_tokens}})
        if answer.closed:  # meanwhile
            self.leave(answer)
            raise RunCancelled

    def leave(self, answer: Rendition) -> None:
        if answer in self._answers:
            self._send(self._call.cancel)

    def keep(self, item: str, heard_ms: float) -> None:
        self._send(lambda: self._call.truncate(item, heard_ms))

    def said(self, answer: Rendition, text: str) -> None:
        if not text:
            return
        self._remember("assistant", text)
        if answer.given_by is not self._call:  # which has not heard of it
            content = [{"type": "output_text", "text": text}]
            item = {"type": "message", "role": "assistant", "content": content}
            self._send(lambda: self._call.send({"type": "conversation.item.create", "item": item}))

    @property
    def _answers(self) -> list[Rendition]:
        """What the server is to give, or is giving."""
        return [answer for answer in (self._answering, *self._asked) if answer is not None]

    @property
    def model(self) -> str:
        return self._provider.model

    def _send(self, action: Callable[[], object]) -> None:
        """Do something that fails only where the call is lost, which its reader finds out."""
        try:
            action()
        except LLMStreamError as error:
            log.debug("a relayed call is lost: %s", error.diagnosis)

    def _remember(self, role: str, text: str) -> None:
        self._history.append({"role": role, "content": text})
        del self._history[:-REMEMBERED]

    # What comes

    def _read(self) -> None:
        while True:
            error: LLMStreamError = UpstreamTruncated()
            try:
                for event in self._call.events():
                    self._take(event)
            except LLMStreamError as failed:
                error = failed
            except Exception:
                log.exception("a relayed call could not go on")
                error = LLMStreamError()
            finally:
                self._call.close()
            if self._closed or not self._renew():
                break
        if not self._closed:
            self._fail(error)

    def _take(self, event: RealtimeEvent) -> None:
        match event:
            case SpeechStarted():
                self._sound_began(event)
            case SpeechStopped():
                self._sound_ended(event)
            case InputTranscript(item=item, text=text, final=False):
                self._listener.partly_heard(self._utterances.hear(item, text))
            case InputTranscript(item=item, text=text):
                number = self._utterances.finish(item, text)
                if number is not None:
                    self._tell(number, text)
            case RealtimeError(error=error):
                for asked in list(self._asked):
                    asked.doubt(error)
                self._listener.report(error)
            case _:
                self._take_answer(event)

    def _take_answer(self, event: RealtimeEvent) -> None:
        if isinstance(event, ResponseStarted):
            self._response = event.response
            self._answering = self._asked.popleft() if self._asked else None
            if self._answering is not None:
                self._answering.begin()
        answer = self._answering
        if isinstance(event, ResponseDone):
            if self._response != event.response and self._asked:  # cancelled before it was begun
                answer = self._asked.popleft()
            self._answering = self._response = None
        if answer is None:
            return
        match event:
            case ResponseDone():
                answer.done(event)
            case AudioDelta(item=item, pcm=pcm):
                answer.add(item, pcm)
            case AudioEnded(item=item):
                answer.end_audio(item)
            case OutputTranscript(item=item, text=text, final=final):
                answer.say(item, text, final=final)

    def _sound_began(self, event: SpeechStarted) -> None:
        if self._watching:
            at_ms = self._place(event.at_ms + PREFIX_MS)
            self._sound = event.item, at_ms
            self._utterances.found(event.item)
            self._listener.sound_began(at_ms)

    def _sound_ended(self, event: SpeechStopped) -> None:
        if self._sound is None or self._sound[0] != event.item:
            return  # it was ended by other means
        (_, began_at), self._sound = self._sound, None
        self._utterances.end(event.item)
        self._waiting_ms = 0.0
        self._listener.sound_ended(max(began_at, self._place(event.at_ms - self._silence_ms)))

    def _place(self, at_ms: int) -> int:
        """A place in the client's audio, of one in what the server has got: that has padding on both ends."""
        return max(0, min(at_ms + self._kept_back_ms, self.at_ms))

    # When the connection is lost

    def _connect(self) -> Call:
        self._connected_at = monotonic()
        return self._provider.connect(
            turn_detection=self._detection if self._watching else None, history=self._history, **self._more
        )

    def _renew(self) -> bool:
        """Go on by another connection, as the server ends each after an hour; not where that cuts an answer short."""
        with self._lock:
            if self._asked or self._answering is not None or monotonic() - self._connected_at < RENEWED_AFTER:
                return False
            sounding, self._sound = self._sound is not None, None
            try:
                self._call = self._connect()
            except LLMStreamError as error:
                log.warning("a relayed call could not be connected anew: %s", error.diagnosis)
                return False
            self._kept_back_ms, self._waiting_ms, self._response = self.at_ms, 0.0, None
        if self._closed:  # meanwhile
            self._call.close()
        if sounding:
            self._utterances.end(None, "")
            self._listener.sound_ended(self.at_ms)
        return True

    def _fail(self, error: LLMStreamError) -> None:
        with self._lock:
            self._lost, answers = error, self._answers
        for answer in answers:
            answer.fail(error)
        until, bell = monotonic() + FAILED_WITHIN, current().bell()
        while not all(answer.over for answer in answers) and monotonic() < until:
            bell.wait(0.02)
        self._listener.failed(error)
