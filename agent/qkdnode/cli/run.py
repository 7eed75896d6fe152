"""`qkdnode run`: the agent of one node, until SIGTERM or SIGINT."""

import asyncio
from pathlib import Path

import click

from qkdnode.config import load_config
from qkdnode.node.agent import Agent
from qkdnode.node.world import World
from qkdnode.watch import log


@click.command(name="run")
@click.option("--config", "file", required=True, type=click.Path(path_type=Path), help="The node's TOML file.")
@click.option("--statistics", default=60.0, show_default=True, help="Seconds between statistics in the log.")
@click.option("--drain", default=15.0, show_default=True, help="Seconds that a stop waits for deliveries.")
def command(file: Path, statistics: float, drain: float) -> None:
    """Run the agent of a node.

    The log is one JSON object per line on standard error. SIGTERM stops in order: no new key, what is allocated is
    delivered, what is claimed is settled.
    """
    config = load_config(file)
    agent = Agent(
        config, file.parent, log.configure(), statistics_s=statistics, drain_s=drain, world=World(), file=file
    )
    asyncio.run(agent.run())
