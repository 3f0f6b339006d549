"""The part of espeak-ng's C interface that is used here, as its ``speak_lib.h`` has it.

The library is one state for the whole process, and one lock is around it. While it speaks it calls back into Python,
where nothing may wait: what it makes is collected, and given out when it has returned.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, LLMStreamError
from .offloaded import EXTRA

RATE = 22_050
"""Samples a second of all its voices."""
BUFFER_MS = 1000
"""How much audio it makes between two calls back."""

AUDIO_OUTPUT_SYNCHRONOUS, INITIALIZE_DONT_EXIT = 2, 0x8000
POS_CHARACTER, CHARS_UTF8 = 1, 1
PARAMETER_RATE = 1
EVENT_LIST_TERMINATED, EVENT_WORD = 0, 1


class Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


class Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("unused", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


@dataclass(frozen=True, slots=True)
class Library:
    """espeak-ng as this process has it.

    :param voices: the identifier of each voice, by the names that it goes by in lower case.
    :param languages: the identifier of the best voice of each language tag.
    :param variants: the name of each way to alter a voice, by the same in lower case.
    """

    calls: Any
    voices: Mapping[str, str]
    languages: Mapping[str, str]
    variants: Mapping[str, str]

    def say(self, text: str, voice: str, *, words_per_minute: int) -> tuple[bytes, list[tuple[int, int]]]:
        """All the audio of a text, and (samples, characters) in front of each word that is spoken.

        :param voice: an identifier, with a variant behind a plus or without.
        :raises LLMStreamError: it can't.
        """
        audio: list[bytes] = []
        words: list[tuple[int, int]] = []

        def collect(wave: Any, samples: int, events: Any) -> int:
            if wave and samples > 0:
                audio.append(ctypes.string_at(wave, samples * 2))
            for event in events:
                if event.type == EVENT_LIST_TERMINATED:
                    break
                if event.type == EVENT_WORD:
                    words.append((event.sample, event.text_position - 1))
            return 0

        callback = CALLBACK(collect)
        written = text.replace("\0", " ").encode(errors="replace")
        with _lock:
            if self.calls.espeak_SetVoiceByName(voice.encode()) != 0:
                raise LLMStreamError("The text cannot be spoken.", diagnosis=f"espeak-ng cannot load the voice {voice}")
            self.calls.espeak_SetParameter(PARAMETER_RATE, words_per_minute, 0)
            self.calls.espeak_SetSynthCallback(callback)
            failure = self.calls.espeak_Synth(written, len(written) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        if failure:
            raise LLMStreamError("The text cannot be spoken.", diagnosis=f"espeak_Synth returned {failure}")
        return b"".join(audio), words


_lock = threading.Lock()


def library() -> Library:
    """espeak-ng, loaded at the first call.

    :raises ConfigurationError: it is not installed.
    """
    with _lock:
        return _load()


@functools.cache
def _load() -> Library:
    calls, data = _open()
    calls.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(Voice))
    calls.espeak_Info.restype = ctypes.c_char_p
    rate = calls.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, BUFFER_MS, data, INITIALIZE_DONT_EXIT)
    if rate != RATE:
        raise ConfigurationError(
            "espeak-ng does not start.", diagnosis=f"espeak_Initialize returned {rate}; is its data where it was?"
        )
    place = ctypes.c_char_p()
    calls.espeak_Info(ctypes.byref(place))
    variants = Path(os.fsdecode(place.value or b""), "voices", "!v")
    names = sorted(path.name for path in variants.iterdir()) if variants.is_dir() else []
    voices, languages = _listed(calls)
    return Library(calls, voices, languages, {name.lower(): name for name in names})


def _open() -> tuple[ctypes.CDLL, bytes | None]:
    """The library and the place of its data: the wheel's, or the system's."""
    try:
        import espeakng_loader
    except ImportError:
        try:
            return ctypes.CDLL("libespeak-ng.so.1"), None
        except OSError:
            raise ConfigurationError(
                f"Speech by espeak-ng is not installed: {EXTRA}", diagnosis="nor is there a libespeak-ng.so.1"
            ) from None
    return ctypes.CDLL(espeakng_loader.get_library_path()), os.fsencode(espeakng_loader.get_data_path())


def _listed(calls: Any) -> tuple[dict[str, str], dict[str, str]]:
    """The identifiers of voices by their names, and by the languages that each is the best of."""
    voices: dict[str, str] = {}
    best: dict[str, tuple[int, str]] = {}
    for pointer in calls.espeak_ListVoices(None):
        if not pointer:
            break
        voice = pointer.contents
        identifier = os.fsdecode(voice.identifier)
        tags = list(_tags(voice.languages))
        for name in (identifier, identifier.rpartition("/")[2], os.fsdecode(voice.name).strip()):
            voices.setdefault(name.lower(), identifier)
        for priority, tag in tags:
            voices.setdefault(tag, identifier)
            best[tag] = min(best.get(tag, (256, "")), (priority, identifier))
    return voices, {tag: identifier for tag, (_, identifier) in best.items()}


def _tags(address: int) -> Iterator[tuple[int, str]]:
    """A voice's languages: each a byte, lower for a better voice, and a string; a byte of 0 ends them."""
    while priority := ctypes.string_at(address, 1)[0]:
        tag = ctypes.string_at(address + 1)
        yield priority, tag.decode().lower()
        address += len(tag) + 2
