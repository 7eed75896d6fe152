"""One run of both ends under one fault: the wire, the applications, and what must hold of all that was ever told.

The ends live in processes of their own; this one never crashes, so what it was told has been told to somebody.
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import apsw
import msgspec
from signing import PUBLIC

from crash.interposer import FULL, Fault
from crash.node import LINK, NODES, PAIRS, Orders, applications
from crash.nursery import Child, Nursery
from qkdnode.audit.verifier import read_lines, verify
from qkdnode.ids import ALICE, BOB, ROLES, other_role
from qkdnode.vault.export_reader import export_audit

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a kill leaves the page cache: no disk is needed
MAX_FRAME = 256 * 1024
ANSWER_S = 60.0
KILLED = -9
STOPPED = 3
ROUNDS = 12  # after which two ends that can talk have settled

Step = tuple[str, str, tuple[Any, ...]]

# Who, what, with what. Messages are carried in between; `both` is Alice, then Bob.
SCRIPT: tuple[Step, ...] = (
    ("both", "provision", ()),
    ("both", "session", ()),
    ("both", "tag", (2,)),
    (ALICE, "distil", (1,)),
    (ALICE, "allocate", (0, 3, 256)),
    (BOB, "allocate", (0, 2, 256)),
    ("both", "trespass", ()),
    ("both", "deliver", ()),
    (ALICE, "allocate", (1, 2, 128)),
    (BOB, "event", (1,)),
    (ALICE, "event", (1,)),
    (ALICE, "allocate", (2, 2, 256)),  # refused
    ("both", "deliver", ()),
    ("both", "session", ()),
    ("both", "tag", (1,)),
    (ALICE, "distil", (2,)),
    (BOB, "allocate", (1, 3, 128)),
    ("both", "checkpoint", ()),
    ("both", "deliver", ()),
    ("both", "tag", (3,)),
    (ALICE, "allocate", (0, 2, 256)),
    ("both", "end", ()),  # and started again
    ("both", "session", ()),
    ("both", "tag", (1,)),
    ("both", "deliver", ()),
)
# What is kept is looked after while keys wait.
KEEPING_SCRIPT: tuple[Step, ...] = (
    ("both", "provision", ()),
    ("both", "session", ()),
    ("both", "tag", (2,)),
    (ALICE, "distil", (1,)),
    (ALICE, "allocate", (0, 3, 256)),
    ("both", "deliver", ()),
    (ALICE, "allocate", (0, 2, 256)),
    (BOB, "allocate", (1, 2, 128)),
    ("both", "care", ()),
    ("both", "deliver", ()),
    (BOB, "allocate", (0, 2, 256)),
    ("both", "care", ()),
    ("both", "tag", (1,)),
    ("both", "deliver", ()),
)
# Somebody puts rows back at both ends: one alone would be granted no pad twice.
ROLLBACK_SCRIPT: tuple[Step, ...] = (
    ("both", "provision", ()),
    ("both", "session", ()),
    ("both", "tag", (2,)),
    ("both", "rollback", ()),
    ("both", "session", ()),
    ("both", "tag", (2,)),
)


class Violation(Exception):
    """Something that must hold does not."""


class End:
    """What is known of one end from outside."""

    def __init__(self, role: str, directory: Path) -> None:
        self.role, self.directory = role, directory
        self.life = 0
        self.child: Child | None = None
        self.was_opened = self.provisioned = False
        self.sessions: list[int] = []
        self.pads: dict[tuple[int, int, int], bytes] = {}
        self.leaves: list[str] = []
        self.allocated: list[bytes] = []
        self.ready: set[bytes] = set()
        self.given: dict[bytes, tuple[str, bytes]] = {}
        self.recorded: set[bytes] = set()
        self.batches: set[int] = set()
        self.crashes = 0
        self.sent: list[str] = []  # what the first life sent, in order: one call each


class Trial:
    """Play a script under a fault, settle, and check."""

    def __init__(
        self,
        nursery: Nursery,
        fault: Fault | None,
        *,
        control: str = "",
        script: tuple[Step, ...] = SCRIPT,
        excused: tuple[str, ...] = (),
    ) -> None:
        self._nursery, self._fault, self._control, self._script = nursery, fault, control, script
        self.place = Path(tempfile.mkdtemp(prefix="qkdnode-crash-", dir=MEMORY))
        (self.place / "credential").write_bytes(bytes(range(32)))
        self.ends = {role: End(role, self.place / NODES[role]) for role in ROLES}
        self.digests: dict[bytes, bytes] = {}
        self._wire: deque[tuple[str, int, bytes]] = deque()
        self.violations: list[str] = []
        self.fired = False
        self._excused = {"OutOfStockError", *excused}
        self._unsure = fault is not None  # what an end that died had not told any more is not known

    def play(self) -> "Trial":
        """Run it all; `violations` and `fired` tell the outcome."""
        try:
            for end in self.ends.values():
                self._start(end)
            for who, name, arguments in self._script:
                for role in ROLES if who == "both" else (who,):
                    self._step(self.ends[role], name, arguments)
                self._carry()
            self._settle()
            self._check()
        except Violation as violation:
            self.violations.append(str(violation))
        finally:
            for end in self.ends.values():
                self._kill(end)
            shutil.rmtree(self.place, ignore_errors=True)
        return self

    def trace_of(self, end: End) -> int | None:
        """Where an end's doings with files are recorded, if they are."""

    def told(self, end: End, name: str, content: list[Any]) -> None:
        """An end has said something."""

    def _demand(self, held: bool, otherwise: str) -> None:
        if not held:
            self.violations.append(otherwise)

    # --- processes ---

    def _start(self, end: End) -> None:
        """Start an end until it is open: one whose disk fails it once is started again."""
        for _ in range(4):
            end.life += 1
            fault = self._fault if self._fault is not None and not self.fired else None
            armed = fault if fault is not None and fault.role == end.role and not end.crashes else None
            there = (end.directory / "vault.db").exists()
            self._demand(there or not end.was_opened, f"the vault of {end.role}, once opened, is gone")
            trace = self.trace_of(end)
            end.child = self._nursery.start(
                Orders(end.role, str(end.directory), end.life, not there, armed, self._control, trace is not None),
                trace,
            )
            if self._listen(end, "opened"):
                end.was_opened = True
                if end.provisioned:
                    self._provision(end)
                return
        raise Violation(f"{end.role} does not start any more")

    def _provision(self, end: End) -> None:
        """Until it is done: before that there is no node."""
        for _ in range(3):
            if self._command(end, "provision"):
                return

    def _kill(self, end: End) -> None:
        if end.child is not None:
            end.child.wire.close()
            end.child.wait()
            end.child = None

    def _died(self, end: End) -> None:
        """The process is gone: by the fault, or by itself with a word about it."""
        assert end.child is not None
        end.child.wire.close()
        status = end.child.wait()
        end.child = None
        end.crashes += 1
        expected = self._fault is not None and self._fault.role == end.role and status in (KILLED, STOPPED)
        self.fired = self.fired or expected
        if not expected:
            raise Violation(f"{end.role} ended with status {status}: see its standard error")

    # --- talking ---

    def _step(self, end: End, name: str, arguments: tuple[Any, ...]) -> Any:
        match name:
            case "deliver":
                for application in applications(end.role):
                    self._deliver(end, application)
            case "trespass":
                self._trespass(end)
            case "end":
                self._end(end)
            case "provision":
                end.provisioned = True
                self._provision(end)
            case "allocate":
                self._command(end, name, *arguments)
                for application in applications(end.role):  # before the peer has heard of it: there is nothing
                    self._command(end, "supply", application)
            case "care":
                for wrong in self._command(end, "care") or ():
                    self._demand(False, f"{end.role}: {wrong}")
            case "tag":
                self._tag(end, *arguments)
            case "event":
                self._event(end, *arguments)
            case "rollback":
                self._roll_back(end)
            case _:
                return self._command(end, name, *arguments)

    def _command(self, end: End, name: str, *arguments: Any) -> Any:
        """Ask an end to do something; None if it could not, or died of it and was started again."""
        assert end.child is not None
        with contextlib.suppress(OSError):  # it has died; what it said before is still to be read
            end.child.wire.send(msgspec.msgpack.encode((name, *arguments)))
        answer = self._listen(end, "answered")
        if end.child is None:
            self._start(end)
        return answer

    def _listen(self, end: End, last: str) -> Any:
        """Take what an end sends up to its answer. None if it failed or died (then `end.child` is None)."""
        assert end.child is not None
        end.child.wire.settimeout(ANSWER_S)
        while True:
            try:
                data = end.child.wire.recv(MAX_FRAME)
            except TimeoutError:
                raise Violation(f"{end.role} does not answer within {ANSWER_S:.0f} s") from None
            except ConnectionError:
                data = b""
            if not data:
                self._died(end)
                return None
            start = 4 + int.from_bytes(data[:4], "big")
            name, *content = msgspec.msgpack.decode(data[4:start])
            self.told(end, name, content)
            if end.life == 1:
                end.sent.append(name)
            if name == last:
                return content[0] if content else True
            if name == "failed":
                kind, text, fired = content
                self.fired = self.fired or fired
                excused = kind in self._excused or (self._fault is not None and self._fault.role == end.role)
                self._demand(excused, f"{end.role} failed without a fault: {kind}: {text}")
                return None
            if name == "key":
                self._given(end, *content, hashlib.sha256(data[start:]).digest())
            elif name not in ("stopped", "picture"):
                _TOLD[name](self, end, *content)

    def _carry(self) -> None:
        """The wire: everything arrives, in order, at an end that runs."""
        while self._wire:
            role, code, body = self._wire.popleft()
            self._command(self.ends[role], "peer", code, body)

    # --- what ends tell ---

    def _to_peer(self, end: End, code: int, body: bytes) -> None:
        self._wire.append((other_role(end.role), code, body))

    def _session(self, end: End, counter: int) -> None:
        self._demand(not end.sessions or counter > end.sessions[-1], f"{end.role} uses session {counter} again")
        end.sessions.append(counter)

    def _tagged(self, end: End, session: int, number: int, index: int, digest: bytes) -> None:
        pad = (session, number, index)
        self._demand(
            end.pads.setdefault(pad, digest) == digest, f"{end.role} used pad {pad} for two different messages"
        )

    def _leaf(self, end: End, position: int, leaf: str) -> None:
        if position < len(end.leaves):
            self._demand(end.leaves[position] == leaf, f"{end.role}: entry {position} of the log is another one now")
        else:
            self._demand(
                position == len(end.leaves), f"{end.role}: the log goes on at {position}, not {len(end.leaves)}"
            )
            end.leaves.append(leaf)

    def _allocated(self, end: End, ids: list[bytes]) -> None:
        end.allocated += ids

    def _ready(self, end: End, ids: list[bytes]) -> None:
        end.ready.update(ids)

    def _recorded(self, end: End, application: str, ids: list[bytes]) -> None:
        end.recorded.update(ids)

    def _given(self, end: End, application: str, key_id: bytes, digest: bytes) -> None:
        self._demand(key_id not in end.recorded, f"{end.role}: key {key_id.hex()} is supplied again after its delivery")
        if self._fault is None:
            both = all(key_id in known.ready for known in self.ends.values())
            self._demand(both or self._unsure, f"{end.role}: key {key_id.hex()} is supplied before both ends have it")
        pair = next(pair for pair in PAIRS if application in (pair.local, pair.remote))
        first, _ = end.given.setdefault(key_id, (application, digest))
        self._demand(first == application, f"{end.role}: key {key_id.hex()} of {first} is supplied to {application}")
        there = self.ends[other_role(end.role)].given.get(key_id)
        if there is not None:
            self._demand(
                there[0] in (pair.local, pair.remote), f"key {key_id.hex()} is for {there[0]} there, {application} here"
            )
        known = self.digests.setdefault(key_id, digest)
        self._demand(known == digest, f"key {key_id.hex()} is another one at {end.role}")

    # --- applications ---

    def _deliver(self, end: End, application: str) -> None:
        self._command(end, "supply", application)
        due = [
            key_id for key_id, (owner, _) in end.given.items() if owner == application and key_id not in end.recorded
        ]
        if due:
            self._command(end, "acknowledge", application, due)

    def _trespass(self, end: End) -> None:
        """An application asks for a key that is another's."""
        for application in applications(end.role):
            self._command(end, "supply", application)
        for key_id in sorted(end.given.keys() - end.recorded):
            for application in applications(end.role):
                if application != end.given[key_id][0]:
                    refused = self._command(end, "refused", application, key_id)
                    self._demand(refused is not False, f"{end.role}: a key was opened for {application}, not its own")

    def _tag(self, end: End, count: int) -> None:
        """Messages with pads that the peer has granted; no grant, no tag."""
        marks = self._command(end, "marks")
        spans = None if marks is None else self._command(self.ends[other_role(end.role)], "grant", count, marks)
        if spans:
            self._command(end, "tag", count, spans)

    def _event(self, end: End, number: int) -> None:
        position = self._command(end, "event", number)
        if position is not None:
            told = position < len(end.leaves) and f"note/{number}" in end.leaves[position]
            self._demand(told, f"{end.role}: event {number}, which stands at {position}, is not in the log")

    def _roll_back(self, end: End) -> None:
        """Somebody puts an old row of pads back while the end is down."""
        self._kill(end)
        connection = apsw.Connection(str(end.directory / "vault.db"))
        connection.execute("UPDATE segments SET sending = 0, granted = 0")
        if not connection.changes():
            raise LookupError("there are no segments to put back any more: alter another row")
        connection.close()
        self._start(end)

    # --- the end ---

    def _end(self, end: End) -> None:
        """Close in order, start again."""
        assert end.child is not None
        fired = self._command(end, "end")
        if fired is not None:
            self.fired = self.fired or bool(fired)
        if end.child is not None:
            end.child.wire.close()
            status = end.child.wait()
            if status == KILLED and self._fault is not None and self._fault.role == end.role:
                self.fired = True  # right after its last word
            else:
                self._demand(status == 0, f"{end.role} ended with status {status}")
            end.child = None
            self._start(end)

    def _settle(self) -> None:
        """Both ends are cut off once more, started without faults, and have all the time they want."""
        for end in self.ends.values():
            seen = self._command(end, "picture")
            self.fired = self.fired or bool(seen and seen["fired"])
            if self._fault is not None and end.role == self._fault.role and self._fault.act == FULL:
                self.fired = self.fired or seen is None
        fault, self._fault = self._fault, None
        for end in self.ends.values():
            self._kill(end)
            self._start(end)
        for role in ROLES:
            self._command(self.ends[role], "session")
            self._tag(self.ends[role], 1)
        self._carry()
        before: Any = None
        for _ in range(ROUNDS):
            for end in self.ends.values():
                self._command(end, "resend")
                self._carry()
                for application in applications(end.role):
                    self._deliver(end, application)
                self._carry()
            after = [self._command(end, "picture") for end in self.ends.values()]
            if after == before:
                break
            before = after
        self.final = dict(zip(ROLES, after, strict=True))
        for end in self.ends.values():
            self._command(end, "end")
            self._kill(end)
        self._fault = fault

    def _check(self) -> None:
        alice, bob = (self.ends[role] for role in ROLES)
        states = self.final
        for end in (alice, bob):
            state = states[end.role]
            self._demand(not state["outbox"], f"{end.role} still has {len(state['outbox'])} messages in its outbox")
            self._demand(not any(state["waiting"].values()), f"{end.role} still has keys waiting")
            left = {name for name, count in state["keys"].items() if count} - {"delivered", "burnt"}
            self._demand(not left, f"{end.role} has keys {sorted(left)} left over")
            lost = end.ready - end.recorded
            self._demand(not lost, f"{end.role} lost {len(lost)} READY keys")
            self._demand(
                state["delivered at both ends"] == state["keys"].get("delivered", 0),
                f"{end.role} does not know of every delivery at the far end",
            )
            self._check_log(end)
        self._demand(alice.recorded == bob.recorded, "the ends delivered different keys")
        for mine, of_peer, name in ((alice, bob, "Alice"), (bob, alice, "Bob")):
            own, seen = states[mine.role]["own stock"][LINK], states[of_peer.role]["stock of the peer"][LINK]
            self._demand(own == seen, f"{name}'s half holds {own} bits here and {seen} there")
        self._demand(states[ALICE]["batches"] == states[BOB]["batches"], "the ends have different Batches")
        allocated = set(alice.allocated) | set(bob.allocated)
        burnt = allocated - alice.recorded
        self._demand(len(burnt) <= 2 + 3, f"{len(burnt)} keys burnt: more than the refused and one request")
        self._demand(len(set(self.digests.values())) == len(self.digests), "the same bits of stock are in two keys")

    def _check_log(self, end: End) -> None:
        export = self.place / f"{end.role}.export"
        with export.open("w", encoding="utf-8") as out:
            export_audit(end.directory / "vault.db", out.write)
        with export.open("rb") as lines:
            report = verify(read_lines(lines), PUBLIC)
        self._demand(report.valid, f"the log of {end.role} does not verify: {report}")
        self._demand(
            report.leaves >= len(end.leaves),
            f"{end.role}: {len(end.leaves)} entries were told, {report.leaves} are there",
        )


_TOLD = {
    "to peer": Trial._to_peer,
    "session": Trial._session,
    "tagged": Trial._tagged,
    "leaf": Trial._leaf,
    "allocated": Trial._allocated,
    "ready": Trial._ready,
    "recorded": Trial._recorded,
    "batch ready": lambda trial, end, number: end.batches.add(number),
}
