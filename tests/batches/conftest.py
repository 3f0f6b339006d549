from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.batches.sorting import Sorting
from tests.jobs.house import House


@pytest.fixture
def house(request, store_server):
    """Opens applications: over the embedded store, and over a Redis with somebody at work."""
    server = None if store_server is None else request.getfixturevalue("redis_server")
    with ExitStack() as stack:
        yield House(server, stack)


@pytest.fixture
def sorting(house):
    """An application that has something to do for batches."""
    return Sorting(house)
