"""``python -m benchmarks`` with ``stream``, ``open``, ``fanout``, ``jobs`` or ``voice``."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from benchmarks import fanout, jobs, opening, servers, stream, voice

BOTH = "both"
USUAL_WAY = ("fastapi", "uvicorn", "uvloop", "httptools", "sse_starlette")


def main() -> None:
    options = _parser().parse_args()
    names = list(servers.COMPARED) if options.server == BOTH else [options.server]
    if "fastapi" in names and options.mode in ("stream", "open"):
        _need(USUAL_WAY)
    if options.mode == "stream":
        stream.compare(
            names,
            streams=options.streams or 50,
            tokens=options.tokens or 400,
            rate=options.rate or 50,
            rounds=options.rounds,
            redis=options.redis,
        )
    elif options.mode == "fanout":
        fanout.measure(
            runs=options.streams or 20,
            readers=options.readers,
            tokens=options.tokens or 100,
            rate=options.rate or 10,
            rounds=options.rounds,
        )
    elif options.mode == "jobs":
        jobs.measure(jobs=options.jobs, at_a_time=options.streams or 200, rounds=options.rounds)
    elif options.mode == "voice":
        voice.measure(kind=options.providers, rounds=options.rounds or 1, seconds=options.seconds)
    else:
        opening.compare(names, streams=options.streams or 200, rounds=options.rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What answers and jobs cost.")
    modes = "answers in full, or only their opening, or answers that many read on another process; or jobs; or calls"
    parser.add_argument("mode", choices=["stream", "open", "fanout", "jobs", "voice"], help=modes)
    parser.add_argument("--server", choices=[*servers.COMPARED, BOTH], default=BOTH)
    parser.add_argument("--rounds", type=int, default=2, help="how often each load is put on each server")
    parser.add_argument("--redis", action="store_true", help="with a journal in Redis as well (mode 'stream')")
    parser.add_argument(
        "--streams",
        type=int,
        help="answers at a time (50; fanout: 20), starts (open: 200), or jobs at a time (jobs: 200)",
    )
    parser.add_argument("--readers", type=int, default=50, help="readers of each answer (mode 'fanout')")
    parser.add_argument("--jobs", type=int, default=500, help="jobs that do nothing, a round (mode 'jobs')")
    parser.add_argument("--providers", choices=[*voice.CASES, BOTH], default=BOTH, help="of calls (mode 'voice')")
    parser.add_argument("--seconds", type=float, help="how long callers ask (mode 'voice')")
    parser.add_argument("--tokens", type=int, help="tokens of each answer (400; fanout: 100)")
    parser.add_argument("--rate", type=float, help="tokens a second of each answer (50; fanout: 10)")
    return parser


def _need(modules: Sequence[str]) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        raise SystemExit(f"The comparison needs {names}: pip install -e '.[bench]', or use --server flask.")


if __name__ == "__main__":
    main()
