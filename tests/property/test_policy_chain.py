"""The chain of policies under power losses, replays and misuse: it only grows, by what two people approved, in order.

Each planted bug must be found by the same walk that finds nothing without it.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from approving import PEOPLE, application_of, approvals, policy
from signing import SIGNING
from virtual_disk import LOSSES, PowerLossError, VirtualDisk

from qkdnode.access import approvals as checking
from qkdnode.access.approvals import Person
from qkdnode.access.rules import Role
from qkdnode.errors import ApprovalError, PolicyError, QkdnodeError, VaultDamagedError
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import policies
from qkdnode.vault.core import VaultCore
from qkdnode.vault.requests import ApplyPolicy, CurrentPolicy, EventsAfter, Request, ShowPolicy
from qkdnode.vault.root import CredentialFile

PATH = Path("virtual/vault.db")
NODE, NOW_NS = "a", 10**9
DOCUMENTS = [policy(f"lifetime_s = {i}") for i in range(1, 6)]
STEPS = 40
# Of two roles each, so that roles alone do not tell one person from two.
BOTH_ROLES = tuple(Person(its.name, its.ed25519, (Role.OPERATOR, Role.SECURITY_OFFICER)) for its in PEOPLE)


def fill(buffer: SecretBuffer) -> None:
    with memoryview(buffer) as view:
        view[:] = bytes(len(view))


def opened(disk: VirtualDisk, credential: Path, *, create: bool = False) -> VaultCore:
    return VaultCore.open(
        PATH,
        root=CredentialFile(credential.name, credential.parent),
        node=NODE,
        draw_into=fill,
        signer=SIGNING,
        clock_ns=lambda: NOW_NS,
        create=create,
        disk=disk,
    )


def call(core: VaultCore, request: Request) -> Any:
    (outcome,) = core.group([request])
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def applied(core: VaultCore) -> list[bytes]:
    """The documents of every version, as the whole chain has them."""
    newest = call(core, ShowPolicy()).newest
    return [call(core, ShowPolicy(number=number)).policy.text for number in range(1, newest + 1)]


def told(core: VaultCore) -> int:
    """Leaves that say that a version was applied."""
    return sum(event.kind == "policy.applied" for _, event in call(core, EventsAfter(position=0, limit=4096)))


@pytest.fixture
def credential(tmp_path: Path) -> Path:
    file = tmp_path / "credential"
    file.write_bytes(b"0123456789abcdef")
    return file


@pytest.fixture
def image(credential: Path) -> Any:
    """The files of a vault that was made and closed."""
    disk = VirtualDisk()
    opened(disk, credential, create=True).close()
    files = disk.after_power_loss("all", random.Random(0))
    disk.close()
    return files


# --- power losses ----------------------------------------------------------------------------------------------------


class PowerCut:
    """Cuts the power at the nth operation."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def __call__(self, kind: str, path: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise PowerLossError


def test_after_any_power_loss_the_chain_is_what_was_answered_or_one_more_and_can_go_on(
    credential: Path, image: Any
) -> None:
    """With the same approvals again: they count if, and only if, their version is not there yet."""
    states, nth, lost_power, wanted = 0, 0, True, DOCUMENTS[:2]
    while lost_power:
        disk = VirtualDisk(image)
        asked: list[ApplyPolicy] = []
        answered = 0
        disk.on_operation = PowerCut(nth)
        core = None
        try:
            core = opened(disk, credential)
            for document in wanted:
                asked.append(application_of(lambda r, c=core: call(c, r), NODE, NOW_NS, document))  # type: ignore[misc]
                call(core, asked[-1])
                answered += not disk.lost_power
        except (QkdnodeError, OSError):
            pass
        lost_power = disk.lost_power
        if core is not None:
            core.close()
        disk.close()
        for kind in LOSSES:
            states += 1
            again = VirtualDisk(disk.after_power_loss(kind, random.Random(nth)))
            core = opened(again, credential)
            there = applied(core)
            assert answered <= len(there) <= len(asked)
            assert there == wanted[: len(there)]
            assert told(core) == len(there)
            for number, request in enumerate(asked, 1):
                try:
                    call(core, request)
                    assert number == len(there) + 1
                    there.append(wanted[number - 1])
                except ApprovalError:
                    assert number <= len(there)
            assert applied(core) == there == wanted[: len(there)]
            core.close()
            again.close()
        nth += 1
    assert states > 100


# --- replays and misuse ----------------------------------------------------------------------------------------------


def refused(ask: Callable[[Request], Any], request: Request) -> str | None:
    """Why; None if it was done."""
    try:
        ask(request)
    except (ApprovalError, PolicyError) as error:
        return str(error)
    return None


def walk(credential: Path, files: Any, seed: int) -> None:
    """Apply, roll back, crash and cheat at random; what the chain must be is kept beside it."""
    source, disk = random.Random(seed), VirtualDisk(files)
    core = opened(disk, credential)
    known: list[bytes] = []
    used: list[ApplyPolicy] = []

    def ask(request: Request) -> Any:
        return call(core, request)

    try:
        for _ in range(STEPS):
            document = source.choice(DOCUMENTS)
            act = source.choice(("apply", "apply", "roll back", "replay", "one person", "old number", "late", "crash"))
            changes: dict[str, Any] = {"people": BOTH_ROLES}
            is_right, expected = act == "apply", document
            if act == "crash":
                files = disk.after_power_loss("none", source)  # only what was synced
                core.close()
                disk.close()
                disk = VirtualDisk(files)
                core = opened(disk, credential)
                continue
            if act == "roll back":
                number = source.randrange(len(known) + 2)
                is_right = 1 <= number < len(known)
                expected = known[number - 1] if is_right else b""
                signed = approvals(ask, NODE, NOW_NS, expected)
                changes |= {"document": b"", "repeats": number, "approvals": signed}
            elif act == "one person":
                changes["approvals"] = approvals(ask, NODE, NOW_NS, document, by=("olga", "olga"))
            elif act == "old number":
                changes["approvals"] = approvals(ask, NODE, NOW_NS, document, number=len(known))
            elif act == "late":
                changes["approvals"] = approvals(ask, NODE, NOW_NS - 3600 * 10**9, document)
            request = application_of(ask, NODE, NOW_NS, document, **changes)
            if act == "replay":
                if not used:
                    continue
                request = source.choice(used)
            refusal = refused(ask, request)
            assert (refusal is None) == is_right, f"{act}: {refusal or 'it was taken'}"
            if is_right:
                known.append(expected)
                used.append(request)
            current = ask(CurrentPolicy())
            assert (current.number, current.text) == (len(known), known[-1]) if known else current.number == 0
        assert applied(core) == known
        assert told(core) == len(known)
    finally:
        core.close()
        disk.close()


def test_the_chain_is_what_two_people_approved_in_order_whatever_else_is_tried(credential: Path, image: Any) -> None:
    walks(credential, image)


def walks(credential: Path, files: Any) -> None:
    """Several, each from the same vault."""
    for seed in range(3):
        walk(credential, files, seed)


def _check(old: str, wrong: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(checking, old, wrong)


def _for_any_number(request: Any, *rest: Any) -> Any:
    approval = rest[0]
    return _RIGHT_SIGNER(checking.GuardedRequest(request.kind, request.node, approval.particulars), *rest)


_RIGHT_SIGNER = checking._signer
PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "one person may approve twice": _check("_demand_different", lambda signers: None),
    "an old number is accepted": _check("_signer", _for_any_number),
    "approvals never expire": lambda patch: patch.setattr(
        policies,
        "check_approvals",
        lambda request, given, people, now_ns, verify: checking.check_approvals(request, given, people, 0, verify),
    ),
    "a rollback goes to the newest document": lambda patch: patch.setattr(
        policies, "_repeated", lambda rows, number: rows[-1].document if rows else b""
    ),
    "the policy before stays in force": lambda patch: patch.setattr(
        policies, "in_force", _first_known(policies.in_force)
    ),
}


def _first_known(right: Callable[[Any], Any]) -> Callable[[Any], Any]:
    held: list[Any] = []

    def in_force(store: Any) -> Any:
        held[:] = held or [right(store)]
        return held[0]

    return in_force


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(credential: Path, image: Any, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    PLANTED[bug](monkeypatch)
    with pytest.raises((AssertionError, VaultDamagedError)):
        walks(credential, image)
