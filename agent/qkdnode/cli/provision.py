"""`qkdnode provision node | application | operator | pair`."""

from pathlib import Path

import click

from qkdnode.node.provision import provision_application, provision_node, provision_operator, provision_pair

directory_option = click.option(
    "--directory",
    default=".",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write; made with mode 0700 if it is not there.",
)


@click.group(name="provision")
def command() -> None:
    """Make the identities and keys that nodes and applications start with."""


@command.command()
@click.argument("name")
@directory_option
def node(name: str, directory: Path) -> None:
    """Make the identity of node NAME: NAME.identity to keep, NAME.public to give to its peers and applications."""
    provision_node(name, directory)
    _made(name, directory)


@command.command()
@click.argument("name")
@directory_option
def application(name: str, directory: Path) -> None:
    """Make the identity of application NAME: NAME.identity for it, NAME.public for its node."""
    provision_application(name, directory)
    _made(name, directory)


@command.command()
@click.argument("name")
@directory_option
def operator(name: str, directory: Path) -> None:
    """Make the identity of operator NAME: NAME.operator for the person, NAME.public for the nodes they operate.

    A node knows an operator and their roles by a table [[operator]] in its configuration.
    """
    provision_operator(name, directory)
    _made(name, directory, "operator")


def _made(name: str, directory: Path, secret: str = "identity") -> None:
    click.echo(f"{directory / name}.{secret}  keep it secret, mode 0600")
    click.echo(f"{directory / name}.public    give it to those who must know {name}")


@command.command()
@click.argument("link")
@click.argument("alice")
@click.argument("bob")
@click.option("--kib", default=64, show_default=True, help="Authentication key per file, in KiB.")
@directory_option
def pair(link: str, alice: str, bob: str, kib: int, directory: Path) -> None:
    """Make the first authentication key of LINK between nodes ALICE (transmitter) and BOB (receiver).

    Carry BOB's file to its node by a trusted courier. Each agent reads its file once, at the first start; destroy the
    files then.
    """
    for path in provision_pair(link, alice, bob, directory, kib=kib):
        click.echo(path)
