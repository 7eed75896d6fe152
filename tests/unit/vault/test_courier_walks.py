"""Rotations by files that couriers lose, repeat, swap and alter; and planted faults that walks must find."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from courier_walks import Violation, Walk
from fuzz.controls import Control, planted

from qkdnode.errors import QkdnodeError
from qkdnode.vault import couriers
from qkdnode.wire import courier

WALKS = 8
MOST_WALKS = 40  # until a fault is found


@pytest.fixture
def directory() -> Iterator[Path]:
    """In memory: the disk would only cost time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="qkdnode-courier-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def walk(directory: Path, seed: int) -> None:
    where = directory / str(seed)
    where.mkdir(mode=0o700)
    made = Walk(where, seed)
    try:
        made.run()
    finally:
        made.pair.close()


@pytest.mark.parametrize("seed", range(WALKS))
def test_whatever_becomes_of_files_both_ends_come_to_the_same(directory: Path, seed: int) -> None:
    walk(directory, seed)


def fault(what: str, owner: Any, name: str, old: str, new: str) -> Any:
    return pytest.param(Control(what=what, target="", owner=owner, name=name, old=old, new=new), id=what)


FAULTS = [
    fault("numbers of files do not rise", couriers, "export_bundle", "sent=heading.number", "sent=row.sent"),
    fault("bits of lost files stay at the other end", couriers, "_imported", "_burn(store, link, spot)", "pass"),
    fault("lost files are forgotten when the next is written", couriers, "export_bundle", "(*spent, spot)", "(spot,)"),
    fault("lost files are taken for imported", couriers, "_imported", "row.sent - contents.heard", "0"),
    fault("the heading is not sealed", courier, "associated", "MAGIC + encode_body(heading)", "MAGIC"),
    fault(
        "approvals are not looked at", couriers, "_imported",
        "check_approvals(wanted, approvals, request.people, store.now_ns, is_signed)", "()",
    ),
    fault("any file of the newest number is that one", couriers, "_imported", " and digest == row.digest", ""),
    fault("answers are not kept for the next file", couriers, "_imported", "answers=packed, ", ""),
    fault("a file is not kept for a crash", couriers, "export_bundle", "file=file, ", ""),
    fault("the number of what came is not kept", couriers, "_imported", "heard=heading.number, ", ""),
]  # fmt: skip


@pytest.mark.parametrize("control", FAULTS)
def test_a_planted_fault_is_found(directory: Path, control: Control) -> None:
    with planted(control):
        for seed in range(MOST_WALKS):
            try:
                walk(directory, seed)
            except (Violation, QkdnodeError):
                return
    pytest.fail("no walk has found it")
