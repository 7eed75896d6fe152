"""`qkdnode inventory list | algorithms | export`: what a node consists of, and which cryptography it rests on."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args
from uuid import UUID, uuid4

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, print_json, table
from qkdnode.config import AssetKind
from qkdnode.control.client import Client
from qkdnode.control.export import whole_file
from qkdnode.wire.control import AlgorithmList, Algorithms, Asset, AssetPage, Assets

HEADINGS = ("kind", "name", "version", "digest", "licence", "owner", "classification", "details")
ALGORITHM_HEADINGS = ("algorithm", "primitive", "status", "deprecated", "disallowed", "replacement", "used for")
DIGEST_SHOWN = 12
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
