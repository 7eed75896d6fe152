"""The crash harness on a small budget: it finds nothing wrong, and it finds every bug that is planted for it."""

from collections.abc import Iterator

import pytest

from crash import leaks, powerloss, sweep
from crash.interposer import ACTS_OF, CREATED, RENAMED, SEND, SYNC, SYNCED, WRITE, WRITTEN, Fault, Operation, library
from crash.nursery import Nursery
from crash.powerloss import DRAWN, SURE, Cuts, Medium, Recorded
from crash.scan import Scanner
from qkdnode.ids import ROLES

KEY = bytes(range(100, 164))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    library()
    with Nursery() as made:
        yield made


@pytest.fixture(scope="module")
def recorded(nursery: Nursery) -> tuple[Recorded, ...]:
    return powerloss.recordings(nursery)


@pytest.mark.parametrize("call", [WRITE, SYNC, SEND])
def test_two_vaults_come_to_the_same_after_any_fault(nursery: Nursery, call: int) -> None:
    first = {WRITE: 300, SYNC: 25, SEND: 60}[call]
    for number, act in enumerate(ACTS_OF[call]):
        fault = Fault(ROLES[number % 2], call, first + 7 * number, act)
        found = sweep.replay(nursery, fault)
        assert found.points == 1, f"{fault} did not happen"
        assert not found.violations


@pytest.mark.parametrize("nth", [330, 420])
def test_what_is_kept_is_looked_after_through_any_fault(nursery: Nursery, nth: int) -> None:
    for role, act in zip(ROLES, ACTS_OF[WRITE], strict=False):
        found = sweep.replay(nursery, Fault(role, WRITE, nth, act), "keeping")
        assert found.points == 1
        assert not found.violations


@pytest.mark.parametrize("control", sweep.controls(), ids=lambda control: control.name)
def test_a_bug_is_found_by_faults(nursery: Nursery, control: sweep.Control) -> None:
    assert not sweep.uncaught(nursery, control).violations


def test_what_was_acknowledged_is_there_after_a_power_loss(recorded: tuple[Recorded, ...]) -> None:
    for end in recorded:
        found = powerloss.check(end, Cuts(first=5, stride=29))
        assert found.points > 60
        assert not found.violations


@pytest.mark.parametrize("control", powerloss.controls(), ids=lambda control: control.name)
def test_a_bug_is_found_by_power_loss(nursery: Nursery, control: sweep.Control) -> None:
    assert not powerloss.uncaught(nursery, control, 23).violations


def test_no_key_is_found_outside_locked_memory() -> None:
    found, done = leaks.scan()
    assert not found.violations
    assert found.points == len(leaks.SCENARIOS), done


@pytest.mark.parametrize("control", leaks.controls(), ids=lambda control: control.name)
def test_a_leak_is_found(control: sweep.Control) -> None:
    assert not leaks.uncaught(control).violations


@pytest.mark.parametrize(
    "left",
    [
        KEY[7:23],
        KEY[20:40].hex().encode(),
        b'{"key":"' + KEY[30:50].hex().upper().encode(),
        repr(KEY[40:]).encode(),
    ],
)
@pytest.mark.parametrize("shift", range(8))
def test_16_bytes_of_a_key_are_found_wherever_they_lie(left: bytes, shift: int) -> None:
    scanner = Scanner({"key": KEY})
    assert scanner.search("place", bytes(shift) + b"noise" + left + bytes(40))
    assert not scanner.search("place", bytes(shift) + b"noise" + KEY[:7] + bytes(40))


def test_a_name_or_write_that_was_not_synced_may_be_missing() -> None:
    def done(op: int, name: str = "", value: int = 0, data: bytes = b"") -> Operation:
        return Operation(op, name, 1, value, data)

    medium = Medium()
    for operation in (
        done(CREATED, "new"),
        done(WRITTEN, "", 0, b"a" * 512),
        done(SYNCED),
        done(WRITTEN, "", 512, b"b"),
    ):
        medium.undergo(operation)
    medium.undergo(done(RENAMED, "new", 0, b"/there/file"))
    draws = powerloss.random.Random(1)
    assert medium.left(SURE["none"], draws) == {}
    assert medium.left(SURE["all"], draws) == {"file": b"a" * 512 + b"b"}
    drawn = [medium.left(DRAWN["random"], draws) for _ in range(200)]
    assert {name for files in drawn for name in files} == {"new", "file"}
    assert {len(data) for files in drawn for data in files.values()} == {512, 513}


def test_a_fault_is_named_so_that_it_can_be_played_again() -> None:
    for call, acts in ACTS_OF.items():
        for act in acts:
            fault = Fault("alice", call, 7, act)
            assert Fault.parse(str(fault)) == fault
