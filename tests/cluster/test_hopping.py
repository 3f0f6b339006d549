"""Readers who go from process to process at any moment and come back to any event get every event once, in order.

What is random comes from a seed, which a failure names: times differ from run to run, so a failure need not come back
at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random

import pytest

from flask_llmstream.testing import Schedule
from tests.cluster.hopping import Hopper, is_terminal
from tests.cluster.processes import Cluster
from tests.redis_server import RedisServer
from tests.servers.client import QUESTION

pytestmark = pytest.mark.needs("redis-server")

RUNS = 50
READERS = 3


def schedules(dice: Random) -> list[Schedule]:
    """Short and long, slow and at once, silent at first or not."""
    return [
        Schedule(
            tokens=dice.choice((0, 1, 5, 30, 60, 60)),
            rate=dice.choice((None, 20, 50, 100)),
            first_token_delay=dice.choice((0, 0, 0.3)),
        )
        for _ in range(RUNS)
    ]


def read_all(cluster: Cluster, planned: Sequence[Schedule], seed: str, *, patient: bool = False) -> list[Hopper]:
    """Have every run read by several readers at a time, of whom the first has started it."""
    by_question = {f"the answer number {n}": schedule for n, schedule in enumerate(planned)}
    cluster.upstream.schedule = lambda received: by_question[received.body["messages"][-1]["content"]]

    def read(number: int) -> list[Hopper]:
        dice = Random(f"{seed}, run {number}")
        user = f"user {number}"
        question = {"messages": [QUESTION["messages"][0] | {"content": f"the answer number {number}"}]}
        with dice.choice(cluster.servers).post("/api/lasting", json=question, X_User=user) as answer:
            assert answer.status == 200, answer.read()
            readers = [
                Hopper(cluster.servers, answer.location, user, Random(f"{seed}, {number}, {n}"), patient=patient)
                for n in range(READERS)
            ]
            others = [crowd.submit(reader.follow) for reader in readers[1:]]
            readers[0].follow(answer)
        for other in others:
            other.result()
        return readers

    with ThreadPoolExecutor(len(planned) * READERS) as crowd, ThreadPoolExecutor(len(planned)) as starters:
        return [reader for readers in starters.map(read, range(len(planned))) for reader in readers]


def assert_exact(readers: Sequence[Hopper], planned: Sequence[Schedule]) -> None:
    for number, schedule in enumerate(planned):
        mine = readers[number * READERS : (number + 1) * READERS]
        assert [reader.text for reader in mine] == [schedule.text] * READERS
        for reader in mine:
            assert [n for n, data in reader.events.items() if is_terminal(data)] == [len(reader.events)]
            assert reader.events == mine[0].events
            assert reader.payloads[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("seed", ["a", "b", "c"])
def test_between_two_masters(pair, seed):
    planned = schedules(Random(seed))
    readers = read_all(pair, planned, seed)
    assert_exact(readers, planned)
    assert sum(reader.hops for reader in readers) > 2 * len(readers)
    assert pair.upstream.completed == RUNS


def test_between_the_workers_of_one_master(workers):
    planned = schedules(Random("d"))
    assert_exact(read_all(workers, planned, "d"), planned)
    assert workers.upstream.completed == RUNS


@pytest.mark.parametrize("seed", ["e"])
def test_while_connections_to_redis_are_killed(pair, redis, seed):
    planned = schedules(Random(seed))
    with connections_killed(redis, Random(seed)):
        readers = read_all(pair, planned, seed, patient=True)
    assert_exact(readers, planned)


@contextmanager
def connections_killed(redis: RedisServer, dice: Random) -> Iterator[None]:
    """Now and then, one of the clients' connections is closed by Redis."""
    over = threading.Event()
    client = redis.client()

    def kill() -> None:
        while not over.wait(dice.uniform(0.02, 0.2)):
            victims = [other for other in client.client_list() if other["name"] == "llmstream"]
            if victims:
                client.client_kill_filter(_id=dice.choice(victims)["id"])

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
