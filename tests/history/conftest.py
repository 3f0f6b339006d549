"""Where conversations are kept."""

from __future__ import annotations

import pytest


@pytest.fixture
def config(request, store_server):
    """Where conversations are kept: once in the process, and once in Redis."""
    return {} if store_server is None else {"REDIS_URL": request.getfixturevalue("redis_server").url}


@pytest.fixture
def shared(redis_server):
    """What several processes of an application have in common."""
    return {"REDIS_URL": redis_server.url}
