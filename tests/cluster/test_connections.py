"""A process has one connection on which it hears the others and a handful for commands, whatever the number of readers.

That they give all channels back, and leave nothing else behind, each test of this folder checks at its end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.cluster.processes import PREFIX
from tests.servers.serving import until

pytestmark = pytest.mark.needs("redis-server")

READERS = 50
RUNS = 5
PROCESSES = 2
FOR_COMMANDS = 9
"""A pool of eight, and one for the leases."""


def test_fifty_readers(pair, redis, upstream):
    gate = Gate()
    upstream.schedule = schedule = Schedule(tokens=20, gates={10: gate})
    with ExitStack() as stack:
        started = [stack.enter_context(pair.start(0, X_User=f"user {n}")) for n in range(RUNS)]
        with ThreadPoolExecutor(READERS) as crowd:
            tails = [
                crowd.submit(pair.tail, at, started[n % RUNS], X_User=f"user {n % RUNS}")
                for n in range(READERS)
                for at in (0, 1)
            ]
            readers = [stack.enter_context(tail.result()) for tail in tails]
            for token in crowd.map(lambda reader: reader.token(), readers):
                assert token == "w1 "
        assert pair.servers[1].state()["mirrors"] == RUNS
        logs = [f"{PREFIX}log:{answer.location.rpartition('/')[2]}" for answer in started]
        assert {channel for channel in redis.channels() if "process:" not in channel} == set(logs)
        assert {subscribers for _, subscribers in redis.client().pubsub_numsub(*logs)} == {1}
        connections = redis.connections()
        assert connections["pubsub"] == PROCESSES
        assert connections["normal"] <= PROCESSES * FOR_COMMANDS
        gate.release()
        with ThreadPoolExecutor(READERS) as crowd:
            texts = set(crowd.map(lambda reader: reader.text(), readers))
        assert texts == {schedule.text.removeprefix("w1 ")}
    until(lambda: len(redis.channels()) == PROCESSES)
