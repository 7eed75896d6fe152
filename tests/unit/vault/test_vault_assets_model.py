"""Assets in a vault against a dictionary: whatever is seen, in whatever order and over restarts, is told once."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from vaults import ALICE, End

from qkdnode.vault.assets import CompareAssets, NoteAssets, SeenAsset

Key = tuple[str, str]
Look = tuple[dict[Key, dict[str, str]], set[Key], bool]  # what is seen; what else is expected; after a restart
KINDS = ("module", "package")
NAMES = some.tuples(some.sampled_from(KINDS), some.sampled_from(["a", "b", "c"]))
MARKS = some.dictionaries(some.sampled_from(["version", "digest"]), some.sampled_from(["1", "2"]), max_size=2)
LOOKS = some.tuples(some.dictionaries(NAMES, MARKS), some.sets(NAMES), some.booleans())


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(LOOKS, min_size=1, max_size=8))
def test_the_vault_tells_what_a_dictionary_would(looks: list[Look]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        end = End(Path(folder), ALICE)
        try:
            follow(end, looks)
        finally:
            end.vault.close()


def follow(end: End, looks: list[Look]) -> None:
    known: dict[tuple[str, str], dict[str, str]] = {}
    gone: set[tuple[str, str]] = set()
    for seen, unseen, restarts in looks:
        if restarts:
            end.reopen()
        expected = {*seen, *unseen}
        wanted: dict[tuple[str, str], str] = {}
        for key, marks in seen.items():
            if key not in known:
                wanted[key] = "added"
            elif key in gone:
                wanted[key] = "back"
            elif known[key] != marks:
                wanted[key] = "changed"
        wanted |= dict.fromkeys(known.keys() - gone - expected, "gone")
        before = {kind for kind, _ in known}
        assets = tuple(SeenAsset(kind, name, marks) for (kind, name), marks in seen.items())
        compared = end.call(CompareAssets(kinds=KINDS, seen=assets, expected=tuple(expected)))
        assert end.call(NoteAssets(kinds=KINDS, seen=assets, expected=tuple(expected))) == compared
        assert {(change.kind, change.name): change.happened for change in compared} == wanted
        assert all(change.first == (change.kind not in before) for change in compared if change.happened == "added")
        for change in compared:
            was, now = known.get((change.kind, change.name), {}), seen.get((change.kind, change.name), {})
            told = {name: (old, new) for name, old, new in change.marks}
            names = {name for name in {*was, *now} if was.get(name) != now.get(name)}
            assert told == {name: (was.get(name, ""), now.get(name, "")) for name in names}
        known |= seen
        gone = (gone | (known.keys() - expected)) - seen.keys()
