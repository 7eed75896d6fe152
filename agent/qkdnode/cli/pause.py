"""`qkdnode pause LINK`."""

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import print_json
from qkdnode.control.client import Client
from qkdnode.wire.control import Acted, Pause


@click.command(name="pause")
@click.argument("link")
@asking
def command(client: Client, link: str, as_json: bool) -> None:
    """Distil no more on LINK, at either end, until it is resumed; restarts do not change that.

    The session stays open, and keys in stock are supplied.
    """
    acted: Acted = client.ask(Pause(link=link))
    if as_json:
        print_json(acted)
    else:
        click.echo(acted.detail)
