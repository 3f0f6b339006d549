"""What it takes to go on on another process, where a line has broken while tokens flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks import followers
from benchmarks.figures import percentile
from benchmarks.followers import Following, Outcome
from benchmarks.servers import Server

AIM = 20
LEAVE_AFTER = 20
LOST = 5
PATIENCE = 60


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """How lines were taken up again.

    :param waits: milliseconds from before connecting to the arrival of the first token that had been missed.
    :param whole: streams that had every token, in order, from the two lines together.
    """

    waits: Sequence[float] = field(repr=False)
    whole: int
    streams: int

    def print(self) -> None:
        p50, p99 = percentile(self.waits, 50), percentile(self.waits, 99)
        print(f"resume on another process: p50 {p50:.1f} ms (aim < {AIM}), p99 {p99:.1f} ms")
        print(f"resumed streams complete and in order: {self.whole} of {self.streams}")


def measure(server: Server, elsewhere: Server, *, streams: int, tokens: int, rounds: int) -> Resumed:
    """Have every stream break, and be taken up by the other process a few events before.

    :param tokens: tokens of each answer.
    """
    waits: list[float] = []
    whole = 0
    # The first time is the other process's warm-up.
    for number in range(rounds + 1):
        following = Following(
            url=server.url,
            elsewhere=elsewhere.url,
            runs=streams,
            leave_after=LEAVE_AFTER,
            back=LOST,
            patience=PATIENCE,
        )
        outcome = followers.finish(followers.begin(following))
        if number:
            waits += [(reader.arrived[0] - reader.started) / 1e6 for reader in outcome.readers if reader.arrived]
            whole += complete(outcome, tokens)
    return Resumed(waits=waits, whole=whole, streams=streams * rounds)


def complete(outcome: Outcome, tokens: int) -> int:
    """How many streams had every token, from the two lines together."""
    return sum(
        after.ended and before.in_order and after.in_order and len({*before.sent, *after.sent}) == tokens
        for before, after in zip(outcome.starters, outcome.readers, strict=True)
    )
