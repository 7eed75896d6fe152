"""How a command is an application of a node: options that every such command has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--endpoint", required=True, help="Where the node supplies keys, such as tcp://127.0.0.1:5601."),
    click.option("--identity", required=True, type=click.Path(path_type=Path), help="The application's NAME.identity."),
    click.option("--node", required=True, type=click.Path(path_type=Path), help="The node's NAME.public."),
    click.option("--remote", required=True, help="The application at the far end."),
    click.option("--link", required=True, help="The link that the keys come from."),
    click.option("--size", default=256, show_default=True, help="Key size in bits, a multiple of 8."),
    click.option(
        "--salt", default=None, help="Hexadecimal: print a digest of each key with this salt, to compare two ends."
    ),
)


def as_application(function: Command) -> Command:
    """Give a command `endpoint`, `identity`, `node`, `remote`, `link`, `size` and `salt`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
