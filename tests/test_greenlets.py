"""What processes share, once more over greenlets: sockets, locks and waits are others there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("redis-server")


@pytest.mark.parametrize("what", ["test_subscriptions", "test_shared_journal", "mirror/test_gaps", "test_leases"])
def test_over_greenlets(what):
    here = Path(__file__).parent
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "gevent.monkey", "--module", "pytest", *options, str(here / f"{what}.py")]
    ran = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
