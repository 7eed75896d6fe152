"""The audit log: leaves, checkpoints, the export and its reader, and the verifier that strangers run."""

import base64
import contextlib
import hashlib
import json
import random
import re
from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any
from uuid import UUID

from merkle_proofs import inclusion_proof
from signing import OTHER, PUBLIC, SIGNING

from fuzz.engine import Violation
from fuzz.mutation import as_bytes, as_json, as_json_lines, moved
from qkdnode.audit import checkpoint, events, receipt, verifier
from qkdnode.audit.export import Header, Item, Leaf, SignedCheckpoint, read_export, write_export
from qkdnode.audit.merkle import Frontier, inclusion_holds, leaf_hash
from qkdnode.errors import AuditError

ORIGIN = "node-a.audit"
KINDS: tuple[type[events.Event], ...] = (
    events.KeyEvent,
    events.LinkEvent,
    events.DeviceEvent,
    events.AccessEvent,
    events.AlarmEvent,
    events.NodeEvent,
)


@cache
def _leaves() -> tuple[bytes, ...]:
    return tuple(
        events.encode(
            kind(  # type: ignore[arg-type]
                time_ns=1_700_000_000_000_000_000 + position,
                node="a",
                topic=f"topic-{position % 2}",
                topic_sequence=position // 2 + 1,
                kind="key.allocated",
                subject=f"key-{position}",
                details={"bits": 256, "where": 'Zürich "north"', "again": False, "share": 0.5, "none": None},
            )
        )
        for position, kind in enumerate(KINDS)
    )


def leaf_seeds() -> list[bytes]:
    return list(_leaves())


def take_leaf(leaf: bytes) -> Iterable[Hashable]:
    """A leaf that decodes is the one spelling of its event."""
    event = events.decode(leaf)
    if events.encode(event) != leaf:
        raise Violation("a leaf that is not the one of its event was decoded")
    return (type(event), len(event.details))


# --- checkpoints  ---


def note_of(leaves: tuple[bytes, ...], time_ns: int | None = 5) -> str:
    root = Frontier(leaf_hash(leaf) for leaf in leaves).root()
    return checkpoint.sign_checkpoint(checkpoint.Checkpoint(ORIGIN, len(leaves), root, time_ns), SIGNING)


def note_seeds() -> list[bytes]:
    note = note_of(_leaves())
    witness = checkpoint.cosign("node-b.witness", 7, checkpoint.parse(note).checkpoint, OTHER)
    return [note.encode(), note_of(_leaves(), None).encode(), (note + witness).encode(), note_of(()).encode()]


def as_note(rng: random.Random, data: bytes) -> bytes:
    """Lines of a note, with the signature put right half of the time."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    choice = rng.random()
    if choice < 0.4:
        lines[at] = as_bytes(rng, lines[at])
    elif choice < 0.5:
        lines[at] = rng.choice(
            (
                b"0",
                b"00",
                b"9223372036854775808",
                b"1" * 19,
                b"1" * 30,
                b"time_ns 0",
                b"time_ns -1",
                b"a b",
                b"\xc2\xa0",
            )
        )
    elif choice < 0.6 and lines[at].endswith(b"="):
        lines[at] = _other_spelling(lines[at])
    else:
        lines = moved(rng, lines)
    whole = b"\n".join(lines)
    return signed_anew(whole) if rng.random() < 0.5 else whole


def _other_spelling(base64_text: bytes) -> bytes:
    """The same bytes in base64 whose unused bits are not zero."""
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = base64_text.rstrip(b"=")
    return text[:-1] + digits[digits.find(text[-1:]) | 1 :][:1] + b"=" * (len(base64_text) - len(text))


def signed_anew(note: bytes) -> bytes:
    """The note with the true signatures of its body."""
    body, gap, _ = note.partition(b"\n\n")
    if not gap:
        return note
    body += b"\n"
    origin = body.split(b"\n")[0].decode("utf-8", "replace")
    blob = base64.b64encode(checkpoint.key_id(origin, PUBLIC[:32]) + SIGNING.sign(body)).decode()
    line = "— x AAAAAAAA\n"
    with contextlib.suppress(AuditError, ValueError):
        parts = checkpoint.parse(f"{body.decode('utf-8', 'replace')}\n— x AAAAAAAA\n").checkpoint
        line = checkpoint.cosign(origin, (parts.time_ns or 0) // 10**9, parts, SIGNING)
    return body + b"\n" + f"— {origin} {blob}\n{line}".encode()


def take_note(data: bytes) -> Iterable[Hashable]:
    """A note that parses is the one spelling of its checkpoint, and verifies only under both signatures of it."""
    text = data.decode("utf-8", "replace")
    note = checkpoint.parse(text)
    parts = note.checkpoint
    if checkpoint.checkpoint_body(parts.origin, parts.size, parts.root, parts.time_ns) != note.body:
        raise Violation("a checkpoint in another than its one spelling was parsed")
    lines = [f"— {s.name} {base64.b64encode(s.key_id + s.signature).decode()}\n" for s in note.signatures]
    if note.body + "\n" + "".join(lines) != text:
        raise Violation("a note parses to other signatures than it holds")
    verified = checkpoint.verify(text, PUBLIC)
    ed25519, mldsa44 = note.signatures[:2]
    SIGNING.ed25519.public_key().verify(ed25519.signature, note.body.encode())
    message = checkpoint.cosigned_message(parts.origin, int.from_bytes(mldsa44.signature[:8]), parts)
    SIGNING.mldsa44.public_key().verify(mldsa44.signature[8:], message)
    return (verified.time_ns is None, len(note.signatures))


# --- the export  ---


def export_seeds() -> list[bytes]:
    leaves = _leaves()
    notes = [(size, note_of(leaves[:size])) for size in (2, len(leaves))]
    return ["".join(write_export(ORIGIN, PUBLIC, leaves, chosen)).encode() for chosen in (notes, notes[:1], [])]


def as_export(rng: random.Random, data: bytes) -> bytes:
    """Lines of an export; hashes, numbers and signatures put right half of the time."""
    if rng.random() < 0.1:
        return _HASH.sub(
            lambda match: rng.choice((match[0].upper(), b" " + match[0], match[0][:-2], b"")), data, count=1
        )
    data = as_json_lines(rng, data)
    if rng.random() < 0.4:
        data = _with_other_leaf(rng, data)
    return sound_anew(data, other_roots=rng.random() < 0.2) if rng.random() < 0.5 else data


_HASH = re.compile(rb"[0-9a-f]{64}")


def _with_other_leaf(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        item = json.loads(lines[at])
        item["leaf"] = as_json(rng, item["leaf"].encode()).decode("utf-8", "replace")
        lines[at] = verifier.write_line(item).rstrip("\n").encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data
    return b"\n".join(lines)


def sound_anew(data: bytes, *, other_roots: bool = False) -> bytes:
    """The export with the true hash beside each leaf and the true root and signature in each checkpoint.

    With `other_roots` the signature is true, and the root that of a tree of the same size.
    """
    leaves: list[bytes] = []
    lines = []
    for line in data.split(b"\n"):
        try:
            item: Any = json.loads(line)
            if "leaf" in item:
                leaves.append(item["leaf"].encode())
                item["hash"] = hashlib.sha256(b"\0" + leaves[-1]).hexdigest()
            elif "checkpoint" in item:
                item["checkpoint"] = note_of(tuple(leaves[::-1] if other_roots else leaves))
            line = verifier.write_line(item).rstrip("\n").encode()
        except (ValueError, TypeError, AttributeError, RecursionError):
            pass
        lines.append(line)
    return b"\n".join(lines)


def take_export(data: bytes) -> Iterable[Hashable]:
    """What the reader makes of an export writes the same lines."""
    lines = _split(data)
    for line, item in zip(lines, list(read_export(lines)), strict=True):
        if _line_of(item) != line.decode().removesuffix("\n") + "\n":
            raise Violation(f"a {type(item).__name__} in another than its one spelling was read")
    return (min(len(lines), 12),)


def _split(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    return lines[:-1] if data.endswith(b"\n") else lines


def _line_of(item: Item) -> str:
    match item:
        case Header(origin=origin, public_key=key):
            text = base64.b64encode(key).decode()
            return verifier.write_line({"format": verifier.FORMAT, "origin": origin, "public_key": text})
        case Leaf(data=leaf, hash=digest):
            return verifier.write_line({"leaf": leaf.decode(), "hash": digest.hex()})
        case SignedCheckpoint(note=note):
            return verifier.write_line({"checkpoint": note})


def take_verification(data: bytes) -> Iterable[Hashable]:
    """What the offline verifier calls valid, the node's own code finds in order too, entry by entry."""
    lines = _split(data)
    report = verifier.verify(lines, PUBLIC)
    if not report.valid:
        assert report.first_bad
        return ("invalid", *_wording(report.first_bad))
    header, *items = read_export(lines)
    assert isinstance(header, Header)
    tree, signed, numbers = Frontier(), 0, dict[str, int]()
    for item in items:
        if isinstance(item, Leaf):
            if leaf_hash(item.data) != item.hash:
                raise Violation("the verifier passes a leaf with another's hash")
            tree.append(item.hash)
            event = json.loads(item.data)
            numbers[event["topic"]] = numbers.get(event["topic"], 0) + 1
            if event["topic_sequence"] != numbers[event["topic"]]:
                raise Violation("the verifier passes a topic with an entry missing")
        elif isinstance(item, SignedCheckpoint):
            try:
                found = checkpoint.verify(item.note, PUBLIC)
            except AuditError as error:
                raise Violation(f"the verifier passes a checkpoint that the node does not: {error}") from None
            if (found.origin, found.size, found.root) != (header.origin, tree.size, tree.root()):
                raise Violation("the verifier passes a checkpoint of another tree")
            signed = found.size
    if not signed and not any(isinstance(item, SignedCheckpoint) for item in items):
        raise Violation("the verifier passes an export in which nothing is signed")
    if (report.leaves, report.unsigned_tail) != (tree.size, tree.size - signed):
        raise Violation("the verifier counts otherwise than the node")
    return ("valid", min(report.leaves, 12), report.checkpoints)


def _wording(text: str) -> tuple[str, ...]:
    return ("".join(c for c in text if not c.isdigit())[:60],)


# --- the receipt of a destroyed key  ---

RECEIPT_KEY, OPENING = UUID(int=0x10101010101040109010101010101010), bytes(range(32))


@cache
def _receipt() -> dict[str, Any]:
    name = receipt.pseudonym_of(RECEIPT_KEY.bytes, OPENING)
    told: dict[str, events.Detail] = {"method": receipt.METHOD}
    read: dict[str, events.Detail] = {"first": 0, "last": 3, "deleted": 2, "searched": 2, "found": 0}
    destroyed = events.KeyEvent(
        time_ns=5, node="a", topic="t", topic_sequence=1, kind="key.delivered", subject="s", details=told, keys=(name,)
    )
    searched = events.KeyEvent(
        time_ns=6, node="a", topic="t", topic_sequence=2, kind="erasure.read_back", subject="s", details=read
    )
    leaves = (*_leaves()[:3], events.encode(destroyed), events.encode(searched))
    hashes = [leaf_hash(leaf) for leaf in leaves]

    def entry(position: int) -> dict[str, Any]:
        proof = [step.hex() for step in inclusion_proof(hashes, position)]
        return {"leaf": leaves[position].decode(), "position": position, "proof": proof}

    return {
        "format": receipt.FORMAT,
        "key_id": str(RECEIPT_KEY),
        "opening": OPENING.hex(),
        "public_key": base64.b64encode(PUBLIC).decode(),
        "checkpoint": note_of(leaves),
        "destruction": entry(3),
        "read_back": entry(4),
        "limits": list(receipt.LIMITS),
    }


@cache
def _provenance() -> dict[str, Any]:
    told: dict[str, events.Detail] = {"bits_out": 7000, "peer": "b", "qber_z": 0.02}
    about = {"node": "a", "topic": "t", "subject": "batch/metro/0000000000000001-00000001"}
    made = events.KeyEvent(time_ns=5, topic_sequence=1, kind="batch.pending", details=told, **about)
    settled = events.KeyEvent(time_ns=6, topic_sequence=2, kind="batch.ready", **about)
    leaves = (*_leaves()[:3], events.encode(made), events.encode(settled))
    hashes = [leaf_hash(leaf) for leaf in leaves]

    def entry(position: int) -> dict[str, Any]:
        proof = [step.hex() for step in inclusion_proof(hashes, position)]
        return {"leaf": leaves[position].decode(), "position": position, "proof": proof}

    return signed_provenance(
        {
            "format": receipt.PROVENANCE_FORMAT,
            "node": "a",
            "peer": "b",
            "link": "metro",
            "batch": "0000000000000001-00000001",
            "record": told,
            "made": entry(3),
            "settled": entry(4),
            "checkpoint": checkpoint.sign_checkpoint(
                checkpoint.Checkpoint("a.audit", len(leaves), Frontier(hashes).root(), 0), SIGNING
            ),
            "public_key": base64.b64encode(PUBLIC).decode(),
            "limits": list(receipt.PROVENANCE_LIMITS),
        }
    )


def signed_provenance(whole: dict[str, Any]) -> dict[str, Any]:
    """Signed by the node, whatever it says."""
    made = {name: value for name, value in whole.items() if name != "signature"}
    root = leaf_hash(receipt.write(made).encode())
    return {**made, "signature": checkpoint.sign_checkpoint(checkpoint.Checkpoint("a.provenance", 1, root, 0), SIGNING)}


def receipt_seeds() -> list[bytes]:
    whole = _receipt()
    return [receipt.write(made).encode() for made in (whole, {**whole, "read_back": None}, _provenance())]


def as_receipt(rng: random.Random, data: bytes) -> bytes:
    """A field or a type changed, in the one spelling half of the time; sometimes an entry changed and signed anew."""
    data = as_json(rng, data)
    try:
        made: Any = json.loads(data)
        if "signature" in made:
            made = signed_provenance(made) if rng.random() < 0.7 else made
        elif rng.random() < 0.3:
            entry = made["destruction"]
            entry["leaf"] = as_json(rng, entry["leaf"].encode()).decode("utf-8", "replace")
            made |= {"checkpoint": note_of((entry["leaf"].encode(),)), "read_back": None}
            entry |= {"position": 0, "proof": []}
        return receipt.write(made).encode() if rng.random() < 0.7 else data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data


def take_receipt(data: bytes) -> Iterable[Hashable]:
    """What is called valid is signed, in its tree, and of a key that it names: by the node's own code."""
    verdict = receipt.verify(data, PUBLIC)
    if not verdict.valid:
        assert verdict.fault
        return ("invalid", *_wording(verdict.fault))
    made = json.loads(data)
    found = checkpoint.verify(made["checkpoint"], PUBLIC)
    if isinstance(verdict, receipt.Provenance):
        return _take_provenance(data, made)
    for entry in (made["destruction"], made["read_back"]):
        if entry is None:
            continue
        proof = [bytes.fromhex(step) for step in entry["proof"]]
        leaf = leaf_hash(entry["leaf"].encode())
        if not inclusion_holds(leaf, entry["position"], found.size, proof, found.root):
            raise Violation("a receipt is valid whose entry is not in the tree")
    event = json.loads(made["destruction"]["leaf"])
    name = receipt.pseudonym_of(UUID(made["key_id"]).bytes, bytes.fromhex(made["opening"]))
    if name not in event["keys"] or event["details"]["method"] != receipt.METHOD or event["outcome"] != "done":
        raise Violation("a receipt is valid whose entry tells of something else")
    if str(UUID(made["key_id"])) != made["key_id"] or receipt.write(made).encode() != data:
        raise Violation("a receipt in another than its one spelling is valid")
    return ("valid", made["read_back"] is None)


# --- the frontier that the vault stores  ---


def frontier_seeds() -> list[bytes]:
    return [Frontier(leaf_hash(leaf) for leaf in _leaves()[:count]).encode() for count in (0, 1, 3, 6)]


def take_frontier(data: bytes) -> Iterable[Hashable]:
    """A frontier that decodes encodes to the same bytes, and grows."""
    frontier = Frontier.decode(data)
    if frontier.encode() != data:
        raise Violation("a frontier decodes and encodes to other bytes")
    size = frontier.size
    if size < 2**62:
        frontier.append(bytes(32))
        if frontier.size != size + 1 or len(frontier.root()) != 32:
            raise Violation("a frontier that was decoded does not grow")
    return (size.bit_length(),)


def _take_provenance(data: bytes, made: dict[str, Any]) -> Iterable[Hashable]:
    found = checkpoint.verify(made["checkpoint"], PUBLIC)
    for name in ("made", "settled"):
        entry = made[name]
        if entry is None:
            continue
        proof = [bytes.fromhex(step) for step in entry["proof"]]
        if not inclusion_holds(leaf_hash(entry["leaf"].encode()), entry["position"], found.size, proof, found.root):
            raise Violation("a provenance is valid whose entry is not in the tree")
        if json.loads(entry["leaf"])["subject"] != f"batch/{made['link']}/{made['batch']}":
            raise Violation("a provenance is valid whose entry is about something else")
    if json.loads(made["made"]["leaf"])["details"] != made["record"]:
        raise Violation("a provenance is valid that says what its entry does not")
    signed = checkpoint.verify(made["signature"], PUBLIC)
    whole = receipt.write({name: value for name, value in made.items() if name != "signature"})
    if (signed.origin, signed.size, signed.root) != (f"{made['node']}.provenance", 1, leaf_hash(whole.encode())):
        raise Violation("a provenance is valid that the node has not signed")
    if receipt.write(made).encode() != data:
        raise Violation("a provenance in another than its one spelling is valid")
    return ("provenance", made["settled"] is None)
