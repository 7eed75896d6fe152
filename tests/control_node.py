"""A node behind a real control socket: a real vault with a few keys, and a NodePort in place of the agent."""

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from signing import SIGNING

from qkdnode.access.approvals import approve, encode_approval
from qkdnode.access.rules import Role
from qkdnode.audit.events import AccessEvent
from qkdnode.channel.operator import OwnOperator, load_operator
from qkdnode.control.conversation import Operator, Operators
from qkdnode.control.desk import Desk
from qkdnode.control.port import NodePort, Supplied
from qkdnode.control.server import ControlServer, Limits
from qkdnode.control.socket import Credentials, peer_credentials
from qkdnode.errors import ConfigError, ControlError, DiskFullError
from qkdnode.ids import ALICE, Association, BatchId
from qkdnode.lifecycle.algorithms import ALGORITHMS, Algorithm, Need, status_of
from qkdnode.native.secret import SecretBuffer
from qkdnode.node.control import algorithm_entry
from qkdnode.node.policy import NodePolicy, people_of
from qkdnode.node.provision import provision_operator
from qkdnode.vault import requests as ask
from qkdnode.vault.doubts import rule_of
from qkdnode.vault.policies import GENESIS, guarded_request
from qkdnode.vault.requests import PolicyVersion
from qkdnode.vault.root import CredentialFile
from qkdnode.vault.service import Vault
from qkdnode.wire.control import (
    LENGTH,
    VERSION,
    AlgorithmEntry,
    AlgorithmList,
    Asset,
    Challenge,
    ClockStatus,
    ComparisonEntry,
    DeviceStatus,
    DoubtEntry,
    FromAgent,
    LinkStatus,
    NodeStatus,
    PolicyApply,
    Reloaded,
    Request,
    Signed,
    decode_from_agent,
    encode_request,
    frame,
    signing_input,
)

PATIENCE_S = 60.0  # what nothing takes that works, on a machine that is busy with other things
LINK = "alice-bob"
OPERATORS = {
    "olga": Role.OPERATOR,
    "sven": Role.SECURITY_OFFICER,
    "anna": Role.AUDITOR,
    "max": Role.MAINTAINER,
}
NOW_NS = 1_770_000_000_000_000_000
BITS = 40_000


ASSETS = (
    Asset(kind="application", name="app-a"),
    Asset(
        kind="crypto-module", name="OpenSSL of cryptography", version="OpenSSL 4.0.3 29 Sep 2026", licence="Apache-2.0"
    ),
    Asset(kind="link", name=LINK, details={"peer": "bob", "role": "alice"}),
    Asset(
        kind="module",
        name="QKD-A",
        version="1.4.2",
        owner="optics",
        classification="restricted",
        details={"link": LINK, "model": "TX-9", "backend": "hardware"},
    ),
    Asset(kind="native", name="qkdnode.native.polyval", version="0.1.0", digest="ab" * 32),
    Asset(kind="node", name="alice", version="0.1.0", owner="operations", classification="secret"),
    Asset(kind="operator", name="olga", details={"roles": "operator"}),
    Asset(
        kind="package",
        name="qkdnode",
        version="0.1.0",
        digest="cd" * 32,
        licence="Apache-2.0",
        owner="operations",
        details={"purl": "pkg:pypi/qkdnode@0.1.0", "requires": "numpy", "loaded": "yes"},
    ),
    Asset(
        kind="package",
        name="numpy",
        version="2.4.6",
        digest="ef" * 32,
        licence="BSD-3-Clause AND 0BSD",
        details={"purl": "pkg:pypi/numpy@2.4.6", "loaded": "yes", "supplier": "Travis E. Oliphant et al."},
    ),
    Asset(kind="platform", name="SQLite", version="3.54.1", licence="blessing"),
    Asset(kind="qrng", name="QRNG-A", details={"link": LINK}),
)


class Agent:
    """What of a node can be shown and changed, and what was done with it."""

    def __init__(self) -> None:
        self.paused: dict[str, str] = {}
        self.done: list[tuple[str, ...]] = []
        self.vault_answers = True
        self.link_is_up = False
        self.looks = 0  # at what both ends hold
        self.trusted_ns = NOW_NS - 3600 * 10**9
        self.alarm: dict[str, Any] = {
            "code": "DEVICE_GAP",
            "subject": "QKD-A",
            "detail": "2 Windows discarded: lost",
            "first_ns": NOW_NS - 10**12,
            "last_ns": NOW_NS - 10**11,
            "count": 3,
            "acknowledged_by": None,
            "advice": "check USB load and cable",
        }
        self.supplied = Supplied("OPEN", True, 256, 64, 64)
        self.policy: NodePolicy
        self.operators: Operators
        self.reloaded: Reloaded | Exception = Reloaded(
            applied=("operator olga: changed",), needs_restart=("link alice-bob: changed",)
        )

    def port(self) -> NodePort:
        """The callables."""
        return NodePort(
            status=self.status,
            links=self.links,
            devices=self.devices,
            alarms=self.alarms,
            decoy=lambda subject, detail: self.done.append(("decoy", subject, detail)),
            acknowledge=self.acknowledge,
            revoked=lambda links: self.done.append(("revoked", *links)),
            rotated=lambda: self.done.append(("rotated",)),
            demand_cut=self.demand_cut,
            people=lambda: people_of(self.operators),
            supplied=lambda association: self.supplied,
            pause=self.pause,
            resume=self.resume,
            shutdown=self.shutdown,
            reload=self.reload,
            apply_policy=self.apply_policy,
            assets=self.everything,
            algorithms=self.algorithms,
            compared=self.compared,
            compare=self.compare,
            clock=self.clock,
            confirm_clock=self.confirm_clock,
        )

    async def status(self) -> NodeStatus:
        return NodeStatus(
            node="alice",
            version="0.1.0",
            state="running",
            started_ns=NOW_NS - 5 * 86_400 * 10**9,
            now_ns=NOW_NS,
            memory="memfd_secret",
            entropy_healthy=True,
            links=await self.links(),
            devices=await self.devices(),
            alarms=() if self.alarm["acknowledged_by"] else (self.alarm,),
            keys={"ready": 3, "delivered": 120} if self.vault_answers else None,
            keys_delivered_both=118 if self.vault_answers else None,
            leaves=4711 if self.vault_answers else None,
        )

    async def links(self) -> tuple[LinkStatus, ...]:
        by = self.paused.get(LINK)
        return (
            LinkStatus(
                name=LINK,
                peer="bob",
                role=ALICE,
                state="OPEN" if by is None else "PAUSED",
                paused_by=by,
                sessions=2,
                qber=0.0153,
                sifted_bps=1_240_000.0,
                secret_bps=182_000.0,
                stock_bits=5_400_000,
                stock_bits_peer=5_300_000,
                reserve_bits=270_336,
                reserve_days=41.7,
                batches_ready=312,
                discards={"NO_SECRET": 1},
            ),
        )

    async def devices(self) -> tuple[DeviceStatus, ...]:
        return (
            DeviceStatus(
                serial="QKD-A",
                kind="transmitter",
                link=LINK,
                state="streaming",
                healthy=True,
                openings=1,
                bytes_read=73_000_000_000,
                stalls=0,
                detail="41203 Windows, 2 lost",
            ),
            DeviceStatus(
                serial="QRNG-A",
                kind="qrng",
                state="streaming",
                healthy=True,
                openings=1,
                bytes_read=8_100_000_000,
                stalls=0,
                detail="healthy",
            ),
        )

    def demand_cut(self, link: str) -> None:
        if self.link_is_up:
            raise ControlError(f"link {link!r} is up")

    async def everything(self) -> tuple[tuple[Asset, ...], tuple[str, ...]]:
        return ASSETS, ("link line-9",)

    async def compared(self, link: str | None) -> tuple[ComparisonEntry, ...]:
        if link not in (None, LINK):
            raise ControlError(f"this node has no link {link!r}; it has {LINK}")
        differs = self.looks == 1  # the second look finds that all is well again
        root = "7b" * 32
        return (
            ComparisonEntry(
                link=LINK,
                peer="bob",
                connected=True,
                looks=self.looks,
                running=False,
                ended_s=2.0,
                root_here=root,
                root_there="c0" * 32 if differs else root,
                agrees=not differs,
                failed="",
                questions=6 if differs else 1,
                stretches=int(differs),
                unsettled=4 if differs else 0,
                found={"orphan": 2} if differs else {},
                rules={"orphan": rule_of("orphan")} if differs else {},
                repaired={"quarantine": 2} if differs else {},
                quarantined=2 if differs else 0,
                doubts=(_doubt(),) if differs else (),
                doubts_in_all=int(differs),
            ),
        )

    async def compare(self, link: str | None) -> None:
        self.looks += 1
        self.done.append(("compare", link or "all"))

    async def algorithms(self) -> AlgorithmList:
        return AlgorithmList(
            day="2026-02-02",
            algorithms=tuple(map(_entry, ALGORITHMS.values())),
            key_classes={"its": (), "bulk": ("OTP", "AES-256-GCM")},
            keys={"ready": 3, "delivered": 120} if self.vault_answers else None,
        )

    def clock(self) -> ClockStatus:
        behind = self.trusted_ns - NOW_NS
        return ClockStatus(
            wall_ns=NOW_NS, trusted_ns=self.trusted_ns, withheld_ns=max(0, -behind), behind_ns=max(0, behind)
        )

    def confirm_clock(self, until_ns: int) -> ClockStatus:
        self.done.append(("confirm_clock", str(until_ns)))
        self.trusted_ns = max(self.trusted_ns, min(until_ns, NOW_NS))
        return self.clock()

    async def alarms(self, confidential: bool) -> tuple[dict[str, Any], ...]:
        secret = {**self.alarm, "code": "DECOY", "subject": "application/payroll", "detail": "fetch of 1"}
        return (self.alarm, secret) if confidential else (self.alarm,)

    async def acknowledge(self, code: str, subject: str, by: str) -> bool:
        if (code, subject) != (self.alarm["code"], self.alarm["subject"]):
            raise ControlError(f"there is no alarm {code} of {subject!r}: see `qkdnode alarms`")
        self.done.append(("acknowledge", code, subject, by))
        changed = self.alarm["acknowledged_by"] is None
        self.alarm["acknowledged_by"] = by
        return changed

    async def pause(self, link: str, by: str) -> bool:
        self._known(link)
        self.done.append(("pause", link, by))
        changed = link not in self.paused
        self.paused.setdefault(link, by)
        return changed

    async def resume(self, link: str, by: str) -> bool:
        self._known(link)
        self.done.append(("resume", link, by))
        return self.paused.pop(link, None) is not None

    async def shutdown(self, by: str) -> bool:
        self.done.append(("shutdown", by))
        return True

    async def reload(self, by: str) -> Reloaded:
        self.done.append(("reload", by))
        if isinstance(self.reloaded, Exception):
            raise self.reloaded
        return self.reloaded

    async def apply_policy(self, request: PolicyApply, by: str) -> PolicyVersion:
        self.done.append(("apply_policy", by))
        return await self.policy.apply(request, self.operators, by)

    @staticmethod
    def _known(link: str) -> None:
        if link != LINK:
            raise ControlError(f"this node has no link {link!r}; it has {LINK}")


class ControlNode:
    """A socket in `directory`, served in a thread of its own, and one operator for each role."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits | None = None,
        credentials: Callable[[socket.socket], Credentials] = peer_credentials,
        period_s: float = 300.0,
    ) -> None:
        directory.chmod(0o700)
        self.directory, self.agent, self.disk_full = directory, Agent(), False
        self.path = directory / "control" / "socket"
        self.operators = {name: directory / f"{name}.operator" for name in OPERATORS}
        publics = {name: provision_operator(name, directory) for name in OPERATORS}
        self.vault = _stocked_vault(directory)
        self.known = Operators(Operator(publics[name], frozenset({role})) for name, role in OPERATORS.items())
        self.agent.policy = NodePolicy(
            ask=self.ask,
            alarm=lambda *told: None,
            now_ns=lambda: NOW_NS,
            log=structlog.wrap_logger(structlog.ReturnLogger()),
        )
        self.agent.operators = self.known
        self.now_s = 1000.0
        self._ready = threading.Event()
        self._fault: BaseException | None = None
        self._stop: asyncio.Event
        self.loop: asyncio.AbstractEventLoop
        self._limits, self._credentials, self._period_s = limits, credentials, period_s
        self.desk = Desk(
            self.agent.port(),
            ask=self.ask,
            record=self.record,
            clock_s=lambda: self.now_s,
            log=structlog.get_logger().bind(),
            period_s=period_s,
        )
        self.server: ControlServer
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.server = ControlServer(
            self.path,
            node="alice",
            uids={os.geteuid()},
            operators=self.known,
            desk=self.desk,
            credentials=self._credentials,
            limits=self._limits,
        )
        try:
            await self.server.start()
        except BaseException as error:
            self._fault = error
            return
        finally:
            self._ready.set()
        await self._stop.wait()
        await self.server.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        if self._fault is not None:
            self.vault.close()
            raise self._fault
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.vault.close()

    def stop(self) -> None:
        """Close the server."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run a coroutine in the server's loop."""

        async def working() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(working(), self.loop).result(PATIENCE_S)

    async def ask(self, request: Any) -> Any:
        """The vault."""
        return await asyncio.wrap_future(self.vault.ask(request))

    async def record(self, subject: str, outcome: str, details: dict[str, Any]) -> None:
        """As a Recorder does."""
        if self.disk_full:
            raise DiskFullError("no room for the leaf")
        event = AccessEvent(
            time_ns=NOW_NS,
            node="alice",
            topic="access",
            kind="access.control",
            subject=subject,
            outcome=outcome,
            details=details,
        )
        await self.ask(ask.RecordEvent(event=event))

    def leaves(self) -> list[Any]:
        """The leaves of access so far."""
        found = self.vault.call(ask.EventsAfter(position=0, limit=4096))
        return [event for _, event in found if event.kind == "access.control"]

    def told(self) -> list[tuple[str, str, Any]]:
        """Outcome, action and rule of every such leaf."""
        return [(leaf.outcome, leaf.details["action"], leaf.details.get("rule")) for leaf in self.leaves()]

    def caller(self, name: str = "olga") -> "Caller":
        """A connection that says whatever a test wants."""
        return Caller(self, name)

    def approved_policy(self, document: bytes) -> PolicyApply:
        """A first policy with what olga and sven sign for it."""
        request = guarded_request("alice", 1, GENESIS, document)
        files = []
        for name in ("olga", "sven"):
            with load_operator(self.operators[name]) as operator:
                files.append(encode_approval(approve(request, name, NOW_NS + 10**12, operator.sign)))
        return PolicyApply(document=document, approvals=tuple(files))

    def break_config(self) -> None:
        """The next reload finds an error in the file."""
        self.agent.reloaded = ConfigError("alice.toml: Object contains unknown field `lnk`")


class Caller:
    """One raw connection of an operator."""

    def __init__(self, node: ControlNode, name: str) -> None:
        self.operator: OwnOperator = load_operator(node.operators[name])
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(os.fspath(node.path))
        self.counter = 0
        self.first = self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()
        self.operator.release()

    @property
    def challenge(self) -> Challenge:
        """What the agent began with."""
        assert isinstance(self.first, Challenge)
        return self.first

    def signed(self, request: Request | bytes, **changes: Any) -> Signed:
        """The next request, signed; then changed."""
        self.counter += 1
        data = request if isinstance(request, bytes) else encode_request(request)
        message = signing_input(self.challenge, self.operator.name, os.geteuid(), self.counter, data)
        made = Signed(VERSION, self.operator.name, self.counter, data, self.operator.sign(message))
        return msgspec.structs.replace(made, **changes)

    def send(self, message: Signed | bytes) -> None:
        """A frame, or any bytes."""
        self.socket.sendall(message if isinstance(message, bytes) else frame(message))

    def ask(self, request: Request | bytes, **changes: Any) -> FromAgent:
        """Send and receive."""
        self.send(self.signed(request, **changes))
        return self.receive()

    def receive(self) -> FromAgent:
        """The next message of the agent; EOFError at the end."""
        (size,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return decode_from_agent(self._exactly(size))

    def is_ended(self) -> bool:
        """Whether the agent has closed the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def _doubt() -> DoubtEntry:
    return DoubtEntry(
        batch="0000000100000001-00000007",
        half="bob",
        offset_bits=512,
        verdict="orphan",
        rule=rule_of("orphan"),
        since_ns=NOW_NS,
        looks=1,
        count=2,
    )


def _entry(row: Algorithm) -> AlgorithmEntry:
    return algorithm_entry(row, status_of(row.id, "2026-02-02"), tuple(Need))


def _stocked_vault(directory: Path) -> Vault:
    """Alice's vault with six keys of app-a, four of them ready."""
    (directory / "credential").write_bytes(b"0123456789abcdef")
    count = iter(range(1, 10**9))

    def draw_into(buffer: SecretBuffer) -> None:
        with memoryview(buffer) as view:
            for at in range(0, len(view), 8):
                piece = (next(count)).to_bytes(8, "little")
                view[at : at + 8] = piece[: len(view) - at]

    vault = Vault.open(
        directory / "vault.db",
        root=CredentialFile("credential", directory),
        node="alice",
        draw_into=draw_into,
        signer=SIGNING,
        clock_ns=lambda: NOW_NS,
        create=True,
    )
    batch = BatchId(1, 1)
    material = SecretBuffer.copy_of(bytes(range(256)) * 16)
    vault.call(ask.ProvisionLink(link=LINK, role=ALICE, peer="bob", pair=b"pair", material=material))
    for segment in vault.call(ask.OpenLink(link=LINK, role=ALICE, peer="bob")).segments:
        segment.material.release()
    association = Association("app-a", "app-b", LINK)
    vault.call(
        ask.Associate(association=association, nodes=("alice", "bob"), link=LINK, purpose="session", key_class="its")
    )
    record = ask.BatchRecord(
        batch=batch,
        bits_in=3 * BITS,
        bits_out=BITS,
        refill_bits=4096,
        method="rusca2018/1",
        booking="both",
        family="modified",
        eps_sec=1e-9,
        eps_cor=1e-15,
        qber_z=0.015,
        disclosed_bits=BITS,
        devices=("QKD-A",),
        details={},
    )
    key = SecretBuffer.copy_of(bytes(i % 251 for i in range(BITS // 8)))
    vault.call(ask.StorePending(link=LINK, record=record, key=key, commit=b"commit"))
    settled = vault.call(ask.SettlePending(link=LINK, batch=batch, ready=True))
    if settled.segment is not None:
        settled.segment.material.release()
    for start, accepted in ((0, True), (4, False)):
        entropy = b"".join(bytes([0x10 + start + i]) * 16 for i in range(4 if accepted else 2))
        vault.call(ask.AllocateKeys(association=association, count=len(entropy) // 16, size_bits=256, entropy=entropy))
        if accepted:
            for entry in vault.call(ask.NeighbourOutbox(link=LINK)):
                answer = ask.AllocationAnswered(link=LINK, request=entry.message.request, outcome="accepted")
                vault.call(answer)
    return vault
