"""A reader who goes from process to process and takes up the run at any event that it has, while tokens flow."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from random import Random
from typing import Any

from flask_llmstream.cursor import Cursor
from tests.servers.client import PATIENCE, TERMINALS, Answer, Gone
from tests.servers.serving import Server

LEAVING = (Answer.leave, Answer.leave_by_fin, Answer.leave_by_reset, Answer.leave_by_half_close)
STAYS = (0, 1, 2, 5, 15, 40, None)
"""Events that a reader stays for; None stays to the end."""


class Hopper:
    """One reader of one run.

    :param servers: where it may go.
    :param patient: whether it comes back after a refusal and a cut, which it has no reason to expect otherwise.
    """

    def __init__(
        self, servers: Sequence[Server], location: str, user: str, dice: Random, *, patient: bool = False
    ) -> None:
        self.events: dict[int, bytes] = {}
        """What it has read, by number."""
        self.hops = 0
        self.setbacks = 0
        self._servers = servers
        self._location = location
        self._user = user
        self._dice = dice
        self._patient = patient
        self._run_id = location.rpartition("/")[2]

    @property
    def ended(self) -> bool:
        return bool(self.events) and is_terminal(self.events[max(self.events)])

    @property
    def payloads(self) -> list[Any]:
        """All events of the run, in order."""
        assert sorted(self.events) == list(range(1, len(self.events) + 1))
        return [json.loads(self.events[n]) for n in sorted(self.events)]

    @property
    def text(self) -> str:
        return "".join(payload.get("token", "") for payload in self.payloads)

    def follow(self, answer: Answer | None = None) -> None:
        """Read the run to its end, here and there.

        :param answer: one that it has already.
        """
        if answer is not None:
            self._read(answer, 0)
        give_up = time.monotonic() + 3 * PATIENCE
        while not self.ended:
            assert time.monotonic() < give_up, f"after {self.hops} hops it has {len(self.events)} events"
            self._hop()

    def _hop(self) -> None:
        self.hops += 1
        after = self._place()
        cursor = {"Last_Event_ID": str(Cursor(self._run_id, 1, after))} if after else {}
        server = self._dice.choice(self._servers)
        with server.get(f"{self._location}/events", X_User=self._user, **cursor) as answer:
            self._read(answer, after)

    def _place(self) -> int:
        """Behind its last event, mostly; else behind any that it has, or before the first."""
        last = len(self.events)
        return last if self._dice.random() < 0.6 else self._dice.randint(0, last)

    def _read(self, answer: Answer, after: int) -> None:
        stay = self._dice.choice(STAYS)
        if stay == 0:
            self._dice.choice(LEAVING)(answer)
            return
        if self._patient and answer.status == 503:
            self._rest()
            return
        assert answer.status == 200, (answer.status, answer.read())
        n = after
        while stay is None or n < after + stay:
            try:
                event = answer.server_event()
            except Gone:
                break
            n += 1
            assert event.id == str(Cursor(self._run_id, 1, n))
            assert self.events.setdefault(n, event.data) == event.data
        if self.ended:
            assert answer.server_events() == []
            assert answer.ending == "end"
        elif answer.ending is None:
            self._dice.choice(LEAVING)(answer)
        else:
            assert self._patient and answer.ending == "reset", f"a stream broke off: {answer.ending}"
            self._rest()

    def _rest(self) -> None:
        self.setbacks += 1
        time.sleep(0.05)


def is_terminal(data: bytes) -> bool:
    return any(kind in json.loads(data) for kind in TERMINALS)
