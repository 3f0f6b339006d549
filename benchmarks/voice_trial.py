"""Some calls at a time on one worker: what of their time is ours, what they cost, and what they leave behind."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

from benchmarks import process_tree, servers, voice_load
from benchmarks.servers import Server
from benchmarks.voice_app import SCRIPTED
from benchmarks.voice_load import Callers
from benchmarks.voice_providers import SPOKEN_AFTER, TRANSCRIBED_AFTER, first_sentence_after

PATH = "/api/voice"
SILENCE_MS = 500.0
RETENTION = 5
"""Seconds for which a run is kept that has ended: else memory would grow by what is kept on purpose."""
SETTLED = 15.0
"""Seconds after which a worker has taken what memory it needs for its calls."""
WARM_UP = 8.0
"""Seconds of calls that are not counted: first imports, first children, first decoders."""
GONE_WITHIN = 10.0
LOOKED_EVERY = 1.0


@dataclass(frozen=True)
class Case:
    """Calls to make.

    :param name: as printed.
    :param kind: of the application's providers.
    :param processes: in which voice activity is found; 0 for the worker itself.
    :param seconds: how long the callers ask.
    """

    name: str
    kind: str
    calls: int
    processes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question that was answered, in milliseconds.

    :param voice_to_voice: from the end of the speech to the arrival of the first audio.
    :param detector: how much later than by its energy the speech ended for the detector of voice activity.
    :param transcription: how long that took; likewise the model for its first sentence, and the speech of it.
    """

    voice_to_voice: float
    detector: float
    transcription: float
    model: float
    speech: float

    @property
    def own(self) -> float:
        """What is neither the silence that is waited for nor the providers'."""
        return self.voice_to_voice - SILENCE_MS - self.detector - self.transcription - self.model - self.speech


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case. Times in milliseconds, if the name does not say otherwise.

    :param asked: questions.
    :param understood: the words of each.
    :param flushes: from the onset of speech during an answer to the arrival of the flush.
    :param onsets: how much of that the detector was late, or early, with the onset.
    :param gaps: how long answers fell silent in between.
    :param seconds: how long it took.
    :param call_seconds: of all calls together.
    :param worker_cpu: seconds; likewise of its children, and what the worker had to wait for a core.
    :param memory: bytes of the worker, once a second.
    :param before: greenlets and open files before the first call, while all are idle at the end, and after them.
    """

    turns: Sequence[Turn] = field(repr=False)
    asked: int
    understood: Sequence[str] = field(repr=False)
    flushes: Sequence[float] = field(repr=False)
    onsets: Sequence[float] = field(repr=False)
    gaps: Sequence[float] = field(repr=False)
    seconds: float
    call_seconds: float
    worker_cpu: float
    children_cpu: float
    worker_waited: float
    memory: Sequence[int] = field(repr=False)
    before: Mapping[str, Any] = field(repr=False)
    during: Mapping[str, Any] = field(repr=False)
    after: Mapping[str, Any] = field(repr=False)
    problems: Sequence[str]
    log: str
    late: Sequence[float] = field(repr=False)
    callers_percent: float
    machine_load: float

    @property
    def growth(self) -> float:
        """MiB of memory that the worker took from when it had settled to the end."""
        settled = self.memory[int(SETTLED / LOOKED_EVERY) :] or self.memory
        third = max(1, len(settled) // 3)
        return (sum(settled[-third:]) - sum(settled[:third])) / third / 2**20


def run(case: Case) -> Outcome:
    """Have the calls made."""
    with NamedTemporaryFile("w+", suffix=".log") as log, _server(case, log) as server:
        target = urlsplit(server.url)
        where = Callers(
            host=target.hostname or servers.HOST,
            port=target.port or 80,
            path=PATH,
            calls=case.calls,
            seconds=case.seconds,
        )
        warm = voice_load.begin(replace(where, seconds=WARM_UP))
        voice_load.go_on(warm)
        voice_load.wait(warm)
        voice_load.finish(warm)
        before = _settled(server)
        callers = voice_load.begin(where)
        worker = _worker(server)
        used = _used(worker)
        with _watched(worker) as memory:
            voice_load.go_on(callers)
            voice_load.wait(callers)
        used = [now - then for now, then in zip(_used(worker), used, strict=True)]
        during = _state(server)
        report = voice_load.finish(callers)
        after = _settled(server, before)
        log.seek(0)
        said = log.read()
    return _outcome(case, report, used, memory, before, during, after, said)


def _outcome(
    case: Case,
    report: dict[str, Any],
    used: Sequence[float],
    memory: Sequence[int],
    before: Mapping[str, Any],
    during: Mapping[str, Any],
    after: Mapping[str, Any],
    log: str,
) -> Outcome:
    calls = report["calls"]
    asked = [(number, one) for number, call in enumerate(calls) for one in call["asked"]]
    turns = [_turn(case, number, one, during["times"]) for number, one in asked if one["audio"] is not None]
    barges = [one for _, one in asked if one["interrupts"] and one["flush"] is not None]
    return Outcome(
        turns=turns,
        asked=len(asked),
        understood=[one["text"] for _, one in asked],
        flushes=[(one["flush"] - one["onset"]) * 1000 for one in barges],
        onsets=[one["began_ms"] - one["onset_ms"] for one in barges if one["began_ms"] is not None],
        gaps=[gap * 1000 for call in calls for gap in call["gaps"]],
        seconds=report["seconds"],
        call_seconds=case.calls * report["seconds"],
        worker_cpu=used[0],
        children_cpu=used[1],
        worker_waited=used[2],
        memory=memory,
        before=before,
        during=during,
        after=after,
        problems=[problem for call in calls for problem in call["problems"]],
        log=log,
        late=[late * 1000 for call in calls for late in call["lateness"]],
        callers_percent=100 * report["cpu_seconds"] / report["seconds"],
        machine_load=os.getloadavg()[0],
    )


def _turn(case: Case, number: int, one: Mapping[str, Any], times: Sequence[Any]) -> Turn:
    audio = one["audio"]
    transcription, speech = TRANSCRIBED_AFTER, SPOKEN_AFTER
    if case.kind != SCRIPTED:
        transcription, speech = (
            next(
                until - since
                for what, whose, since, until in times
                if (what, whose) == (kind, f"call-{number}") and one["end"] < until < audio
            )
            for kind in ("transcription", "speech")
        )
    return Turn(
        voice_to_voice=(audio - one["end"]) * 1000,
        detector=one["stopped_ms"] - one["end_ms"],
        transcription=transcription * 1000,
        model=first_sentence_after() * 1000,
        speech=speech * 1000,
    )


@contextmanager
def _server(case: Case, log: Any) -> Iterator[Server]:
    settings = {"FLASK_BENCHMARK_VOICE": case.kind, "FLASK_BENCHMARK_PROCESSES": str(case.processes)}
    settings["FLASK_LLMSTREAM_RETENTION"] = str(RETENTION)
    with servers.flask(None, name=case.name, app="benchmarks.voice_app", settings=settings, stderr=log) as server:
        yield server


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """The memory of a process, once a second."""
    over, memory = Event(), list[int]()

    def watch() -> None:
        while not over.wait(LOOKED_EVERY):
            memory.append(_resident(pid))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


def _worker(server: Server) -> int:
    """gunicorn's worker: the first below its master."""
    return process_tree.tree(server.pid)[1]


def _used(worker: int) -> list[float]:
    """Seconds: the worker's CPU, that of its children, and how long the worker waited for a core."""
    children = [pid for pid in process_tree.tree(worker) if pid != worker]
    own, waited = _scheduled(worker)
    return [own, sum(_scheduled(pid)[0] for pid in children), waited]


def _scheduled(pid: int) -> tuple[float, float]:
    """Seconds that a process has run, and that it was ready to; in nanoseconds in /proc, not in ticks."""
    totals = [0, 0]
    for task in Path(f"/proc/{pid}/task").iterdir():
        ran, waited, _ = (task / "schedstat").read_text().split()
        totals[0] += int(ran)
        totals[1] += int(waited)
    return totals[0] / 1e9, totals[1] / 1e9


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _state(server: Server) -> dict[str, Any]:
    target = urlsplit(server.url)
    with urllib.request.urlopen(f"http://{target.netloc}/state", timeout=30) as response:
        state: dict[str, Any] = json.load(response)
    return state


def _settled(server: Server, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a worker has when its calls have gone; it is given a while for that."""
    give_up = time.monotonic() + GONE_WITHIN
    least = _state(server)
    while time.monotonic() < give_up:
        time.sleep(0.5)
        state = _state(server)
        if before is None and state["greenlets"] == least["greenlets"]:
            return state
        if before is not None and state["greenlets"] <= before["greenlets"]:
            return state
        least = state
    return least
