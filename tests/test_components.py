"""What happens where a program that a test needs is not installed."""

from __future__ import annotations

import pytest

from tests import components


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(components, "find", lambda component: None)


def test_says_why_it_was_skipped(nothing_installed, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"nginx is not installed.*apt install"):
        components.require("nginx")


def test_fails_in_ci(nothing_installed, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI runs every test"):
        components.require("nginx")


def test_gives_the_path_of_the_program(monkeypatch, tmp_path):
    (tmp_path / "nginx").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert components.require("nginx") == str(tmp_path / "nginx")
