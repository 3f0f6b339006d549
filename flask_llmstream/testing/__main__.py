"""The model server as a process: prints its base URL in one line once it listens, and serves until a signal."""

from __future__ import annotations

import argparse
import signal
import threading
from types import FrameType

from .schedule import Schedule
from .server import ModelServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flask_llmstream.testing", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--tokens", type=int, default=400, help="tokens an answer (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second, 0: as fast as possible")
    parser.add_argument("--first-token", type=float, default=0.0, metavar="SECONDS", help="delay of the first one")
    parser.add_argument("--key", help="the API key that requests must bear")
    parser.add_argument("--stamp", action="store_true", help="each token tells when it was sent: t<monotonic ns>")
    parser.add_argument("--transcript", default="Hello there.", metavar="TEXT", help="what it hears (%(default)s)")
    parser.add_argument("--speech", type=float, default=0.0, metavar="SPEED", help="times real time, 0: all at once")
    options = parser.parse_args()
    schedule = Schedule(
        tokens=options.tokens,
        rate=options.rate or None,
        first_token_delay=options.first_token,
        stamp=options.stamp,
    )
    ended = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with ModelServer(schedule, key=options.key, host=options.host, port=options.port) as server:
        server.transcriptions.schedule = Schedule(tokens=options.transcript)
        server.speech.schedule = Schedule(rate=10 * options.speech or None)
        print(server.base_url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
