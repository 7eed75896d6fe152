"""`qkdnode keys`: which keys there are, never what they are, which are so no more, and how they are kept."""

from pathlib import Path
from typing import Any
from uuid import UUID

import click
import msgspec

from qkdnode.cli.compromise import show_revoked
from qkdnode.cli.reach import asking
from qkdnode.cli.show import console, moment, percent, print_json, table
from qkdnode.control.client import Client
from qkdnode.control.export import whole_file
from qkdnode.lifecycle.reasons import COMPROMISES, Reason
from qkdnode.lifecycle.response import STEPS
from qkdnode.lifecycle.states import Stage
from qkdnode.wire.control import (
    PAGE_MAX,
    DestructionReceipt,
    Due,
    DueList,
    EpochList,
    Epochs,
    KeyEntry,
    KeyLineage,
    ListKeys,
    RevokeKeys,
    RewrapKeys,
    Scrubbing,
    ScrubNow,
    ScrubStatus,
    ShowKey,
    ShowLineage,
)

HEADINGS = ("number", "key", "state", "local", "remote", "link", "bits", "allocated", "delivered here", "there")

COUNTED = 1000  # Bundles, at most: a count of all would take long
STAGE = click.Choice([stage.value for stage in Stage])


@click.group(name="keys")
def command() -> None:
    """Show which keys there are, never their bits, revoke them, and see to how they are kept."""


@command.command(name="list")
@click.option("--local", default=None, help="Only of this application here.")
@click.option("--remote", default=None, help="Only of this application at the far end.")
@click.option("--link", default=None, help="Only of this link.")
@click.option("--state", default=None, type=STAGE, help="Only at this stage of its life.")
@click.option("--service", default=None, help="Only for this service of either application, such as a SPIFFE id.")
@click.option("--after", default=0, type=click.IntRange(0), help="Only with a higher number.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="Stop after so many.")
@asking
def list_(
    client: Client,
    local: str | None,
    remote: str | None,
    link: str | None,
    state: str | None,
    service: str | None,
    after: int,
    limit: int,
    as_json: bool,
) -> None:
    """List keys in the order of their allocation."""
    page_size = min(limit, PAGE_MAX)
    request = ListKeys(
        after=after, limit=page_size, local=local, remote=remote, link=link, state=state, service=service
    )
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
    console().print(table(("", ""), _facts(msgspec.to_builtins(key))))


@command.command()
@click.argument("key_id", type=click.UUID)
@asking
def lineage(client: Client, key_id: UUID, as_json: bool) -> None:
    """Show where the key KEY_ID comes from and what became of it: devices, session, proof, steps, end."""
    answer: KeyLineage = client.ask(ShowLineage(key_id=key_id.bytes))
    if as_json:
        print_json(answer)
        return
    facts = msgspec.to_builtins(answer)
    for name in ("devices", "services", "remote_services"):
        facts[name] = ", ".join(facts[name])
    key, steps = facts.pop("key"), facts.pop("steps")
    console().print(table(("", ""), [*_facts(key), *_facts(facts)]))
    rows = ((step["position"], moment(step["time_ns"]), step["happened"], _told(step)) for step in steps)
    console().print(table(("leaf", "time", "step", "told"), rows))


def _told(step: dict[str, Any]) -> str:
    outcome = {} if step["outcome"] == "done" else {"outcome": step["outcome"]}
    return " ".join(f"{name}={value}" for name, value in {**outcome, **step["details"]}.items())


def _facts(of: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        (name.removesuffix("_ns").replace("_", " "), moment(value) if name.endswith("_ns") else value)
        for name, value in of.items()
    ]


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


@command.command()
@click.option("--now", is_flag=True, help="Begin a pass, unless one is running.")
@asking
def scrub(client: Client, now: bool, as_json: bool) -> None:
    """Show how far the pass over all stored records is, which verifies each and sets aside what is damaged."""
    state: ScrubStatus = client.ask(ScrubNow() if now else Scrubbing())
    if as_json:
        print_json(state)
        return
    if not state.begun_ns:
        click.echo("no pass over the stored records was made yet")
        return
    where = f"at {state.stage}, {percent(state.share)} of it" if state.running else f"over {moment(state.ended_ns)}"
    click.echo(f"pass {state.number}, begun {moment(state.begun_ns)}: {where}")
    click.echo(f"{state.rows} records, {state.keys} keys, {state.ciphertexts} unsealed, {state.damaged} damaged")


@command.command()
@asking
def epochs(client: Client, as_json: bool) -> None:
    """Show the key-encryption keys, one for each link, day and algorithm, and what is under them."""
    _show_epochs(client.ask(Epochs()), as_json)


@command.command()
@click.option("--to", required=True, help="An algorithm, such as ChaCha20-Poly1305, or `epoch`: today's key.")
@asking
def rewrap(client: Client, to: str, as_json: bool) -> None:
    """Wrap the data keys of all that is stored anew, while the agent serves; `keys epochs` shows how far that is.

    Keys that are made from now on are wrapped by that algorithm, too.
    """
    _show_epochs(client.ask(RewrapKeys(to=to)), as_json)


@command.command()
@asking
def due(client: Client, as_json: bool) -> None:
    """Show what timers end next, class by class, and what a legal hold keeps."""
    answer: DueList = client.ask(Due())
    if as_json:
        print_json(answer)
        return
    rows = (
        (
            timer.key_class,
            timer.timer,
            timer.rule or "-",
            moment(timer.due_ns),
            f"{timer.bundles}{'+' * (timer.bundles >= COUNTED)}",
            "on hold" if timer.held else "",
        )
        for timer in answer.timers
    )
    console().print(table(("class", "keys that are", "by", "the first is due", "Bundles due now", ""), rows))
    click.echo(f"trusted time: {moment(answer.trusted_ns)}")


@command.command()
@click.argument("key_id", type=click.UUID)
@click.option("--out", default=None, type=click.Path(path_type=Path), help="Write it to this file.")
@asking
def receipt(client: Client, key_id: UUID, out: Path | None, as_json: bool) -> None:
    """Give the receipt of the destroyed key KEY_ID, which `audit verify-receipt` verifies without this node."""
    text: str = client.ask(DestructionReceipt(key_id=key_id.bytes)).receipt
    if out is None:
        click.echo(text, nl=False)
        return
    with whole_file(out) as (_, file):
        file.write(text)
    if as_json:
        print_json({"file": str(out), "key_id": str(key_id)})
    else:
        click.echo(f"{out}: receipt of key {key_id}")


def _show_epochs(state: EpochList, as_json: bool) -> None:
    if as_json:
        print_json(state)
        return
    rows = (
        (kek.number, kek.link, moment(kek.epoch * 86_400 * 10**9), kek.algorithm, kek.state, kek.rows)
        for kek in state.keks
    )
    console().print(table(("number", "link", "epoch", "algorithm", "state", "rows"), rows))
    if state.rewrap is not None:
        order = state.rewrap
        click.echo(f"wrapped anew by {order.algorithm}: {order.rows - order.left} of {order.rows}, {order.state}")
