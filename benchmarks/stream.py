"""The main comparison: many answers streaming at once, on each server in turn, several times over."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from benchmarks import process_tree, resuming, servers, trial
from benchmarks.figures import Figures, percentile, spread
from benchmarks.servers import Server
from benchmarks.table import Table
from benchmarks.trial import Pattern

AIM = 0.30
JOURNAL_AIM = 12
REDIS = "redis"
ARRIVALS_APART = 0.1
MIB = 2**20

Results = dict[tuple[str, str], list[Figures]]


@dataclass(frozen=True)
class Footprint:
    """What a server takes whatever it is asked: memory in bytes, CPU in ms a second while nobody asks, and
    connections to Redis."""

    resident_idle: int
    resident_peak: int
    cpu_idle: float
    connections: str


def compare(names: Sequence[str], *, streams: int, tokens: int, rate: float, rounds: int, redis: bool) -> None:
    """Run the comparison and print it.

    :param names: which servers, keys of :data:`servers.COMPARED`.
    :param redis: have Flask's turn twice, the second time with a journal in Redis; and resume on another process.
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
    results: Results = {}
    resumed = None
    with ExitStack() as running:
        model = running.enter_context(servers.upstream(tokens=tokens, rate=rate))
        compared = {name: running.enter_context(servers.COMPARED[name](model)) for name in names}
        if redis:
            store = running.enter_context(servers.redis())
            compared[REDIS] = running.enter_context(servers.flask(model, store, name="Flask, Redis"))
        footprints = _take_turns(list(compared.values()), model, patterns, rounds, results)
        if redis:
            elsewhere = running.enter_context(servers.flask(model, store, name="Flask, Redis, another process"))
            resumed = resuming.measure(compared[REDIS], elsewhere, streams=streams, tokens=tokens, rounds=rounds)
    print(f"{streams} streams of {tokens} tokens at {rate:g} tokens/s; rounds: {rounds}; median (lowest-highest)\n")
    _print_table([*footprints, model.name], patterns, results, footprints)
    print()
    if "flask" in compared and "fastapi" in compared:
        _print_ratios([compared["flask"].name, compared["fastapi"].name], patterns, results)
    if "flask" in compared and REDIS in compared:
        _print_journal([compared["flask"].name, compared[REDIS].name], patterns, results)
    if resumed:
        resumed.print()


def _take_turns(
    compared: Sequence[Server], model: Server, patterns: Sequence[Pattern], rounds: int, results: Results
) -> dict[str, Footprint]:
    """Put every load on every server, several times over."""
    trial.warm_up(compared, patterns[0])
    idle = {server.name: process_tree.resident_bytes(server.pid) for server in compared}
    cpu_idle = _measure_upstream(model, compared, patterns, results)
    for number in range(rounds):
        for pattern in patterns:
            # Whoever always came second would always find the machine warmer, or wearier.
            for server in compared if number % 2 == 0 else reversed(compared):
                figures = trial.run(server, pattern, model=model)
                results.setdefault((server.name, pattern.name), []).append(figures)
    return {
        server.name: Footprint(
            idle[server.name],
            process_tree.peak_resident_bytes(server.pid),
            cpu_idle[server.name],
            server.redis.connections() if server.redis else "",
        )
        for server in compared
    }


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
    if any(taken.connections for taken in footprints.values()):
        table.row("connections to Redis", {name: taken.connections for name, taken in footprints.items()})
    table.print()


def _rows(runs: Sequence[Figures], direct: float) -> dict[str, str]:
    """A label and a text for each figure of the rounds of one load on one server."""
    tokens, wanted = sum(run.tokens for run in runs), sum(run.tokens_wanted for run in runs)
    whole, streams = sum(run.whole for run in runs), sum(run.streams for run in runs)
    by_redis = [run.redis_us_a_token for run in runs if run.redis_us_a_token is not None]
    return {
        "CPU a token, µs": spread([run.cpu_us_a_token for run in runs], ".1f"),
        "CPU of Redis a token, µs": spread(by_redis, ".1f") if by_redis else "",
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
    for name, values in ratios.items():
        print(f"{name}: lowest {min(values):.2f}, median {median(values):.2f}, highest {max(values):.2f}")
    print(f"ratio of CPU per token: {median(ratios[patterns[0].name]):.2f} (aim ≤ {AIM:.2f})")


def _print_journal(names: Sequence[str], patterns: Sequence[Pattern], results: Results) -> None:
    """What a round with Redis cost more than the same round without; the first pattern's counts."""
    for pattern in patterns:
        without, shared = (results[name, pattern.name] for name in names)
        added = [more.cpu_us_a_token - less.cpu_us_a_token for less, more in zip(without, shared, strict=True)]
        aim = f" (aim ≤ {JOURNAL_AIM})" if pattern is patterns[0] else ""
        print(f"the journal adds, {pattern.name}: {spread(added, '.1f')} µs of CPU a token{aim}")
