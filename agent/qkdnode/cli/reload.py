"""`qkdnode reload`."""

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import print_json
from qkdnode.control.client import Client
from qkdnode.wire.control import Reload, Reloaded


@click.command(name="reload")
@asking
def command(client: Client, as_json: bool) -> None:
    """Have the agent read its configuration anew.

    Operators, the uids of the control socket, applications and associations change at once; what else has changed is
    named and needs a restart. With an error in the file nothing changes.
    """
    done: Reloaded = client.ask(Reload())
    if as_json:
        print_json(done)
        return
    for change in done.applied:
        click.echo(change)
    for change in done.needs_restart:
        click.echo(f"{change}: needs a restart")
    if not done.applied and not done.needs_restart:
        click.echo("nothing has changed")
