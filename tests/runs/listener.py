"""A client that listens to what is told of its runs."""

from __future__ import annotations

import json
import time

from flask_llmstream.sse import Decoder
from tests.conversation import ask, events
from tests.puppet import PATIENCE

FEED = "/api/runs/events"


def key():
    """A question of its own."""
    return {"Idempotency-Key": f"{time.monotonic_ns():022}"}


class Listener:
    """A client of a feed, which reads only when it is asked what it has heard.

    :param after: the id of the event that it has.
    """

    def __init__(self, client, after=None, **more):
        headers = {"Last-Event-ID": after} if after else {}
        self.response = client.get(FEED, headers=headers | more.pop("headers", {}), **more)
        self.decoder = Decoder()
        self._events = self._read()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.response.close()

    def _read(self):
        assert self.response.status_code == 200, self.response.text
        deadline = time.monotonic() + PATIENCE
        for piece in self.response.response:
            assert time.monotonic() < deadline, "it was not told in time"  # there are heartbeats, or it would wait on
            yield from self.decoder.feed(piece)

    def event(self):
        """The next event, and its id."""
        event = next(self._events)
        return json.loads(event.data), event.id

    def hears(self, kind):
        """The next event, which is of a kind."""
        said, _ = self.event()
        assert list(said) == [kind]
        return said[kind]


def finished_run(client):
    answer = ask(client, headers=key())
    events(answer)
    return answer.headers["Location"].rsplit("/", 1)[1]


def links(run_id):
    url = f"/api/runs/{run_id}"
    return {"self": url, "events": f"{url}/events", "cancel": f"{url}/cancel"}
