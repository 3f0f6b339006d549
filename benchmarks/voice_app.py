"""An application that is spoken with, whose providers' time is known."""

from __future__ import annotations

import gc
import logging
import os
from typing import Any

import greenlet
from flask import Flask

from benchmarks.voice_providers import (
    ScriptedModel,
    ScriptedSynthesizer,
    ScriptedTranscriber,
    Watched,
    WatchedSynthesizer,
    WatchedTranscriber,
)
from flask_llmstream import LLMStream
from flask_llmstream.providers.silero import Silero
from flask_llmstream.voices import Voice

SCRIPTED, OFFLINE = "scripted", "offline"


def create_app() -> Flask:
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
    app = Flask(__name__)
    app.config.from_prefixed_env()
    watched = Watched()
    voice = _voice(app.config["BENCHMARK_VOICE"], app.config["BENCHMARK_PROCESSES"], watched)
    LLMStream(app, model=ScriptedModel(), voice=voice, identify=lambda: "benchmark")

    @app.get("/state")
    def state() -> dict[str, Any]:
        """What this process has by now. It is looked for object by object, so not while anything is measured."""
        gc.collect()
        alive = sum(isinstance(found, greenlet.greenlet) and not found.dead for found in gc.get_objects())
        return {"greenlets": alive, "files": len(os.listdir("/proc/self/fd")), "times": watched.times}

    return app


def _voice(kind: str, processes: int, watched: Watched) -> Voice:
    activity = Silero(processes=processes)
    activity.warm()
    if kind == SCRIPTED:
        return Voice(transcriber=ScriptedTranscriber(), synthesizer=ScriptedSynthesizer(), activity=activity)
    from flask_llmstream.providers.espeak import Espeak
    from flask_llmstream.providers.pocketsphinx import PocketSphinx

    transcriber, synthesizer = PocketSphinx(), Espeak()
    transcriber.warm()
    synthesizer.warm()
    return Voice(
        transcriber=WatchedTranscriber(transcriber, watched),
        synthesizer=WatchedSynthesizer(synthesizer, watched),
        activity=activity,
    )
