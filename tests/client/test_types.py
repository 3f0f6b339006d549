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
@pytest.mark.parametrize(
    ("interface", "made_by"),
    [
        ("Run", "stream('/chat', {}, {signal: AbortSignal.abort()})"),
        ("Job", "job('/analyze', {}, {signal: AbortSignal.abort()})"),
        ("Feed", "llm.watch('/feed')"),
        ("Voice", "llm.voice('/voice')"),
    ],
)
def test_declares_every_member(page, server, interface, made_by):
    declared = re.findall(r"^  (?:readonly )?(\w+)[:(]", body_of(f"export interface {interface} "), re.MULTILINE)
    members = page.evaluate(f"""() => {{
        const made = {made_by};
        made.close?.();
        const methods = Object.getOwnPropertyNames(Object.getPrototypeOf(made));
        return [...Object.keys(made), ...methods].filter((name) => name !== 'constructor' && name !== 'record');
    }}""")
    assert sorted(members) == sorted(declared)


def test_declares_every_option_that_the_client_reads():
    declared = set().union(*map(options_of, ("Run", "Stream", "Resume", "Feed", "FollowJob", "Job", "Reply", "Voice")))
    callbacks = set(re.findall(r'"(on[A-Z]\w+)"', CLIENT))
    assert {name for name in declared if re.match("on[A-Z]", name)} == callbacks
    for name in declared - callbacks:
        assert re.search(rf"\b{name}\b", CLIENT), name


def options_of(kind: str) -> set[str]:
    return set(re.findall(r"^  (\w+)\?:", body_of(f"export interface {kind}Options"), re.MULTILINE))


def body_of(declaration: str) -> str:
    assert DECLARED.count(declaration) == 1
    return DECLARED.partition(declaration)[2].partition("\n}")[0]
