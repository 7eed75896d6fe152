"""`qkdnode top`: the status, live."""

import time
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from qkdnode.cli.reach import addressed, connected, json_option
from qkdnode.cli.show import console, print_json
from qkdnode.cli.status import render
from qkdnode.errors import AccessDeniedError, AuthenticationError, QkdnodeError
from qkdnode.wire.control import NodeStatus, Status

FINAL = (AccessDeniedError, AuthenticationError)


@click.command(name="top")
@addressed
@json_option
@click.option("--once", is_flag=True, help="Show it once and end, as `status` does.")
@click.option("--every", default=1.0, show_default=True, type=click.FloatRange(0.2, 3600), help="Seconds.")
def command(
    config_file: Path | None,
    socket_path: Path | None,
    operator_file: Path | None,
    as_json: bool,
    once: bool,
    every: float,
) -> None:
    """Show the status again and again, until Ctrl-C; with --json a line for each look.

    An agent that is gone is waited for.
    """
    reach = config_file, socket_path, operator_file
    try:
        if once or as_json:
            _print(reach, as_json, once, every)
        else:
            _live(reach, every)
    except KeyboardInterrupt:
        return


Reach = tuple[Path | None, Path | None, Path | None]


def _print(reach: Reach, as_json: bool, once: bool, every: float) -> None:
    with connected(*reach) as client:
        while True:
            status: NodeStatus = client.ask(Status())
            if as_json:
                print_json(status)
            else:
                console().print(render(status))
            if once:
                return
            time.sleep(every)


def _live(reach: Reach, every: float) -> None:
    shown: RenderableType = Text("connecting")
    with Live(shown, console=console(), screen=True, auto_refresh=False) as live:
        while True:
            try:
                with connected(*reach) as client:
                    while True:
                        shown = render(client.ask(Status()))
                        live.update(shown, refresh=True)
                        time.sleep(every)
            except QkdnodeError as error:
                if isinstance(error, FINAL) or error.exit_status == 78:
                    raise
                live.update(Group(Text(f"{error}\n", style="bold red"), shown), refresh=True)
                time.sleep(every)
