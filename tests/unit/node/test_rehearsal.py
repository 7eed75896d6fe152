"""Rotations rehearsed on shadows: what stops one is found, and what is planted in the rotation itself too."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qkdnode.errors import DiskFullError
from qkdnode.lifecycle import rotation
from qkdnode.lifecycle.rotation import PHASES, Phase
from qkdnode.node import rehearsal
from qkdnode.node.rehearsal import STEPS, Player, Report, Round, findings, prepared_keys, rehearse
from qkdnode.node.shadow import End, Shadow, shadow
from qkdnode.vault import generations
from qkdnode.vault.requests import OpenKeys, Status
from qkdnode.wire.control import ShapeEntry

MINUTES = 6
PLENTY = 200_000


def entry(**changes: Any) -> ShapeEntry:
    """An association that rotates without ado."""
    fields: dict[str, Any] = {
        "local": "app-a", "remote": "app-b", "link": "metro", "role": "alice", "link_state": "OPEN", "connected": True,
        "phase": "steady", "generation": 1, "key_class": "its", "size_bits": 256, "waiting_here": 4, "waiting_there": 3,
        "all_counted": True, "stock_here": PLENTY, "stock_there": PLENTY, "batches": 2, "credit_here": 16,
        "credit_there": 32, "room": 1000, "allowed": True, "rule": "permit", "reason": "", "held": False,
        "goes_without": False, "minutes": 60, "cut_here": (2,) * MINUTES, "cut_there": (1,) * MINUTES,
        "taken_here": (3,) * MINUTES, "taken_there": (3,) * MINUTES,
    }  # fmt: skip
    return ShapeEntry(**{**fields, **changes})


def codes(report: Report, *, blocks: bool = True) -> set[str]:
    return {finding.code for finding in report.findings if finding.blocks is blocks}


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["alice", "bob"])
def test_a_rotation_that_nothing_stops_succeeds_without_a_gap_under_its_load(role: str) -> None:
    report = rehearse([entry(role=role)], rounds=2)
    assert report.would_succeed, report.findings
    assert report.findings == ()
    assert set(report.steps) == set(STEPS)
    assert all(0 < its.p50_ms <= its.p99_ms <= its.max_ms for its in report.steps.values())
    (its,) = report.associations
    assert (its.prepared, its.scale, its.waiting) == (4, 1.0, 7)
    assert (its.load_cut, its.load_taken, its.unserved) == (18, 36, 0)
    assert (its.gap_ms, its.dry_minutes, its.alone) == (0.0, 0, 0)
    assert its.destroyed == 7, "those that wait when it is cut are lost to the applications, and are told of"


def test_associations_of_one_link_share_its_stock() -> None:
    both = [entry(), entry(local="app-c")]
    needed = 4 * 256
    assert rehearse(both, rounds=1).would_succeed
    report = rehearse([msgspec.structs.replace(its, stock_here=2 * needed - 8) for its in both], rounds=1)
    assert not report.would_succeed
    (finding,) = [its for its in report.findings if its.blocks and its.detail.startswith("stock is short")]
    assert f"{2 * needed} bits of this end's half are needed" in finding.detail
    assert f"there are {2 * needed - 8}" in finding.detail
    assert [its for its in report.findings if its.detail.startswith("in the shadow, prepared: ")], "it runs short too"


def test_a_large_store_is_scaled_down_and_the_scale_is_told() -> None:
    large = entry(waiting_here=4000, waiting_there=4000, all_counted=False, cut_here=(500,) * MINUTES)
    report = rehearse([large], rounds=1, most_keys=100)
    (its,) = report.associations
    assert its.scale == 80.0
    assert 100 <= its.waiting <= 102
    assert its.load_cut == 37
    assert codes(report, blocks=False) >= {"counts"}


def test_many_associations_of_a_link_share_what_a_shadow_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_TOGETHER", 8)
    report = rehearse([entry(), entry(local="app-c")], rounds=1)
    assert [its.scale for its in report.associations] == [4.5, 4.5], "eighteen keys of the load for four"
    monkeypatch.setattr(rehearsal, "MOST_TOGETHER", 4)
    report = rehearse([entry(), entry(local="app-c")], rounds=1)
    assert [finding.detail for finding in report.findings if finding.code == "counts"] == [
        "each end has to cut 4 keys first: the shadow has 2"
    ] * 2


def test_without_stock_for_the_load_applications_go_short_and_the_report_says_for_how_long() -> None:
    report = rehearse([entry(stock_here=4 * 256, stock_there=4 * 256)], rounds=1)
    (its,) = report.associations
    assert report.would_succeed, "the rotation itself has what it needs"
    assert "stock" in codes(report, blocks=False)
    assert its.unserved > 0
    assert its.dry_minutes > 0
    assert its.gap_ms > 0


def test_a_disk_that_fails_in_the_shadow_is_not_taken_for_a_lack_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    call, errors = End.call, [DiskFullError("no room on the scratch disk")]

    def fails(self: End, request: Any) -> Any:
        if isinstance(request, OpenKeys) and errors:  # the first that the load asks for
            raise errors.pop()
        return call(self, request)

    monkeypatch.setattr(End, "call", fails)
    report = rehearse([entry()], rounds=1)
    assert not report.would_succeed
    assert any("no room on the scratch disk" in finding.detail for finding in report.findings if finding.blocks)


def test_no_load_is_said_to_be_none() -> None:
    nothing = (0,) * MINUTES
    report = rehearse([entry(cut_here=nothing, cut_there=nothing, taken_here=nothing, taken_there=nothing)], rounds=1)
    assert report.would_succeed
    assert codes(report, blocks=False) == {"load"}


def test_who_took_more_than_was_cut_took_what_waits_in_the_shadow_too() -> None:
    nothing = (0,) * MINUTES
    player = Player(0, entry(cut_here=nothing, cut_there=nothing, taken_here=(9, 0, 0, 0, 0, 5)), 20_000)
    assert sum(player.waiting) == 18, "seven wait now, and no more than eighteen were asked for"
    assert sum(player.waiting) >= 14


# --- what stops it ---------------------------------------------------------------------------------------------------

STOPS: dict[str, tuple[dict[str, Any], str, str]] = {
    "on the way": ({"phase": "offered"}, "on-the-way", "it is offered"),
    "link down": ({"connected": False, "link_state": "DOWN"}, "link", "no session"),
    "starved": ({"link_state": "STARVED"}, "link", "while the link is STARVED"),
    "forbidden": (
        {"allowed": False, "rule": "no-payroll", "reason": "closed"}, "policy", "closed [rule no-payroll]",
    ),
    "disallowed": (
        {"allowed": False, "rule": "algorithms-disallowed", "reason": "DES is"}, "policy", "algorithms-disallowed",
    ),
    "quota": ({"room": 0, "rule": "quota-outstanding"}, "quota", "quota-outstanding"),
    "away here": ({"credit_here": None}, "application", "not subscribed: app-a here; it would wait"),
    "away there": ({"credit_there": None}, "application", "not subscribed: app-b at the far end; it would wait"),
    "short here": ({"stock_here": 1016}, "stock", "1024 bits of this end's half are needed for the first keys, there"),
    "short there": ({"stock_there": 0}, "stock", "the other end's half are needed for the first keys, there are 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_what_stops_a_rotation_is_named_with_what_is_the_matter(name: str) -> None:
    changes, code, words = STOPS[name]
    found = [finding for finding in findings([entry(**changes)]) if finding.blocks]
    assert [finding.code for finding in found] == [code]
    assert words in found[0].detail


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"held": True}, "legal-hold"),
        ({"goes_without": True, "credit_there": None}, "application"),
        ({"minutes": 12}, "load"),
        ({"stock_here": 1024 + 2 * MINUTES * 256 - 8}, "stock"),
    ],
)
def test_what_only_has_to_be_minded_does_not_stop_it(changes: dict[str, Any], code: str) -> None:
    assert [(finding.code, finding.blocks) for finding in findings([entry(**changes)])] == [(code, False)]


def test_the_first_keys_are_as_many_as_the_agreement_cuts() -> None:
    assert prepared_keys(entry(credit_here=64, credit_there=400)) == 16
    assert prepared_keys(entry(credit_here=2)) == 1
    assert prepared_keys(entry(room=6)) == 3
    assert prepared_keys(entry(credit_here=None)) == 8, "who is away is taken for one like the other"
    assert prepared_keys(entry(credit_here=None, credit_there=None, room=2**53)) == 16


def test_credits_without_bounds_make_no_shadow_without_bounds() -> None:
    huge = entry(credit_here=2**31, credit_there=2**31, room=2**53, stock_here=2**40, stock_there=2**40)
    report = rehearse([huge], rounds=1, most_keys=50)
    assert report.would_succeed
    assert report.associations[0].prepared == 50
    assert [finding.detail for finding in report.findings] == [
        f"each end has to cut {2**29} keys first: the shadow has 50"
    ]


# --- what is planted in the rotation must be found -------------------------------------------------------------------


def standing(phase: Phase, **changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Another meaning of a phase."""
    return lambda patch: patch.setitem(PHASES, phase, msgspec.structs.replace(PHASES[phase], **changes))


def without_way(start: Phase) -> Callable[[pytest.MonkeyPatch], None]:
    """No way leads out of a phase."""
    ways = tuple(way for way in rotation.WAYS if way.start is not start)
    return lambda patch: patch.setattr(rotation, "WAYS", ways)


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "new keys are not released after the cut": standing(Phase.CUT, releases_new=False),
    "new keys are released before it": lambda patch: patch.setattr(
        generations, "releases", lambda phase, current, number, generation, far: True
    ),
    "no keys of the new generation are cut": standing(Phase.AGREED, cuts="old"),
    "the phase that is agreed is told to nobody": standing(Phase.AGREED, tellers=()),
    "an application's word is not taken": without_way(Phase.OFFERED),
    "the old generation is never closed": without_way(Phase.CUT),
    "a closed generation is not left": without_way(Phase.CLOSED),
    "old keys are released when all is over": lambda patch: patch.setattr(
        generations, "of", lambda store, association: None
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_of_the_rotation_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[name](monkeypatch)
    report = rehearse([entry()], rounds=1)
    assert not report.would_succeed
    assert codes(report) <= {"shadow"}


# --- the shadow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "there", "batches"), [(70_000, 200_016, 3), (512, 0, 1), (0, 8, 1), (65_536, 65_536, 4)]
)
def test_a_shadow_holds_as_much_stock_as_it_is_to(here: int, there: int, batches: int, tmp_path: Path) -> None:
    with shadow("bob", tmp_path) as made:
        made.stock(here, there, batches)
        status = made.here.call(Status())
        assert (status.stock_bits_own, status.stock_bits_peer) == ({"shadow": here}, {"shadow": there})
        far = made.there.call(Status())
        assert (far.stock_bits_own, far.stock_bits_peer) == ({"shadow": there}, {"shadow": here})


def test_a_shadow_is_its_owners_alone_and_nothing_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    run = Round.run

    def watched(self: Round) -> None:
        (place,) = tmp_path.iterdir()
        seen.extend([place, *place.rglob("*")])
        for path in seen:
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        run(self)

    monkeypatch.setattr(Round, "run", watched)
    rehearse([entry()], rounds=1, where=tmp_path)
    assert [path.name for path in seen].count("vault.db") == 2
    assert list(tmp_path.iterdir()) == []

    def torn(self: Shadow, here: int, there: int, batches: int = 1) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Round, "run", run)
    monkeypatch.setattr(Shadow, "stock", torn)
    with pytest.raises(KeyboardInterrupt):
        rehearse([entry()], rounds=1, where=tmp_path)
    assert list(tmp_path.iterdir()) == [], "who stops it leaves nothing either"
