"""A hundred starts in one moment, over two processes: what may be is, and no more."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier

import pytest

from flask_llmstream.testing import Gate, Schedule
from tests.cluster.app import SLOTS
from tests.cluster.processes import Cluster
from tests.servers.client import QUESTION, Answer
from tests.servers.serving import until

pytestmark = pytest.mark.needs("redis-server")

STARTS = 100


def start_at_once(cluster: Cluster, keys: list[str], stack: ExitStack) -> list[Answer]:
    """Send starts with these keys in one moment, to the processes in turn, and wait until all have been answered."""
    together = Barrier(len(keys))

    def start(number: int, key: str) -> Answer:
        server = cluster.servers[number % len(cluster.servers)]
        together.wait()
        answer = stack.enter_context(server.post("/api/lasting", json=QUESTION, Idempotency_Key=key))
        assert answer.status
        return answer

    with ThreadPoolExecutor(len(keys)) as crowd:
        return list(crowd.map(start, range(len(keys)), keys))


def test_one_key_starts_one_run(pair, upstream):
    gate = Gate()
    upstream.schedule = schedule = Schedule(gates={2: gate})
    with ExitStack() as stack:
        answers = start_at_once(pair, [os.urandom(16).hex()] * STARTS, stack)
        assert Counter(answer.status for answer in answers) == {200: STARTS}
        assert len({answer.location for answer in answers}) == 1
        gate.release()
        assert {answer.text() for answer in answers} == {schedule.text}
    assert len(upstream.requests) == upstream.completed == 1


def test_three_slots_admit_three(pair, upstream):
    gate = Gate()
    upstream.schedule = schedule = Schedule(gates={0: gate})
    with ExitStack() as stack:
        answers = start_at_once(pair, [os.urandom(16).hex() for _ in range(STARTS)], stack)
        assert Counter(answer.status for answer in answers) == {200: SLOTS, 429: STARTS - SLOTS}
        admitted = [answer for answer in answers if answer.status == 200]
        assert len({answer.location for answer in admitted}) == SLOTS
        for answer in answers:
            if answer.status == 429:
                assert int(answer.headers["retry-after"]) > 0
                assert answer.json()["status"] == 429
        gate.release()
        assert [answer.text() for answer in admitted] == [schedule.text] * SLOTS
        assert len(upstream.requests) == upstream.completed == SLOTS
    with pair.start(1) as next_one:
        assert next_one.text() == schedule.text


def test_slots_in_use_are_never_more_than_there_are(pair, upstream):
    """While runs end and others take their place."""
    upstream.schedule = Schedule(tokens=5, rate=100)
    most = 0
    with ThreadPoolExecutor(10) as crowd:

        def start_some(number: int) -> int:
            admitted = 0
            for _ in range(10):
                with pair.start(number % 2) as answer:
                    if answer.status == 200:
                        admitted += 1
                        answer.text()
                    else:
                        assert answer.status == 429
            return admitted

        starts = [crowd.submit(start_some, number) for number in range(10)]
        while not all(start.done() for start in starts):
            most = max(most, upstream.active)
        admitted = sum(start.result() for start in starts)
    assert admitted == len(upstream.requests) == upstream.completed >= SLOTS
    assert 0 < most <= SLOTS
    until(lambda: upstream.active == 0)
