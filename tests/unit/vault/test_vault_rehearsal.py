"""What a rehearsal is made from: counts of a real vault, which reading them leaves as it is."""

import hashlib
import os
from typing import Any

import apsw
import pytest
from rotating import begin
from vaults import HERE, LINK, SECOND_NS, End, Pair

from qkdnode.errors import VaultError
from qkdnode.ids import Association
from qkdnode.lifecycle.rotation import Phase
from qkdnode.vault import rehearsal
from qkdnode.vault.rehearsal import LoadPage, ReadLoad, Shape, ShowShape
from qkdnode.vault.requests import AllocateKeys, Checkpoint, KeysDelivered, LogHead, PeerDelivered

MINUTE_NS = 60 * SECOND_NS


def shape_of(end: End, size_bits: int | None = None) -> Shape:
    shape: Shape = end.call(ShowShape(association=end.association, size_bits=size_bits))
    return shape


def load_of(end: End, since_ns: int, limit: int = 1024) -> dict[tuple[int, str], int]:
    """By minute and kind, over as many pages as there are."""
    found: dict[tuple[int, str], int] = {}
    before: int | None = None
    while True:
        page: LoadPage = end.call(ReadLoad(since_ns=since_ns, before=before, limit=limit))
        for its in page.counts:
            assert its.association == end.association
            found[its.minute, its.kind] = found.get((its.minute, its.kind), 0) + its.keys
        if page.next is None:
            return found
        before = page.next


def contents(end: End) -> tuple[str, int]:
    """A digest over every row of the vault, and the version of its file as another connection sees it."""
    with end.tampering() as file:
        digest = hashlib.sha256()
        for (name,) in file.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall():
            for row in file.execute(f"SELECT * FROM {name}"):
                digest.update(repr(row).encode())
        return digest.hexdigest(), file.total_changes()


def test_a_shape_counts_keys_stock_and_the_generation_of_each_end(pair: Pair) -> None:
    assert (shape_of(pair.alice).size_bits, shape_of(pair.alice).waiting_here) == (256, 0), "nothing was cut yet"
    pair.stock()
    here = pair.ready(pair.alice, 3)
    pair.ready(pair.bob, 2, size_bits=512)
    alice, bob = shape_of(pair.alice), shape_of(pair.bob)
    assert (alice.waiting_here, alice.waiting_there, alice.all_counted) == (3, 2, True)
    assert (bob.waiting_here, bob.waiting_there) == (2, 3)
    assert (alice.role, alice.current, alice.phase, alice.batches) == ("alice", 1, Phase.STEADY, 1)
    assert (alice.stock_here, alice.stock_there) == (bob.stock_there, bob.stock_here)
    assert alice.stock_here - alice.stock_there == 2 * 512 - 3 * 256
    assert (alice.size_bits, shape_of(pair.alice, 128).size_bits) == (512, 128)
    pair.alice.call(KeysDelivered(application=HERE.local, key_ids=here[:1], details={}))
    assert shape_of(pair.alice).waiting_here == 2, "a key that the application has does not wait"
    begin(pair.alice)
    assert shape_of(pair.alice).phase is Phase.PROPOSED


def test_more_bundles_than_are_counted_are_told_of(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.stock()
    for _ in range(3):
        pair.ready(pair.alice, 2)
    monkeypatch.setattr(rehearsal, "COUNTED_BUNDLES", 2)
    assert (shape_of(pair.alice).waiting_here, shape_of(pair.alice).all_counted) == (4, False)


def test_an_association_that_is_not_known_has_no_shape(pair: Pair) -> None:
    with pytest.raises(VaultError, match="is unknown to the vault"):
        pair.alice.call(ShowShape(association=Association("x", "y", LINK)))


@pytest.mark.parametrize("limit", [1, 7, 1024])
def test_the_load_is_what_was_cut_and_taken_by_each_end_minute_by_minute(pair: Pair, limit: int) -> None:
    pair.stock()
    pair.ready(pair.alice, 5)  # too long ago
    pair.alice.counter.ahead_ns = pair.bob.counter.ahead_ns = 10 * MINUTE_NS
    since_ns = pair.alice.now_ns
    mine = pair.ready(pair.alice, 3)
    for end in pair.ends:
        end.counter.ahead_ns += 2 * MINUTE_NS
    pair.ready(pair.bob, 2)
    pair.alice.call(KeysDelivered(application=HERE.local, key_ids=mine[:2], details={}))
    pair.alice.call(PeerDelivered(link=LINK, application=HERE.remote, key_ids=mine[:1]))
    assert load_of(pair.alice, since_ns, limit) == {
        (0, "cut_here"): 3,
        (2, "cut_there"): 2,
        (2, "taken_here"): 2,
        (2, "taken_there"): 1,
    }


def test_a_page_of_the_load_is_no_longer_than_asked_and_says_how_far_it_goes_back(pair: Pair) -> None:
    pair.stock()
    pair.ready(pair.alice, 3)
    size = pair.alice.call(LogHead()).size
    page: LoadPage = pair.alice.call(ReadLoad(since_ns=0, limit=4))
    assert page.next == size - 4
    assert page.reached_ns > 0
    assert pair.alice.call(ReadLoad(since_ns=0)).next is None
    assert pair.alice.call(ReadLoad(since_ns=0)).reached_ns == 0


def test_reading_shape_and_load_changes_nothing_in_the_vault(pair: Pair) -> None:
    pair.stock()
    pair.ready(pair.alice, 3)
    pair.alice.call(Checkpoint())
    with pair.alice.tampering() as watcher:
        version = _version(watcher)
        before = contents(pair.alice)
        head = pair.alice.call(LogHead())
        for _ in range(3):
            shape_of(pair.alice)
            load_of(pair.alice, 0)
        assert pair.alice.call(LogHead()) == head
        assert contents(pair.alice) == before
        assert _version(watcher) == version
        pair.alice.call(AllocateKeys(association=HERE, count=1, size_bits=256, entropy=os.urandom(16)))
    with pair.alice.tampering() as watcher:  # the control: a request that writes is seen by all three
        assert contents(pair.alice) != before
        assert pair.alice.call(LogHead()) != head


def _version(connection: apsw.Connection) -> Any:
    connection.execute("COMMIT")  # a connection in a transaction sees the file as it was
    (version,) = connection.execute("PRAGMA data_version").fetchall()
    connection.execute("BEGIN")
    return version
