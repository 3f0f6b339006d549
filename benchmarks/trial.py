"""One load on one server, measured from just before it to just after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import load, process_tree
from benchmarks.figures import Figures, figures, require_tokens
from benchmarks.load import Load
from benchmarks.servers import Server

WARM_UP_STREAMS = 10
# What a stream may take beyond the time its tokens need, on a machine that is busy with other things.
PATIENCE = 30


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """When streams start, and what the upstream answers each with.

    :param streams: how many start.
    :param apart: seconds between two starts; 0 starts all at once.
    :param tokens: tokens of each answer.
    :param rate: tokens a second of each answer.
    """

    streams: int
    apart: float
    tokens: int
    rate: float

    @property
    def name(self) -> str:
        return f"{self.streams} at once" if not self.apart else f"{self.streams}, {self.apart * 1000:.0f} ms apart"

    def load_on(self, server: Server) -> Load:
        return Load(
            url=server.url,
            streams=self.streams,
            apart=self.apart,
            patience=2 * self.tokens / self.rate + PATIENCE,
            model=server.model,
        )


def run(server: Server, pattern: Pattern, *, model: Server) -> Figures:
    """Put a load on a server and say what it cost.

    :param model: the upstream, whose share of the machine is noted too.
    """
    cpu_before, model_before = process_tree.cpu_seconds(server.pid), process_tree.cpu_seconds(model.pid)
    redis_before = server.redis.cpu_seconds() if server.redis else 0
    outcome = load.put_on(pattern.load_on(server))
    return figures(
        outcome.transcripts,
        tokens_each=pattern.tokens,
        cpu_seconds=process_tree.cpu_seconds(server.pid) - cpu_before,
        load_percent=100 * outcome.cpu_seconds / outcome.seconds,
        upstream_percent=100 * (process_tree.cpu_seconds(model.pid) - model_before) / outcome.seconds,
        redis_seconds=server.redis.cpu_seconds() - redis_before if server.redis else None,
    )


def warm_up(servers: Sequence[Server], pattern: Pattern) -> None:
    """Give every server a few streams at the same time: first imports, first connections, filled caches."""
    few = Pattern(streams=WARM_UP_STREAMS, apart=0, tokens=pattern.tokens, rate=pattern.rate)
    for begun in [load.begin(few.load_on(server)) for server in servers]:
        require_tokens(load.finish(begun).transcripts)
