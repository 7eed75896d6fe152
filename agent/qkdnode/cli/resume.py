"""`qkdnode resume LINK`."""

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import print_json
from qkdnode.control.client import Client
from qkdnode.wire.control import Acted, Resume


@click.command(name="resume")
@click.argument("link")
@asking
def command(client: Client, link: str, as_json: bool) -> None:
    """Distil again on LINK after a pause.

    A far end that is paused too has to be resumed there.
    """
    acted: Acted = client.ask(Resume(link=link))
    if as_json:
        print_json(acted)
    else:
        click.echo(acted.detail)
