"""One address of the model server: what its requests get, and what it has seen of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from . import strict

State = Literal["active", "completed", "refused", "cut", "cancelled"]


@dataclass(eq=False, slots=True)
class Received:
    """A request that the model server got, and how its answer goes.

    :param number: 1 for the first of its endpoint.
    :param connection: which TCP connection it came over; 1 is the server's first.
    :param headers: by lower-case name.
    :param body: the request's JSON, or the fields of its form.
    :param state: ``active``; ``completed``: the answer was sent to its end; ``refused``: it had an error status;
        ``cut``: it broke off as its schedule said; ``cancelled``: the client closed before the end.
    :param tokens_sent: pieces sent so far.
    :param started_at: `time.monotonic` when the request was in.
    :param ended_at: `time.monotonic` at the end: for ``cancelled``, when the client's close was seen.
    """

    number: int
    connection: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    state: State = "active"
    tokens_sent: int = 0
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None

    @property
    def json_schema(self) -> Mapping[str, Any] | None:
        """The schema that the answer is to fit; None where it is to be plain text."""
        return strict.asked_for(self.body)


R = TypeVar("R", bound=Received)
S = TypeVar("S")


class Endpoint(Generic[R, S]):
    """Plays a schedule, or a script, to each request.

    :param schedule: what each request gets, or a function of the `Received` request that returns it. It may be
        replaced at any time.
    """

    def __init__(self, schedule: S | Callable[[R], S]) -> None:
        self.schedule = schedule
        self.requests: list[R] = []
        self._queue: deque[S] = deque()

    def then(self, *schedules: S) -> None:
        """Answer the next requests with these, in order, and only then with `schedule` again."""
        self._queue.extend(schedules)

    def reset(self) -> None:
        """Forget the requests and the queue."""
        self._queue.clear()
        self.requests = []

    @property
    def active(self) -> int:
        """How many answers are under way."""
        return self._count("active")

    @property
    def completed(self) -> int:
        """How many answers were sent to their end."""
        return self._count("completed")

    @property
    def cancelled(self) -> int:
        """How many answers ended early because the client closed its connection."""
        return self._count("cancelled")

    def receive(self, received: R) -> S:
        """For a connection: enter a request into the books. Returns what it gets."""
        self.requests.append(received)
        if self._queue:
            return self._queue.popleft()
        return self.schedule(received) if callable(self.schedule) else self.schedule

    def _count(self, state: State) -> int:
        return sum(request.state == state for request in self.requests)
