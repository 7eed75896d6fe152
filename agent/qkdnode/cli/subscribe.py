"""`qkdnode subscribe`: an application that fetches keys and says which, never what."""

import asyncio
import hashlib
import json
import resource
import signal
import sys
from contextlib import suppress
from uuid import UUID

import click

from qkdnode.cli.application import Application, as_application
from qkdnode.cli.output import is_writable, until_writable
from qkdnode.client import AsyncSubscription, EndedKeys, GenerationChange, Key
from qkdnode.native.secret import LockedBuffer

IDS_IN_A_LINE = 64
LAST_LINE_S = 1.0  # for a reader of the output that is slow, at the end


def salted_digest(salt: bytes, material: LockedBuffer) -> str:
    """32 hexadecimal digits by which two ends may compare a key for one run without telling it."""
    digest = hashlib.sha256(salt)
    digest.update(material)
    return digest.hexdigest()[:32]


@click.command(name="subscribe")
@as_application
@click.option("--credit", default=64, show_default=True, help="Keys unacknowledged at most.")
@click.option("--count", default=0, help="Stop after so many keys (0: never).")
def command(application: Application, credit: int, count: int) -> None:
    """Fetch keys and print a JSON line for each: its id and size, and a salted digest if asked for.

    And a line for keys that were given before and are out of use now, with what became of them and why.
    """
    ended: asyncio.Queue[EndedKeys] = asyncio.Queue()
    subscription = application.subscription(
        credit=credit,
        on_ended=lambda its: ended.put_nowait(its),
        on_generation=_print_generation,
    )
    received = asyncio.run(_fetch(subscription, count, application.salt, ended))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if is_writable(LAST_LINE_S):
        print(json.dumps({"received": received, "rss_mib": round(peak, 1)}), flush=True)


async def _fetch(
    subscription: AsyncSubscription, count: int, salt: bytes | None, ended: "asyncio.Queue[EndedKeys]"
) -> int:
    """Print keys until `count` of them or a signal; how many.

    A signal is taken by the loop. A handler that raises, wherever the program happens to be, can be lost in a callback
    of the garbage collector, or keep a lock from its release.
    """
    received = 0

    async def take() -> None:
        nonlocal received
        async for key in subscription:
            await until_writable()
            _print(key, salt)
            received += 1
            if received == count:
                key.acknowledge()
                return

    async with subscription:
        taking, telling = asyncio.create_task(take()), asyncio.create_task(_tell(ended))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, taking.cancel)
        with suppress(asyncio.CancelledError):
            await taking
        with suppress(TimeoutError):  # the node tells no more of what was noted: it is printed before the end
            async with asyncio.timeout(LAST_LINE_S):
                await ended.join()
        telling.cancel()
    return received


async def _tell(ended: "asyncio.Queue[EndedKeys]") -> None:
    """Print keys that are out of use, in lines that a pipe takes whole."""
    while True:
        its = await ended.get()
        for start in range(0, len(its.key_ids), IDS_IN_A_LINE):
            await until_writable()
            _print_ended(its, its.key_ids[start : start + IDS_IN_A_LINE])
        ended.task_done()


def _print_ended(ended: EndedKeys, key_ids: tuple[UUID, ...]) -> None:
    line = {"ended": list(map(str, key_ids)), "stage": ended.stage, "reason": ended.reason}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _print_generation(change: GenerationChange) -> None:
    sys.stdout.write(json.dumps({"generation": change.number, "is": change.what}) + "\n")
    sys.stdout.flush()


def _print(key: Key, salt: bytes | None) -> None:
    line: dict[str, object] = {"key": str(key.id), "bits": key.size_bits, "generation": key.generation}
    with key:
        if salt is not None:
            line["digest"] = salted_digest(salt, key.material)
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
