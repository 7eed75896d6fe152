"""How a command finds a running agent and proves who asks: options that every such command has."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from qkdnode.channel.operator import load_operator
from qkdnode.config import load_config
from qkdnode.control.client import Client
from qkdnode.errors import ConfigError

OPERATOR = "QKDNODE_OPERATOR"
Command = TypeVar("Command", bound=Callable[..., Any])

_config = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="The node's TOML file, which names its socket."
)
_socket = click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path), help="The control socket, if not by --config."
)
_as = click.option(
    "--as",
    "operator_file",
    envvar=OPERATOR,
    type=click.Path(path_type=Path),
    help=f"Your NAME.operator; {OPERATOR} in the environment stands for it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")


@contextmanager
def connected(config_file: Path | None, socket_path: Path | None, operator_file: Path | None) -> Iterator[Client]:
    """A connection to the agent, by its configuration or its socket. ConfigError says what is not given."""
    node = None
    if config_file is not None:
        config = load_config(config_file)
        node = config.node.name
        if socket_path is None:
            if config.control is None:
                raise ConfigError(f"{config_file} has no [control] section: its agent cannot be reached")
            socket_path = config_file.parent / config.control.socket
    if socket_path is None:
        raise ConfigError("which agent? Give --config NODE.toml, or --socket PATH")
    if operator_file is None:
        raise ConfigError(
            f"who asks? Give --as NAME.operator, or set {OPERATOR}; `qkdnode provision operator NAME` makes one"
        )
    with load_operator(operator_file) as operator, Client(socket_path, operator, node=node) as client:
        yield client


def addressed(function: Command) -> Command:
    """Give a command the options that `connected` takes, for one that connects by itself."""
    return _config(_socket(_as(function)))


def asking(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command a Client as its first argument, and the options that this takes; and --json."""

    @functools.wraps(function)
    def command(
        *arguments: Any,
        config_file: Path | None,
        socket_path: Path | None,
        operator_file: Path | None,
        **options: Any,
    ) -> None:
        with connected(config_file, socket_path, operator_file) as client:
            function(client, *arguments, **options)

    return addressed(json_option(command))
