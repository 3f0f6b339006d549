"""What the README tells a newcomer to do: its commands, and the lines to add to one's own application."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from flask_llmstream.testing import ModelServer, Schedule
from tests.servers.serving import listening

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def command(heading: str) -> str:
    """The one line of shell below a heading."""
    (line,) = re.findall(rf"^## {heading}\n(?:(?!^##).*\n)*?```sh\n(.*)\n```", README, re.MULTILINE)
    return line


@pytest.mark.parametrize("heading", ["Open the example", "Run every test"])
def test_command_needs_nothing_but_python_and_a_shell(heading):
    programs = [step.split()[0] for step in command(heading).split(" && ")]
    assert programs[0] == "python3"
    assert all(program.startswith(".venv/bin/") for program in programs[1:])


@pytest.mark.parametrize("heading", ["Open the example", "Run every test", "Measure it"])
def test_command_asks_for_extras_that_exist(heading):
    extras = re.findall(r"\.\[([\w,]+)\]", command(heading))
    assert {extra for names in extras for extra in names.split(",")} <= set(SETUP["options.extras_require"])


def test_ci_runs_the_test_command_as_it_stands(tmp_path):
    for name in ("README.md", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("chromium", "flite", "nginx", "redis-server"):  # present, so that nothing is installed
        executable(programs / name, "exit 1")
    executable(programs / "bash", 'printf "%s\\n" "CI=$CI" "$@"')
    path = f"{programs}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["/bin/bash", ".ci/run"], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, timeout=30
    )
    assert ran.stdout.splitlines() == ["CI=true", "-c", command("Run every test")], ran.stderr


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_the_test_command_checks_everything():
    assert shlex.split(command("Run every test"))[-1] == ".venv/bin/tox"
    checks = SETUP["testenv:checks"]["commands"]
    for check in ("ruff check .", "ruff format --check .", "mypy", "sphinx-build -W"):
        assert f"\n{check}" in checks
    assert "-m" not in SETUP["testenv:full"]["commands"].split()[2:]
    assert SETUP["mypy"]["strict"] == "true"
    assert SETUP["tool:pytest"]["filterwarnings"] == "error"


def test_the_lines_to_add_run_as_the_commands_say(tmp_path):
    schedule = Schedule(tokens=["Good ", "morning"])
    with ModelServer(schedule, key="sk-...") as model, served(tmp_path, OPENAI_BASE_URL=model.base_url) as url:
        for path, instructions in (("/api/translate/stream", 1), ("/api/chat/stream", 0)):
            question = {"role": "user", "content": "Guten Morgen"}
            answer = httpx2.post(url + path, json={"messages": [question]}, timeout=30)
            assert answer.status_code == 200, answer.text
            assert re.findall('{"token":"(.*?)"}', answer.text) == ["Good ", "morning"]
            assert model.requests[-1].body["messages"][instructions:] == [question]
        assert httpx2.get(f"{url}/api/llmstream.js").status_code == 200
        model.then(Schedule(tokens=['{"sentiment": "neutral"}']))
        reply = httpx2.post(f"{url}/api/classify", json={"text": "Good morning"}, timeout=30)
        assert reply.json() == {"sentiment": "neutral"}, reply.text
        document = {"text": "Good.\n\nMorning."}
        job = httpx2.post(f"{url}/api/digest", json=document, headers={"Prefer": "wait=20"}, timeout=30)
        assert job.json()["result"] == {"digests": ["Good morning"] * 2}, job.text
    assert "ERROR" not in (tmp_path / "log").read_text()


@contextmanager
def served(folder: Path, **environment: str) -> Iterator[str]:
    """The lines to add to an application, under the server that stands there, on a free port."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (folder / "app.py").write_text(code)
    (command,) = re.findall(r"^gunicorn .*", README, re.MULTILINE)
    variables = dict(re.findall(r"\b((?:OPENAI_API_KEY|FLASK_\w+))=(\S+)", README.split("And in front of visitors")[1]))
    assert len(variables) == 3
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split(), "-b", "127.0.0.1:0", "--no-control-socket"],
            cwd=folder,
            env={"PATH": os.environ["PATH"]} | variables | environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield "http://{}:{}".format(*listening(process, log))
    finally:
        process.terminate()
        process.wait(30)
