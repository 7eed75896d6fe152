"""What the node consisted of when it looked last, so that a change of firmware or software is seen and journalled."""

from collections.abc import Mapping

import msgspec

from qkdnode.audit.events import Detail
from qkdnode.errors import LocalProtocolError
from qkdnode.vault.records import KnownAsset
from qkdnode.vault.requests import Request
from qkdnode.vault.store import Store

MAX_NAME_CHARACTERS, MAX_MARK_CHARACTERS, MAX_ASSETS = 96, 160, 4096
ADDED, CHANGED, GONE, BACK, LOST = "added", "changed", "gone", "back", "lost"


class SeenAsset(msgspec.Struct, frozen=True):
    """One device or piece of software: names of marks are those of details of a leaf, values texts for people."""

    kind: str
    name: str
    marks: dict[str, str]


class CompareAssets(Request, frozen=True):
    """How what is seen differs from what was noted. Nothing is noted. Answer: tuple[AssetChange, ...].

    `seen` may be a part of `expected`, kind and name of all that there should be. What was noted of the `kinds` and is
    not expected is gone.
    """

    kinds: tuple[str, ...]
    seen: tuple[SeenAsset, ...]
    expected: tuple[tuple[str, str], ...]


class NoteAssets(Request, frozen=True):
    """As CompareAssets, and each difference is noted, with a leaf."""

    kinds: tuple[str, ...]
    seen: tuple[SeenAsset, ...]
    expected: tuple[tuple[str, str], ...]


class AssetChange(msgspec.Struct, frozen=True):
    """One difference. Marks are name, before, after; empty where there is none. `first`: nothing of its kind was known.

    LOST: the log tells of it and its row is not there, or was no longer what the vault had written.
    """

    kind: str
    name: str
    happened: str
    marks: tuple[tuple[str, str, str], ...]
    first: bool = False

    @property
    def details(self) -> dict[str, Detail]:
        """What its leaf tells."""
        details: dict[str, Detail] = {"asset_kind": self.kind}
        for name, before, after in self.marks:
            details |= ({f"{name}_before": before} if before else {}) | ({name: after} if after else {})
        return details


def compare_assets(store: Store, request: CompareAssets | NoteAssets) -> tuple[AssetChange, ...]:
    """CompareAssets."""
    return tuple(change for change, _, _ in _differences(store, request))


def note_assets(store: Store, request: NoteAssets) -> tuple[AssetChange, ...]:
    """NoteAssets."""
    noted = []
    for change, row, asset in _differences(store, request):
        noted.append(change)
        happened = f"asset.{change.happened}"
        if row is None and asset is not None:
            fresh = KnownAsset(asset.kind, asset.name, _encode(asset.marks), 0, store.now_ns)
            store.create(fresh, happened, **change.details)
        elif row is not None:
            marks = row.marks if asset is None else _encode(asset.marks)
            gone = int(asset is None)
            store.change(row, happened, change.details, marks=marks, gone=gone, noted_ns=store.now_ns)
    return tuple(noted)


def _differences(
    store: Store, request: CompareAssets | NoteAssets
) -> list[tuple[AssetChange, KnownAsset | None, SeenAsset | None]]:
    _demand_bounded(request)
    rows = {(row.kind, row.name): row for row in store.find_sound(KnownAsset, "true ORDER BY kind, name")}
    first = {kind: not _was_told(store, f"asset/{kind}/") for kind in request.kinds}
    found: list[tuple[AssetChange, KnownAsset | None, SeenAsset | None]] = []
    for asset in sorted(request.seen, key=lambda asset: (asset.kind, asset.name)):
        row = rows.get((asset.kind, asset.name))
        happened = _what_happened(store, row, asset)
        if happened is not None:
            marks = _marks({} if row is None else _decode(row.marks), asset.marks)
            found.append((AssetChange(asset.kind, asset.name, happened, marks, first[asset.kind]), row, asset))
    expected = set(request.expected)
    for key, row in rows.items():
        if row.kind in request.kinds and key not in expected and not row.gone:
            found.append((AssetChange(row.kind, row.name, GONE, _marks(_decode(row.marks), {})), row, None))
    return found


def _what_happened(store: Store, row: KnownAsset | None, asset: SeenAsset) -> str | None:
    if row is None:
        return ADDED if store.journal.newest(f"asset/{asset.kind}/{asset.name}") is None else LOST
    if row.gone:
        return BACK
    return None if _decode(row.marks) == asset.marks else CHANGED


def _demand_bounded(request: CompareAssets | NoteAssets) -> None:
    if len(request.seen) > MAX_ASSETS:
        raise LocalProtocolError(f"{len(request.seen)} assets; the vault keeps {MAX_ASSETS}")
    names = {(asset.kind, asset.name) for asset in request.seen}
    if len(names) < len(request.seen) or not names <= set(request.expected):
        raise LocalProtocolError("an asset is seen twice, or is not expected")
    for asset in request.seen:
        if asset.kind not in request.kinds or not 0 < len(asset.name) <= MAX_NAME_CHARACTERS:
            raise LocalProtocolError(f"no asset can be called {asset.name[:40]!r}")
        if any(len(value) > MAX_MARK_CHARACTERS for value in asset.marks.values()):
            raise LocalProtocolError(f"a mark of {asset.name!r} is longer than {MAX_MARK_CHARACTERS} characters")


def _was_told(store: Store, prefix: str) -> bool:
    after = f"{prefix[:-1]}0"  # the character after '/'
    statement = "SELECT EXISTS (SELECT 1 FROM leaves WHERE subject >= ? AND subject < ?)"
    return bool(store.scalar(statement, prefix, after))


def _marks(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    names = sorted({*before, *after})
    return tuple(
        (name, before.get(name, ""), after.get(name, "")) for name in names if before.get(name) != after.get(name)
    )


def _encode(marks: Mapping[str, str]) -> str:
    return msgspec.json.encode(marks, order="sorted").decode()


def _decode(marks: str) -> dict[str, str]:
    return msgspec.json.decode(marks, type=dict[str, str])


HANDLERS = {CompareAssets: compare_assets, NoteAssets: note_assets}
