"""What a spoken call costs: our share of the time until its user is answered or heeded, and of the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks import voice_trial
from benchmarks.figures import percentile
from benchmarks.table import Table
from benchmarks.voice_app import OFFLINE, SCRIPTED
from benchmarks.voice_sound import QUESTION
from benchmarks.voice_trial import Case, Outcome

OWN_AIMS = {50: 40, 99: 100}
FLUSH_AIM = 150
CASES = {
    "scripted": (
        Case("1 scripted", SCRIPTED, 1, 0, 150),
        Case("20 scripted", SCRIPTED, 20, 2, 60),
    ),
    "offline": (
        Case("1 offline", OFFLINE, 1, 0, 100),
        Case("4 offline", OFFLINE, 4, 0, 60),
    ),
}


def measure(*, kind: str, rounds: int, seconds: float | None = None) -> None:
    """Run the benchmark and print it.

    :param kind: of providers: a key of `CASES`, or all of them.
    :param rounds: how often each case is measured; the turns of all rounds are put together.
    :param seconds: how long callers ask, where it is not as long as usual.
    """
    chosen = [case for name, some in CASES.items() if kind in (name, "both") for case in some]
    cases = [case if seconds is None else replace(case, seconds=seconds) for case in chosen]
    outcomes: dict[str, list[Outcome]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            outcomes[case.name].append(voice_trial.run(case))
    print(f"One gunicorn worker with gevent; calls at a time, and their providers; rounds: {rounds}\n")
    _print(outcomes)
    for name, rounds_of_it in outcomes.items():
        for outcome in rounds_of_it:
            if outcome.problems or outcome.log:
                print(f"\n{name}: {outcome.problems[:5]}\n{outcome.log[-3000:]}")


def _print(outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    table = Table(list(outcomes))
    rows = {name: _rows(rounds) for name, rounds in outcomes.items()}
    for label in next(iter(rows.values())):
        table.row(label, {name: cells[label] for name, cells in rows.items()})
    table.print()


def _rows(rounds: Sequence[Outcome]) -> dict[str, str]:
    turns = [turn for outcome in rounds for turn in outcome.turns]
    flushes = [flush for outcome in rounds for flush in outcome.flushes]
    call_seconds = sum(outcome.call_seconds for outcome in rounds)
    first, last = rounds[0], rounds[-1]
    return {
        "questions asked, answered, understood": f"{sum(outcome.asked for outcome in rounds)}, {len(turns)}, "
        f"{sum(words == QUESTION for outcome in rounds for words in outcome.understood)}",
        "voice to voice, ms: p50, p99": _two([turn.voice_to_voice for turn in turns]),
        "  silence that is waited for": f"{voice_trial.SILENCE_MS:.0f}",
        "  detector later than the energy": _two([turn.detector for turn in turns]),
        "  transcription": _two([turn.transcription for turn in turns]),
        "  the model's first sentence": _two([turn.model for turn in turns]),
        "  its first audio": _two([turn.speech for turn in turns]),
        f"  our own share (aims < {OWN_AIMS[50]}, < {OWN_AIMS[99]})": _two([turn.own for turn in turns]),
        f"onset to flush, ms: p50, p99 (aim < {FLUSH_AIM})": _two(flushes),
        "  the detector's onset later by": _two([onset for outcome in rounds for onset in outcome.onsets]),
        "interruptions": str(len(flushes)),
        "gaps in the answers, and ms of them": f"{sum(len(outcome.gaps) for outcome in rounds)}, "
        f"{sum(sum(outcome.gaps) for outcome in rounds):.0f}",
        "CPU ms a call-second: worker, children": f"{sum(o.worker_cpu for o in rounds) * 1000 / call_seconds:.1f}, "
        f"{sum(o.children_cpu for o in rounds) * 1000 / call_seconds:.1f}",
        "worker's wait for a core, ms a second": f"{_waited(rounds):.0f}",
        "worker's RSS at the end, MiB; grown by": f"{last.memory[-1] / 2**20:.0f}; {last.growth:+.1f}",
        "greenlets before, in calls, after": _three(first, last, "greenlets"),
        "open files before, in calls, after": _three(first, last, "files"),
        "callers: late p50, p99 ms; busy %": f"{_two([late for o in rounds for late in o.late])}; "
        f"{max(outcome.callers_percent for outcome in rounds):.0f}",
        "load average of the machine": ", ".join(f"{outcome.machine_load:.1f}" for outcome in rounds),
        "problems, lines in the log": f"{sum(len(outcome.problems) for outcome in rounds)}, "
        f"{sum(len(outcome.log.splitlines()) for outcome in rounds)}",
    }


def _waited(rounds: Sequence[Outcome]) -> float:
    return sum(o.worker_waited for o in rounds) * 1000 / sum(o.seconds for o in rounds)


def _three(first: Outcome, last: Outcome, what: str) -> str:
    return f"{first.before[what]}, {last.during[what]}, {last.after[what]}"


def _two(values: Sequence[float]) -> str:
    return f"{percentile(values, 50):.0f}, {percentile(values, 99):.0f}" if values else ""
