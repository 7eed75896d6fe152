"""Verify an audit export, or the receipt of one entry, offline, trusting nothing but the node's public key.

A tool for strangers: this one file with Python and `cryptography` is enough, and it shares no code with the node that
wrote the log. `python verifier.py FILE --key PUB [--witness PUB]... [--receipt]`: exit status 0 valid, 1 invalid, 2
unreadable. PUB is the node's NAME.public file, or base64 of 32 bytes of Ed25519 and 1312 of ML-DSA-44.

The export is UTF-8, one compact JSON object per line, "\n" between lines:

    {"format":"qkdnode-audit/2","origin":NAME,"public_key":BASE64}       first
    {"leaf":TEXT,"hash":HEX}                                             entry 0, 1, 2, ...: one event each
    {"checkpoint":NOTE}                                                  after the last entry that it covers

What is checked:
 1. each entry's hash is SHA-256(0x00 || leaf), and its number in its topic is one more than the topic's last, from 1;
 2. each checkpoint is a C2SP signed note that begins with two signatures of the given key under the origin's name, both
    of them good: Ed25519 over the text, ML-DSA-44 (tlog-cosignature) over origin, size, root and the time of the text;
 3. its size is the number of entries before it, and its root the RFC 9162 Merkle root over all of them;
 4. at least one checkpoint is there: without one nothing is signed;
 5. every signature of a given witness is good. Checkpoints with one are counted; lines of others are passed over.

A receipt is a C2SP tlog-proof with its entry in the `extra` line: 2 and 5 are checked, and that the tree has the entry.
What no export can show: entries after its last checkpoint are unsigned (they are counted), and a log that was cut at
an earlier checkpoint looks whole. Compare the last size with one that a witness knows.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial, reduce
from itertools import chain, islice
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

try:
    from qkdnode.errors import AuditUnreadableError  # pyright: ignore[reportAssignmentType]
except ImportError:  # the file was copied out of its package

    class AuditUnreadableError(Exception):  # type: ignore[no-redef]
        """The file is not an audit export."""


FORMAT, KEY_BYTES = "qkdnode-audit/2", 32 + 1312
MAX_LEAF_BYTES, MAX_TOPICS = 16 * 1024, 65_536
MAX_LINE_BYTES = 8 * MAX_LEAF_BYTES  # a leaf whose every byte needs an escape
BLOCK_BYTES, BLOCK_LINES, BLOCKS_AHEAD = 1024 * 1024, 1024, 6
HEADER, ENTRY, CHECKPOINT = ("format", "origin", "public_key"), ("leaf", "hash"), ("checkpoint",)
NOTE = re.compile(
    r"(?P<body>(?P<origin>[!-~]{1,128})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"(?:time_ns (?P<time_ns>[0-9]{1,19})\n)?)"
    r"\n(?P<signatures>(?:\u2014 [!-~]{1,128} [A-Za-z0-9+/]+={0,2}\n){2,32})"
)
SIGNATURE = re.compile(r"\u2014 (.+) (.+)\n")
PROOF = re.compile(
    r"c2sp\.org/tlog-proof@v1\nextra (?P<leaf>[A-Za-z0-9+/]+={0,2})\nindex (?P<index>0|[1-9][0-9]{0,18})\n"
    r"(?P<path>(?:[A-Za-z0-9+/]{43}=\n){0,63})\n(?P<note>(?s:.+))"
)
ESCAPES, UNMARKED = b'\\"' * MAX_LEAF_BYTES, bytes(set(range(256)) - set(b'\\"'))
Line: TypeAlias = bytes | str
Found: TypeAlias = tuple[bytes, str, int]  # hash, topic and number of an entry
event_at: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class Report(NamedTuple):
    """The verdict on one export. `first_bad` names the first entry or checkpoint at fault, and is None if valid."""

    valid: bool
    leaves: int  # entries read, up to and with the one at fault
    checkpoints: int  # checkpoints that verified
    unsigned_tail: int  # entries after the last of them
    first_bad: str | None
    witnessed: int = 0  # checkpoints that a given witness has signed
    witnessed_size: int = 0  # entries under the last of them

    def __str__(self) -> str:
        seen = f"{self.witnessed} of them witnessed up to {self.witnessed_size} entries, " * bool(self.witnessed)
        counts = f"{self.leaves} entries, {self.checkpoints} checkpoints, {seen}{self.unsigned_tail} entries not yet "
        return f"{counts}signed\n{'valid' if self.valid else f'INVALID: {self.first_bad}'}"


class Receipt(NamedTuple):
    """What the receipt of an entry shows."""

    origin: str
    entry: int
    size: int  # of the log under the checkpoint
    leaf: str
    witnesses: int  # of those given, that have signed the checkpoint

    def __str__(self) -> str:
        return f"entry {self.entry} of {self.size} of {self.origin}, {self.witnesses} witnesses: {self.leaf}\nvalid"


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The Merkle root over the entries so far: one hash per complete subtree, largest first."""

    def __init__(self) -> None:
        self.size, self._subtrees = 0, list[bytes]()

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
        subtrees = self._subtrees or [hashlib.sha256(b"").digest()]
        return reduce(lambda root, left: node_hash(left, root), reversed(subtrees))


class Fault(Exception):
    """What is wrong with one entry, checkpoint or receipt."""


class Keys:
    """The node's two public keys, and those of witnesses: who must have signed a checkpoint, and who may have."""

    def __init__(self, log: bytes, witnesses: Sequence[bytes] = ()) -> None:
        if any(len(key) != KEY_BYTES for key in (log, *witnesses)):
            raise AuditUnreadableError(f"a public key has {KEY_BYTES} bytes: Ed25519, then ML-DSA-44")
        self._own, self._ed25519 = (log[:32], log[32:]), Ed25519PublicKey.from_public_bytes(log[:32])
        self._mldsa44 = {key[32:]: MLDSA44PublicKey.from_public_bytes(key[32:]) for key in (log, *witnesses)}

    def signed(self, note: str, log: str | None = None) -> tuple[str, int, bytes, int]:
        """Origin, size and root of a checkpoint, and how many given witnesses have signed it. Fault if it is none."""
        match = NOTE.fullmatch(note)
        if match is None or (root := from_base64(match["root"])) is None:
            raise Fault("not a signed checkpoint")
        if log is not None and match["origin"] != log:
            raise Fault(f"origin {match['origin']!r}, but this is the log of {log!r}")
        origin, size, seen, what = match["origin"], int(match["size"]), set[bytes](), "Ed25519 signature"
        lines = [(name, from_base64(text) or b"") for name, text in SIGNATURE.findall(match["signatures"])]
        ids = [(name, blob[:4]) for name, blob in lines]
        wanted = [(origin, key_id(origin, b"\x01", self._own[0])), (origin, key_id(origin, b"\x06", self._own[1]))]
        if ids[:2] != wanted or any(its in wanted for its in ids[2:]):
            raise Fault("signed with another key, or not once with both keys of the node")
        try:
            self._ed25519.verify(lines[0][1][4:], match["body"].encode())
            for name, blob in lines[1:]:
                what = f"ML-DSA-44 signature of {name!r}"
                for public in [key for key in self._mldsa44 if blob[:4] == key_id(name, b"\x06", key)]:
                    label = b"subtree/v1\n\0%c%b%b" % (len(name), name.encode(), blob[4:12])
                    tree = b"%c%b%b%b%b" % (len(origin), origin.encode(), bytes(8), size.to_bytes(8), root)
                    self._mldsa44[public].verify(blob[12:], label + tree)
                    seen.add(public)
        except InvalidSignature:
            raise Fault(f"the {what} does not verify") from None
        if int.from_bytes(lines[1][1][4:12]) != int(match["time_ns"] or 0) // 10**9:
            raise Fault("the two signatures are of different times")
        return origin, size, root, len(seen) - 1


def key_id(name: str, kind: bytes, public_key: bytes) -> bytes:
    """What tells keys of one name apart in signed notes."""
    return hashlib.sha256(name.encode() + b"\n" + kind + public_key).digest()[:4]


class Verification:
    """Entries and checkpoints in order; each method raises Fault on the first thing that is not as it must be."""

    def __init__(self, origin: str, keys: Keys) -> None:
        self.tree, self.entries, self.checkpoints = Tree(), 0, 0
        self.signed = self.witnessed = self.witnessed_size = 0  # entries; checkpoints, and the entries under the last
        self._origin, self._keys, self._topics = origin, keys, dict[str, int]()

    def entry(self, leaf_hash: bytes, topic: str, number: int) -> None:
        """The rest of check 1: an entry must be the next of its topic."""
        self.tree.append(leaf_hash)
        expected = self._topics.get(topic, 0) + 1
        if number != expected:
            raise Fault(f"number {number} of topic {topic!r} where {expected} must be: entries are missing or moved")
        if expected == 1 and len(self._topics) == MAX_TOPICS:
            raise AuditUnreadableError(f"more than {MAX_TOPICS} topics: not an export of a node")
        self._topics[topic] = number

    def checkpoint(self, note: str) -> None:
        """Checks 2, 3 and 5."""
        _, size, root, witnesses = self._keys.signed(note, self._origin)
        if size != self.tree.size:
            raise Fault(f"signed over {size} entries, but {self.tree.size} stand before it")
        if root != self.tree.root():
            raise Fault("root differs: one of these entries is not what was signed")
        self.checkpoints, self.signed = self.checkpoints + 1, size
        if witnesses:
            self.witnessed, self.witnessed_size = self.witnessed + 1, size


def quick_entry(line: Line) -> Found | None:
    """As read_entry, of a line without escapes but those of quotes, as nearly all are; None if it is not sound as such.

    Every backslash before a quote, every quote after a backslash, no white space but spaces: it is in its one spelling.
    """
    if type(line) is not bytes or line[:9] + line[-77:-67] + line[-3:] != b'{"leaf":"","hash":""}\n':
        return None
    marks, data = line[9:-77].translate(None, UNMARKED), line[9:-77].translate(None, b"\\")
    if marks != ESCAPES[: len(marks)] or len(marks) % 2 or len(line) > MAX_LINE_BYTES:
        return None
    try:
        leaf = data.decode()
        event, length = event_at(leaf, 0)
        topic, number = event["topic"], event["topic_sequence"]
    except (ValueError, RecursionError, LookupError, TypeError, StopIteration):
        return None
    leaf_hash = hashlib.sha256(b"\x00" + data).digest()
    sound = type(topic) is str and type(number) is int and length == len(leaf) and len(data) <= MAX_LEAF_BYTES
    if not sound or b"\t" in data or b"\r" in data or b"\n" in data or leaf_hash.hex().encode() != line[-67:-3]:
        return None
    return leaf_hash, topic, number


def read_entry(leaf: str, hash: str) -> Found:
    """Hash, topic and number of an entry. Fault if it is not sound: check 1 but for the order."""
    if (leaf_hash := hashlib.sha256(b"\x00" + leaf.encode()).digest()).hex() != hash:
        raise Fault("the leaf does not have the hash that stands beside it")
    try:
        event = json.loads(leaf)
    except (ValueError, RecursionError):
        raise Fault("the leaf is not an event") from None
    topic, number = (event.get("topic"), event.get("topic_sequence")) if type(event) is dict else (None, None)
    if type(topic) is not str or type(number) is not int or len(leaf.encode()) > MAX_LEAF_BYTES:
        raise Fault("the leaf is not an event with a topic and a number in it")
    return leaf_hash, topic, number


def looked_at(lines: Iterator[Line], look: Any) -> Iterator[tuple[bytes | str, Found | None]]:
    """Lines with what quick_entry finds of them; `look` is a map, of an executor if that is to be some blocks ahead."""
    waiting = deque[Any]()
    for block in chain(iter(lambda: list(islice(lines, BLOCK_LINES)), []), [[]] * BLOCKS_AHEAD):
        waiting.append((block, look(quick_entry, block)))
        if len(waiting) > BLOCKS_AHEAD:
            yield from zip(*waiting.popleft(), strict=True)


def verify(lines: Iterable[Line], public_key: bytes, witnesses: Sequence[bytes] = (), look: Any = map) -> Report:
    """The verdict on an export given as lines, read once. AuditUnreadableError if a line is not of its format."""
    keys, lines = Keys(public_key, witnesses), iter(lines)
    header = read_line(1, next(lines, b""))
    if tuple(header) != HEADER or header["format"] != FORMAT:
        raise AuditUnreadableError(f"line 1: not the header of an audit export of format {FORMAT!r}")
    if header["public_key"] != base64.b64encode(public_key).decode():
        return Report(False, 0, 0, 0, "header: the public key is not the one that was given")
    run, first_bad = Verification(header["origin"], keys), None
    for number, (line, found) in enumerate(looked_at(lines, look), 2):
        item = {} if found else read_line(number, line)
        try:
            if tuple(item) == CHECKPOINT:
                run.checkpoint(item["checkpoint"])
            elif found or tuple(item) == ENTRY:
                run.entries += 1
                run.entry(*(found or read_entry(**item)))
            else:
                raise AuditUnreadableError(f"line {number}: neither an entry nor a checkpoint")
        except Fault as fault:
            first, last = run.signed, run.entries - 1
            covers = f"entries {first}-{last}" if first <= last else "no new entries"
            where = f"checkpoint {run.checkpoints + 1} ({covers})" if tuple(item) == CHECKPOINT else f"entry {last}"
            first_bad = f"{where}: {fault}"
            break
    if not run.checkpoints:
        first_bad = first_bad or "no checkpoint: nothing in this export is signed"
    counts = (run.entries, run.checkpoints, run.entries - run.signed, first_bad)
    return Report(first_bad is None, *counts, run.witnessed, run.witnessed_size)


def verify_receipt(data: bytes, public_key: bytes, witnesses: Sequence[bytes] = ()) -> Receipt:
    """Verify the receipt of one entry. Fault if it is not valid, AuditUnreadableError if it is none."""
    keys = Keys(public_key, witnesses)
    match = PROOF.fullmatch(data.decode("utf-8", "replace")) if len(data) <= MAX_LINE_BYTES else None
    leaf = None if match is None else from_base64(match["leaf"])
    path = [] if match is None else [from_base64(line) or b"" for line in match["path"].split()]
    if match is None or leaf is None or b"" in path or len(leaf) > MAX_LEAF_BYTES:
        raise AuditUnreadableError("not a receipt: a tlog-proof with its entry in it is expected")
    origin, size, root, seen = keys.signed(match["note"])
    index = int(match["index"])
    if index >= size or root_above(hashlib.sha256(b"\x00" + leaf).digest(), index, size, path) != root:
        raise Fault(f"entry {index} is not in the tree that is signed")
    return Receipt(origin, index, size, leaf.decode("utf-8", "replace"), seen)


def root_above(hashed: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to: its last step is over the half of the tree that has not the entry."""
    if (size > 1) is not bool(path):
        raise Fault("the proof is not as long as the tree is deep")
    if not path:
        return hashed
    half = 1 << (size - 1).bit_length() - 1
    if index < half:
        return node_hash(root_above(hashed, index, half, path[:-1]), path[-1])
    return node_hash(path[-1], root_above(hashed, index - half, size - half, path[:-1]))


def read_line(number: int, line: Line) -> dict[str, str]:
    """The object of one line, if it is compact JSON of strings in its one spelling."""
    try:
        text = (line if isinstance(line, str) else line.decode()).removesuffix("\n")
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
    rest = b""
    while block := file.read(BLOCK_BYTES):
        lines = io.BytesIO(rest + block).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        yield from lines
        if len(rest) > MAX_LINE_BYTES + 2:
            break
    if rest:
        yield rest[: MAX_LINE_BYTES + 2]


def from_base64(text: str) -> bytes | None:
    """The bytes, or None unless this is their one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return data if base64.b64encode(data).decode() == text else None


def read_key(text: str) -> bytes:
    """The public keys of a node: its NAME.public file, or base64. AuditUnreadableError if it is neither."""
    try:
        parts = [text]
        if len(text) != len(base64.b64encode(bytes(KEY_BYTES))):  # longer than a file's path is in earnest
            with open(text, "rb") as file:
                parts = list(map(json.loads(file.read(MAX_LINE_BYTES)).get, ("ed25519", "mldsa44")))
        key = b"".join(from_base64(part) or b"" for part in parts)
    except (ValueError, RecursionError, AttributeError, TypeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise AuditUnreadableError(f"{text[:80]} is not the NAME.public file of a node, nor its keys in base64")
    return key


def main(arguments: list[str], look: Any = map) -> int:
    """`verifier.py FILE --key PUB`; the exit status."""
    parser = argparse.ArgumentParser(prog="verifier.py", description="Verify an audit export or a receipt offline.")
    parser.add_argument("file")
    parser.add_argument("--key", required=True, metavar="PUB", help="the node's NAME.public, or its keys in base64")
    parser.add_argument("--witness", action="append", default=[], metavar="PUB", help="a neighbour's, likewise")
    parser.add_argument("--receipt", action="store_true", help="FILE is the receipt of one entry")
    chosen = parser.parse_args(arguments)
    try:
        key, witnesses = read_key(chosen.key), [read_key(text) for text in chosen.witness]
        if key in witnesses:
            raise AuditUnreadableError("a node is no witness of its own log: give --witness its neighbour's key")
        with open(chosen.file, "rb") as file:
            verdict = None if chosen.receipt else verify(read_lines(file), key, witnesses, look)
            print(verdict or verify_receipt(file.read(MAX_LINE_BYTES + 1), key, witnesses))
    except Fault as fault:
        print(f"INVALID: {fault}")
        return 1
    except (OSError, AuditUnreadableError) as error:
        print(f"unreadable: {error}", file=sys.stderr)
        return 2
    return 0 if verdict is None or verdict.valid else 1


if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        sys.exit(main(sys.argv[1:], partial(pool.map, chunksize=BLOCK_LINES)))
