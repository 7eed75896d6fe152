"""`qkdnode fetch`: an application that asks for keys by their ids, and says what came of each, never what it is."""

import asyncio
import json
import sys
from uuid import UUID

import click

from qkdnode.cli.application import Application, as_application
from qkdnode.cli.subscribe import salted_digest
from qkdnode.client import AsyncSubscription, Key


@click.command(name="fetch")
@click.argument("key_ids", metavar="KEY_ID...", nargs=-1, required=True, type=click.UUID)
@as_application
@click.option("--timeout", default=30.0, show_default=True, help="Seconds to wait for all of them.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each id.")
def command(application: Application, key_ids: tuple[UUID, ...], timeout: float, as_json: bool) -> None:
    """Fetch the keys KEY_ID..., which the node then has no more. Exit 1 if the node has no key under one of the ids.

    It does not say whether there is none, not yet, no more, or not for this application.
    """
    subscription = application.subscription(credit=max(64, len(key_ids)), pushed=False)
    wanted = list(dict.fromkeys(key_ids))
    refused = asyncio.run(_fetch(subscription, wanted, timeout, application.salt, as_json))
    sys.exit(1 if refused else 0)


async def _fetch(
    subscription: AsyncSubscription, key_ids: list[UUID], timeout: float, salt: bytes | None, as_json: bool
) -> int:
    """Fetch, print and acknowledge; how many were refused."""
    async with subscription:
        keys, refused = await subscription.fetch_some(key_ids, timeout)
        for key in keys:
            line = _line(key, salt)
            click.echo(json.dumps(line) if as_json else " ".join(f"{name} {value}" for name, value in line.items()))
            key.acknowledge()
        for key_id in refused:
            click.echo(json.dumps({"refused": str(key_id)}) if as_json else f"refused {key_id}: no key for us")
    return len(refused)


def _line(key: Key, salt: bytes | None) -> dict[str, object]:
    line: dict[str, object] = {"key": str(key.id), "bits": key.size_bits}
    with key:
        if salt is not None:
            line["digest"] = salted_digest(salt, key.material)
    return line
