"""Every Python snippet of the README and of the documentation runs, in the order of its page."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from flask_llmstream import LLMStream

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SNIPPETS = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.chdir(tmp_path)
    document = SNIPPETS.parse(page)
    # To Flask, which looks for its files beside the module that calls it, the page is a module in an empty folder.
    module = ModuleType("page")
    module.__file__ = str(tmp_path / "page.py")
    monkeypatch.setitem(sys.modules, "page", module)
    document.namespace.update(__name__="page", page_text=document.text)
    for snippet in document.examples():
        snippet.evaluate()


def test_a_wrong_snippet_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nanswer = 42\n```\n\n```python\nassert answer == 41\n```\n")
    *right, wrong = SNIPPETS.parse(page).examples()
    for snippet in right:
        snippet.evaluate()
    with pytest.raises(AssertionError):
        wrong.evaluate()


def test_failure_patterns_name_tests_that_exist():
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    _, *patterns = (ROOT / "docs" / "failures.md").read_text().split("\n## ")
    for pattern in patterns:
        named = set(re.findall(r"`(test_\w+)`", pattern.split("\n**Shown by**\n")[1]))
        assert named, f"no test shows this pattern: {pattern.splitlines()[0]}"
        assert named <= tests, f"{pattern.splitlines()[0]}: there is no {', '.join(named - tests)}"


def test_every_option_of_the_client_is_documented():
    types = (ROOT / "flask_llmstream" / "static" / "llmstream.d.ts").read_text()
    page = (ROOT / "docs" / "client.md").read_text()
    options = re.findall(r"interface (?:Run|Stream|Resume|Voice)Options\b.*?\{(.*?)\n\}", types, re.DOTALL)
    names = re.findall(r"^  (\w+)\?:", "\n".join(options), re.MULTILINE)
    assert len(names) > 15
    assert [name for name in names if not re.search(rf"`{name}\b", page)] == []


@pytest.mark.parametrize(
    "decorator, name", [("stream", "streaming"), ("job", "jobs"), ("reply", "replies"), ("voice", "voice")]
)
def test_every_parameter_of_a_decorator_is_documented(decorator, name):
    page = (ROOT / "docs" / f"{name}.md").read_text()
    _, rule, *parameters = inspect.signature(getattr(LLMStream, decorator)).parameters
    assert rule == "rule"
    assert [parameter for parameter in parameters if f"`{parameter}=`" not in page] == []


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    entries = index.split("```{toctree}")[1].split("```")[0].split()
    assert {page.stem for page in PAGES if page.parent.name == "docs"} == {"index", *entries[2:]}
