"""Directives that render tables out of the code, so that no page can fall behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flask_llmstream import errors
from flask_llmstream.config import KEYS, PREFIX
from flask_llmstream.filetypes import NAMES


class ConfigurationTable(SphinxDirective):
    """Every key, its default, its unit and what it means."""

    def run(self) -> list[nodes.Node]:
        rows = ((f"`{PREFIX}{key.name}`", f"`{key.default!r}`", key.unit, key.description) for key in KEYS)
        return self.parse_text_to_nodes(markdown(("Key", "Default", "Unit", "Meaning"), rows))


class ErrorTable(SphinxDirective):
    """Every kind of error, from the root down."""

    def run(self) -> list[nodes.Node]:
        rows = (
            (f"`{kind.__name__}`", f"`{kind.slug}`", str(kind.status), kind.title, "yes" if kind.retryable else "")
            for kind in tree(errors.LLMStreamError)
        )
        return self.parse_text_to_nodes(markdown(("Class", "Type", "Status", "Title", "Retried"), rows))


class FileTypes(SphinxDirective):
    """Every media type that an uploaded file can be known as."""

    def run(self) -> list[nodes.Node]:
        rows = ((name, f"`{media_type}`") for media_type, name in NAMES.items())
        return self.parse_text_to_nodes(markdown(("File", "Type"), rows))


def tree(kind: type[errors.LLMStreamError]) -> Iterator[type[errors.LLMStreamError]]:
    """A class and all below it, in the order of their definition."""
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(escape, line))} |" for line in lines)


def escape(cell: str) -> str:
    """A cell's text, in which a bar would begin the next cell."""
    return cell.replace("|", r"\|")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("configuration-table", ConfigurationTable)
    app.add_directive("error-table", ErrorTable)
    app.add_directive("file-types", FileTypes)
    return {"parallel_read_safe": True}
