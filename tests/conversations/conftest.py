"""Conversations, embedded and in Redis."""

from __future__ import annotations

import pytest

from flask_llmstream.conversations import Conversations
from tests.conversations.turns import DAY


@pytest.fixture
def kept(store):
    return Conversations(store, retention=DAY)
