"""``flask llmstream``: what the operator asks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from .errors import StoreUnavailable
from .usage import Accounts, Entry, by_owner_and_model, describe, today, total

DAY = click.DateTime(["%Y-%m-%d"])

commands = AppGroup("llmstream", help="What runs have used.")


@commands.command("usage")
@click.option("--from", "first", type=DAY, help="The first day (UTC); the month's, if left out.")
@click.option("--to", "last", type=DAY, help="The last day; today, if left out.")
@click.option("--user", help="One user alone, as `identify` names them; visitor:… for an anonymous one.")
@click.option("--daily", is_flag=True, help="A line for each day.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def show_usage(first: datetime | None, last: datetime | None, user: str | None, daily: bool, form: str) -> None:
    """What users have used and what it cost, by user and model."""
    record = next(iter(current_app.extensions["llmstream"].values()))  # all have one store
    if not record.store.shared:
        raise click.UsageError("Without LLMSTREAM_REDIS_URL the accounts are in the server's memory: see /api/usage.")
    to = last.date() if last else today()
    since = first.date() if first else to.replace(day=1)
    accounts = Accounts(record.store, record.settings.prices)
    try:
        entries = accounts.all(since, to) if user is None else accounts.of(_owner(user), since, to)
    except StoreUnavailable as error:
        raise click.ClickException(error.diagnosis or error.detail) from error
    click.echo(FORMATS[form](entries if daily else by_owner_and_model(entries), daily), nl=False)


def _owner(user: str) -> str:
    return user if user.startswith("visitor:") else f"user:{user.removeprefix('user:')}"


def _rows(entries: Sequence[Entry], daily: bool) -> list[dict[str, Any]]:
    return [describe(entry, *(["day"] if daily else []), "owner", "model") for entry in entries]


def _json(entries: Sequence[Entry], daily: bool) -> str:
    return json.dumps({"data": _rows(entries, daily), "total": describe(total(entries))}, indent=2) + "\n"


def _csv(entries: Sequence[Entry], daily: bool) -> str:
    text = io.StringIO()
    names = list(describe(Entry(), *(["day"] if daily else []), "owner", "model"))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(entries, daily))
    return text.getvalue()


def _table(entries: Sequence[Entry], daily: bool) -> str:
    if not entries:
        return "Nothing was used.\n"
    rows = _rows([*entries, total(entries)], daily)
    rows[-1]["day" if daily else "owner"] = "total"
    lines = [[name.removesuffix("_tokens") for name in rows[0]]]
    lines += [["-" if cell is None else str(cell) for cell in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = 3 if daily else 2
    return "".join(
        "  ".join(
            cell.ljust(width) if at < words else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )


FORMATS: dict[str, Callable[[Sequence[Entry], bool], str]] = {"table": _table, "json": _json, "csv": _csv}
