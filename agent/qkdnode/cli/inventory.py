"""`qkdnode inventory list | algorithms | export | reconcile`: what a node consists of, which cryptography it rests on,
and whether what it holds is what the far ends of its links hold.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from uuid import UUID, uuid4

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, print_json, span, table
from qkdnode.config import AssetKind
from qkdnode.control.client import Client
from qkdnode.control.export import whole_file
from qkdnode.wire.control import (
    AlgorithmList,
    Algorithms,
    Asset,
    AssetPage,
    Assets,
    ComparisonEntry,
    ComparisonList,
    Comparisons,
    Reconcile,
)

HEADINGS = ("kind", "name", "version", "digest", "licence", "owner", "classification", "details")
ALGORITHM_HEADINGS = ("algorithm", "primitive", "status", "deprecated", "disallowed", "replacement", "used for")
COMPARED_HEADINGS = ("link", "peer", "root here", "root there", "result", "looked at", "under way", "repaired", "ago")
DOUBT_HEADINGS = ("batch", "half", "offset", "difference", "count", "since", "looks", "what is done")
DIGEST_SHOWN = 12
LOOK_S = 0.25
HIDDEN = ("purl", "requires", "supplier")  # of the details, in the table
SBOM, CBOM = "sbom", "cbom"


@click.group(name="inventory")
def command() -> None:
    """Show what a node consists of, and export it as CycloneDX."""


@command.command(name="list")
@click.option("--kind", default=None, type=click.Choice(get_args(AssetKind)), help="Only assets of this kind.")
@asking
def list_(client: Client, kind: str | None, as_json: bool) -> None:
    """List every asset with who answers for it: devices, software, links, applications, people."""
    assets, unused = every_asset(client, kind)
    counts = {
        "assets": len(assets),
        "unassigned": sum(asset.owner == "unassigned" for asset in assets),
        "unclassified": sum(asset.classification == "unclassified" for asset in assets),
    }
    if as_json:
        print_json({**counts, "list": assets, "without_asset": unused})
        return
    rows = (
        (
            asset.kind,
            asset.name,
            asset.version,
            asset.digest and asset.digest[:DIGEST_SHOWN],
            asset.licence,
            asset.owner,
            asset.classification,
            _details(asset.details),
        )
        for asset in assets
    )
    console().print(table(HEADINGS, rows))
    click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))
    for name in unused:
        click.echo(f"[[asset]] {name}: there is no such asset")


@command.command()
@asking
def algorithms(client: Client, as_json: bool) -> None:
    """Show the algorithm registry: what the node uses, what keys may be used for, and until when."""
    found: AlgorithmList = client.ask(Algorithms())
    if as_json:
        print_json(found)
        return
    rows = (
        (
            row.id,
            row.primitive,
            row.status,
            row.deprecated_from,
            row.disallowed_from,
            row.replacement,
            "; ".join([*row.uses, *(["keys of applications"] if row.for_keys else [])]),
        )
        for row in found.algorithms
    )
    console().print(table(ALGORITHM_HEADINGS, rows))
    click.echo(f"as of {found.day}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "format_", required=True, type=click.Choice([SBOM, CBOM]), help="Software, or cryptography.")
@click.option("--serial", default=None, type=click.UUID, help="The serial number to give it (default: a new one).")
@click.option("--time", "time_", default=None, help="The time to give it, such as 2026-02-02T02:40:00Z (default: now).")
@asking
def export(client: Client, file: Path, format_: str, serial: UUID | None, time_: str | None, as_json: bool) -> None:
    """Write a bill of materials in CycloneDX 1.6 to FILE: whole, or not at all. No key or key id is in it.

    The same inventory, --serial and --time give the same bytes.
    """
    time = datetime.now(UTC).replace(microsecond=0) if time_ is None else _moment(time_)
    number = serial or uuid4()
    text = BUILDERS[format_](client, time, number)
    with whole_file(file) as (_, out):
        out.write(text)
    if as_json:
        print_json({"file": str(file), "format": format_, "serial": str(number), "bytes": len(text.encode())})
    else:
        click.echo(f"{file}: {format_} of node {client.challenge.node}, urn:uuid:{number}")


@command.command()
@click.option("--link", default=None, help="Only this link (default: each).")
@click.option("--wait", "wait_s", default=120.0, show_default=True, help="Seconds to wait for the end of it.")
@asking
def reconcile(client: Client, link: str | None, wait_s: float, as_json: bool) -> None:
    """Compare which keys and stock both ends of each link hold, and show what differs and is repaired.

    Ends with status 1 unless both ends agree. No key crosses the link: only hashes of ids and stages.
    """
    before: ComparisonList = client.ask(Reconcile(link=link))
    looks = {entry.link: entry.looks for entry in before.comparisons if entry.connected}
    until = time.monotonic() + wait_s
    while True:
        now: ComparisonList = client.ask(Comparisons(link=link))
        waits = [entry.link for entry in now.comparisons if entry.running or entry.looks <= looks.get(entry.link, -1)]
        if not waits or time.monotonic() >= until:
            break
        time.sleep(LOOK_S)
    if as_json:
        print_json({"comparisons": now.comparisons, "unfinished": waits})
    else:
        _show_comparisons(now, waits)
    if waits or not all(entry.agrees and entry.connected for entry in now.comparisons):
        raise SystemExit(1)


def _show_comparisons(answer: ComparisonList, waits: Sequence[str]) -> None:
    rows = (
        (
            entry.link,
            entry.peer,
            entry.root_here[:DIGEST_SHOWN],
            entry.root_there[:DIGEST_SHOWN],
            "goes on" if entry.link in waits else _result(entry),
            f"{entry.stretches} stretches, {entry.questions} questions",
            entry.unsettled,
            ", ".join(f"{step} {count}" for step, count in entry.repaired.items()),
            span(entry.ended_s),
        )
        for entry in answer.comparisons
    )
    console().print(table(COMPARED_HEADINGS, rows))
    for entry in answer.comparisons:
        for name, count in entry.found.items():
            click.echo(f"{entry.link}: {count} {name}: {entry.rules[name]}")
        if entry.failed:
            click.echo(f"{entry.link}: {entry.failed}")
        if entry.doubts:
            doubts = (
                (
                    doubt.batch,
                    doubt.half,
                    doubt.offset_bits,
                    doubt.verdict,
                    doubt.count,
                    moment(doubt.since_ns),
                    doubt.looks,
                    doubt.rule,
                )
                for doubt in entry.doubts
            )
            console().print(table(DOUBT_HEADINGS, doubts, title=f"{entry.link}: {entry.doubts_in_all} in doubt"))


def _result(entry: ComparisonEntry) -> str:
    if not entry.connected:
        return "no session: the last comparison"
    if entry.failed:
        return "given up"
    return "both ends agree" if entry.agrees else "differs"


def every_asset(client: Client, kind: str | None = None) -> tuple[tuple[Asset, ...], tuple[str, ...]]:
    """All pages of the inventory, and the tables of the configuration that fit nothing."""
    page: AssetPage = client.ask(Assets(kind=kind))
    found = [*page.assets]
    while page.next is not None:
        page = client.ask(Assets(after=page.next, kind=kind))
        found.extend(page.assets)
    return tuple(found), page.without_asset


def _software(client: Client, time: datetime, serial: UUID) -> str:
    from qkdnode.control.bom import software_bom  # takes a while to load

    return software_bom(client.challenge.node, every_asset(client)[0], time, serial)


def _cryptography(client: Client, time: datetime, serial: UUID) -> str:
    from qkdnode.control.bom import cryptography_bom  # takes a while to load

    return cryptography_bom(client.challenge.node, every_asset(client)[0], client.ask(Algorithms()), time, serial)


BUILDERS: Mapping[str, Callable[[Client, datetime, UUID], str]] = {SBOM: _software, CBOM: _cryptography}


def _moment(text: str) -> datetime:
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is no time such as 2026-02-02T02:40:00Z") from None
    return read if read.tzinfo is not None else read.replace(tzinfo=UTC)


def _details(details: Mapping[str, str]) -> str:
    shown: Iterable[str] = (f"{name} {value}" for name, value in sorted(details.items()) if name not in HIDDEN)
    return ", ".join(shown)
