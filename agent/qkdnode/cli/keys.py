"""`qkdnode keys list | show | revoke`: which keys there are, never what they are, and which are so no more."""

from uuid import UUID

import click
import msgspec

from qkdnode.cli.compromise import show_revoked
from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, print_json, table
from qkdnode.control.client import Client
from qkdnode.lifecycle.reasons import COMPROMISES, Reason
from qkdnode.lifecycle.response import STEPS
from qkdnode.lifecycle.states import Stage
from qkdnode.wire.control import PAGE_MAX, KeyEntry, ListKeys, RevokeKeys, ShowKey

HEADINGS = ("number", "key", "state", "local", "remote", "link", "bits", "allocated", "delivered here", "there")

STAGE = click.Choice([stage.value for stage in Stage])


@click.group(name="keys")
def command() -> None:
    """Show which keys there are, never their bits, and revoke them."""


@command.command(name="list")
@click.option("--local", default=None, help="Only of this application here.")
@click.option("--remote", default=None, help="Only of this application at the far end.")
@click.option("--link", default=None, help="Only of this link.")
@click.option("--state", default=None, type=STAGE, help="Only at this stage of its life.")
@click.option("--after", default=0, type=click.IntRange(0), help="Only with a higher number.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="Stop after so many.")
@asking
def list_(
    client: Client,
    local: str | None,
    remote: str | None,
    link: str | None,
    state: str | None,
    after: int,
    limit: int,
    as_json: bool,
) -> None:
    """List keys in the order of their allocation."""
    request = ListKeys(after=after, limit=min(limit, PAGE_MAX), local=local, remote=remote, link=link, state=state)
    found: list[KeyEntry] = []
    following: int | None = None
    for page in client.keys(request):
        found.extend(page.keys)
        following = page.next
        if len(found) >= limit:
            if len(found) > limit:
                following = found[limit - 1].number
            break
    del found[limit:]
    if as_json:
        print_json({"keys": found, "next": following})
        return
    rows = (
        (
            key.number,
            key.key_id,
            key.state,
            key.local,
            key.remote,
            key.link,
            key.size_bits,
            moment(key.allocated_ns),
            moment(key.delivered_ns),
            moment(key.delivered_remote_ns),
        )
        for key in found
    )
    console().print(table(HEADINGS, rows))
    if following is not None:
        click.echo(f"more: --after {following}")


@command.command()
@click.argument("key_id", type=click.UUID)
@asking
def show(client: Client, key_id: UUID, as_json: bool) -> None:
    """Show what is known of the key KEY_ID, but its bits."""
    key: KeyEntry = client.ask(ShowKey(key_id=key_id.bytes))
    if as_json:
        print_json(key)
        return
    rows = []
    for name, value in msgspec.to_builtins(key).items():
        is_time = name.endswith("_ns")
        rows.append((name.removesuffix("_ns").replace("_", " "), moment(value) if is_time else value))
    console().print(table(("", ""), rows))


@command.command()
@click.argument("key_ids", metavar="KEY_ID...", nargs=-1, required=True, type=click.UUID)
@click.option("--reason", required=True, type=click.Choice([reason.value for reason in Reason]), help="Of KMIP.")
@asking
def revoke(client: Client, key_ids: tuple[UUID, ...], reason: str, as_json: bool) -> None:
    """Take keys out of use at both ends: neither application gets them from here any more.

    All of them or, if one request fails, none. What an application has already it is told of by the events.
    """
    if len(key_ids) > PAGE_MAX:
        raise click.UsageError(f"{len(key_ids)} keys at once: give at most {PAGE_MAX}")
    request = RevokeKeys(key_ids=tuple(key_id.bytes for key_id in key_ids), reason=reason)
    show_revoked(client.ask(request), STEPS["key"] if reason in COMPROMISES else (), as_json)
