"""`qkdnode clock`: the time that timers of keys are held to, and a person's word on the wall clock."""

import click

from qkdnode.cli.compromise import Moment
from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.wire.control import ClockConfirm, ClockShow, ClockStatus

SECOND_NS = 10**9


@click.group(name="clock")
def command() -> None:
    """Show the time that timers of keys are held to, and confirm the wall clock."""


@command.command()
@asking
def show(client: Client, as_json: bool) -> None:
    """Show the wall clock, trusted time, and by how much they differ."""
    _show(client.ask(ClockShow()), as_json)


@command.command()
@click.option("--until", "until_ns", default=None, type=Moment(), help="Only up to this time; left out: up to now.")
@asking
def confirm(client: Client, until_ns: int | None, as_json: bool) -> None:
    """Say that the node's wall clock is right: look at another clock first.

    Timers of keys follow it from then on, and keys that are due end. That cannot be taken back.
    """
    shown: ClockStatus = client.ask(ClockShow())
    _show(client.ask(ClockConfirm(until_ns=shown.wall_ns if until_ns is None else until_ns)), as_json)


def _show(status: ClockStatus, as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    rows = (
        ("wall clock", moment(status.wall_ns)),
        ("trusted time", moment(status.trusted_ns)),
        ("ahead and not believed", f"{status.withheld_ns / SECOND_NS:.0f} s"),
        ("behind", f"{status.behind_ns / SECOND_NS:.0f} s"),
    )
    console().print(table(("", ""), rows))
