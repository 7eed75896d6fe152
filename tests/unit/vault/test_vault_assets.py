"""What the node consisted of, as the vault keeps it: every difference is told once, with a leaf, and none gets lost."""

from typing import Any

import pytest
from vaults import Pair

from qkdnode.audit.events import NodeEvent
from qkdnode.errors import LocalProtocolError
from qkdnode.vault.assets import AssetChange, CompareAssets, NoteAssets, SeenAsset
from qkdnode.vault.requests import EventsAfter, RecordEvent

KINDS = ("module", "package")


def module(version: str, name: str = "TX-1") -> SeenAsset:
    return SeenAsset("module", name, {"version": version})


def package(digest: str, name: str = "numpy") -> SeenAsset:
    return SeenAsset("package", name, {"version": "2", "digest": digest})


def request(kind: Any, *seen: SeenAsset, unseen: tuple[tuple[str, str], ...] = ()) -> Any:
    return kind(kinds=KINDS, seen=seen, expected=(*((asset.kind, asset.name) for asset in seen), *unseen))


def note(pair: Pair, *seen: SeenAsset, unseen: tuple[tuple[str, str], ...] = ()) -> list[tuple[str, str, bool]]:
    """What the vault says is new, which is what it says before that it would."""
    changes: tuple[AssetChange, ...] = pair.alice.call(request(CompareAssets, *seen, unseen=unseen))
    assert pair.alice.call(request(NoteAssets, *seen, unseen=unseen)) == changes
    assert pair.alice.call(request(CompareAssets, *seen, unseen=unseen)) == ()
    return [(change.name, change.happened, change.first) for change in changes]


def leaves(pair: Pair) -> list[tuple[str, str, dict[str, Any]]]:
    events = [event for _, event in pair.alice.call(EventsAfter(position=0, limit=4096))]
    return [(event.subject, event.kind, event.details) for event in events if event.kind.startswith("asset.")]


def test_what_is_seen_first_is_the_beginning_and_is_journalled(pair: Pair) -> None:
    assert note(pair, module("1.0.0"), package("aa")) == [("TX-1", "added", True), ("numpy", "added", True)]
    assert note(pair, module("1.0.0"), package("aa")) == []
    assert note(pair, module("1.0.0"), module("1.0.0", "TX-2"), package("aa")) == [("TX-2", "added", False)]
    assert leaves(pair)[0] == ("asset/module/TX-1", "asset.added", {"asset_kind": "module", "version": "1.0.0"})
    assert len(leaves(pair)) == 3


def test_a_change_is_told_with_what_was_before_also_after_a_restart(pair: Pair) -> None:
    note(pair, module("1.0.0"), package("aa"))
    pair.alice.reopen()
    assert note(pair, module("1.0.1"), package("ab")) == [("TX-1", "changed", False), ("numpy", "changed", False)]
    assert leaves(pair)[-2:] == [
        ("asset/module/TX-1", "asset.changed", {"asset_kind": "module", "version": "1.0.1", "version_before": "1.0.0"}),
        ("asset/package/numpy", "asset.changed", {"asset_kind": "package", "digest": "ab", "digest_before": "aa"}),
    ]


def test_to_compare_changes_nothing(pair: Pair) -> None:
    pair.alice.call(request(CompareAssets, module("1.0.0")))
    assert leaves(pair) == []
    assert note(pair, module("1.0.0")) == [("TX-1", "added", True)]


def test_what_is_not_expected_any_more_is_gone_and_may_come_back(pair: Pair) -> None:
    note(pair, module("1.0.0"), package("aa"))
    assert note(pair, package("aa"), unseen=(("module", "TX-1"),)) == []  # it has not answered yet
    assert note(pair, package("aa")) == [("TX-1", "gone", False)]
    assert note(pair, package("aa")) == []
    (change,) = pair.alice.call(request(CompareAssets, module("1.0.2"), package("aa")))
    assert (change.happened, change.marks) == ("back", (("version", "1.0.0", "1.0.2"),))
    assert note(pair, module("1.0.2"), package("aa")) == [("TX-1", "back", False)]


def test_other_kinds_are_left_alone(pair: Pair) -> None:
    note(pair, module("1.0.0"), package("aa"))
    asked = NoteAssets(kinds=("package",), seen=(package("aa"),), expected=(("package", "numpy"),))
    assert pair.alice.call(asked) == ()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM assets",
        """UPDATE assets SET marks = '{"version":"1.0.1"}'""",
        "UPDATE assets SET gone = 1",
        "UPDATE assets SET marks = x'ff'",
    ],
)
def test_a_row_that_somebody_took_away_or_wrote_is_told_as_lost(pair: Pair, statement: str) -> None:
    note(pair, module("1.0.0"))
    with pair.alice.tampering() as file:
        file.execute(statement)
    assert note(pair, module("1.0.1")) == [("TX-1", "lost", False)]
    assert note(pair, module("1.0.1")) == []


def test_an_old_row_that_was_put_back_is_told_as_lost(pair: Pair) -> None:
    note(pair, module("1.0.0"))
    with pair.alice.tampering() as file:
        old = file.execute("SELECT * FROM assets").fetchone()
    note(pair, module("1.0.1"))
    with pair.alice.tampering() as file:
        file.execute("DELETE FROM assets")
        file.execute(f"INSERT INTO assets VALUES ({', '.join('?' * len(old))})", old)
    assert note(pair, module("1.0.0")) == [("TX-1", "lost", False)]


@pytest.mark.parametrize(
    "seen",
    [
        (module("1"), module("2")),
        (SeenAsset("link", "metro", {}),),
        (SeenAsset("module", "", {}),),
        (SeenAsset("module", "x" * 97, {}),),
        (SeenAsset("module", "x", {"version": "1" * 161}),),
        tuple(module("1", f"TX-{i}") for i in range(4097)),
    ],
    ids=["twice", "kind", "no name", "long name", "long mark", "too many"],
)
def test_what_the_vault_cannot_keep_is_refused_and_nothing_is_noted(pair: Pair, seen: tuple[SeenAsset, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        pair.alice.call(request(NoteAssets, *seen))
    assert leaves(pair) == []


def test_nobody_else_writes_leaves_about_assets_or_days(pair: Pair) -> None:
    for subject in ("asset/module/TX-1", "day/latest"):
        event = NodeEvent(time_ns=1, node="a", topic="node", kind="node.test", subject=subject)
        with pytest.raises(LocalProtocolError, match="is the vault's"):
            pair.alice.call(RecordEvent(event=event))
