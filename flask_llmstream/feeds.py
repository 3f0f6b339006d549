"""The view of an owner's feed: one stream that tells of all their runs, for sidebars, toasts and other tabs."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from .anyrun import AnyRun
from .codecs.native import NativeCodec
from .cursor import Cursor
from .errors import InvalidCursor, Overloaded, StoreUnavailable
from .feed import Entry
from .identity import recognize, welcome
from .links import Links
from .problems import with_problems
from .record import Record
from .requests import cursor, require_known_origin
from .streams import EventStream, come_back, stream_response

log = logging.getLogger("flask_llmstream")

FEED = "runs"
"""Stands for the run in the ids of a feed."""

_decode = msgspec.json.Decoder(dict[str, dict[str, Any]]).decode


def add_views(blueprint: Blueprint, record: Record) -> None:
    """Mount the view of feeds."""

    def feed() -> Response:
        require_known_origin(request, record)
        return _feed(record)

    blueprint.add_url_rule("/runs/events", "feed", with_problems(record.decorated(feed)), methods=["GET"])


class FeedSource:
    """What an event stream sends of a feed: how things stand, unless the client knows, and what happens from then on.

    :param at: the last entry that the client has.
    """

    finished = False
    lost = False

    def __init__(self, record: Record, owner: str, at: Cursor | None) -> None:
        self._registry = record.registry
        self._owner = owner
        self._links = Links(record)
        self._codec = NativeCodec(FEED)
        self._reader = record.feeds.read(owner, None if at is None else (at.epoch, at.n))
        self.bell = self._reader.bell
        try:
            self._from = self._reader.place
            self._first = self._news()
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return "a feed"

    def opening(self, *, retry: int, heartbeat: float) -> bytes:
        ms, number = self._from or self._reader.place or (0, 0)
        return self._codec.opening(ms, number, retry=retry, heartbeat=heartbeat)

    def take(self) -> bytes:
        if self._first:
            piece, self._first = self._first, b""
            return piece
        try:
            return self._news()
        except StoreUnavailable as error:
            log.info("a reader of a feed waits for the store: %s", error.diagnosis)
            return b""  # the next heartbeat tries again

    def close(self) -> None:
        self._reader.close()

    def _news(self) -> bytes:
        entries = self._reader.take()
        if entries is not None:
            return b"".join([self._encode(entry) for entry in entries])
        # The place first: so what happens meanwhile is told twice, and not left out.
        end = self._reader.end
        live = self._registry.listed(self._owner, live=True)
        self._reader.resume(end)
        runs = {"runs": [self._describe(run) for run in reversed(live)]}
        return self._codec.encode(*end.place, [msgspec.json.encode(runs)])

    def _encode(self, entry: Entry) -> bytes:
        told = _decode(entry.payload)
        for kind in told.keys() & {"started", "ended"}:
            told[kind]["links"] = self._links.to(told[kind]["id"])
        return self._codec.encode(*entry.place, [msgspec.json.encode(told)])

    def _describe(self, run: AnyRun) -> dict[str, Any]:
        about = {"id": run.id, "feature": run.feature, "status": run.state, "created_at": run.created_at}
        if run.conversation is not None:
            about["conversation"] = run.conversation
        return about | {"links": self._links.to(run.id)}


def _feed(record: Record) -> Response:
    visitor = recognize(record) or welcome()
    at = cursor(request)
    if at is not None and at.run_id != FEED:
        raise InvalidCursor("The cursor is one of a run, and this is no run.")
    if request.method == "HEAD":
        return stream_response(iter(()))
    try:
        with record.open.place():
            stream = EventStream(record, FeedSource(record, visitor.owner, at))
    except (Overloaded, StoreUnavailable) as error:
        return come_back(error)
    return stream.response()
