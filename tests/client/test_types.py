"""The declarations beside the client name what it has, and nothing else."""

from __future__ import annotations

import re

import pytest

from tests.client.server import STATIC

DECLARED = (STATIC / "llmstream.d.ts").read_text()
CLIENT = "".join(path.read_text() for path in STATIC.rglob("*.js"))


@pytest.mark.needs("chromium")
def test_declares_every_export(page):
    declared = re.findall(r"^export (?:class|function) (\w+)", DECLARED, re.MULTILINE)
    assert sorted(page.evaluate("Object.keys(llm)")) == sorted(declared)


@pytest.mark.needs("chromium")
def test_declares_every_member_of_a_run(page):
    interface = DECLARED.partition("export interface Run ")[2].partition("\n}")[0]
    declared = re.findall(r"^  (?:readonly )?(\w+)[:(]", interface, re.MULTILINE)
    members = page.evaluate("""() => {
        const run = stream('/chat', {}, {signal: AbortSignal.abort()});
        const methods = Object.getOwnPropertyNames(Object.getPrototypeOf(run));
        return [...Object.keys(run), ...methods].filter((name) => name !== 'constructor' && name !== 'record');
    }""")
    assert sorted(members) == sorted(declared)


def test_declares_every_option_that_the_client_reads():
    options = DECLARED.partition("export interface RunOptions {")[2].partition("\n}")[0]
    declared = set(re.findall(r"^  (\w+)\?:", options, re.MULTILINE))
    callbacks = set(re.findall(r'"(on[A-Z]\w+)"', CLIENT))
    assert {name for name in declared if re.match("on[A-Z]", name)} == callbacks
    for name in declared - callbacks:
        assert re.search(rf"\b{name}\b", CLIENT), name
