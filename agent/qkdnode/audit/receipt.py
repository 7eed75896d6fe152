"""Verify the receipt of a destroyed key, or the provenance of a Batch, offline, trusting only the node's public key.

A tool for strangers, as verifier.py is: this one file with Python and `cryptography` is enough.
`python receipt.py RECEIPT PUBLIC_KEY` prints the verdict; exit status 0 valid, 1 invalid, 2 unreadable.

A receipt is one JSON object in UTF-8, compact, names sorted, one line:

    format       "qkdnode-destruction-receipt/1"
    key_id       UUID of the key
    opening      hexadecimal, 32 bytes: SHA-256("qkdnode name/1" || opening || key id)[:16] is the key's name in the log
    public_key   base64: the node's own claim, a verifier brings its own
    checkpoint   a C2SP signed note over the first `size` entries of the log
    destruction  {"position", "leaf", "proof"}: the entry that tells of it, and its RFC 9162 inclusion proof
    read_back    likewise, the entry that tells what was found of deleted data keys in the files; null if there is none
    limits       what the receipt cannot prove, in the words below

The provenance of a Batch is one JSON object in the same spelling:

    format      "qkdnode-provenance/1"
    node, peer  the two nodes; `node` is the one that says all of it
    link        of the Batch
    batch       its id: session and number
    record      how it was made, as the entry has it: devices, firmware, software and its digest, QBER, counts of
                errors, what was disclosed, epsilons, method, secret length, version of the policy
    made        {"position", "leaf", "proof"}: the entry of the log that tells of it
    settled     likewise, the entry that tells that both ends have it; null where the first one does
    checkpoint, public_key  as in a receipt
    limits      what it cannot prove, in the words below
    signature   a signed note as a checkpoint is one, of origin "NODE.provenance", size 1, and the root H(0x00 || text),
                where the text is this object without `signature`, in its one spelling

What is checked of a receipt:
 1. the checkpoint begins with two signatures of the given key, both good: Ed25519 over its text, and ML-DSA-44 over its
    origin, size, root and time;
 2. both entries are in the tree that it signs;
 3. the first one names the key, among those whose ciphertext and data key a step of theirs has deleted;
 4. the second one, if there is one, is about deletions told of at that position, and found nothing of them.

Of the provenance of a Batch: both notes carry two good signatures of the given key, of the right origins; both entries
are in the tree, about this Batch, its link and node; the record is what the entry says, and the second one says that
the Batch is settled.

Signatures of other names or keys in the checkpoint are passed over.
"""

import base64
import binascii
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

try:
    from qkdnode.errors import AuditUnreadableError  # pyright: ignore[reportAssignmentType]
except ImportError:  # the file was copied out of its package

    class AuditUnreadableError(Exception):  # type: ignore[no-redef]
        """The file is no receipt."""


FORMAT = "qkdnode-destruction-receipt/1"
PROVENANCE_FORMAT = "qkdnode-provenance/1"
MAX_BYTES = 256 * 1024
KEY_BYTES = 32 + 1312  # Ed25519, ML-DSA-44
MAX_PROOF = 63
METHOD = "crypto-erase"
LIMITS = (
    "that no copy of the key left the node before: one did, if it was delivered",
    "what the application, or the node at the far end, does with its copy",
    "that no copy of the file was made, by a backup or a file system that copies, while the key was in it",
    "that flash memory holds no older state of what was overwritten",
    "that the node tells the truth: it has told this, at this time, and cannot unsay it",
)
PROVENANCE_LIMITS = (
    "that the devices were what they said they were, and that nobody had altered them",
    "that the model of the devices, on which the length of the key rests, is theirs",
    "that the software that ran is the one whose digest the node has told",
    "that the node tells the truth: it has told this, at this time, and cannot unsay it",
)
PROVENANCE_FIELDS = {
    "batch": str, "checkpoint": str, "format": str, "limits": list, "link": str, "made": dict, "node": str, "peer": str,
    "public_key": str, "record": dict, "settled": (dict, type(None)), "signature": str,
}  # fmt: skip
MADE, SETTLED = ("batch.pending", "batch.ready"), ("batch.ready", "batch.settled")
BATCH = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")
FIELDS = {
    "checkpoint": str, "destruction": dict, "format": str, "key_id": str, "limits": list, "opening": str,
    "public_key": str, "read_back": (dict, type(None)),
}  # fmt: skip
ENTRY = {"leaf": str, "position": int, "proof": list}
NOTE = re.compile(
    r"(?P<body>(?P<origin>[!-~]{1,128})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"(?:time_ns (?P<time_ns>[0-9]{1,19})\n)?)"
    r"\n(?P<signatures>(?:\u2014 [!-~]{1,128} [A-Za-z0-9+/]+={0,2}\n){2,32})"
)
SIGNATURE = re.compile(r"\u2014 (.+) (.+)\n")
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Verdict:
    """What a receipt shows. `fault` is None if it is valid."""

    key_id: str
    fault: str | None
    node: str = ""
    time_ns: int = 0
    happened: str = ""
    read_back: str = ""  # how far the files were searched for what was deleted

    @property
    def valid(self) -> bool:
        """Whether all of it holds."""
        return self.fault is None


@dataclass(frozen=True)
class Provenance:
    """What the provenance of a Batch shows. `fault` is None if it is valid."""

    batch: str
    fault: str | None
    node: str = ""
    time_ns: int = 0
    record: dict[str, Any] | None = None

    @property
    def valid(self) -> bool:
        """Whether all of it holds."""
        return self.fault is None


class Fault(Exception):
    """What is wrong with a receipt."""


def pseudonym_of(name: bytes, opening: bytes) -> str:
    """What stands for a name in the log. Who has the opening can see that it does; nobody finds another name for it."""
    return hashlib.sha256(b"qkdnode name/1" + opening + name).hexdigest()[:32]


def write(receipt: dict[str, Any]) -> str:
    """The one spelling of a receipt."""
    return json.dumps(receipt, ensure_ascii=False, separators=(",", ":"), sort_keys=True) + "\n"


def read(data: bytes) -> dict[str, Any]:
    """A receipt, or a provenance, whose fields are of the right types. AuditUnreadableError if it is none."""
    if len(data) > MAX_BYTES:
        raise AuditUnreadableError(f"{len(data)} bytes: no receipt is longer than {MAX_BYTES}")
    try:
        text = data.decode()
        receipt: Any = json.loads(text)
        if type(receipt) is not dict or write(receipt) != text:
            raise AuditUnreadableError("not a receipt: one JSON object, in the one spelling of the format, is expected")
    except (ValueError, RecursionError):
        raise AuditUnreadableError("not a receipt: not JSON in UTF-8") from None
    formats = {
        FORMAT: (FIELDS, ("destruction", "read_back")),
        PROVENANCE_FORMAT: (PROVENANCE_FIELDS, ("made", "settled")),
    }
    name = receipt.get("format")
    fields, entries = formats.get(name, ({}, ())) if type(name) is str else ({}, ())
    if not fields or not _fits(receipt, fields):
        raise AuditUnreadableError(f"not a receipt of a format of {', '.join(formats)}")
    for entry in (receipt[name] for name in entries):
        if entry is not None and not _fits(entry, ENTRY):
            raise AuditUnreadableError("not a receipt: an entry is not leaf, position and proof")
    return receipt


def verify(data: bytes, public_key: bytes) -> Verdict | Provenance:
    """Verify a receipt or a provenance; `public_key` is known from elsewhere. AuditUnreadableError if it is neither."""
    receipt = read(data)
    if receipt["format"] == PROVENANCE_FORMAT:
        try:
            return _verified_provenance(receipt, public_key)
        except Fault as fault:
            return Provenance(receipt["batch"], str(fault))
    try:
        return _verified(receipt, public_key)
    except Fault as fault:
        return Verdict(receipt["key_id"], str(fault))


def _verified_provenance(its: dict[str, Any], public_key: bytes) -> Provenance:
    if its["public_key"] != base64.b64encode(public_key).decode():
        raise Fault("the public key is not the one that was given")
    if its["limits"] != list(PROVENANCE_LIMITS):
        raise Fault("what it cannot prove is not in the words of the format")
    if not BATCH.fullmatch(its["batch"]):
        raise Fault("the id of the Batch is not in its one spelling")
    _demand_origin(its["signature"], f"{its['node']}.provenance")
    whole = write({name: value for name, value in its.items() if name != "signature"})
    if _signed(its["signature"], public_key) != (1, hashlib.sha256(b"\x00" + whole.encode()).digest()):
        raise Fault("the node has signed another record than this")
    _demand_origin(its["checkpoint"], f"{its['node']}.audit")
    size, root = _signed(its["checkpoint"], public_key)
    made = _of_batch(its, its["made"], MADE, size, root)
    if made["details"] != its["record"] or "bits_out" not in its["record"]:
        raise Fault("the record is not what the entry says")
    if its["peer"] != its["record"].get("peer"):
        raise Fault("the far node is not the one of the record")
    if its["settled"] is not None:
        _of_batch(its, its["settled"], SETTLED, size, root)
    elif made["kind"] != "batch.ready":
        raise Fault("nothing says that both ends have the Batch")
    return Provenance(its["batch"], None, its["node"], made["time_ns"], its["record"])


def _of_batch(
    its: dict[str, Any], entry: dict[str, Any], kinds: tuple[str, ...], size: int, root: bytes
) -> dict[str, Any]:
    """The event of an entry about the Batch of a provenance."""
    event = _included(entry, size, root)
    about = f"batch/{its['link']}/{its['batch']}"
    if (event.get("type"), event.get("outcome"), event.get("subject")) != ("key", "done", about):
        raise Fault("an entry is not about this Batch")
    if event.get("kind") not in kinds or event.get("node") != its["node"]:
        raise Fault("an entry does not say that the Batch was made, or settled, at this node")
    if type(event.get("details")) is not dict or type(event.get("time_ns")) is not int:
        raise Fault("an entry does not say how and when")
    return event


def _demand_origin(note: str, origin: str) -> None:
    if note.split("\n", 1)[0] != origin:
        raise Fault(f"a note is not of {origin!r}")


def _verified(receipt: dict[str, Any], public_key: bytes) -> Verdict:
    if receipt["public_key"] != base64.b64encode(public_key).decode():
        raise Fault("the public key is not the one that was given")
    if receipt["limits"] != list(LIMITS):
        raise Fault("what it cannot prove is not in the words of the format")
    if not UUID.fullmatch(receipt["key_id"]) or not HASH.fullmatch(receipt["opening"]):
        raise Fault("the id or the opening of the key is not in its one spelling")
    size, root = _signed(receipt["checkpoint"], public_key)
    event = _included(receipt["destruction"], size, root)
    key_id = bytes.fromhex(receipt["key_id"].replace("-", ""))
    name = pseudonym_of(key_id, bytes.fromhex(receipt["opening"]))
    details, keys = event.get("details"), event.get("keys")
    if event.get("type") != "key" or event.get("outcome") != "done" or type(details) is not dict:
        raise Fault("the entry is not about keys that took a step")
    if details.get("method") != METHOD:
        raise Fault("the entry does not tell of a destruction")
    if type(keys) is not list or name not in keys:
        raise Fault("the entry does not name this key")
    searched = "none: the node did not read its files again for this deletion, or not yet"
    if receipt["read_back"] is not None:
        searched = _searched(_included(receipt["read_back"], size, root), receipt["destruction"]["position"])
    node, time_ns, happened = event.get("node"), event.get("time_ns"), event.get("kind")
    if type(node) is not str or type(time_ns) is not int or type(happened) is not str:
        raise Fault("the entry does not say where and when")
    return Verdict(receipt["key_id"], None, node, time_ns, happened, searched)


def _signed(note: str, public_key: bytes) -> tuple[int, bytes]:
    """Size and root of a note that begins with both signatures of the key, as docs/protocol.md has it."""
    match = NOTE.fullmatch(note)
    root = None if match is None else _base64(match["root"])
    if match is None or root is None:
        raise Fault("the checkpoint is not a signed note")
    origin, size = match["origin"], int(match["size"])
    lines = [(name, _base64(text) or b"") for name, text in SIGNATURE.findall(match["signatures"])]
    prefix, keys = origin.encode() + b"\n", (b"\x01" + public_key[:32], b"\x06" + public_key[32:])
    wanted = [(origin, hashlib.sha256(prefix + key).digest()[:4]) for key in keys]
    ids = [(name, blob[:4]) for name, blob in lines]
    if ids[:2] != wanted or any(its in wanted for its in ids[2:]):
        raise Fault("the checkpoint is signed with another key, or not once with both keys of the node")
    (_, ed25519), (_, mldsa44) = lines[:2]
    name = b"%c%b" % (len(origin), origin.encode())
    tree = b"".join((b"subtree/v1\n\0", name, mldsa44[4:12], name, bytes(8), size.to_bytes(8), root))
    try:
        Ed25519PublicKey.from_public_bytes(public_key[:32]).verify(ed25519[4:], match["body"].encode())
        MLDSA44PublicKey.from_public_bytes(public_key[32:]).verify(mldsa44[12:], tree)
    except InvalidSignature:
        raise Fault("a signature of the checkpoint does not verify") from None
    if int.from_bytes(mldsa44[4:12]) != int(match["time_ns"] or 0) // 10**9:
        raise Fault("the two signatures of the checkpoint are of different times")
    return size, root


def _included(entry: dict[str, Any], size: int, root: bytes) -> dict[str, Any]:
    """The event of an entry that is in the tree."""
    proof, position = entry["proof"], entry["position"]
    if not all(type(step) is str and HASH.fullmatch(step) for step in proof) or len(proof) > MAX_PROOF:
        raise Fault("a proof is no list of hashes")
    hashed = hashlib.sha256(b"\x00" + entry["leaf"].encode()).digest()
    here, last = position, size - 1
    if not 0 <= position < size:
        raise Fault(f"entry {position} is not under a checkpoint of {size} entries")
    for step in map(bytes.fromhex, proof):
        if last == 0:
            raise Fault(f"the proof of entry {position} is too long")
        if here & 1 or here == last:
            hashed = hashlib.sha256(b"\x01" + step + hashed).digest()
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            hashed = hashlib.sha256(b"\x01" + hashed + step).digest()
        here, last = here >> 1, last >> 1
    if last or hashed != root:
        raise Fault(f"entry {position} is not in the tree that is signed")
    try:
        event: Any = json.loads(entry["leaf"])
    except (ValueError, RecursionError):
        event = None
    if type(event) is not dict:
        raise Fault(f"entry {position} is no event")
    return event


def _searched(event: dict[str, Any], position: int) -> str:
    details = event.get("details")
    wanted = ("first", "last", "deleted", "searched", "found")
    told = [details.get(name) for name in wanted] if type(details) is dict else []
    if event.get("kind") != "erasure.read_back" or event.get("outcome") != "done" or event.get("type") != "key":
        raise Fault("the second entry is not about a search that found nothing")
    numbers = [value for value in told if type(value) is int]
    if len(numbers) != len(wanted):
        raise Fault("the second entry does not say what was searched for")
    first, last, deleted, searched, found = numbers
    if not first <= position <= last or found:
        raise Fault("the second entry is about other deletions, or found some")
    kept = "all" if searched == deleted else f"a sample of {searched}"
    return f"{kept} of {deleted} data keys deleted with it: none is in the files"


def _fits(item: dict[str, Any], fields: dict[str, Any]) -> bool:
    return item.keys() == fields.keys() and all(
        isinstance(item[name], kind) and type(item[name]) is not bool for name, kind in fields.items()
    )


def _base64(text: str) -> bytes | None:
    """The bytes, or None unless this is their one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


def show(verdict: Verdict | Provenance) -> str:
    """A verdict in words."""
    if not verdict.valid:
        return f"INVALID: {verdict.fault}"
    if isinstance(verdict, Provenance):
        facts = [f"  {name}: {value}" for name, value in sorted((verdict.record or {}).items())]
        told = f"valid: node {verdict.node} has told at {verdict.time_ns} ns since 1970 by its clock how it made Batch"
        limits = ["this does not prove", *(f"- {limit}" for limit in PROVENANCE_LIMITS)]
        return "\n".join([f"{told} {verdict.batch}", *facts, *limits])
    lines = [
        f"valid: node {verdict.node} has told that it destroyed its copy of key {verdict.key_id}",
        f"by {METHOD}, with {verdict.happened}, at {verdict.time_ns} ns since 1970 by its clock",
        f"search of its files: {verdict.read_back}",
        "this does not prove",
    ]
    return "\n".join([*lines, *(f"- {limit}" for limit in LIMITS)])


def main(arguments: list[str]) -> int:
    """`receipt.py RECEIPT PUBLIC_KEY`, the key in base64; the exit status."""
    if len(arguments) != 2:
        print("usage: receipt.py RECEIPT PUBLIC_KEY(base64)", file=sys.stderr)
        return 2
    public_key = _base64(arguments[1])
    if public_key is None or len(public_key) != KEY_BYTES:
        print(f"the public key must be {KEY_BYTES} bytes in base64", file=sys.stderr)
        return 2
    try:
        with open(arguments[0], "rb") as file:
            verdict = verify(file.read(MAX_BYTES + 1), public_key)
    except (OSError, AuditUnreadableError) as error:
        print(f"unreadable: {error}", file=sys.stderr)
        return 2
    print(show(verdict))
    return 0 if verdict.valid else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
