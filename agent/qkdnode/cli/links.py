"""`qkdnode links`: what every link does."""

from collections.abc import Iterable

import click
from rich.table import Table

from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, days, percent, print_json, scaled, table
from qkdnode.control.client import Client
from qkdnode.wire.control import LinkList, Links, LinkStatus

HEADINGS = (
    "link", "peer", "role", "state", "QBER", "sifted", "SKR", "stock", "reserve", "lasts", "Batches", "paused by",
)  # fmt: skip


def link_table(links: Iterable[LinkStatus]) -> Table:
    """One row for each link. Stock and reserve are this end's; the reserve lasts so long if it is never refilled."""
    return table(
        HEADINGS,
        (
            (
                link.name,
                link.peer,
                link.role,
                link.state,
                percent(link.qber),
                scaled(link.sifted_bps, "bit/s"),
                scaled(link.secret_bps, "bit/s"),
                scaled(link.stock_bits, "bit"),
                scaled(link.reserve_bits, "bit"),
                days(link.reserve_days),
                link.batches_ready,
                link.paused_by,
            )
            for link in links
        ),
    )


@click.command(name="links")
@asking
def command(client: Client, as_json: bool) -> None:
    """Show every link: state, QBER, key rate, stock, and authentication key in days."""
    found: LinkList = client.ask(Links())
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(link_table(found.links))
    for link in found.links:
        if link.discards:
            counted = ", ".join(f"{reason} {count}" for reason, count in sorted(link.discards.items()))
            out.print(f"{link.name}: discarded {counted}")
