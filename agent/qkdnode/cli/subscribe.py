"""`qkdnode subscribe`: an application that fetches keys and says which, never what."""

import hashlib
import json
import resource
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from qkdnode.client import Key, subscribe
from qkdnode.native.secret import LockedBuffer


def salted_digest(salt: bytes, material: LockedBuffer) -> str:
    """32 hexadecimal digits by which two ends may compare a key for one run without telling it."""
    digest = hashlib.sha256(salt)
    digest.update(material)
    return digest.hexdigest()[:32]


class Stopped(Exception):
    """SIGTERM or SIGINT came."""


def _stop(_: int, __: FrameType | None) -> None:
    raise Stopped


@click.command(name="subscribe")
@click.option("--endpoint", required=True, help="Where the node supplies keys, such as tcp://127.0.0.1:5601.")
@click.option("--identity", required=True, type=click.Path(path_type=Path), help="The application's NAME.identity.")
@click.option("--node", required=True, type=click.Path(path_type=Path), help="The node's NAME.public.")
@click.option("--remote", required=True, help="The application at the far end.")
@click.option("--link", required=True, help="The link that the keys come from.")
@click.option("--size", default=256, show_default=True, help="Key size in bits, a multiple of 8.")
@click.option("--credit", default=64, show_default=True, help="Keys unacknowledged at most.")
@click.option("--count", default=0, help="Stop after so many keys (0: never).")
@click.option("--salt", default=None, help="Hexadecimal salt: print a salted digest of each key, to compare two ends.")
def command(
    endpoint: str,
    identity: Path,
    node: Path,
    remote: str,
    link: str,
    size: int,
    credit: int,
    count: int,
    salt: str | None,
) -> None:
    """Fetch keys and print a JSON line for each: its id and size, and a salted digest if asked for."""
    prefix = bytes.fromhex(salt) if salt is not None else None
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    received = 0
    try:
        with subscribe(
            endpoint, identity=identity, node=node, remote=remote, link=link, size_bits=size, credit=credit
        ) as subscription:
            for key in subscription:
                _print(key, prefix)
                received += 1
                if received == count:
                    key.acknowledge()
                    break
    except Stopped:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"received": received, "rss_mib": round(peak, 1)}), flush=True)


def _print(key: Key, salt: bytes | None) -> None:
    line: dict[str, object] = {"key": str(key.id), "bits": key.size_bits}
    with key:
        if salt is not None:
            line["digest"] = salted_digest(salt, key.material)
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
