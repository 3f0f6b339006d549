"""What pip installs: everything that the package reads at run time, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from email.message import Message
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.test_floors import MODULES, imports

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "flask_llmstream", "example_app", "tests")
BUILD = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources, since a build leaves traces beside them."""
    tree = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


def build(tree: Path, kind: str, target: Path) -> Path:
    """Build the package with the installed setuptools, so that no network is needed."""
    command = [sys.executable, "-c", BUILD.format(f"build_{kind}"), str(target)]
    ran = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return next(target.iterdir())


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    with zipfile.ZipFile(build(tree, "wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_wheel_holds_every_file_of_the_package(wheel):
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "flask_llmstream").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "flask_llmstream/py.typed" in there
    assert {name for name in wheel.namelist() if name.startswith("flask_llmstream/")} == there


def test_wheel_holds_nothing_else(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"flask_llmstream"}


def test_source_archive_builds_the_same_package(tree, wheel, tmp_path):
    with tarfile.open(build(tree, "sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in wheel.namelist() if name.startswith("flask_llmstream/")} <= names
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_metadata(metadata):
    assert metadata["Name"] == "flask-llmstream"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_every_extra_is_declared(metadata):
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "gunicorn",
        "test",
        "docs",
        "lint",
        "bench",
        "example",
        "realtime",
        "voice",
        "dev",
    }


def test_every_library_that_it_imports_is_declared(metadata):
    declared = {re.match(r"[\w-]+", requirement)[0] for requirement in metadata.get_all("Requires-Dist")}
    brought_by_flask = {"werkzeug", "click", "jinja2", "itsdangerous"}
    distributions = packages_distributions()
    for path in MODULES:
        for _, library in imports(path):
            if library and library not in sys.stdlib_module_names:
                names = {name.lower().replace("_", "-") for name in distributions[library]}
                assert names & (declared | brought_by_flask), f"{path} imports {library}, which setup.cfg does not name"


def test_pyproject_holds_the_build_system_and_ruff_alone():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(pyproject) == {"build-system", "tool"}
    assert set(pyproject["tool"]) == {"ruff"}


def test_version_has_its_entry_in_the_changes():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"\n## {setup['metadata']['version']}" in (ROOT / "CHANGES.md").read_text()
