from __future__ import annotations

import pytest

from flask_llmstream.mirror import Mirrors
from flask_llmstream.store import Subscription
from tests.elsewhere import Writer


@pytest.fixture
def mirrors(ledger):
    mirrors = Mirrors(ledger, lambda about: about.data, refresh=3600)
    yield mirrors
    assert len(mirrors) == 0, "somebody still reads"


@pytest.fixture
def writer(ledger):
    return Writer(ledger)


@pytest.fixture
def deaf(store, monkeypatch):
    """Nothing that is published arrives by itself. Gives who would have heard it, by channel."""
    receivers = {}

    def subscribe(channel, receive, *, lost=lambda: None):
        receivers[channel] = receive
        return Subscription(lambda: receivers.pop(channel, None))

    monkeypatch.setattr(store, "subscribe", subscribe)
    return receivers
