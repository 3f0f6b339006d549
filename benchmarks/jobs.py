"""What a job that does nothing costs workers of each kind, how many wait at a time, how soon a client has its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median

from benchmarks import crowd, errands, process_tree, servers, workers
from benchmarks.crowd import Crowd
from benchmarks.errands import Errands
from benchmarks.figures import percentile, spread
from benchmarks.jobs_app import ERRANDS, LASTS
from benchmarks.servers import Redis, Server
from benchmarks.table import Table
from benchmarks.workers import FORKS, GREENLETS, KINDS, RQ_FORKS, RQ_SIMPLE, Work

AIM = 4
"""Seconds for a crowd of jobs that last three."""
FORKED = 5
"""Of so many jobs, one is done where each is forked for: it takes that much longer."""
WARM_UP = 10
TOKENS, RATE = 60, 20.0
"""Of a model's answer, which lasts as long as the sleep of those who do not ask one."""
MIB = 2**20


def measure(*, jobs: int, at_a_time: int, rounds: int) -> None:
    """Run the benchmark and print it.

    :param jobs: that do nothing, a round.
    :param at_a_time: jobs that wait at a time, in one process.
    :param rounds: how often each is done.
    """
    with ExitStack() as running:
        model = running.enter_context(servers.upstream(tokens=TOKENS, rate=RATE))
        redis = running.enter_context(servers.redis())
        web = running.enter_context(servers.flask(model, redis, name="web, Redis", app=workers.APP))
        posts, work = _take_turns(model, redis, web, jobs, rounds)
        crowds = {
            case.name: [crowd.run(case, model, redis, web, at_a_time) for _ in range(rounds)] for case in crowd.CASES
        }
        waits = _run_errands(model, redis, web, jobs // FORKED, rounds)
    print(f"{jobs} jobs that do nothing, a fifth where each is forked for; rounds: {rounds}; median (lowest-highest)\n")
    _print_work(work)
    print(f"\nCPU of the web process a POST: {spread(posts, '.2f')} ms\n")
    print(f"{at_a_time} jobs of {LASTS:g} s at a time in one process\n")
    _print_crowds(crowds)
    print("\nA client's job that does nothing, one after the other, from POST to result\n")
    _print_errands(waits)


def _take_turns(
    model: Server, redis: Redis, web: Server, jobs: int, rounds: int
) -> tuple[list[float], dict[str, list[Work]]]:
    """Have workers of every kind do jobs that do nothing, in turns; also returns what the POSTs cost, in ms."""
    posts: list[float] = []
    results: dict[str, list[Work]] = {kind.name: [] for kind in KINDS}
    with ExitStack() as running:
        all_of_them = [
            running.enter_context(workers.running(kind, model, redis, f"turn-{number}"))
            for number, kind in enumerate(KINDS)
        ]
        for worker in all_of_them:
            workers.park(worker, web, WARM_UP)
            workers.work_off(worker, WARM_UP)
        for number in range(rounds):
            for worker in all_of_them if number % 2 == 0 else reversed(all_of_them):
                some = max(1, jobs // FORKED) if worker.kind.forks else jobs
                before = process_tree.cpu_seconds(web.pid)
                workers.park(worker, web, some)
                if worker.kind is GREENLETS:
                    posts.append((process_tree.cpu_seconds(web.pid) - before) * 1000 / some)
                results[worker.kind.name].append(workers.work_off(worker, some))
                if worker.kind.runs:
                    workers.require_completed(web, some)
    return posts, results


def _run_errands(model: Server, redis: Redis, web: Server, jobs: int, rounds: int) -> dict[str, list[Errands]]:
    results: dict[str, list[Errands]] = {}
    with (
        workers.running(GREENLETS, model, redis, ERRANDS),
        servers.flask(model, name="web, in process", app=workers.APP) as alone,
    ):
        for number in range(rounds):
            for server in (web, alone) if number % 2 == 0 else (alone, web):
                results.setdefault(server.name, []).append(errands.run(server, jobs))
    return {"Redis and a worker": results[web.name], "in the web process": results[alone.name]}


def _print_work(results: Mapping[str, Sequence[Work]]) -> None:
    table = Table(list(results))
    rows = {
        name: {
            "jobs a second": spread([work.jobs / work.seconds for work in rounds], ".0f"),
            "wall a job, ms": spread([work.seconds * 1000 / work.jobs for work in rounds], ".2f"),
            "CPU a job, ms": spread([work.cpu_ms for work in rounds], ".2f"),
            "CPU of Redis a job, ms": spread([work.redis_ms for work in rounds], ".3f"),
            "messages to Redis a job": spread([work.messages for work in rounds], ".1f"),
        }
        for name, rounds in results.items()
    }
    for label in rows[GREENLETS.name]:
        table.row(label, {name: cells[label] for name, cells in rows.items()})
    table.print()
    print()
    for ours, theirs in ((GREENLETS, RQ_SIMPLE), (FORKS, RQ_FORKS)):
        pairs = zip(results[ours.name], results[theirs.name], strict=True)
        ratio = median(mine.cpu_ms / other.cpu_ms for mine, other in pairs)
        print(f"ratio of CPU a job, {ours.name} to {theirs.name}: {ratio:.2f}")


def _print_crowds(results: Mapping[str, Sequence[Crowd]]) -> None:
    table = Table(list(results))
    rows = {
        name: {
            f"to the end of the last, s (aim < {AIM})": spread([crowd.work.seconds for crowd in rounds], ".2f"),
            "CPU a job, ms": spread([crowd.work.cpu_ms for crowd in rounds], ".2f"),
            "CPU of Redis a job, ms": spread([crowd.work.redis_ms for crowd in rounds], ".3f"),
            "messages to Redis a job": spread([crowd.work.messages for crowd in rounds], ".1f"),
            "connections to Redis": spread([crowd.connections for crowd in rounds], ".0f"),
            "RSS added, MiB": spread([crowd.added / MIB for crowd in rounds], ".1f"),
        }
        for name, rounds in results.items()
    }
    for label in next(iter(rows.values())):
        table.row(label, {name: cells[label] for name, cells in rows.items()})
    table.print()


def _print_errands(results: Mapping[str, Sequence[Errands]]) -> None:
    table = Table(list(results))
    for percent in (50, 99):
        cells = {
            name: spread([percentile(run.waits, percent) for run in rounds], ".1f") for name, rounds in results.items()
        }
        table.row(f"p{percent}, ms", cells)
    cpu = {name: spread([run.cpu_ms for run in rounds], ".2f") for name, rounds in results.items()}
    table.row("CPU of the web process, ms", cpu)
    table.print()
