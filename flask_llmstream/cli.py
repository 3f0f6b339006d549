"""``flask llmstream``: what the operator asks."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from . import worker
from .errors import ConfigurationError, StoreUnavailable
from .runtime import current
from .usage import Accounts, Entry, by_owner_and_model, describe, today, total

DAY = click.DateTime(["%Y-%m-%d"])

commands = AppGroup("llmstream", help="Workers for jobs, and what runs have used.")


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


@commands.command("worker")
@click.argument("queues", nargs=-1)
@click.option("--concurrency", type=click.IntRange(1), help="Jobs at a time, instead of the configured number.")
@click.option("--grace", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds for what goes on.")
@click.option("--burst", is_flag=True, help="End when there is nothing left to do.")
@click.option("--threads", is_flag=True, help="Use threads, and not gevent.")
def work(queues: Sequence[str], concurrency: int | None, grace: float, burst: bool, threads: bool) -> None:
    """Perform jobs, of the queue `default` or of those that are named, the most urgent first."""
    if not (threads or current().cooperative):
        # gevent has to come before all that it patches, and RQ is loaded by now.
        os.execv(sys.executable, [sys.executable, "-m", "gevent.monkey", "--module", "flask", *sys.argv[1:]])
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    try:
        performer = worker.prepare(app, queues or ("default",), concurrency=concurrency, grace=grace)
    except ConfigurationError as error:
        raise click.ClickException(error.detail) from error
    names = ", ".join(performer.queue_names())
    click.echo(f"Performing jobs of {names}, {performer.most} at a time. Ctrl-C ends this.")
    performer.work(burst=burst, logging_level="WARNING")
