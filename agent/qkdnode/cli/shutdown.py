"""`qkdnode shutdown`."""

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import print_json
from qkdnode.control.client import Client
from qkdnode.wire.control import Acted, Shutdown


@click.command(name="shutdown")
@asking
def command(client: Client, as_json: bool) -> None:
    """Stop the agent in order, as SIGTERM does: what is allocated is delivered, what is claimed is settled."""
    acted: Acted = client.ask(Shutdown())
    if as_json:
        print_json(acted)
    else:
        click.echo(acted.detail)
