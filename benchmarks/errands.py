"""How long a client waits for a job that costs nothing: from its POST to its result, in one request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks import process_tree
from benchmarks.caller import Caller
from benchmarks.servers import Server

WARM_UP = 10
WAIT = 30
"""Seconds that the client prefers to wait."""


@dataclass(frozen=True, kw_only=True)
class Errands:
    """What some jobs came to, one after the other.

    :param waits: milliseconds from before the request to the end of the response that has the result, each.
    :param cpu_ms: CPU of the web process, a job.
    """

    waits: Sequence[float] = field(repr=False)
    cpu_ms: float


def run(web: Server, jobs: int) -> Errands:
    """Have jobs done, one after the other."""
    with Caller(web) as caller:
        for _ in range(WARM_UP):
            caller.post("/errand", wait=WAIT)
        before, waits = process_tree.cpu_seconds(web.pid), []
        for _ in range(jobs):
            begun = time.monotonic()
            caller.post("/errand", wait=WAIT)
            waits.append((time.monotonic() - begun) * 1000)
    return Errands(waits=waits, cpu_ms=(process_tree.cpu_seconds(web.pid) - before) * 1000 / jobs)
