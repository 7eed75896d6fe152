"""`qkdnode rotate`: take associations to the next generation of their keys; see how far that has come."""

import time
from collections.abc import Iterator
from pathlib import Path

import click

from qkdnode.cli import couriers
from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.wire.control import GiveUpRotations, RotateKeys, RotationEntry, Rotations

HEADINGS = ("association", "link", "generation", "to", "phase", "neighbour", "since", "reason", "result", "rows")
STEADY = "steady"
LOOK_S = 0.1
Selection = dict[str, str | None]


@click.command(name="rotate", cls=couriers.WithParts)
@click.argument("association", required=False)
@click.option("--link", default=None, help="Those of this link.")
@click.option("--all", "everything", is_flag=True, help="All of the node.")
@click.option("--reason", "note", default="", help="Why, for the log.")
@click.option("--give-up", is_flag=True, help="Give up what no end has cut over to; the old generation goes on.")
@click.option("--offline", is_flag=True, help="While the link is cut: write a file that a courier carries; see --out.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="With --offline: the file. It must be new.")
@click.option("--keys", default=32, show_default=True, type=click.IntRange(1, 256), help="With --offline: first keys.")
@click.option("--size", "size_bits", default=256, show_default=True, type=click.IntRange(8, 65536), help="Of these.")
@click.option("--again", is_flag=True, help="With --offline: the last file once more, to the byte.")
@click.option("--wait", "wait_s", default=0.0, show_default=True, help="Wait so many seconds for the end of it.")
@asking
def command(
    client: Client,
    association: str | None,
    link: str | None,
    everything: bool,
    note: str,
    give_up: bool,
    offline: bool,
    out: Path | None,
    keys: int,
    size_bits: int,
    again: bool,
    wait_s: float,
    as_json: bool,
) -> None:
    """Rotate associations: keys of the next generation are cut at both ends, accepted by both applications, and take
    the place of the present ones without a gap.

    ASSOCIATION is LOCAL:REMOTE, or LOCAL for all of an application here. Without one, --link or --all, show how every
    association stands. With --wait the exit status is 1 if one of them has not come to its end by then.

    While a link is cut: `rotate ASSOCIATION --offline --out FILE` at one node, `rotate approve FILE` by two people,
    `rotate import FILE` at the other node, and so on to and fro.
    """
    chosen = _selection(association, link)
    if offline:
        if out is None or give_up or everything or not association:
            raise click.UsageError("--offline goes with an association and --out FILE")
        couriers.write_file(client, _all(client, chosen), out, keys, size_bits, again=again, as_json=as_json)
        return
    if out is not None or again:
        raise click.UsageError("--out and --again go with --offline")
    if not (association or link or everything):
        if give_up:
            raise click.UsageError("give up which? Name an association, --link or --all")
        _show(_all(client, chosen), as_json)
        return
    if (association and everything) or (link and everything):
        raise click.UsageError("--all and a choice exclude one another")
    asked = GiveUpRotations(**chosen) if give_up else RotateKeys(**chosen, note=note)
    entries = list(client.ask(asked).rotations)
    if wait_s > 0:
        entries = _await(client, chosen, entries, wait_s, quiet=as_json)
    _show(entries, as_json)
    if wait_s > 0 and any(entry.phase != STEADY for entry in entries):
        raise SystemExit(1)


def _selection(association: str | None, link: str | None) -> Selection:
    local, colon, remote = (association or "").partition(":")
    if association is not None and (not local or (colon and not remote)):
        raise click.UsageError(f"{association!r} is no LOCAL:REMOTE")
    return {"local": local or None, "remote": remote or None, "link": link}


def _all(client: Client, chosen: Selection) -> list[RotationEntry]:
    return list(_pages(client, chosen))


def _pages(client: Client, chosen: Selection) -> Iterator[RotationEntry]:
    after: int | None = 0
    while after is not None:
        page = client.ask(Rotations(local=chosen["local"], remote=chosen["remote"], link=chosen["link"], after=after))
        yield from page.rotations
        after = page.next


def _await(
    client: Client, chosen: Selection, entries: list[RotationEntry], wait_s: float, *, quiet: bool
) -> list[RotationEntry]:
    """Look until all are steady, and say each phase that is new."""
    until = time.monotonic() + wait_s
    said: dict[tuple[str, str, str], str] = {}
    while True:
        for entry in entries:
            key = (entry.local, entry.remote, entry.link)
            if said.get(key) != entry.phase and not quiet:
                click.echo(f"{entry.local}:{entry.remote} over {entry.link}: {_told(entry)}")
            said[key] = entry.phase
        if all(entry.phase == STEADY for entry in entries) or time.monotonic() >= until:
            return entries
        time.sleep(LOOK_S)
        entries = _all(client, chosen)


def _told(entry: RotationEntry) -> str:
    if entry.phase == STEADY:
        return f"generation {entry.generation} is supplied ({entry.result or 'as ever'})"
    return f"{entry.phase}, from generation {entry.generation} to {entry.number or 'the next'}"


def _show(entries: list[RotationEntry], as_json: bool) -> None:
    if as_json:
        print_json({"rotations": entries})
        return
    rows = (
        (
            f"{entry.local}:{entry.remote}",
            entry.link,
            entry.generation,
            entry.number or "-",
            entry.phase,
            entry.peer if entry.number else "-",
            moment(entry.phase_ns) if entry.phase_ns else "-",
            entry.reason or "-",
            entry.result or "-",
            "moving" if entry.moving else "done" if entry.ended else "-",
        )
        for entry in entries
    )
    console().print(table(HEADINGS, rows))
