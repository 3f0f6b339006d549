"""``python -m benchmarks stream`` and ``python -m benchmarks open``."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from benchmarks import opening, servers, stream

BOTH = "both"
USUAL_WAY = ("fastapi", "uvicorn", "uvloop", "httptools", "sse_starlette")


def main() -> None:
    options = _parser().parse_args()
    names = list(servers.COMPARED) if options.server == BOTH else [options.server]
    if "fastapi" in names:
        _need(USUAL_WAY)
    if options.mode == "stream":
        stream.compare(
            names, streams=options.streams or 50, tokens=options.tokens, rate=options.rate, rounds=options.rounds
        )
    else:
        opening.compare(names, streams=options.streams or 200, rounds=options.rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What streaming answers costs.")
    parser.add_argument("mode", choices=["stream", "open"], help="answers in full, or only their opening")
    parser.add_argument("--server", choices=[*servers.COMPARED, BOTH], default=BOTH)
    parser.add_argument("--rounds", type=int, default=2, help="how often each load is put on each server")
    parser.add_argument("--streams", type=int, help="answers at a time (50), or starts in the mode 'open' (200)")
    parser.add_argument("--tokens", type=int, default=400, help="tokens of each answer")
    parser.add_argument("--rate", type=float, default=50, help="tokens a second of each answer")
    return parser


def _need(modules: Sequence[str]) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        raise SystemExit(f"The comparison needs {names}: pip install -e '.[bench]', or use --server flask.")


if __name__ == "__main__":
    main()
