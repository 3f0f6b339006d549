"""Runs that nobody reads any more: stopped, once it is known that they are read nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .drain import Drain
from .errors import StoreUnavailable
from .ledger import Ledger
from .run import Run
from .runtime import current

log = logging.getLogger("flask_llmstream")


class Orphans:
    """The runs of this process that have lost their last reader here.

    :param drain: knows whether readers have been sent away, and may come back.
    :param stop: has a run end.
    """

    def __init__(self, ledger: Ledger, drain: Drain, stop: Callable[[Run], None]) -> None:
        self._ledger = ledger
        self._drain = drain
        self._stop = stop

    def add(self, run: Run) -> None:
        """Nobody reads it here any more, and perhaps nowhere."""
        if awaited := self._drain.awaited:
            run.audience.wait_again(awaited)
        elif self._ledger.store.shared:
            try:
                current().task(lambda: self._stop_unless_read(run), lambda: None).start()
            except RuntimeError:  # no thread is to be had now
                run.audience.wait_again(0)
        else:
            self._give_up(run)

    def _stop_unless_read(self, run: Run) -> None:
        try:
            ago = self._ledger.frames.elsewhere(run.id)
        except StoreUnavailable:  # others may read it; what cannot be asked is no reason to break off
            run.audience.wait_again(run.audience.grace or 0.0)
            return
        if run.audience.is_gone(ago):
            self._give_up(run)

    def _give_up(self, run: Run) -> None:
        log.info("run %s of %s is stopped: nobody reads it", run.id, run.feature)
        self._stop(run)
