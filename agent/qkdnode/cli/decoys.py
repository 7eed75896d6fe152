"""`qkdnode decoys`: how many keys there are that nobody is given, for who answers for the keys; and new ones."""

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.wire.control import Acted, DecoyList, Decoys, RenewDecoys


@click.command(name="decoys")
@click.option("--renew", is_flag=True, help="Destroy all of them at both ends, and have new ones made.")
@asking
def command(client: Client, renew: bool, as_json: bool) -> None:
    """Show how many decoy keys are held for each pair of applications, never which."""
    if renew:
        done: Acted = client.ask(RenewDecoys())
        print_json(done) if as_json else click.echo(done.detail)
        return
    listed: DecoyList = client.ask(Decoys())
    if as_json:
        print_json(listed)
        return
    rows = (
        (its.local, its.remote, its.link, its.key_class, its.size_bits, its.keys, moment(its.oldest_ns))
        for its in listed.decoys
    )
    console().print(table(("local", "remote", "link", "class", "bits", "decoys", "oldest"), rows))
