"""`qkdnode rotate`: take associations to the next generation of their keys; see how far that has come."""

import time
from collections.abc import Iterator
from pathlib import Path

import click

from qkdnode.cli import couriers
from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.errors import ControlError
from qkdnode.node.rehearsal import Rehearsed, Report
from qkdnode.node.rehearsal import rehearse as rehearsed
from qkdnode.wire.control import GiveUpRotations, RotateKeys, RotationEntry, Rotations, RotationShapes, ShapeEntry

HEADINGS = ("association", "link", "generation", "to", "phase", "neighbour", "since", "reason", "result", "rows")
REHEARSED = (
    "association", "link", "first keys", "old keys", "scale", "load", "longest gap", "destroyed unused", "used by one",
)  # fmt: skip
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
@click.option("--rehearse", is_flag=True, help="Rotate a shadow copy of the same shape instead, and report.")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="Of a rehearsal.")
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
    rehearse: bool,
    rounds: int,
    as_json: bool,
) -> None:
    """Rotate associations: keys of the next generation are cut at both ends, accepted by both applications, and take
    the place of the present ones without a gap.

    ASSOCIATION is LOCAL:REMOTE, or LOCAL for all of an application here. Without one, --link or --all, show how every
    association stands. With --wait the exit status is 1 if one of them has not come to its end by then. With --rehearse
    nothing is rotated: the exit status is 1 if it would not succeed now.

    While a link is cut: `rotate ASSOCIATION --offline --out FILE` at one node, `rotate approve FILE` by two people,
    `rotate import FILE` at the other node, and so on to and fro.
    """
    chosen = _selection(association, link)
    if offline:
        if out is None or give_up or everything or rehearse or not association:
            raise click.UsageError("--offline goes with an association and --out FILE")
        couriers.write_file(client, _all(client, chosen), out, keys, size_bits, again=again, as_json=as_json)
        return
    if out is not None or again:
        raise click.UsageError("--out and --again go with --offline")
    if rehearse:
        if give_up or wait_s or note:
            raise click.UsageError("a rehearsal changes nothing: --give-up, --wait and --reason do not go with it")
        if not (association or link or everything):
            raise click.UsageError("rehearse which? Name an association, --link or --all")
    if not (association or link or everything):
        if give_up:
            raise click.UsageError("give up which? Name an association, --link or --all")
        _show(_all(client, chosen), as_json)
        return
    if (association and everything) or (link and everything):
        raise click.UsageError("--all and a choice exclude one another")
    if rehearse:
        _rehearse(client, chosen, rounds, as_json)
        return
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


def _rehearse(client: Client, chosen: Selection, rounds: int, as_json: bool) -> None:
    """Ask for shapes, and rehearse in this process: the agent has no part in it."""
    entries: list[ShapeEntry] = []
    after: int | None = 0
    while after is not None:
        page = client.ask(
            RotationShapes(local=chosen["local"], remote=chosen["remote"], link=chosen["link"], after=after)
        )
        entries += page.shapes
        after = page.next
    if not entries:
        raise ControlError("there is no association that could be rotated")
    report = rehearsed(entries, rounds)
    if as_json:
        print_json(report)
    else:
        _show_report(report)
    if not report.would_succeed:
        raise SystemExit(1)


def _show_report(report: Report) -> None:
    out = console()
    out.print("it would succeed now" if report.would_succeed else "it would NOT succeed now")
    for finding in report.findings:
        out.print(f"{'stops it' if finding.blocks else 'mind':8}  {finding.about}: {finding.detail}", markup=False)
    out.print(
        f"{report.rounds} rounds in {report.storage}, each {report.duration_s:g} s without network and applications\n"
    )
    rows = ((step, its.p50_ms, its.p99_ms, its.max_ms) for step, its in report.steps.items())
    out.print(table(("step", "p50 ms", "p99 ms", "max ms"), rows))
    out.print()
    out.print(
        table(REHEARSED, ((f"{its.local}:{its.remote}", its.link, *_rehearsed(its)) for its in report.associations))
    )


def _rehearsed(its: Rehearsed) -> tuple[object, ...]:
    load = f"{its.load_cut} cut, {its.load_taken} taken in {its.load_minutes} min"
    gap = f"{its.gap_ms:g} ms, {its.dry_minutes} min of the load" if its.gap_ms else "none"
    scale = "whole" if its.scale == 1 else f"1 for {its.scale:g}"
    return its.prepared, its.waiting, scale, load, gap, its.destroyed, its.alone


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
