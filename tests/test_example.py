"""The example application without a browser: its page, its headers, what it is made of, and how it starts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import click
import pytest
from flask import Flask

import example_app
from example_app import create_app
from example_app.__main__ import PORTS_TO_TRY, application, listen

STATIC = Path(example_app.__file__).with_name("static")
VENDOR = STATIC / "vendor"
PAGES = ["/", "/talk", "/analyze", "/extract", "/classify", "/settings"]
VENDORED = json.loads((VENDOR / "vendor.json").read_text())


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "FLASK_"))]:
        monkeypatch.delenv(name)


def page_of(app: Flask) -> str:
    response = app.test_client().get("/")
    assert response.status_code == 200
    return response.text


@pytest.mark.parametrize(
    ("environment", "heard_here"),
    [({}, True), ({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, True), ({"OPENAI_API_KEY": "sk-none"}, False)],
)
def test_who_hears_a_call(monkeypatch, environment, heard_here):
    """A server of one's own answers, but may have neither ears nor a voice."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    page = create_app().test_client().get("/talk").text
    assert ("on the server itself" in page) == ("data-heard-here" in page) == heard_here


def test_vendored_files_are_exactly_those_of_their_packages():
    recorded = {path: facts["sha256"] for library in VENDORED for path, facts in library["files"].items()}
    found = {
        file.relative_to(VENDOR).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in VENDOR.rglob("*")
        if file.is_file() and file.name != "vendor.json"
    }
    assert found == recorded


def test_vendored_libraries_have_version_licence_and_source():
    assert {library["name"] for library in VENDORED} == {"dompurify", "marked"}
    for library in VENDORED:
        assert library["licence"]
        assert library["version"] in library["source"]
        assert library["source"].startswith("https://registry.npmjs.org/")
        assert any(path.startswith(f"{library['name']}/LICENSE") for path in library["files"])


@pytest.mark.parametrize("path", PAGES)
def test_a_page_may_load_nothing_foreign_and_nothing_inline(path):
    client = create_app().test_client()
    response = client.get(path)
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "dompurify",
    }
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "same-origin"
    with client.get("/static/chat.js") as script:
        assert script.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", response.text)
    assert not re.findall(r"""(?:src|href)=["'](?!/(?!/))[^"']*""", response.text)


def test_everything_that_the_pages_ask_for_is_there():
    client = create_app().test_client()
    named = re.compile(r'(?:src|href|data-client|data-sample)="([^"]+)"')
    ahead = [address for path in PAGES for address in named.findall(client.get(path).text)]
    seen = set()
    while ahead:
        address = ahead.pop()
        if address in seen:
            continue
        seen.add(address)
        with client.get(address) as response:
            assert response.status_code == 200, address
            if address.endswith(("js", "mjs")):
                assert response.mimetype in ("text/javascript", "application/javascript"), address
                ahead += [urljoin(address, name) for name in re.findall(r'from "(\./[^"]+)"', response.text)]
    assert {"/static/look.css", "/static/invoice.js", "/static/vendor/dompurify/purify.es.mjs"} < seen
    assert not {f"/static/{file.name}" for file in STATIC.glob("*.*")} - seen, "nothing asks for these"


def test_a_first_visit_gets_an_identity():
    response = create_app().test_client().get("/")
    cookie = response.headers["Set-Cookie"]
    assert cookie.startswith("session=")
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie


def test_without_a_key_the_page_says_that_answers_are_simulated():
    page = page_of(create_app())
    assert 'class="badge"' in page and "simulation" in page
    assert 'id="model"' not in page


def test_with_a_key_a_real_model_answers(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    page = page_of(create_app())
    assert "simulation" not in page
    assert 'id="model"' not in page


def test_with_a_base_url_any_model_may_be_named(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    app = create_app()
    assert app.config["LLMSTREAM_MODELS"] == "*"
    assert 'id="model"' in page_of(app)
    assert "simulation" not in page_of(app)


def test_the_environment_has_the_last_word(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("FLASK_LLMSTREAM_MODELS", "small,large")
    monkeypatch.setenv("FLASK_SECRET_KEY", "kept")
    app = create_app()
    assert app.config["LLMSTREAM_MODELS"] == "small,large"
    assert app.config["SECRET_KEY"] == "kept"
    assert 'id="model"' not in page_of(app)


def test_each_start_has_a_secret_of_its_own():
    assert create_app().config["SECRET_KEY"] != create_app().config["SECRET_KEY"]


@pytest.mark.needs("redis-server")
def test_processes_on_one_redis_know_the_same_visitors(monkeypatch, redis_server):
    monkeypatch.setenv("FLASK_LLMSTREAM_REDIS_URL", redis_server.url)
    first, second = create_app(), create_app()
    assert first.config["SECRET_KEY"] == second.config["SECRET_KEY"]
    monkeypatch.setenv("FLASK_SECRET_KEY", "kept")
    assert create_app().config["SECRET_KEY"] == "kept"


def test_a_redis_that_does_not_answer_is_said_at_the_start(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("FLASK_LLMSTREAM_REDIS_URL", f"redis://127.0.0.1:{port}")
    with pytest.raises(click.ClickException, match=r"FLASK_LLMSTREAM_REDIS_URL: .*refused"):
        application()


@pytest.mark.parametrize(("name", "value"), [("REDIS_URL", "localhost:6379"), ("STARTS_PER_USER", "30")])
def test_so_is_a_configuration_that_is_of_no_use(monkeypatch, name, value):
    monkeypatch.setenv(f"FLASK_LLMSTREAM_{name}", value)
    with pytest.raises(click.ClickException, match=f"^LLMSTREAM_{name} must be"):
        application()


def test_the_next_free_port_is_taken():
    with listen(0) as taken:
        port = taken.getsockname()[1]
        with listen(port) as second:
            assert port < second.getsockname()[1] < port + PORTS_TO_TRY


@contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def line_with(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return line
    raise AssertionError(f"it ended with: {''.join(said)}")


def answers_at(url: str) -> bool:
    host, port = re.search(r"//([\d.]+):(\d+)", url).groups()
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b" 200 " in line.recv(100)


def test_the_module_serves_the_page_and_says_where():
    with started("example_app", "--no-browser", "--port", "0") as process:
        assert answers_at(line_with(process, "http://"))


def test_the_module_opens_the_page_in_the_browser(tmp_path):
    opened = tmp_path / "opened"
    os.mkfifo(opened)
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {shlex.quote(str(opened))}\n')
    script.chmod(0o755)
    with started("example_app", "--port", "0", BROWSER=f"{script} %s") as process:
        url = re.search(r"http://\S+", line_with(process, "http://")).group()
        reading = os.open(opened, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert select.select([reading], [], [], 20)[0], "no browser was opened"
            assert os.read(reading, 1000).decode().strip() == url
        finally:
            os.close(reading)


def test_flask_run_serves_it_too():
    with started("flask", "--app", "example_app", "run", "--port", "0") as process:
        assert answers_at(line_with(process, "http://"))


# Text on its ground, with the least contrast that WCAG 2.2 asks for on level AA.
PAIRS = [
    ("ink", "ground", 4.5),
    ("ink", "raised", 4.5),
    ("ink", "code", 4.5),
    ("ink", "accent-soft", 4.5),
    ("quiet", "ground", 4.5),
    ("quiet", "raised", 4.5),
    ("quiet", "code", 4.5),
    ("quiet", "line", 4.5),  # a disabled button
    ("accent", "ground", 4.5),
    ("accent", "accent-soft", 4.5),
    ("on-accent", "accent", 4.5),
    ("danger", "danger-soft", 4.5),
    ("accent", "raised", 3.0),  # the frame of the focused composer
    ("edge", "raised", 3.0),  # what can be filled in
    ("edge", "ground", 3.0),
    ("danger", "raised", 4.5),
    ("danger", "ground", 4.5),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("text", "ground", "least"), PAIRS)
def test_colours_contrast_enough(scheme, text, ground, least):
    palettes = re.findall(r":root \{(.*?)\}", (STATIC / "look.css").read_text(), re.DOTALL)
    palette = dict(re.findall(r"--([\w-]+): (#\w+);", palettes[("light", "dark").index(scheme)]))
    lighter, darker = sorted((luminance(palette[text]), luminance(palette[ground])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= least


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
