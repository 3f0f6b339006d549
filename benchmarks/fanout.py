"""Many readers of the same answers, all of them on another process than the one that writes these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from benchmarks import followers, process_tree, servers
from benchmarks.figures import percentile, require_tokens, spread
from benchmarks.followers import Following
from benchmarks.servers import Server
from benchmarks.table import Table

JOINED_WITHIN = 6.0
"""Seconds of silence before the first token, in which all readers join."""
PATIENCE = 60


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round came to, from when all readers were there.

    :param lags: milliseconds from the upstream's sending a token to its arrival, a delivery each.
    :param reading_us: CPU of the readers' process, a delivery.
    :param writing_us: CPU of the writers' process, a token.
    :param redis_us: CPU of Redis, a token.
    :param whole: readers that had every token once, in order, and whose response ended as HTTP wants it.
    :param late: tokens that were sent before all readers were there; the round is spoilt if there are any.
    """

    lags: Sequence[float] = field(repr=False)
    reading_us: float
    writing_us: float
    redis_us: float
    whole: int
    readers: int
    late: bool
    connections: str
    load_percent: float


def measure(*, runs: int, readers: int, tokens: int, rate: float, rounds: int) -> None:
    """Run the benchmark and print it.

    :param runs: answers that are written at a time.
    :param readers: readers of each.
    :param tokens: tokens of each answer.
    :param rate: tokens a second of each answer.
    """
    seconds = tokens / rate
    with ExitStack() as running:
        model = running.enter_context(servers.upstream(tokens=tokens, rate=rate, first_token=JOINED_WITHIN))
        store = running.enter_context(servers.redis())
        writing = running.enter_context(servers.flask(model, store, name="writes"))
        reading = running.enter_context(servers.flask(model, store, name="is read from"))
        patience = 2 * seconds + PATIENCE
        _round(writing, reading, Following(url=writing.url, elsewhere=reading.url, runs=2, patience=patience), tokens)
        following = Following(url=writing.url, elsewhere=reading.url, runs=runs, readers=readers, patience=patience)
        results = [_round(writing, reading, following, tokens) for _ in range(rounds)]
    print(f"{runs} answers of {tokens} tokens at {rate:g} tokens/s, {readers} readers each; rounds: {rounds}\n")
    _print(results)
    if any(result.late for result in results):
        print("\nTokens flowed before all readers were there: the machine is too slow or too busy for these figures.")


def _round(writing: Server, reading: Server, following: Following, tokens: int) -> Round:
    assert writing.redis
    process = followers.begin(following)
    before = _used(writing, reading)
    outcome = followers.finish(process)
    write, read, redis = (after - earlier for after, earlier in zip(_used(writing, reading), before, strict=True))
    require_tokens(outcome.readers)
    sent = sum(len(starter.sent) for starter in outcome.starters)
    deliveries = sum(len(reader.sent) for reader in outcome.readers)
    first = min(starter.sent[0] for starter in outcome.starters if starter.sent)
    last = max(starter.sent[-1] for starter in outcome.starters if starter.sent)
    return Round(
        lags=[
            (arrived - at) / 1e6
            for reader in outcome.readers
            for at, arrived in zip(reader.sent, reader.arrived, strict=True)
        ],
        reading_us=read * 1e6 / deliveries,
        writing_us=write * 1e6 / sent,
        redis_us=redis * 1e6 / sent,
        whole=sum(reader.ended and reader.in_order and len(reader.sent) == tokens for reader in outcome.readers),
        readers=following.runs * following.readers,
        late=any(reader.started > first for reader in outcome.readers),
        connections=writing.redis.connections(),
        load_percent=outcome.cpu_seconds * 1e11 / (last - min(s.started for s in outcome.starters)),
    )


def _used(writing: Server, reading: Server) -> tuple[float, float, float]:
    """CPU seconds so far."""
    assert writing.redis
    return (
        process_tree.cpu_seconds(writing.pid),
        process_tree.cpu_seconds(reading.pid),
        writing.redis.cpu_seconds(),
    )


def _print(results: Sequence[Round]) -> None:
    column = "median (lowest-highest)"
    table = Table([column])
    rows = {
        "CPU a delivery where it is read, µs": spread([result.reading_us for result in results], ".1f"),
        "CPU a token where it is written, µs": spread([result.writing_us for result in results], ".1f"),
        "CPU of Redis a token, µs": spread([result.redis_us for result in results], ".1f"),
        "token lag p50, ms": spread([percentile(result.lags, 50) for result in results], ".2f"),
        "token lag p99, ms": spread([percentile(result.lags, 99) for result in results], ".2f"),
        "readers complete and in order": f"{sum(r.whole for r in results)} of {sum(r.readers for r in results)}",
        "connections to Redis of both": results[-1].connections,
        "load process busy, %": f"{median(result.load_percent for result in results):.0f}",
    }
    for label, value in rows.items():
        table.row(label, {column: value})
    table.print()
