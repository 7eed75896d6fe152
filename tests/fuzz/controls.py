"""Planted bugs: each takes a check out of a parser, and the search must find that it is gone, or the run fails."""

import contextlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from fuzz.engine import Finding, replay, search
from fuzz.targets import TARGET_OF_NAME
from qkdnode.access import allowlist, approvals
from qkdnode.audit import checkpoint, events, export, merkle, receipt, verifier
from qkdnode.authentication import session as link_session
from qkdnode.channel import gate
from qkdnode.channel import session as supply_session
from qkdnode.client import subscriber
from qkdnode.device import identity
from qkdnode.distill import batch
from qkdnode.lifecycle.policy import decision
from qkdnode.node import provision
from qkdnode.supply import protocol
from qkdnode.vault import couriers as vault_couriers
from qkdnode.vault import doubts, rows
from qkdnode.wire import codec, courier, supply


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """A bug: in `owner.name`, the one place that reads `old` reads `new`."""

    what: str
    target: str
    owner: Any
    name: str
    old: str
    new: str
    inputs: int = 3000


CONTROLS: tuple[Control, ...] = (
    Control(
        what="a courier's file may be spelled in two ways",
        target="file/courier",
        owner=courier,
        name="decode_file",
        old="encode_file(file) != data",
        new="file is None",
    ),
    Control(
        what="a courier's file is sealed with bits from within a byte on",
        target="file/courier",
        owner=courier,
        name="decode_file",
        old="file.heading.spot.offset_bits % 8",
        new="file.heading.spot.offset_bits < 0",
    ),
    Control(
        what="people sign for a courier's file by its beginning",
        target="file/courier",
        owner=vault_couriers,
        name="guarded_request",
        old="file_digest(file)",
        new="file_digest(file[:25])",
    ),
    Control(
        what="a courier carries every kind of message",
        target="file/courier-contents",
        owner=courier,
        name="message_of",
        old="_bodies.get(piece.code)",
        new="msgspec.msgpack.Decoder(KIND_OF_CODE[piece.code].body) if piece.code in KIND_OF_CODE else None",
    ),
    Control(
        what="a notice that was never sent counts as noted",
        target="supply/attendant",
        owner=protocol.Attendant,
        name="_note",
        old="notices.pop(number, None) is not None",
        new="notices.pop(number, None) is not number",
    ),
    Control(
        what="a key is asked for twice in one request",
        target="supply/attendant",
        owner=protocol.Attendant,
        name="_fetch",
        old="dict.fromkeys(KeyId(bytes=raw) for raw in body.key_ids)",
        new="[KeyId(bytes=raw) for raw in body.key_ids]",
    ),
    Control(
        what="a notice is reported each time",
        target="supply/subscriber",
        owner=subscriber.Subscriber,
        name="_take_notice",
        old="noted is not None",
        new="noted",
    ),
    Control(
        what="the provenance of a Batch says what its entry does not",
        target="audit/receipt",
        owner=receipt,
        name="_verified_provenance",
        old='made["details"] != its["record"]',
        new="False",
    ),
    Control(
        what="a frame shorter than its header is unpacked",
        target="wire/frame",
        owner=codec,
        name="decode",
        old="len(raw) < HEADER.size",
        new="False",
    ),
    Control(
        what="another spelling of a message is accepted",
        target="wire/frame",
        owner=codec,
        name="decode",
        old="encode_body(message) != body",
        new="False",
    ),
    Control(
        what="text that is not UTF-8 raises as it is",
        target="supply/outer",
        owner=supply,
        name="_decode",
        old="UnicodeDecodeError",
        new="ZeroDivisionError",
    ),
    Control(
        what="a message between applications has other spellings",
        target="supply/from-application",
        owner=supply,
        name="_decode",
        old="_encoder.encode(message) != data",
        new="False",
    ),
    Control(
        what="a frame of the session is accepted twice",
        target="link/session",
        owner=link_session.Session,
        name="opened",
        old="header.counter != self._receive_next",
        new="header.counter > self._receive_next",
    ),
    Control(
        what="a frame is accepted without its MAC",
        target="link/session",
        owner=link_session.Session,
        name="_check_mac",
        old="not equal(",
        new="False and not equal(",
    ),
    Control(
        what="a job that failed over what the peer said counts as done",
        target="link/distillation",
        owner=batch.Machine,
        name="on_done",
        old="isinstance(event.result, Exception)",
        new="False",
        inputs=2000,
    ),
    Control(
        what="a sealed message is opened twice",
        target="supply/sealed",
        owner=supply_session.Session,
        name="open",
        old="not self._received < message.sequence <= MAX_MESSAGES",
        new="False",
    ),
    Control(
        what="an Open is accepted unsigned",
        target="supply/agreement",
        owner=supply_session,
        name="accept",
        old="or not signature_is_valid(application, message.signature, transcript)",
        new="",
    ),
    Control(
        what="a key that was not sent is acknowledged",
        target="supply/attendant",
        owner=protocol.Attendant,
        name="_acknowledge",
        old="if key_id in sent or key_id in withdrawn]",
        new="]",
        inputs=200,
    ),
    Control(
        what="a key is reported twice",
        target="supply/subscriber",
        owner=subscriber.Subscriber,
        name="_take_keys",
        old="self._held.add(key_id)",
        new="pass",
        inputs=200,
    ),
    Control(
        what="the gate lets every mechanism in",
        target="channel/gate",
        owner=gate.Gate,
        name="_judge",
        old=' or mechanism != b"CURVE"',
        new="",
    ),
    Control(
        what="a device has more intensities than there are",
        target="device/records",
        owner=identity,
        name="decode_config",
        old="levels > 3",
        new="False",
    ),
    Control(
        what="a damaged pair file is loaded",
        target="file/pair",
        owner=provision,
        name="load_pair",
        old="not equal(",
        new="False and not equal(",
    ),
    Control(
        what="memory is taken for a size that the file only claims",
        target="file/pair",
        owner=provision,
        name="load_pair",
        old="if version != PAIR_VERSION:",
        new="bytearray(size)\n        if version != PAIR_VERSION:",
    ),
    Control(
        what="one key may stand for two identities",
        target="file/public",
        owner=allowlist.AllowList,
        name="__init__",
        old="if entry in taken:",
        new="if entry in taken and False:",
    ),
    Control(
        what="a rule that forbids no longer wins",
        target="file/policy",
        owner=decision,
        name="standing",
        old="(Effect.FORBID, Effect.PERMIT)",
        new="(Effect.PERMIT, Effect.FORBID)",
        inputs=200,
    ),
    Control(
        what="the age of a key at its release is not checked",
        target="file/policy",
        owner=decision,
        name="_untimely",
        old="age_ns is not None and",
        new="False and",
        inputs=200,
    ),
    Control(
        what="one person may approve twice",
        target="file/approvals",
        owner=approvals,
        name="check_approvals",
        old="_demand_different(signers)",
        new="pass",
    ),
    Control(
        what="an approval of the version before is accepted",
        target="file/approvals",
        owner=approvals,
        name="_signer",
        old="_demand_same(request, approval, who)",
        new="request = GuardedRequest(approval.kind, approval.node, approval.particulars)",
    ),
    Control(
        what="a leaf has other spellings",
        target="audit/leaf",
        owner=events,
        name="decode",
        old="canonical != leaf",
        new="False",
    ),
    Control(
        what="deep nesting is not refused",
        target="audit/leaf",
        owner=events,
        name="decode",
        old=", RecursionError",
        new="",
    ),
    Control(
        what="a receipt's entry need not be in the tree",
        target="audit/receipt",
        owner=receipt,
        name="_included",
        old="last or hashed != root",
        new="False",
    ),
    Control(
        what="a receipt's entry need not name the key",
        target="audit/receipt",
        owner=receipt,
        name="_verified",
        old="type(keys) is not list or name not in keys",
        new="False",
    ),
    Control(
        what="base64 has other spellings",
        target="audit/checkpoint",
        owner=checkpoint,
        name="_base64",
        old="base64.b64encode(data).decode() != text or ",
        new="",
    ),
    Control(
        what="a long note takes seconds",
        target="audit/checkpoint",
        owner=checkpoint,
        name="parse",
        old="body, gap, tail =",
        new="len(note) > 3800 and hashlib.pbkdf2_hmac('sha256', b'', b'', 12_000_000)\n    body, gap, tail =",
    ),
    Control(
        what="a hash in an export has other spellings",
        target="audit/export",
        owner=export,
        name="_leaf",
        old=' or digest.hex() != item["hash"]',
        new="",
    ),
    Control(
        what="the verifier takes a leaf's hash on trust",
        target="audit/verifier",
        owner=verifier,
        name="read_entry",
        old=".hex() != hash",
        new=".hex() == ''",
        inputs=9000,
    ),
    Control(
        what="the verifier takes a root on trust",
        target="audit/verifier",
        owner=verifier.Verification,
        name="checkpoint",
        old="root != self.tree.root()",
        new="False",
    ),
    Control(
        what="the verifier takes a checkpoint with the Ed25519 signature alone",
        target="audit/verifier",
        owner=verifier.Keys,
        name="signed",
        old="self._mldsa44[public].verify(blob[12:], label + tree)",
        new="pass",
    ),
    Control(
        what="a checkpoint counts without its ML-DSA-44 signature",
        target="audit/checkpoint",
        owner=checkpoint,
        name="_verify_cosignature",
        old=".verify(line.signature[_TIMESTAMP.size :], message)",
        new="",
    ),
    Control(
        what="a frontier has any number of hashes",
        target="audit/frontier",
        owner=merkle.Frontier,
        name="decode",
        old="or len(data) != _SIZE.size + HASH_BYTES * size.bit_count()",
        new="",
    ),
    Control(
        what="a neighbour's page has a key destroyed at first sight",
        target="link/holdings",
        owner=doubts._Case,
        name="_repair",
        old="if doubt is not None and _stands(self._store, doubt):",
        new="if True:",
        inputs=200,
    ),
    Control(
        what="a row of the vault is read with whatever types stand in it",
        target="vault/file",
        owner=rows,
        name="each_row",
        old="tuple(map(type, row)) != kinds",
        new="False",
        inputs=100,
    ),
)


@contextlib.contextmanager
def planted(control: Control) -> Iterator[None]:
    """The function compiled again with the bug in it, in its own module's names."""
    raw = inspect.getattr_static(control.owner, control.name)
    function = getattr(raw, "__func__", raw)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(control.old) != 1:
        raise LookupError(
            f"control {control.what!r}: {control.name} does not read {control.old!r} once: bring it up to date"
        )
    names: dict[str, Any] = {}
    code = compile(source.replace(control.old, control.new), inspect.getfile(function), "exec")
    exec(code, function.__globals__, names)
    whole = function.__code__
    broken = names[control.name]
    function.__code__ = getattr(
        broken, "__func__", broken
    ).__code__  # and so for everyone who holds it: tables, importers, classes
    try:
        yield
    finally:
        function.__code__ = whole


def caught(control: Control, seed: int) -> Finding | None:
    """What the search finds with the bug in place. Its input must be in order without the bug."""
    target = TARGET_OF_NAME[control.target]
    with planted(control):
        _, findings = search(target, seed=seed, inputs=control.inputs)
    return next((finding for finding in findings if replay(target, finding.input) is None), None)
