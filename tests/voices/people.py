"""People who speak in tests: real sound, made on the spot."""

from __future__ import annotations

import array
import functools
import os
import random
import subprocess
import tempfile
import wave
from pathlib import Path

from flask_llmstream.audio import resampled, silence
from flask_llmstream.providers.espeak import Espeak
from tests.components import require

RATE = 16_000
CHUNK = RATE // 50 * 2
"""Bytes of 20 ms."""


@functools.cache
def somebody(text: str, *, voice: str = "awb") -> bytes:
    """A text as PCM of 16 kHz, in a voice of flite: awb's is understood best."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        subprocess.run([require("flite"), "-voice", voice, "-t", text, "-o", str(path)], check=True, timeout=30)
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (RATE, 2, 1)
            return file.readframes(file.getnframes())


@functools.cache
def machine(text: str) -> bytes:
    """A text as PCM of 16 kHz, where no flite is needed: a voice that is taken for one, and not understood."""
    pcm = b"".join(sound.pcm for sound in Espeak().speak(text))
    return resampled(pcm, Espeak.rate, RATE)


@functools.cache
def noise(seconds: float, *, loudness: float, seed: int = 1) -> bytes:
    """Noise whose root mean square is `loudness`."""
    dice = random.Random(seed)
    return array.array("h", [round(dice.gauss(0, loudness)) for _ in range(int(RATE * seconds))]).tobytes()


def amid(pcm: bytes, *, seconds: float, loudness: float) -> bytes:
    """Some audio with `seconds` of silence before and after it, and noise over it all."""
    quiet = silence(seconds * 1000, RATE)
    around = array.array("h", quiet + pcm + quiet)
    over = array.array("h", noise(len(around) / RATE, loudness=loudness))
    return array.array("h", [max(-32768, min(32767, a + b)) for a, b in zip(around, over, strict=False)]).tobytes()


def chunks(pcm: bytes, size: int = CHUNK) -> list[bytes]:
    """Audio as it comes: in pieces of 20 ms."""
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]


def has_ended(pid: int) -> bool:
    """Whether a process is no more; one that nobody has asked about yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
