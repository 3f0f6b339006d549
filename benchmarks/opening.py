"""What opening a stream costs: answers of one token, started one after another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from benchmarks import servers, trial
from benchmarks.figures import Figures, percentile, spread
from benchmarks.table import Table
from benchmarks.trial import Pattern

# Seldom enough that a start has ended before the next begins, on any of the servers.
STARTS_APART = 0.025


def compare(names: Sequence[str], *, streams: int, rounds: int) -> None:
    """Run the comparison and print it.

    :param names: which servers, keys of :data:`servers.COMPARED`.
    :param streams: starts a round.
    :param rounds: how often this is done on each server.
    """
    pattern = Pattern(streams=streams, apart=STARTS_APART, tokens=1, rate=50)
    results: dict[str, list[Figures]] = {}
    with ExitStack() as running:
        model = running.enter_context(servers.upstream(tokens=pattern.tokens, rate=pattern.rate))
        compared = [running.enter_context(servers.COMPARED[name](model)) for name in names]
        trial.warm_up(compared, pattern)
        results[model.name] = [trial.run(model, pattern, model=model)]
        for _ in range(rounds):
            for server in compared:
                results.setdefault(server.name, []).append(trial.run(server, pattern, model=model))
    print(f"Answers of one token: {pattern.name}; rounds: {rounds}; median (lowest-highest)\n")
    columns = [*(server.name for server in compared), model.name]
    _print_table(columns, results)
    if len(compared) == 2:
        pairs = zip(*(results[server.name] for server in compared), strict=True)
        ratio = median(ours.cpu_ms_a_stream / usual.cpu_ms_a_stream for ours, usual in pairs)
        print(f"\nratio of CPU per opened stream: {ratio:.2f}")


def _print_table(columns: Sequence[str], results: dict[str, list[Figures]]) -> None:
    table = Table(columns)
    rows = {
        name: {
            "CPU a stream, ms": spread([run.cpu_ms_a_stream for run in runs], ".2f"),
            "first token p50, ms": spread([percentile(run.first_tokens, 50) for run in runs], ".1f"),
            "first token p99, ms": spread([percentile(run.first_tokens, 99) for run in runs], ".1f"),
            "streams complete and in order": f"{sum(r.whole for r in runs)} of {sum(r.streams for r in runs)}",
        }
        for name, runs in results.items()
    }
    for label in rows[columns[0]]:
        table.row(label, {name: rows[name][label] for name in columns})
    table.print()
