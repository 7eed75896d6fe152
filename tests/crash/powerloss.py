"""Power loss: what the files may be after it, rebuilt from a trace of writes and syncs, and opened by the real vault.

Between two syncs of a file each write may have reached the platter whole, in part (by sectors of 512 bytes) or not at
all, in any order; between two syncs of the directory so may each name that was made, changed or deleted. A sync of a
file says nothing about its name. Acknowledged is what the vault had answered before the cut.
"""

import hashlib
import io
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from signing import PUBLIC

from crash import interposer
from crash.controls import CONTROLS, POWER_LOSS, Control
from crash.interposer import Operation, operations
from crash.node import LINK, NODES, SmallLog, applications, ask_core, open_vault, picture
from crash.nursery import Nursery
from crash.sweep import Found
from crash.trial import MEMORY, End, Trial
from qkdnode.audit.verifier import read_lines, verify
from qkdnode.errors import QkdnodeError
from qkdnode.ids import ROLES, other_role
from qkdnode.vault import requests as ask
from qkdnode.vault.export_reader import export_audit

SECTOR_BYTES = 512
VERIFIED_EVERY = 40  # states, by the offline verifier; the vault itself verifies its log on every opening
LIFE = 1000  # of the vault that opens a rebuilt state: its draws are nobody else's
_encode = msgspec.msgpack.Encoder(order="sorted").encode

Change = Operation  # a write or a length of one file
Choice = Callable[[list[Change], random.Random], Iterator[Change]]


class Recorded(msgspec.Struct, frozen=True):
    """What one end did to its files, and what it was at each size of its log."""

    role: str
    operations: tuple[Operation, ...]
    pictures: dict[int, list[bytes]]  # size of the log -> all answers, encoded, and how they changed without an entry
    pads: dict[int, dict[tuple[int, int], int]]  # size of the log -> segment -> first pad not yet used
    sessions: dict[int, int]  # size of the log -> session counter
    keys: dict[bytes, bytes]  # id -> digest
    violations: tuple[str, ...]


class Recording(Trial):
    """A run of both ends without faults, one of them traced."""

    def __init__(self, nursery: Nursery, role: str, *, control: str = "") -> None:
        super().__init__(nursery, None, control=control)
        self._role = role
        self._trace = os.memfd_create("trace", os.MFD_CLOEXEC)
        self.pictures: dict[int, list[bytes]] = {}
        self.pads: dict[int, dict[tuple[int, int], int]] = {}
        self.sessions: dict[int, int] = {}
        self._size = 0

    def trace_of(self, end: End) -> int | None:
        return self._trace if end.role == self._role else None

    def told(self, end: End, name: str, content: list[Any]) -> None:
        if end.role != self._role:
            return
        if name == "picture":
            self._size, seen = content
            self.pictures.setdefault(self._size, []).append(seen)
        elif name == "tagged":
            session, number, index, _ = content
            marks = self.pads.setdefault(self._size, {})
            marks[session, number] = max(index + 1, marks.get((session, number), 0))
        elif name == "session":
            self.sessions[self._size] = content[0]

    def record(self) -> Recorded:
        """Play, and read the trace."""
        self.play()
        trace = os.pread(self._trace, os.fstat(self._trace).st_size, 0)
        os.close(self._trace)
        done = tuple(operation for operation in operations(trace) if not operation.name.endswith(".lock"))
        return Recorded(self._role, done, self.pictures, self.pads, self.sessions, self.digests, tuple(self.violations))


# --- what may be left -------------------------------------------------------------------------------------------------


def _none(changes: list[Change], draws: random.Random) -> Iterator[Change]:
    yield from ()


def _all(changes: list[Change], draws: random.Random) -> Iterator[Change]:
    yield from changes


def _random(changes: list[Change], draws: random.Random) -> Iterator[Change]:
    share = draws.choice((0.1, 0.5, 0.9))
    yield from (change for change in changes if draws.random() < share)


def _torn(changes: list[Change], draws: random.Random) -> Iterator[Change]:
    share = draws.choice((0.5, 0.9))
    for change in changes:
        if change.op != interposer.WRITTEN or draws.random() < share:
            yield change
        else:
            yield from _sectors(change, draws)


def _torn_at_last(changes: list[Change], draws: random.Random) -> Iterator[Change]:
    yield from changes[:-1]
    for change in changes[-1:]:
        yield from _sectors(change, draws) if change.op == interposer.WRITTEN else (change,)


def _sectors(change: Change, draws: random.Random) -> Iterator[Change]:
    """The sectors of a write that reach the platter; they lie at multiples of 512 in the file."""
    at = 0
    while at < len(change.data):
        size = min(SECTOR_BYTES - (change.value + at) % SECTOR_BYTES, len(change.data) - at)
        if draws.random() < 0.5:
            piece = change.data[at : at + size]
            yield Operation(interposer.WRITTEN, "", change.inode, change.value + at, piece)
        at += size


SURE: dict[str, Choice] = {"none": _none, "all": _all, "torn at last": _torn_at_last}
DRAWN: dict[str, Choice] = {"random": _random, "torn": _torn}


class Medium:
    """The files of one directory: what is certain, and what is not yet."""

    def __init__(self) -> None:
        self._certain: dict[int, bytearray] = {}
        self._changes: dict[int, list[Change]] = {}
        self._names: dict[str, int] = {}
        self._now: dict[str, int] = {}
        self._renamings: list[Operation] = []
        self.acknowledged = 0

    def undergo(self, operation: Operation) -> None:
        """One more operation of the trace."""
        _UNDERGONE[operation.op](self, operation)

    def left(self, choose: Choice, draws: random.Random) -> dict[str, bytes]:
        """What there may be after a power loss now."""
        names = dict(self._names)
        for renaming in choose(self._renamings, draws):
            _rename(names, renaming)
        files = {}
        for name, inode in names.items():
            data = bytearray(self._certain.get(inode, b""))
            for change in choose(self._changes.get(inode, []), draws):
                _apply(data, change)
            files[name] = bytes(data)
        return files

    def _named(self, operation: Operation) -> None:
        if operation.op == interposer.RENAMED:
            operation = msgspec.structs.replace(operation, inode=self._now[operation.name])
        _rename(self._now, operation)
        self._renamings.append(operation)

    def _changed(self, operation: Operation) -> None:
        self._changes.setdefault(operation.inode, []).append(operation)

    def _synced(self, operation: Operation) -> None:
        data = self._certain.setdefault(operation.inode, bytearray())
        for change in self._changes.pop(operation.inode, []):
            _apply(data, change)

    def _directory_synced(self, operation: Operation) -> None:
        for renaming in self._renamings:
            _rename(self._names, renaming)
        self._renamings.clear()

    def _noted(self, operation: Operation) -> None:
        self.acknowledged = max(self.acknowledged, operation.value)


_UNDERGONE: dict[int, Callable[[Medium, Operation], None]] = {
    interposer.CREATED: Medium._named,
    interposer.RENAMED: Medium._named,
    interposer.UNLINKED: Medium._named,
    interposer.WRITTEN: Medium._changed,
    interposer.TRUNCATED: Medium._changed,
    interposer.SYNCED: Medium._synced,
    interposer.DIRECTORY_SYNCED: Medium._directory_synced,
    interposer.NOTED: Medium._noted,
}


def _apply(data: bytearray, change: Change) -> None:
    size = change.value if change.op == interposer.TRUNCATED else change.value + len(change.data)
    if change.op == interposer.TRUNCATED:
        del data[size:]
    data.extend(bytes(max(0, size - len(data))))
    if change.op == interposer.WRITTEN:
        data[change.value : size] = change.data


def _rename(names: dict[str, int], operation: Operation) -> None:
    """A name that is made, changed or deleted; a file that has its second name has no longer its first."""
    if operation.op == interposer.UNLINKED:
        names.pop(operation.name, None)
    elif operation.op == interposer.CREATED:
        names[operation.name] = operation.inode
    else:
        names.pop(operation.name, None)
        names[Path(os.fsdecode(operation.data)).name] = operation.inode


# --- what must hold of it ---------------------------------------------------------------------------------------------


class Judge:
    """Opens rebuilt states of one recorded end."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._place = Path(tempfile.mkdtemp(prefix="qkdnode-power-", dir=MEMORY))
        (self._place / "credential").write_bytes(bytes(range(32)))
        self._directory = self._place / NODES[recorded.role]
        self._states = 0

    def close(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._place)

    def judge(self, files: dict[str, bytes], acknowledged: int) -> list[str]:
        """What is wrong with a state; nothing if it is as it must be."""
        self._directory.mkdir(mode=0o700)
        try:
            for name, data in files.items():
                path = self._directory / name
                path.write_bytes(data)
                path.chmod(0o600)
            if "vault.db" not in files:
                return [f"the vault is gone, {acknowledged} entries acknowledged"] if acknowledged else []
            return self._opened(acknowledged)
        finally:
            shutil.rmtree(self._directory)

    def _opened(self, acknowledged: int) -> list[str]:
        recorded = self._recorded
        try:
            core = open_vault(recorded.role, self._directory, LIFE, create=False, disk=SmallLog())
        except QkdnodeError as error:
            return [f"{type(error).__name__} on opening, {acknowledged} entries acknowledged: {error}"]
        try:
            wrong = self._compared(core, acknowledged)
        except QkdnodeError as error:
            wrong = [f"{type(error).__name__} once open: {error}"]
        finally:
            core.close()
        self._states += 1
        if not wrong and self._states % VERIFIED_EVERY == 1:
            wrong = self._verified()
        return wrong

    def _compared(self, core: Any, acknowledged: int) -> list[str]:
        recorded = self._recorded
        size = ask_core(core, ask.Status()).leaves - 1  # this opening is an entry too
        if size < acknowledged:
            return [f"{acknowledged} entries were acknowledged, {size} are left{self._doubled(core, acknowledged)}"]
        if size not in recorded.pictures:
            return [] if not acknowledged and size == 0 else [f"{size} entries: nothing ever was committed like that"]
        seen = picture(core, recorded.role)
        # A row of the outbox that is cleared is no entry: it may come again, and is sent and cleared again.
        if _encode(seen) not in recorded.pictures[size]:
            return [f"with {size} entries it is not what it was with as many: {seen}"]
        for application, waiting in seen["waiting"].items():
            for key_id in waiting[:1]:
                with ask_core(core, ask.OpenKey(key_id=UUID(bytes=key_id), application=application)) as key:
                    if hashlib.sha256(key).digest() != recorded.keys.get(key_id):
                        return [f"key {key_id.hex()} is another one"]
        return self._marks(core, size)

    def _marks(self, core: Any, size: int) -> list[str]:
        """No pad and no session counter that went out comes again."""
        recorded = self._recorded
        state = None
        for known in sorted(recorded.pads | recorded.sessions):
            if known > size:
                break
            if state is None:
                peer = NODES[other_role(recorded.role)]
                state = ask_core(core, ask.OpenLink(link=LINK, role=recorded.role, peer=peer))
                sending = {tuple(msgspec.structs.astuple(s.segment)): s.sending for s in state.segments}
                for material in (state.greeting_key, *(segment.material for segment in state.segments)):
                    if material is not None:
                        material.release()
            if recorded.sessions.get(known, 0) > state.session_counter:
                return [f"session {recorded.sessions[known]} comes again"]
            for segment, mark in recorded.pads.get(known, {}).items():
                if sending.get(segment, mark) < mark:
                    return [f"pad {mark - 1} of segment {segment} comes again"]
        return []

    def _doubled(self, core: Any, acknowledged: int) -> str:
        """How many keys that an application has acknowledged would be supplied again."""
        last = msgspec.msgpack.decode(self._recorded.pictures[acknowledged][-1])["waiting"]
        again = 0
        for application in applications(self._recorded.role):
            rows = ask_core(core, ask.ApplicationOutbox(application=application, limit=10_000))
            again += sum(row.key_id.bytes not in last[application] for row in rows)
        return f": {again} keys are supplied twice" if again else ""

    def _verified(self) -> list[str]:
        export = self._place / "export"
        with export.open("w", encoding="utf-8") as out:
            export_audit(self._directory / "vault.db", out.write)
        text = export.read_bytes()
        if b'{"checkpoint":' not in text:
            return []  # nothing was signed yet
        report = verify(read_lines(io.BytesIO(text)), PUBLIC)
        return [] if report.valid else [f"the log does not verify: {report}"]


class Cuts(msgspec.Struct, frozen=True):
    """Which cuts of a recording, and how many drawn states at each."""

    first: int = 0
    stride: int = 1
    draws: int = 1
    seed: int = 0


def states(recorded: Recorded, cuts: Cuts) -> Iterator[tuple[str, dict[str, bytes], int]]:
    """Rebuilt states, each once: where and how the power went, the files, and what had been acknowledged."""
    medium, seen = Medium(), set[bytes]()
    for number, operation in enumerate(recorded.operations):
        medium.undergo(operation)
        if (number - cuts.first) % cuts.stride:
            continue
        chosen = [(name, 0, choice) for name, choice in SURE.items()]
        chosen += [(name, draw, choice) for draw in range(cuts.draws) for name, choice in DRAWN.items()]
        for name, draw, choice in chosen:
            label = f"{recorded.role}:{number}:{name.replace(' ', '-')}:{cuts.seed}.{draw}"
            files = medium.left(choice, random.Random(label))
            digest = hashlib.blake2b(b"%d" % medium.acknowledged, digest_size=16)
            for file, data in sorted(files.items()):
                digest.update(b"%s %d " % (file.encode(), len(data)))
                digest.update(data)
            if digest.digest() not in seen:
                seen.add(digest.digest())
                yield label, files, medium.acknowledged


def check(recorded: Recorded, cuts: Cuts, only: str | None = None) -> Found:
    """Open rebuilt states, all or the one of a label."""
    judge = Judge(recorded)
    points, violations = 0, [f"recording of {recorded.role}: {violation}" for violation in recorded.violations]
    try:
        for label, files, acknowledged in states(recorded, cuts):
            if only in (None, label):
                points += 1
                violations += [f"--state {label}: {wrong}" for wrong in judge.judge(files, acknowledged)]
    finally:
        judge.close()
    return Found(points, tuple(violations))


def recordings(nursery: Nursery, *, control: str = "") -> tuple[Recorded, ...]:
    """Both ends, each recorded in a run of its own."""
    return tuple(Recording(nursery, role, control=control).record() for role in ROLES)


def uncaught(nursery: Nursery, control: Control, stride: int) -> Found:
    """Look for a planted bug; it is a violation of the harness if it is not found."""
    points = 0
    for recorded in recordings(nursery, control=control.name):
        if control.scenario == "unsynced names":
            kept = tuple(done for done in recorded.operations if done.op != interposer.DIRECTORY_SYNCED)
            recorded = msgspec.structs.replace(recorded, operations=kept)
        found = check(recorded, Cuts(stride=stride))
        points += found.points
        if any(control.found_as in violation for violation in found.violations):
            return Found(points)
    return Found(points, (f"control not caught: {control.name}",))


def controls() -> tuple[Control, ...]:
    """The bugs that this part must find."""
    return tuple(control for control in CONTROLS if control.part == POWER_LOSS)


def replay(nursery: Nursery, label: str) -> Found:
    """One state again. Draws depend on the label alone; offsets in the file may differ by what SQLite draws."""
    role, number, _, draw = label.split(":")
    seed, draws = map(int, draw.split("."))
    recorded = Recording(nursery, role).record()
    return check(recorded, Cuts(int(number), len(recorded.operations), draws + 1, seed), label)
