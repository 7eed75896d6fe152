"""`qkdnode alarms [ack CODE SUBJECT]`: what a person should look at."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from qkdnode.cli.reach import addressed, asking, connected, json_option
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.wire.control import Acknowledge, Acted

HEADINGS = ("severity", "alarm", "about", "count", "first", "last", "acknowledged by", "detail", "advice")


def alarm_table(alarms: Iterable[Mapping[str, Any]], title: str | None = None) -> Table:
    """One row for each alarm."""
    return table(
        HEADINGS,
        (
            (
                alarm.get("severity"),
                alarm["code"],
                alarm["subject"],
                alarm.get("count"),
                moment(alarm.get("first_ns")),
                moment(alarm.get("last_ns")),
                alarm.get("acknowledged_by"),
                alarm.get("detail"),
                alarm.get("advice"),
            )
            for alarm in alarms
        ),
        title,
    )


@click.group(name="alarms", invoke_without_command=True)
@addressed
@json_option
@click.pass_context
def command(
    context: click.Context,
    config_file: Path | None,
    socket_path: Path | None,
    operator_file: Path | None,
    as_json: bool,
) -> None:
    """Show every alarm, oldest first, with what to do; or acknowledge one."""
    if context.invoked_subcommand is not None:
        return
    with connected(config_file, socket_path, operator_file) as client:
        found = tuple(client.alarms())
    if as_json:
        print_json({"alarms": found})
    elif found:
        console().print(alarm_table(found))
    else:
        click.echo("no alarm was raised")


@command.command()
@click.argument("code")
@click.argument("subject")
@asking
def ack(client: Client, code: str, subject: str, as_json: bool) -> None:
    """Say that you have seen alarm CODE about SUBJECT, both as `alarms` shows them.

    A device that has latched DEVICE_UNHEALTHY is tested and opened again.
    """
    acted: Acted = client.ask(Acknowledge(code=code, subject=subject))
    if as_json:
        print_json(acted)
    else:
        click.echo(acted.detail)
