"""The main comparison: many answers streaming at once, on each server in turn, several times over."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from benchmarks import process_tree, servers, trial
from benchmarks.figures import Figures, percentile, spread
from benchmarks.servers import Server
from benchmarks.table import Table
from benchmarks.trial import Pattern

AIM = 0.30
ARRIVALS_APART = 0.1
MIB = 2**20

Results = dict[tuple[str, str], list[Figures]]


@dataclass(frozen=True)
class Footprint:
    """What a server takes whatever it is asked: memory in bytes, CPU in ms a second while nobody asks."""

    resident_idle: int
    resident_peak: int
    cpu_idle: float


def compare(names: Sequence[str], *, streams: int, tokens: int, rate: float, rounds: int) -> None:
    """Run the comparison and print it.

    :param names: which servers, keys of :data:`servers.COMPARED`.
    :param streams: answers that stream at a time.
    :param tokens: tokens of each answer.
    :param rate: tokens a second of each answer.
    :param rounds: how often each load is put on each server.
    """
    # A little more than 100 ms, so that the streams' tokens don't all fall due in the same moment.
    apart = ARRIVALS_APART + 1 / rate / streams
    patterns = [
        Pattern(streams=streams, apart=0, tokens=tokens, rate=rate),
        Pattern(streams=streams, apart=apart, tokens=tokens, rate=rate),
    ]
    with ExitStack() as running:
        model = running.enter_context(servers.upstream(tokens=tokens, rate=rate))
        compared = [running.enter_context(servers.COMPARED[name](model)) for name in names]
        trial.warm_up(compared, patterns[0])
        idle = {server.name: process_tree.resident_bytes(server.pid) for server in compared}
        results: Results = {}
        cpu_idle = _measure_upstream(model, compared, patterns, results)
        for _ in range(rounds):
            for pattern in patterns:
                for server in compared:
                    figures = trial.run(server, pattern, model=model)
                    results.setdefault((server.name, pattern.name), []).append(figures)
        footprints = {
            server.name: Footprint(
                idle[server.name], process_tree.peak_resident_bytes(server.pid), cpu_idle[server.name]
            )
            for server in compared
        }
    print(f"{streams} streams of {tokens} tokens at {rate:g} tokens/s; rounds: {rounds}; median (lowest-highest)\n")
    _print_table([*footprints, model.name], patterns, results, footprints)
    if len(compared) == 2:
        _print_ratios([server.name for server in compared], patterns, results)


def _measure_upstream(
    model: Server, compared: Sequence[Server], patterns: Sequence[Pattern], results: Results
) -> dict[str, float]:
    """The same loads without a server between, the floor of every figure; also what idle servers use meanwhile."""
    begun = time.monotonic()
    before = {server.name: process_tree.cpu_seconds(server.pid) for server in compared}
    for pattern in patterns:
        results[model.name, pattern.name] = [trial.run(model, pattern, model=model)]
    seconds = time.monotonic() - begun
    return {
        server.name: (process_tree.cpu_seconds(server.pid) - before[server.name]) * 1000 / seconds
        for server in compared
    }


def _print_table(
    names: Sequence[str], patterns: Sequence[Pattern], results: Results, footprints: Mapping[str, Footprint]
) -> None:
    table = Table(names)
    floor = names[-1]
    for pattern in patterns:
        table.title(pattern.name)
        direct = percentile(results[floor, pattern.name][0].first_tokens, 50)
        runs = {name: results[name, pattern.name] for name in names}
        rows = {name: _rows(figures, direct) for name, figures in runs.items()}
        for label in rows[floor]:
            table.row(label, {name: rows[name][label] for name in names})
    table.title("whatever the load")
    table.row("idle CPU, ms a second", {name: f"{taken.cpu_idle:.1f}" for name, taken in footprints.items()})
    for label, attribute in {"RSS idle, MiB": "resident_idle", "RSS peak, MiB": "resident_peak"}.items():
        table.row(label, {name: f"{getattr(taken, attribute) / MIB:.0f}" for name, taken in footprints.items()})
    table.print()


def _rows(runs: Sequence[Figures], direct: float) -> dict[str, str]:
    """A label and a text for each figure of the rounds of one load on one server."""
    tokens, wanted = sum(run.tokens for run in runs), sum(run.tokens_wanted for run in runs)
    whole, streams = sum(run.whole for run in runs), sum(run.streams for run in runs)
    return {
        "CPU a token, µs": spread([run.cpu_us_a_token for run in runs], ".1f"),
        "token lag p50, ms": spread([percentile(run.lags, 50) for run in runs], ".2f"),
        "token lag p99, ms": spread([percentile(run.lags, 99) for run in runs], ".2f"),
        "first token p50, ms": spread([percentile(run.first_tokens, 50) for run in runs], ".1f"),
        "first token p99, ms": spread([percentile(run.first_tokens, 99) for run in runs], ".1f"),
        "added to first token p50, ms": spread([percentile(run.first_tokens, 50) - direct for run in runs], ".1f"),
        "tokens": f"{tokens} of {wanted}",
        "streams complete and in order": f"{whole} of {streams}",
        "load process busy, %": spread([run.load_percent for run in runs], ".0f"),
        "upstream busy, %": spread([run.upstream_percent for run in runs], ".0f"),
    }


def _print_ratios(names: Sequence[str], patterns: Sequence[Pattern], results: Results) -> None:
    """Each round's pair gives one ratio; the first pattern's, where all streams run all the time, counts."""
    ratios = {
        pattern.name: [
            ours.cpu_us_a_token / usual.cpu_us_a_token
            for ours, usual in zip(*(results[name, pattern.name] for name in names), strict=True)
        ]
        for pattern in patterns
    }
    print()
    for name, values in ratios.items():
        print(f"{name}: lowest {min(values):.2f}, median {median(values):.2f}, highest {max(values):.2f}")
    print(f"ratio of CPU per token: {median(ratios[patterns[0].name]):.2f} (aim ≤ {AIM:.2f})")
