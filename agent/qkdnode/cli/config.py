"""`qkdnode config check`: what is wrong with a configuration, before an agent is started with it."""

import time
from pathlib import Path

import click

from qkdnode.config import load_config
from qkdnode.errors import ConfigError
from qkdnode.node.algorithms import day_of, demand_approved


@click.group(name="config")
def command() -> None:
    """Check a configuration."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Decode FILE strictly, and see that the files it names are there and its algorithms not disallowed today."""
    config = load_config(file)
    deprecated = demand_approved(config, day_of(time.time_ns()))
    named = [config.node.identity, *(link.peer_public for link in config.link)]
    named += [application.public for application in config.application]
    named += [operator.public for operator in config.operator]
    if config.node.root_key.passphrase_file is not None:
        named.append(config.node.root_key.passphrase_file)
    missing = [name for name in named if not (file.parent / name).is_file()]
    if missing:
        raise ConfigError(f"{file}: no such file: {', '.join(missing)}")
    click.echo(
        f"{file}: node {config.node.name}, {len(config.link)} links, {len(config.qrng)} QRNGs, "
        f"{len(config.application)} applications"
    )
    for finding in deprecated:
        click.echo(f"{file}: {finding}")
