"""`qkdnode compromise`: say that others may know keys; see how far that has come."""

from datetime import datetime
from uuid import UUID

import click

from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.lifecycle.reasons import COMPROMISES, Reason
from qkdnode.lifecycle.response import STEPS
from qkdnode.wire.control import CompromiseScope, RevokedKeys, RevokeKeys, ScopeList, Scopes

HEADINGS = ("scope", "link", "from Batch", "to Batch", "application", "since", "keys moved", "state", "neighbour")


class Moment(click.ParamType[int]):
    """A time of the wall clock in ISO 8601, UTC if it names no zone; in nanoseconds."""

    name = "time"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time such as 2026-02-02T02:23:20Z", param, ctx)
        seconds = (read if read.tzinfo is not None else datetime.fromisoformat(f"{value}+00:00")).timestamp()
        if seconds < 0:
            self.fail(f"{value!r} is before 1970", param, ctx)
        return round(seconds * 10**9)


@click.command(name="compromise")
@click.option("--scope", default=None, type=click.Choice(list(STEPS)), help="What others may know the keys of.")
@click.argument("value", required=False)
@click.option(
    "--reason",
    default=Reason.KEY_COMPROMISE.value,
    show_default=True,
    type=click.Choice([reason.value for reason in sorted(COMPROMISES)]),
    help="A reason of KMIP.",
)
@click.option("--from", "from_ns", default=0, type=Moment(), help="Where a time window begins, by the node's clock.")
@click.option("--until", "until_ns", default=2**63 - 1, type=Moment(), help="Where it ends; left out: it is open.")
@asking
def command(
    client: Client, scope: str | None, value: str | None, reason: str, from_ns: int, until_ns: int, as_json: bool
) -> None:
    """Say that others may know the keys of a scope: neither end releases one of them from now on.

    VALUE is the id of the key, or the name of the link, peer, device (its serial) or application; of a time window it
    is the link, and may be left out. Without --scope, show what was compromised and how far its rows are moved.
    """
    if scope is None:
        if value is not None:
            raise click.UsageError(f"what is {value!r}? Give --scope, too")
        _show(client.ask(Scopes()), (), as_json)
        return
    if value is None and scope != "time-window":
        raise click.UsageError(f"which {scope}? Give its name")
    if scope == "key":
        _compromise_key(client, value or "", reason, as_json)
        return
    asked = CompromiseScope(scope=scope, value=value, reason=reason, from_ns=from_ns, until_ns=until_ns)
    _show(client.ask(asked), STEPS[scope], as_json)


def _compromise_key(client: Client, value: str, reason: str, as_json: bool) -> None:
    try:
        key_id = UUID(value)
    except ValueError:
        raise click.UsageError(f"{value!r} is no id of a key") from None
    show_revoked(client.ask(RevokeKeys(key_ids=(key_id.bytes,), reason=reason)), STEPS["key"], as_json)


def show_revoked(answer: RevokedKeys, steps: tuple[str, ...], as_json: bool) -> None:
    """What became of revoked keys, and what to do; ends with status 1 if one of them is not known."""
    if as_json:
        print_json({"revoked": answer.revoked, "already": answer.already, "unknown": answer.unknown, "steps": steps})
    else:
        for what, ids in (
            ("revoked", answer.revoked),
            ("was out of use", answer.already),
            ("not known, or set aside as damaged", answer.unknown),
        ):
            for key_id in ids:
                click.echo(f"{key_id}  {what}")
        _show_steps(steps)
    if answer.unknown:
        raise SystemExit(1)


def _show(answer: ScopeList, steps: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json({"scopes": answer.scopes, "steps": steps})
        return
    rows = (
        (
            scope.number,
            scope.link,
            scope.first,
            scope.last,
            scope.application or "all",
            moment(scope.made_ns),
            scope.keys,
            "moving" if scope.moving else "done",
            "has confirmed" if scope.confirmed else "is yet to hear",
        )
        for scope in answer.scopes
    )
    console().print(table(HEADINGS, rows))
    _show_steps(steps)


def _show_steps(steps: tuple[str, ...]) -> None:
    for number, step in enumerate(steps, 1):
        click.echo(f"{number}. {step}")
