"""From transcripts and CPU times to the figures that are printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.transcript import Transcript


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one load on one server came to. Times in milliseconds, if the name does not say otherwise.

    :param cpu_us_a_token: user and system time of the server's processes.
    :param cpu_ms_a_stream: the same time divided by streams.
    :param lags: from the upstream's sending a token to its arrival, a token each.
    :param first_tokens: from before connecting to the first token's arrival, a stream each.
    :param tokens: tokens that came.
    :param tokens_wanted: tokens that the upstream sent or would have sent.
    :param whole: streams whose tokens came once each, in order, and which ended as HTTP wants it.
    :param streams: streams started.
    :param load_percent: how busy the load's own process was.
    :param upstream_percent: how busy the upstream was.
    :param redis_us_a_token: what Redis used, where the server has one.
    """

    cpu_us_a_token: float
    cpu_ms_a_stream: float
    lags: Sequence[float]
    first_tokens: Sequence[float]
    tokens: int
    tokens_wanted: int
    whole: int
    streams: int
    load_percent: float
    upstream_percent: float
    redis_us_a_token: float | None = None

    @property
    def complete(self) -> bool:
        return self.whole == self.streams


def require_tokens(transcripts: Sequence[Transcript]) -> None:
    """End the benchmark, with what the server said instead, if no stream brought a token."""
    if any(stream.sent for stream in transcripts):
        return
    refused = next((stream for stream in transcripts if stream.refusal), None)
    raise SystemExit(f"No token came. HTTP {refused.status}: {refused.refusal}" if refused else "No token came.")


def figures(
    transcripts: Sequence[Transcript],
    *,
    tokens_each: int,
    cpu_seconds: float,
    load_percent: float,
    upstream_percent: float,
    redis_seconds: float | None = None,
) -> Figures:
    """Summarise one load.

    :param tokens_each: tokens that each stream should have had.
    :param cpu_seconds: what the server's processes used from before the load to after it.
    :param load_percent: how busy the load's own process was.
    :param upstream_percent: how busy the upstream was.
    :param redis_seconds: what Redis used meanwhile.
    """
    require_tokens(transcripts)
    streams = [stream for stream in transcripts if stream.sent]
    tokens = sum(len(stream.sent) for stream in streams)
    return Figures(
        cpu_us_a_token=cpu_seconds * 1e6 / tokens,
        cpu_ms_a_stream=cpu_seconds * 1e3 / len(streams),
        lags=[
            (arrived - sent) / 1e6
            for stream in streams
            for sent, arrived in zip(stream.sent, stream.arrived, strict=True)
        ],
        first_tokens=[(stream.arrived[0] - stream.started) / 1e6 for stream in streams],
        tokens=tokens,
        tokens_wanted=tokens_each * len(transcripts),
        whole=sum(stream.ended and stream.in_order and len(stream.sent) == tokens_each for stream in streams),
        streams=len(transcripts),
        load_percent=load_percent,
        upstream_percent=upstream_percent,
        redis_us_a_token=None if redis_seconds is None else redis_seconds * 1e6 / tokens,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least this part of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float], form: str) -> str:
    """The median of several rounds, and how far they lie apart."""
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}-{max(values):{form}})"
