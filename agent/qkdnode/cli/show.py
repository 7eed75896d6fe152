"""How answers are shown: tables for people, JSON for programs, and numbers with their units."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

WIDE = 160  # where nobody's terminal says how wide it is
NOTHING = "-"
_PREFIXES = ("", "k", "M", "G", "T")


def console() -> Console:
    """Standard output, wide enough for the tables when it is no terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(width=WIDE, highlight=False)


def print_json(answer: Any) -> None:
    """One JSON object in one line."""
    click.echo(json.dumps(msgspec.to_builtins(answer), sort_keys=True))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A plain table; the first column to the left, as the others unless they are numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def cell(value: object) -> str:
    """A value as it stands in a table."""
    return NOTHING if value is None or value == "" else str(value).replace("[", "\\[")


def scaled(value: float | None, unit: str) -> str | None:
    """A number with at most four digits before its unit and prefix."""
    if value is None:
        return None
    size, prefix = float(value), 0
    while abs(size) >= 1000 and prefix < len(_PREFIXES) - 1:
        size, prefix = size / 1000, prefix + 1
    digits = f"{size:.0f}" if not prefix and size == int(size) else f"{size:.3g}"
    return f"{digits} {_PREFIXES[prefix]}{unit}"


def percent(share: float | None) -> str | None:
    """A share of one."""
    return None if share is None else f"{share:.2%}"


def moment(ns: int | None) -> str | None:
    """A wall-clock time in UTC."""
    return None if ns is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(ns // 10**9))


def span(seconds: float | None) -> str | None:
    """How long something is."""
    if seconds is None:
        return None
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def days(value: float | None) -> str | None:
    """How many days, with what matters when they are few."""
    return None if value is None else f"{value:.3g} days"
