from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from flask_llmstream.ledger import Ledger
from flask_llmstream.store import EmbeddedStore, RedisStore, Store
from tests import leaks
from tests.components import require
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A busy machine is no reason to fail.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# Without the last ones a browser with no way out keeps trying to reach its maker.
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
]

# Where tests wait for processes and browsers, which takes by far the most of the time.
SLOW = (
    "batches",
    "browser",
    "client",
    "cluster",
    "servers",
    "servers/deploys",
    "sockets",
    "voice",
    "voices",
    "workers",
)
ROOT = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files come first, those of all folders in turn: files that wait and files that compute go side by side, and
    at the end there are short ones for whichever process has nothing to do. (Given ``--no-loadscope-reorder``.)
    """
    seen: defaultdict[str, dict[Path, int]] = defaultdict(dict)

    def place(item: pytest.Item) -> tuple[bool, int, str]:
        folder = item.path.parent.relative_to(ROOT).as_posix() if item.path.is_relative_to(ROOT) else "."
        files = seen[folder]
        return folder not in SLOW, files.setdefault(item.path, len(files)), folder

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, before any fixture starts."""
    for mark in item.iter_markers("needs"):
        require(*mark.args)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """The leak check. Fixtures of wider scope are set up before it, so what they keep alive is no leak."""
    before = leaks.alive()
    yield
    leaked = leaks.left_behind(before)
    assert not leaked, f"the test left behind: {', '.join(sorted(leaked))}"


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    """One Redis for all tests of a process. Tests ask for `redis_server`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(redis_process: RedisServer) -> Iterator[RedisServer]:
    """The shared Redis, empty. A test that ends it or changes its settings starts one of its own."""
    pid = redis_process.pid
    redis_process.client().flushall()
    yield redis_process
    redis_process.resume()
    assert redis_process.pid == pid, "the shared Redis was ended: a test that does so needs `with RedisServer() as ...`"


@pytest.fixture(scope="session", params=["embedded", pytest.param("redis", marks=pytest.mark.needs("redis-server"))])
def store_server(request: pytest.FixtureRequest) -> RedisServer | None:
    """What is behind `store`. It starts before the leak check, which asks for no fixture of a session itself."""
    return request.getfixturevalue("redis_process") if request.param == "redis" else None


@pytest.fixture
def store(request: pytest.FixtureRequest, store_server: RedisServer | None) -> Iterator[Store]:
    """A store, empty: once the embedded one, and once a Redis."""
    if store_server is None:
        store: Store = EmbeddedStore()
    else:
        store = RedisStore(request.getfixturevalue("redis_server").url, "llmstream:")
    yield store
    store.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a process: Playwright allows no second one beside it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require("chromium"), args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """The ledger of a process among several."""
    return Ledger(store, retention=600, lease=60)
