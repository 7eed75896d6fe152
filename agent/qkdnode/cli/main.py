"""The command group: a subcommand is imported when it is called, so that each starts fast."""

import importlib
import sys

import click

from qkdnode import __version__
from qkdnode.errors import QkdnodeError

COMMANDS = {
    "alarms": "Show what a person should look at, and acknowledge it.",
    "audit": "Export the audit log, and verify an export offline.",
    "bench": "Measure the kernels of this machine.",
    "clock": "Show the time that timers of keys are held to, and confirm the wall clock.",
    "compromise": "Say that others may know keys, and see how far that has come.",
    "config": "Check a configuration.",
    "devices": "Show QKD modules and QRNGs.",
    "inventory": "Show what a node consists of, and export it.",
    "keys": "Show which keys there are, never their bits, and revoke them.",
    "links": "Show what every link does.",
    "policy": "Look at, approve and change what keys are for.",
    "pause": "Distil no more on a link.",
    "reload": "Have an agent read its configuration anew.",
    "rotate": "Take associations to the next generation of their keys, and see how far that has come.",
    "resume": "Distil again on a link.",
    "shutdown": "Stop an agent in order.",
    "status": "Show a node at a glance.",
    "top": "Show a node live.",
    "demo": "Watch two nodes make keys and hand them to two applications.",
    "events": "Follow what happens at a node.",
    "decoys": "Show how many decoy keys there are, and renew them.",
    "fetch": "Fetch keys for an application by their ids.",
    "doctor": "Look for what a node lacks, and say what mends it.",
    "install": "Install the systemd unit, the udev rule and a sample configuration.",
    "provision": "Make the identities and keys that nodes and applications start with.",
    "run": "Run the agent of a node.",
    "subscribe": "Fetch keys for an application.",
}


class Commands(click.Group):
    """Subcommands by name; each module defines `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"qkdnode.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qkdnode")
def group() -> None:
    """The agent of a trusted node in a quantum key distribution network."""


def main() -> None:
    """Run the command; an error of the project ends it with one line and the error's exit status."""
    try:
        group()
    except QkdnodeError as error:
        click.echo(f"qkdnode: {error}", err=True)
        sys.exit(error.exit_status)
    except ExceptionGroup as errors:
        known, others = errors.split(QkdnodeError)
        if known is None or others is not None:
            raise
        for one in known.exceptions:
            click.echo(f"qkdnode: {one}", err=True)
        sys.exit(1)
