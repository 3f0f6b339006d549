"""What the callers of the voice benchmark say: a question by flite, whose beginning and end its energy tells."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flask_llmstream.audio import level, resampled

QUESTION = "what is the weather today"
VOICE = "awb"
"""Of flite's voices, the one that pocketsphinx understands best."""
RATE = 16_000
FRAME = RATE // 50
"""Samples of a frame: 20 ms."""
STEP = RATE // 200
"""Samples of which the loudness is taken: 5 ms."""
AUDIBLE = -30.0
"""dB beside the loudest step from which on a step belongs to the speech."""
ROOM = 8
"""The largest sample of the noise of a quiet room."""
PHASES = 16
"""In how many positions within a frame the question may begin."""


@dataclass(frozen=True)
class Question:
    """What is said, as frames of 20 ms.

    :param frames: payloads; the room's noise before and after the speech is in them.
    :param onset: the sample with which the speech begins.
    :param end: the sample with which it has ended.
    """

    frames: list[bytes]
    onset: int
    end: int


def questions() -> list[Question]:
    """The question, once for each position in which it may lie to the frames."""
    pcm = _spoken()
    return [_cut(pcm, phase * FRAME // PHASES) for phase in range(PHASES)]


def room(seconds: float) -> list[bytes]:
    """Frames in which nobody speaks."""
    return _frames(_noise(int(seconds * RATE)))


def _spoken() -> bytes:
    if shutil.which("flite") is None:
        raise SystemExit("The callers speak by flite, and there is none on the PATH (Debian: apt install flite).")
    with TemporaryDirectory() as directory:
        path = Path(directory, "question.wav")
        subprocess.run(["flite", "-voice", VOICE, "-t", QUESTION, "-o", str(path)], check=True)
        with wave.open(str(path), "rb") as sound:
            return resampled(sound.readframes(sound.getnframes()), sound.getframerate(), RATE)


def _cut(pcm: bytes, phase: int) -> Question:
    loudness = [level(pcm[at : at + 2 * STEP]) for at in range(0, len(pcm) - 2 * STEP + 1, 2 * STEP)]
    audible = [number for number, loud in enumerate(loudness) if loud > max(loudness) + AUDIBLE]
    speech = pcm[2 * STEP * audible[0] : 2 * STEP * (audible[-1] + 1)]
    samples = len(speech) // 2
    rest = -(phase + samples) % FRAME
    frames = _frames(_noise(phase) + speech + _noise(rest))
    return Question(frames, phase, phase + samples)


def _noise(samples: int) -> bytes:
    chance = random.Random(samples)
    return struct.pack(f"<{samples}h", *(chance.randint(-ROOM, ROOM) for _ in range(samples)))


def _frames(pcm: bytes) -> list[bytes]:
    return [pcm[at : at + 2 * FRAME] for at in range(0, len(pcm) - 2 * FRAME + 1, 2 * FRAME)]
