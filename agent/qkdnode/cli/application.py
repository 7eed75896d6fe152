"""How a command is an application of a node: options that every such command has."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from qkdnode.client import AsyncSubscription

_OPTIONS = (
    click.option("--endpoint", required=True, help="Where the node supplies keys, such as tcp://127.0.0.1:5601."),
    click.option("--identity", required=True, type=click.Path(path_type=Path), help="The application's NAME.identity."),
    click.option("--node", required=True, type=click.Path(path_type=Path), help="The node's NAME.public."),
    click.option("--remote", required=True, help="The application at the far end."),
    click.option("--link", required=True, help="The link that the keys come from."),
    click.option("--size", default=256, show_default=True, help="Key size in bits, a multiple of 8."),
    click.option("--salt", default=None, help="Hexadecimal: print a digest of each key with it, to compare two ends."),
)


class Application(msgspec.Struct, frozen=True):
    """Whose keys a command is about, and where they come from."""

    endpoint: str
    identity: Path
    node: Path
    remote: str
    link: str
    size: int
    salt: bytes | None

    def subscription(self, **more: Any) -> AsyncSubscription:
        """A subscription to these keys, with what else AsyncSubscription takes."""
        return AsyncSubscription(
            self.endpoint,
            identity=self.identity,
            node=self.node,
            remote=self.remote,
            link=self.link,
            size_bits=self.size,
            **more,
        )


def as_application(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above; it is called with an Application before its own arguments."""

    @functools.wraps(function)
    def command(
        *, endpoint: str, identity: Path, node: Path, remote: str, link: str, size: int, salt: str | None, **own: Any
    ) -> None:
        try:
            prefix = None if salt is None else bytes.fromhex(salt)
        except ValueError:
            raise click.BadParameter("give pairs of hexadecimal digits", param_hint="--salt") from None
        function(Application(endpoint, identity, node, remote, link, size, prefix), **own)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command
