"""How long the parts of a run took, on one monotonic clock that the caller reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Timing:
    """The moments of a run, in seconds on one monotonic clock, and how many tokens lie between them.

    Time to first token counts from the request, and tokens, reasoning and tool calls alike end it: to whoever
    waits, each is the first sign of an answer. Status events do not.

    :param created: the request was admitted.
    :param started: the function began.
    :param first: the first token, reasoning or tool call.
    :param last: the latest token.
    :param ended: the function ended.
    :param tokens: how many tokens came from the first to the last.
    """

    created: float
    started: float | None = None
    first: float | None = None
    last: float | None = None
    ended: float | None = None
    tokens: int = 0

    @property
    def queue_ms(self) -> float | None:
        return self._since_created(self.started)

    @property
    def ttft_ms(self) -> float | None:
        return self._since_created(self.first)

    @property
    def total_ms(self) -> float | None:
        return self._since_created(self.ended)

    @property
    def tokens_per_second(self) -> float | None:
        """The rate at which the tokens came: n tokens have n - 1 gaps between them."""
        if self.tokens < 2 or self.first is None or self.last is None or self.last <= self.first:
            return None
        return round((self.tokens - 1) / (self.last - self.first), 1)

    def _since_created(self, moment: float | None) -> float | None:
        return None if moment is None else round((moment - self.created) * 1000, 1)
