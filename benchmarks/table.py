"""A plain table: labels at the left, a column a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Table:
    """Collects rows, then prints them with columns as wide as they need.

    :param columns: column names, in order.
    """

    def __init__(self, columns: Sequence[str]):
        self._columns = columns
        self._lines: list[tuple[str, ...]] = [("", *columns)]

    def title(self, text: str) -> None:
        self._lines.append((text, *("" for _ in self._columns)))

    def row(self, label: str, values: Mapping[str, str]) -> None:
        """Add a line; a column without a value stays empty."""
        self._lines.append((f"  {label}", *(values.get(column, "") for column in self._columns)))

    def print(self) -> None:
        widths = [max(map(len, cells)) for cells in zip(*self._lines, strict=True)]
        for first, *cells in self._lines:
            line = first.ljust(widths[0]) + "".join(
                f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)
            )
            print(line.rstrip())
