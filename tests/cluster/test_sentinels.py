"""A master of Redis is lost, and sentinels name another: runs go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_llmstream.testing import ModelServer, Schedule
from tests.cluster.processes import Cluster, cluster
from tests.cluster.test_redis_faults import PAUSE, RATE, Tape, come_back
from tests.redis_server import Sentinels

pytestmark = pytest.mark.needs("redis-sentinel")

BACK_WITHIN = 15.0
"""Seconds from the new master's being named to the first start that it takes."""


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as sentinels:
        yield sentinels


@pytest.fixture
def watched(sentinels: Sentinels, upstream: ModelServer, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(sentinels.url, upstream, tmp_path) as running:
        yield running
        running.await_empty()


def test_runs_outlive_a_fail_over(watched, sentinels, upstream):
    upstream.schedule = schedule = Schedule(tokens=12 * RATE, rate=RATE)
    with watched.start(0) as answer, watched.tail(1, answer) as tail:
        here, there = Tape(answer), Tape(tail)
        here.await_tokens(RATE)
        there.await_tokens(1)
        begun = time.monotonic()
        lost = sentinels.master()
        assert sentinels.fail_over() != lost
        assert "durable" not in here.finish()
        assert here.longest_pause(begun, here.times[-1]) < PAUSE
        assert here.text == there.text == schedule.text
        there.finish()
    for at in (0, 1):
        assert come_back(watched, at, answer).text == schedule.text
    assert watched.endings(answer) == [("completed", len(schedule.text))]
    upstream.schedule = Schedule()
    for at in (0, 1):
        with watched.start(at) as next_one:
            assert next_one.text() == upstream.schedule.text
