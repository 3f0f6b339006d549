"""Programs that some tests need and that pip does not install: found, or the test says why it was skipped."""

from __future__ import annotations

import os
import shutil

import pytest

# Where Debian puts them: /usr/sbin is not on everybody's PATH.
PLACES = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "nginx": ("nginx", "/usr/sbin/nginx"),
    "redis-server": ("redis-server", "valkey-server"),
}


def find(component: str) -> str | None:
    """The path of a program's executable, or None where it is not installed."""
    return next((path for name in PLACES[component] if (path := shutil.which(name))), None)


def require(component: str) -> str:
    """The path of a program's executable. Without it the test is skipped; under ``CI=true`` it fails.

    :param component: a key of `PLACES`. A test that calls this, itself or by a fixture, carries the mark
        ``needs(component)`` too, by which runs that leave such tests out know it.
    """
    if path := find(component):
        return path
    reason = f"{component} is not installed: on Debian, `apt install {component}`"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}. CI runs every test.", pytrace=False)
    pytest.skip(reason)
