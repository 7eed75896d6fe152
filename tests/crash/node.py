"""One end under test, in a process of its own: a real vault, and the steps by which a link and a supply ask it.

It takes commands from a socket and sends what a node sends, to its neighbour and its applications, as separate
messages and only when the vault has answered. Whoever holds the other end of the socket is the wire and the
applications: what has left the process has left it, whatever happens to the process next.
"""

import hashlib
import os
import random
import socket
import sys
import traceback
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from signing import SIGNING

from crash import controls
from crash.interposer import Fault, Interposer
from qkdnode.audit.events import NodeEvent
from qkdnode.errors import QkdnodeError
from qkdnode.ids import ALICE, BOB, Association, BatchId, other_role
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import epochs, readback, receipts, scrub
from qkdnode.vault import requests as ask
from qkdnode.vault.core import VaultCore
from qkdnode.vault.disk import Disk
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.sealing import AES_256_GCM, CHACHA20_POLY1305
from qkdnode.wire.codec import encode_body, kind_of
from qkdnode.wire.messages import (
    ACCEPTED,
    KIND_OF_CODE,
    Allocate,
    Allocated,
    BatchAnswer,
    BatchCommit,
    Delivered,
    Mark,
    Message,
    PadSpan,
    Received,
    Settled,
)

LINK = "metro"
NODES = {ALICE: "a", BOB: "b"}
PAIRS = (Association("payroll", "ledger", LINK), Association("mail", "post", LINK))  # as Alice sees them
STRANGERS = Association("stray", "nobody", LINK)  # known at Alice's alone: Bob refuses
START_NS = 1_700_000_000_000_000_000
BITS, REFILL, PADS = 12_000, 1024, 256
MAX_FRAME = 64 * 1024
DAY_NS = 86_400 * 10**9
AHEAD_NS = [0]  # of the wall clock of this process: it is another day when what is kept is looked after


class Orders(msgspec.Struct, frozen=True):
    """How an end is started."""

    role: str
    directory: str
    life: int
    create: bool
    fault: Fault | None = None
    control: str = ""
    traced: bool = False


class SmallLog(Disk):
    """The file system of this machine, and a write-ahead log that is emptied often."""

    pragmas = ("PRAGMA wal_autocheckpoint = 60",)


def seen_by(role: str, pair: Association) -> Association:
    """An association of PAIRS as an end sees it."""
    return pair if role == ALICE else pair.mirrored()


def applications(role: str) -> tuple[str, ...]:
    """The applications at an end."""
    return tuple(seen_by(role, pair).local for pair in PAIRS)


def batch_key(number: int) -> bytes:
    """What both ends distilled as Batch `number`."""
    return hashlib.shake_256(b"batch %d" % number).digest(BITS // 8)


def open_vault(role: str, directory: Path, life: int, *, create: bool, disk: Disk) -> VaultCore:
    """The vault of an end, with draws and times that no other life has."""
    draws = random.Random(f"{role} {life}")
    now_ns = START_NS + life * 10**12

    def draw_into(buffer: SecretBuffer) -> None:
        with memoryview(buffer) as view:
            view[:] = draws.randbytes(len(view))

    def clock_ns() -> int:
        nonlocal now_ns
        now_ns += 10**6
        return now_ns + AHEAD_NS[0]

    return VaultCore.open(
        directory / "vault.db",
        root=CredentialFile("credential", directory.parent),
        node=NODES[role],
        draw_into=draw_into,
        signer=SIGNING,
        clock_ns=clock_ns,
        create=create,
        disk=disk,
    )


def ask_core(core: VaultCore, request: ask.Request) -> Any:
    """One request as a group of its own."""
    (outcome,) = core.group([request])
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def picture(core: VaultCore, role: str) -> dict[str, Any]:
    """What an end would do next, by the vault's answers alone. Comparable between an end and itself after a crash."""
    status = ask_core(core, ask.Status())
    waiting = {
        application: [
            row.key_id.bytes for row in ask_core(core, ask.ApplicationOutbox(application=application, limit=10_000))
        ]
        for application in applications(role)
    }
    outbox = ask_core(core, ask.NeighbourOutbox(link=LINK, limit=10_000))
    found: dict[str, Any] = {
        "keys": status.keys,
        "delivered at both ends": status.keys_delivered_both,
        "own stock": status.stock_bits_own,
        "stock of the peer": status.stock_bits_peer,
        "batches": status.batches,
        "waiting": waiting,
        "outbox": [(entry.number, encode_body(entry.message)) for entry in outbox],
        "unannounced": list(ask_core(core, ask.UnannouncedReady(link=LINK))) if status.pads else [],
    }
    return found


class Node:
    """Commands in, messages out."""

    def __init__(self, orders: Orders, wire: socket.socket, interposer: Interposer) -> None:
        self.role, self.life, self._wire, self._interposer = orders.role, orders.life, wire, interposer
        self._traced = orders.traced
        self._pictured = 0, b""
        self._told = 0  # leaves that those who follow the log have
        self._random = random.Random(f"ids {orders.role} {orders.life}")
        self.core = open_vault(orders.role, Path(orders.directory), orders.life, create=orders.create, disk=SmallLog())
        if self._traced:
            self._picture()
        self.send("opened")

    # --- what leaves the process ---

    def send(self, *frame: Any, material: memoryview | None = None) -> None:
        """One message, in one call: its length, itself, and key material from where it lies."""
        encoded = msgspec.msgpack.encode(frame)
        parts: list[Any] = [len(encoded).to_bytes(4, "big"), encoded]
        if material is not None:
            parts.append(material)
        self._wire.sendmsg(parts)

    def tell_peer(self, message: Message) -> None:
        """A message to the neighbour."""
        self.send("to peer", kind_of(message).code, encode_body(message))

    # --- the vault ---

    def request(self, request: ask.Request) -> Any:
        """Ask the vault, and wait until it stands."""
        answer = ask_core(self.core, request)
        if self._traced:
            self._picture()
        return answer

    def _picture(self, closing: bool = False) -> None:
        """Tell what this end is now, and put into the trace that it has been told; closing adds an entry, no more."""
        size = ask_core(self.core, ask.Status()).leaves + closing
        seen = msgspec.msgpack.encode(picture(self.core, self.role), order="sorted")
        if (size, seen) != self._pictured:
            self._pictured = size, seen
            self.send("picture", size, seen)
            if not closing:
                self._interposer.note(size)

    # --- commands ---

    def run(self) -> None:
        """Until told to end."""
        while data := self._wire.recv(MAX_FRAME):
            name, *arguments = msgspec.msgpack.decode(data)
            try:
                answer = getattr(self, f"do_{name}")(*arguments)
                if name != "end":
                    self.tell_log()
                self.send("answered", answer)
            except QkdnodeError as error:
                self.send("failed", type(error).__name__, str(error), self._interposer.fired)
            if name == "end":
                return

    def tell_log(self) -> None:
        """Who follows the log gets all that is new in it."""
        while leaves := self.request(ask.LeavesAfter(position=self._told)):
            for position, leaf in leaves:
                self.send("leaf", position, leaf)
            self._told = leaves[-1][0] + 1

    def do_provision(self) -> bool:
        """As an agent does at each start: what is not yet there is put there."""
        peer = NODES[other_role(self.role)]
        if self.open_link().pair != b"pair":
            with SecretBuffer.copy_of(hashlib.shake_256(b"pair").digest(32 * PADS)) as material:
                self.request(ask.ProvisionLink(link=LINK, role=self.role, peer=peer, pair=b"pair", material=material))
        for pair in (*PAIRS, STRANGERS) if self.role == ALICE else PAIRS:
            nodes = (NODES[self.role], peer)
            mine = seen_by(self.role, pair)
            self.request(ask.Associate(association=mine, nodes=nodes, link=LINK, purpose="t", key_class="qkd"))
        return True

    def do_session(self) -> None:
        self.open_link()
        self.send("session", self.request(ask.NextSession(link=LINK)))

    def do_marks(self) -> tuple[Mark, ...]:
        """What this end has reserved, as it states it when it wants pads."""
        return self.request(ask.StateLink(link=LINK)).sending

    def do_grant(self, count: int, marks: list[Any]) -> tuple[PadSpan, ...]:
        """Let the peer tag."""
        sending = msgspec.convert(marks, tuple[Mark, ...])
        spans: tuple[PadSpan, ...] = self.request(ask.GrantPads(link=LINK, count=count, sending=sending))
        return spans

    def do_tag(self, count: int, spans: list[Any]) -> None:
        """Each message that is tagged is another one."""
        within = msgspec.convert(spans, tuple[PadSpan, ...])
        for pad in self.request(ask.ReservePads(link=LINK, count=count, within=within)):
            digest = self._random.randbytes(8) + self.life.to_bytes(2, "big")
            self.send("tagged", pad.segment.session, pad.segment.number, pad.index, digest)

    def do_distil(self, number: int) -> None:
        batch = BatchId(1, number)
        with SecretBuffer.copy_of(batch_key(number)) as key:
            self.request(ask.StorePending(link=LINK, record=_record(batch), key=key, commit=b"commit %d" % number))
        self.tell_peer(BatchCommit(batch, bytes(16), BITS, REFILL))

    def do_allocate(self, pair: int, count: int, size: int) -> None:
        association = seen_by(self.role, (*PAIRS, STRANGERS)[pair])
        entropy = self._random.randbytes(16 * count)
        request = ask.AllocateKeys(association=association, count=count, size_bits=size, entropy=entropy)
        ids = self.request(request)
        self.send("allocated", [key_id.bytes for key_id in ids])
        for entry in self.request(ask.NeighbourOutbox(link=LINK)):
            self.tell_peer(entry.message)

    def do_resend(self) -> None:
        """All that a link sends again on reconnecting."""
        state = self.open_link()
        for unsettled in state.unsettled:
            self.tell_peer(BatchCommit(unsettled.batch, bytes(16), BITS, REFILL))
        ready = self.request(ask.UnannouncedReady(link=LINK)) if self.role == ALICE else ()
        if ready:
            self.tell_peer(Settled(ready))
        for entry in self.request(ask.NeighbourOutbox(link=LINK)):
            self.tell_peer(entry.message)

    def do_supply(self, application: str) -> None:
        """All that waits, the keys of one size in one request, each in a message of its own."""
        sizes: dict[int, list[UUID]] = {}
        for row in self.request(ask.ApplicationOutbox(application=application)):
            sizes.setdefault(row.size_bits, []).append(row.key_id)
        for ids in sizes.values():
            opened = self.request(ask.OpenKeys(key_ids=tuple(ids), application=application))
            size = opened.size_bits // 8
            with opened.material as material, memoryview(material) as view:
                for number, key_id in enumerate(opened.key_ids):
                    with view[number * size : (number + 1) * size] as key:
                        self.send("key", application, key_id.bytes, material=key)

    def do_acknowledge(self, application: str, raw: list[bytes]) -> None:
        ids = tuple(UUID(bytes=key_id) for key_id in raw)
        self.request(ask.KeysDelivered(application=application, key_ids=ids, details={}))
        self.send("recorded", application, raw)

    def do_refused(self, application: str, raw: bytes) -> bool:
        """Whether an application is refused what is another's."""
        try:
            self.request(ask.OpenKey(key_id=UUID(bytes=raw), application=application)).release()
        except QkdnodeError:
            return True
        return False

    def do_event(self, number: int) -> int:
        event = NodeEvent(
            time_ns=START_NS, node=NODES[self.role], topic="node", topic_sequence=1, kind="node.noted",
            subject=f"note/{number}", details={"number": number},
        )  # fmt: skip
        position: int = self.request(ask.RecordEvent(event=event))
        return position

    def do_checkpoint(self) -> None:
        self.request(ask.Checkpoint())

    def do_care(self) -> list[str]:
        """Wrap anew, end yesterday's epochs, read the files, look at all records; what is not as it must be."""
        AHEAD_NS[0] += DAY_NS
        epochs.KEYS_AT_ONCE = epochs.ROWS_AT_ONCE = 1  # as many transactions as there can be
        state = self.request(epochs.Epochs())
        now = state.rewrap.algorithm if state.rewrap else AES_256_GCM
        self.request(epochs.RewrapKeys(to=CHACHA20_POLY1305 if now == AES_256_GCM else AES_256_GCM, by="max"))
        while self.request(epochs.MoveDataKeys()):
            pass
        while self.request(epochs.EndEpoch()):
            pass
        wrong = list[str]()
        while (read := self.request(readback.ReadBack())).running:
            pass
        wrong += read.failures
        seen = self.request(scrub.Scrub(now=True))
        while seen.running:
            seen = self.request(scrub.Scrub())
            wrong += [f"{name} is damaged" for name in seen.met]
        held = sum(self.request(ask.Status()).keys.values())
        if seen.keys != held:
            wrong.append(f"the pass looked at {seen.keys} of {held} keys")
        for application in applications(self.role):
            for row in self.request(ask.ApplicationOutbox(application=application)):
                wrong += self._receipt_of(row.key_id)
        return wrong

    def _receipt_of(self, key_id: UUID) -> list[str]:
        """There is none of a key that is here."""
        try:
            self.request(receipts.Destruction(key_id=key_id))
        except QkdnodeError:
            return []
        return [f"key {key_id} has a receipt and is here"]

    def do_picture(self) -> dict[str, Any]:
        return {**picture(self.core, self.role), "fired": self._interposer.fired}

    def do_end(self) -> bool:
        """Close in order."""
        if self._traced:
            self._picture(closing=True)
        try:
            self.core.finish()
        finally:
            self.core.close()
        return self._interposer.fired

    def open_link(self) -> ask.LinkState:
        state: ask.LinkState = self.request(ask.OpenLink(link=LINK, role=self.role, peer=NODES[other_role(self.role)]))
        for material in (state.greeting_key, *(segment.material for segment in state.segments)):
            if material is not None:
                material.release()
        return state

    # --- messages of the neighbour ---

    def do_peer(self, code: int, body: bytes) -> None:
        message: Any = msgspec.msgpack.decode(body, type=KIND_OF_CODE[code].body)
        match message:
            case BatchCommit(batch=batch):
                if self.request(ask.FindAnswer(link=LINK, batch=batch)) is None:
                    with SecretBuffer.copy_of(batch_key(batch.number)) as key:
                        answered = self.request(
                            ask.StoreReady(link=LINK, record=_record(batch), key=key, answer=b"ready")
                        )
                        _release(answered.segment)
                self.tell_peer(BatchAnswer(batch, True))
            case BatchAnswer(batch=batch, ready=ready):
                _release(self.request(ask.SettlePending(link=LINK, batch=batch, ready=ready)).segment)
                self.send("batch ready", batch.number)
                self.tell_peer(Settled((batch,)))
            case Settled(ready=batches):
                if self.role == ALICE:
                    self.request(ask.ReadyAnnounced(link=LINK, batches=batches))
                else:
                    for segment in self.request(ask.PeerReady(link=LINK, batches=batches)):
                        _release(segment)
                    self.tell_peer(message)
            case Allocate():
                outcome = self.request(ask.AcceptAllocation(link=LINK, allocate=message))
                if outcome == ACCEPTED:
                    self.send("ready", _each(message.key_ids))
                self.tell_peer(Allocated(message.request, outcome))
            case Allocated(request=request, outcome=outcome):
                ready = self.request(ask.AllocationAnswered(link=LINK, request=request, outcome=outcome))
                self.send("ready", [key_id.bytes for key_id in ready])
            case Delivered(notice=notice, application=application, key_ids=packed):
                ids = tuple(UUID(bytes=key_id) for key_id in _each(packed))
                self.request(ask.PeerDelivered(link=LINK, application=application, key_ids=ids))
                self.tell_peer(Received((notice,)))
            case Received(notices=notices):
                self.request(ask.OutboxCleared(link=LINK, numbers=notices))


def _release(segment: ask.SegmentState | None) -> None:
    if segment is not None:
        segment.material.release()


def _each(packed: bytes) -> list[bytes]:
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


def _record(batch: BatchId) -> ask.BatchRecord:
    return ask.BatchRecord(
        batch=batch, bits_in=BITS, bits_out=BITS, refill_bits=REFILL, method="m", booking="both", family="f",
        eps_sec=1e-10, eps_cor=1e-15, qber_z=0.02, disclosed_bits=5, devices=(), details={},
    )  # fmt: skip


def live(orders: Orders, wire: socket.socket, trace: int | None) -> None:
    """One life of an end, to be called in a process of its own; never returns."""
    status = 1
    try:
        interposer = Interposer()
        interposer.scope(Path(orders.directory))
        if orders.control:
            controls.plant(orders.control)
        if trace is not None:
            interposer.trace(trace)
        if orders.fault is not None:
            interposer.arm(orders.fault)
        try:
            Node(orders, wire, interposer).run()
            status = 0
        except (QkdnodeError, OSError) as error:
            # It says why it stops, as an agent does, and is started again.
            status = 3
            said = msgspec.msgpack.encode(("stopped", type(error).__name__, str(error)))
            wire.send(len(said).to_bytes(4, "big") + said)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)
