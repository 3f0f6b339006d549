"""Runs that another process writes: one that a test plays, by what it leaves in the store."""

from __future__ import annotations

from flask_llmstream.ledger import Ledger
from flask_llmstream.log import Reader
from flask_llmstream.mirror import Mirror
from flask_llmstream.order import About
from flask_llmstream.runtime import current
from tests.ledgers import ABOUT, REAPED, lapse, start
from tests.orders import DONE, QUEUED, ending, left_by_its_writer


class Writer:
    """Another process, which writes a run."""

    def __init__(self, ledger: Ledger, run_id: str = "r1", about: About = ABOUT) -> None:
        start(ledger, run_id, about)
        self.ledger = ledger
        self.id = run_id
        self.about = about
        self.log = [QUEUED]

    def say(self, *tokens: bytes) -> None:
        payloads = [b'{"token":"%b"}' % token for token in tokens]
        assert self.ledger.frames.append([(self.id, 1, len(self.log), payloads, None)]) == [1]
        self.log += payloads

    def end(self, terminal: bytes = DONE) -> None:
        self.ledger.finish(self.id, self.about, ending(kept=len(self.log), terminal=terminal))
        self.log.append(terminal)

    def goes(self) -> None:
        """Its process is killed, and somebody closes the run."""
        lapse(self.ledger, self.id)
        end = left_by_its_writer(terminal=REAPED, state="failed")
        assert self.ledger.finish(self.id, self.about, end)[0] == "ended"


class Reading:
    """A reader of a copy."""

    def __init__(self, mirror: Mirror, *, epoch: int | None = None, after: int = 0) -> None:
        mirror.join()
        self.mirror = mirror
        self.reader = Reader(mirror.log, current().bell(), epoch=epoch or mirror.log.parts[0][0], after=after)

    def __enter__(self) -> Reader:
        return self.reader

    def __exit__(self, *exc_info: object) -> None:
        self.reader.leave()
        self.mirror.leave()


def has(mirror: Mirror, writer: Writer) -> bool:
    """Whether a copy is exact."""
    return mirror.log.entries == writer.log
