"""Verify an audit export offline, trusting nothing but the node's public key.

A tool for strangers: this one file with Python and `cryptography` is enough, and it shares no code with the node that
wrote the log. `python verifier.py EXPORT PUBLIC_KEY` prints the verdict; exit status 0 valid, 1 invalid, 2 unreadable.

The export is UTF-8, one compact JSON object per line, "\\n" between lines:

    {"format":"qkdnode-audit/1","origin":NAME,"public_key":BASE64}       first
    {"leaf":TEXT,"hash":HEX}                                             entry 0, 1, 2, ...: one event each
    {"checkpoint":NOTE}                                                  after the last entry that it covers

What is checked:
 1. each entry's hash is SHA-256(0x00 || leaf), and its number in its topic is one more than the topic's last, from 1;
 2. each checkpoint is a C2SP signed note under the origin's name with an Ed25519 signature of the given key;
 3. its size is the number of entries before it, and its root the RFC 9162 Merkle root over all of them;
 4. at least one checkpoint is there: without one nothing is signed.

What no export can show: entries after its last checkpoint are unsigned (they are counted), and a log that was cut at
an earlier checkpoint looks whole. Compare the last size with one that a witness knows.
"""

import base64
import binascii
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

try:
    from qkdnode.errors import AuditUnreadableError  # pyright: ignore[reportAssignmentType]
except ImportError:  # the file was copied out of its package

    class AuditUnreadableError(Exception):  # type: ignore[no-redef]
        """The file is not an audit export."""


FORMAT = "qkdnode-audit/1"
MAX_LEAF_BYTES = 16 * 1024
MAX_LINE_BYTES = 8 * MAX_LEAF_BYTES  # a leaf whose every byte needs an escape
MAX_TOPICS = 65_536
HEADER = ("format", "origin", "public_key")
ENTRY = ("leaf", "hash")
CHECKPOINT = ("checkpoint",)
NOTE = re.compile(
    r"(?P<body>(?P<origin>[^\n]+)\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"(?:time_ns [0-9]{1,19}\n)?)"
    r"\n\u2014 (?P<name>[^ \n]+) (?P<signature>[A-Za-z0-9+/]{91}=)\n"
)


@dataclass(frozen=True)
class Report:
    """The verdict on one export. `first_bad` names the first entry or checkpoint at fault, and is None if valid."""

    valid: bool
    leaves: int  # entries read, up to and with the one at fault
    checkpoints: int  # checkpoints that verified
    unsigned_tail: int  # entries after the last of them
    first_bad: str | None


class Tree:
    """The Merkle root over the entries so far: one hash per complete subtree, largest first."""

    def __init__(self) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []

    def append(self, leaf_hash: bytes) -> None:
        """Add one leaf: as many subtrees merge as the size has ones at its end."""
        size = self.size
        while size & 1:
            leaf_hash = hashlib.sha256(b"\x01" + self._subtrees.pop() + leaf_hash).digest()
            size >>= 1
        self._subtrees.append(leaf_hash)
        self.size += 1

    def root(self) -> bytes:
        """The root of RFC 9162 section 2.1.1."""
        if not self._subtrees:
            return hashlib.sha256(b"").digest()
        *lefts, root = self._subtrees
        for left in reversed(lefts):
            root = hashlib.sha256(b"\x01" + left + root).digest()
        return root


class Fault(Exception):
    """What is wrong with one entry or checkpoint."""


class Verification:
    """Entries and checkpoints in order; each method raises Fault on the first thing that is not as it must be."""

    def __init__(self, origin: str, public_key: bytes) -> None:
        self.tree = Tree()
        self.checkpoints = 0
        self.signed = 0  # entries under the last good checkpoint
        self._origin = origin
        self._key = Ed25519PublicKey.from_public_bytes(public_key)
        self._key_id = hashlib.sha256(origin.encode() + b"\n\x01" + public_key).digest()[:4]
        self._topics: dict[str, int] = {}

    def entry(self, leaf: str, claimed: str) -> None:
        """Check 1."""
        leaf_hash = hashlib.sha256(b"\x00" + leaf.encode()).digest()
        self.tree.append(leaf_hash)
        if leaf_hash.hex() != claimed:
            raise Fault("the leaf does not have the hash that stands beside it")
        topic, number = self._place(leaf)
        expected = self._topics.get(topic, 0) + 1
        if number != expected:
            raise Fault(f"number {number} of topic {topic!r} where {expected} must be: entries are missing or moved")
        if expected == 1 and len(self._topics) == MAX_TOPICS:
            raise AuditUnreadableError(f"more than {MAX_TOPICS} topics: not an export of a node")
        self._topics[topic] = number

    def checkpoint(self, note: str) -> None:
        """Checks 2 and 3."""
        match = NOTE.fullmatch(note)
        if match is None:
            raise Fault("not a signed checkpoint")
        if match["origin"] != self._origin or match["name"] != self._origin:
            raise Fault(f"origin {match['origin']!r}, but this is the log of {self._origin!r}")
        signed = from_base64(match["signature"])
        if signed is None or signed[:4] != self._key_id:
            raise Fault("signed with another key")
        try:
            self._key.verify(signed[4:], match["body"].encode())
        except InvalidSignature:
            raise Fault("the signature does not verify") from None
        size = int(match["size"])
        if size < self.signed:
            raise Fault(f"the size goes back from {self.signed} to {size}")
        if size != self.tree.size:
            raise Fault(f"signed over {size} entries, but {self.tree.size} stand before it")
        if from_base64(match["root"]) != self.tree.root():
            raise Fault("root differs: one of these entries is not what was signed")
        self.checkpoints += 1
        self.signed = size

    @staticmethod
    def _place(leaf: str) -> tuple[str, int]:
        try:
            event = json.loads(leaf)
        except (ValueError, RecursionError):
            raise Fault("the leaf is not an event") from None
        topic, number = (event.get("topic"), event.get("topic_sequence")) if type(event) is dict else (None, None)
        if type(topic) is not str or type(number) is not int or len(leaf.encode()) > MAX_LEAF_BYTES:
            raise Fault("the leaf is not an event with a topic and a number in it")
        return topic, number


def verify(lines: Iterable[bytes | str], public_key: bytes) -> Report:
    """Verify an export given as lines; `public_key` is the 32 bytes known from elsewhere, not from the export.

    Reads once and keeps no entries. AuditUnreadableError if this is no export, or a line is not of its format.
    """
    numbered = enumerate(lines, 1)
    header = read_line(*next(numbered, (1, b"")))
    if tuple(header) != HEADER or header["format"] != FORMAT:
        raise AuditUnreadableError(f"line 1: not the header of an audit export of format {FORMAT!r}")
    if header["public_key"] != base64.b64encode(public_key).decode():
        return Report(False, 0, 0, 0, "header: the public key is not the one that was given")
    run = Verification(header["origin"], public_key)
    first_bad = None
    for number, line in numbered:
        item = read_line(number, line)
        try:
            if tuple(item) == ENTRY:
                run.entry(item["leaf"], item["hash"])
            elif tuple(item) == CHECKPOINT:
                run.checkpoint(item["checkpoint"])
            else:
                raise AuditUnreadableError(f"line {number}: neither an entry nor a checkpoint")
        except Fault as fault:
            where = f"entry {run.tree.size - 1}" if "leaf" in item else name_checkpoint(run)
            first_bad = f"{where}: {fault}"
            break
    if first_bad is None and not run.checkpoints:
        first_bad = "no checkpoint: nothing in this export is signed"
    tail = run.tree.size - run.signed
    return Report(first_bad is None, run.tree.size, run.checkpoints, tail, first_bad)


def name_checkpoint(run: Verification) -> str:
    """The checkpoint after the last good one, and the entries that only it covers."""
    number, first, last = run.checkpoints + 1, run.signed, run.tree.size - 1
    return f"checkpoint {number} (entries {first}-{last})" if first <= last else f"checkpoint {number} (no new entries)"


def read_line(number: int, line: bytes | str) -> dict[str, str]:
    """The object of one line, if it is compact JSON of strings in its one spelling."""
    try:
        text = line if isinstance(line, str) else line.decode()
        text = text.removesuffix("\n")
        if len(text) > MAX_LINE_BYTES:
            raise AuditUnreadableError(f"line {number}: longer than {MAX_LINE_BYTES} bytes")
        item: Any = json.loads(text)
        if type(item) is not dict or not all(type(value) is str for value in item.values()):
            raise AuditUnreadableError(f"line {number}: not an object of strings")
        if write_line(item) != text + "\n":
            raise AuditUnreadableError(f"line {number}: not in the one spelling that the format allows")
    except (ValueError, RecursionError):
        raise AuditUnreadableError(f"line {number}: not JSON in UTF-8") from None
    return item


def write_line(item: dict[str, str]) -> str:
    """The one spelling of an object as a line."""
    line = json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n"
    line.encode()
    return line


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of bounded length, so that a file without line ends is not read whole."""
    while line := file.readline(MAX_LINE_BYTES + 2):
        yield line


def from_base64(text: str) -> bytes | None:
    """The bytes, or None unless this is their one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


def main(arguments: list[str]) -> int:
    """`verifier.py EXPORT PUBLIC_KEY`, the key in base64; the exit status."""
    if len(arguments) != 2:
        print("usage: verifier.py EXPORT PUBLIC_KEY(base64)", file=sys.stderr)
        return 2
    public_key = from_base64(arguments[1])
    if public_key is None or len(public_key) != 32:
        print("the public key must be 32 bytes in base64", file=sys.stderr)
        return 2
    try:
        with open(arguments[0], "rb") as file:
            report = verify(read_lines(file), public_key)
    except (OSError, AuditUnreadableError) as error:
        print(f"unreadable: {error}", file=sys.stderr)
        return 2
    print(f"{report.leaves} entries, {report.checkpoints} checkpoints, {report.unsigned_tail} entries not yet signed")
    print("valid" if report.valid else f"INVALID: {report.first_bad}")
    return 0 if report.valid else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
