"""The export of an audit log: lines that the offline verifier reads. The format is described there, once.

Both directions stream: nothing but one line is held.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypeAlias

import msgspec

from qkdnode.audit import verifier
from qkdnode.audit.merkle import HASH_BYTES, leaf_hash
from qkdnode.errors import AuditUnreadableError


class Header(msgspec.Struct, frozen=True):
    """Whose log it is. The key is the log's own claim: a verifier brings its own."""

    origin: str
    public_key: bytes


class Leaf(msgspec.Struct, frozen=True):
    """One entry: the canonical bytes of its event, and on reading the hash that stood beside them."""

    data: bytes
    hash: bytes


class SignedCheckpoint(msgspec.Struct, frozen=True):
    """The note of a checkpoint over all entries before it."""

    note: str


Item: TypeAlias = Header | Leaf | SignedCheckpoint


def write_export(
    origin: str, public_key: bytes, leaves: Iterable[bytes], checkpoints: Iterable[tuple[int, str]]
) -> Iterator[str]:
    """The lines of an export, each with its line end.

    `leaves` in order from the first; `checkpoints` as (size, note) by rising size, each written after leaf `size` - 1.
    Those over more leaves than are given are left out.
    """
    yield header_line(origin, public_key)
    notes = iter(checkpoints)
    ahead = next(notes, None)
    for count, leaf in enumerate(chain(leaves, (None,))):
        while ahead is not None and ahead[0] <= count:
            yield verifier.write_line({"checkpoint": ahead[1]})
            ahead = next(notes, None)
        if leaf is not None:
            yield verifier.write_line({"leaf": leaf.decode(), "hash": leaf_hash(leaf).hex()})


def header_line(origin: str, public_key: bytes) -> str:
    """The first line of an export."""
    key = base64.b64encode(public_key).decode()
    return verifier.write_line({"format": verifier.FORMAT, "origin": origin, "public_key": key})


def page_lines(position: int, leaves: Iterable[str], checkpoints: Iterable[tuple[int, str]]) -> Iterator[str]:
    """The lines of leaves, the first of them at `position`, and of the checkpoints that stand after one of them."""
    notes = dict(checkpoints)
    for size, leaf in enumerate(leaves, position + 1):
        yield verifier.write_line({"leaf": leaf, "hash": leaf_hash(leaf.encode()).hex()})
        if size in notes:
            yield verifier.write_line({"checkpoint": notes[size]})


def read_export(lines: Iterable[bytes | str]) -> Iterator[Item]:
    """The items of an export, the header first. Nothing is verified, hashes included.

    AuditUnreadableError names the first line that is not of the format.
    """
    for number, line in enumerate(lines, 1):
        item = verifier.read_line(number, line)
        reader = _READERS.get(tuple(item))
        if reader is None or (number == 1) is not (reader is _header):
            raise AuditUnreadableError(f"line {number}: not the line that belongs here in an audit export")
        try:
            yield reader(item)
        except ValueError as error:
            raise AuditUnreadableError(f"line {number}: {error}") from None


def _header(item: dict[str, str]) -> Header:
    public_key = verifier.from_base64(item["public_key"])
    if item["format"] != verifier.FORMAT or public_key is None:
        raise ValueError(f"not the header of an audit export of format {verifier.FORMAT!r}")
    return Header(item["origin"], public_key)


def _leaf(item: dict[str, str]) -> Leaf:
    digest = bytes.fromhex(item["hash"])
    if len(digest) != HASH_BYTES or digest.hex() != item["hash"]:
        raise ValueError(f"a hash is {2 * HASH_BYTES} lower-case hexadecimal digits")
    return Leaf(item["leaf"].encode(), digest)


def _checkpoint(item: dict[str, str]) -> SignedCheckpoint:
    return SignedCheckpoint(item["checkpoint"])


_READERS: dict[tuple[str, ...], Callable[[dict[str, str]], Item]] = {
    verifier.HEADER: _header,
    verifier.ENTRY: _leaf,
    verifier.CHECKPOINT: _checkpoint,
}
