"""Proofs from what the vault keeps of its log: the ones that the whole tree gives, and none from what was changed."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from merkle_proofs import consistency_proof, inclusion_proof
from signing import PUBLIC
from vaults import ALICE, End

from qkdnode.audit import verifier
from qkdnode.audit.events import LinkEvent
from qkdnode.audit.merkle import leaf_hash, root_of
from qkdnode.errors import LocalProtocolError, VaultDamagedError
from qkdnode.vault.extract import LogHead
from qkdnode.vault.proofs import ProveEntry, prove_consistency, prove_inclusion, root_at
from qkdnode.vault.requests import LeavesAfter, RecordEvents, VerifyLog

EVENT = LinkEvent(time_ns=1, node="a", topic="link.metro", kind="link.tried", subject="metro")
SIZE = 1500  # ends in subtrees of 1024, 256, 128, 64, 16, 8 and 4


@pytest.fixture(scope="module")
def end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[End]:
    made = End(tmp_path_factory.mktemp("proofs"), ALICE)
    while (missing := SIZE - made.call(LogHead()).size) > 0:
        made.call(RecordEvents(events=(EVENT,) * min(64, missing)))
    yield made
    made.vault.close()


@pytest.fixture(scope="module")
def hashes(end: End) -> list[bytes]:
    leaves = end.call(LeavesAfter(position=0, limit=4096))
    return [leaf_hash(leaf.encode()) for _, leaf in leaves]


def store_of(end: End) -> Any:
    return end.vault._core._store


def sizes() -> list[int]:
    draws = random.Random(9)
    edges = [1, 2, 255, 256, 257, 511, 512, 513, 767, 768, 1023, 1024, 1025, 1279, 1280, 1281, 1499, 1500]
    return sorted({*edges, *(draws.randrange(1, SIZE) for _ in range(40))})


def test_every_root_and_proof_is_that_of_the_whole_tree(end: End, hashes: list[bytes]) -> None:
    store, draws = store_of(end), random.Random(1)
    for old_size, size in [*pairwise(sizes()), *((size, SIZE) for size in sizes())]:
        assert root_at(store, size) == root_of(hashes[:size])
        assert prove_consistency(store, old_size, size) == consistency_proof(hashes[:size], old_size)
        for position in {0, size - 1, draws.randrange(size)}:
            leaf, proof = prove_inclusion(store, position, size)
            assert leaf_hash(leaf.encode()) == hashes[position]
            assert proof == inclusion_proof(hashes[:size], position)


def test_the_work_grows_as_the_logarithm(end: End) -> None:
    """At most two places of fewer than 256 leaves are read, however far back the proof reaches."""
    store, read = store_of(end), []
    connection = store.connection
    connection.set_row_trace(lambda cursor, row: read.append(row) or row)
    try:
        for position, size in ((0, SIZE), (700, SIZE), (1499, SIZE), (300, 1279)):
            read.clear()
            prove_inclusion(store, position, size)
            assert len(read) < 3 * 256 + 64
    finally:
        connection.set_row_trace(None)


def test_a_receipt_of_any_entry_is_verified_offline(end: End, hashes: list[bytes]) -> None:
    for position in (0, 255, 256, 1024, len(hashes) - 1):
        text = end.call(ProveEntry(position=position))
        receipt = verifier.verify_receipt(text.encode(), PUBLIC)
        assert (receipt.entry, receipt.origin, receipt.witnesses) == (position, "a.audit", 0)
        assert leaf_hash(receipt.leaf.encode()) == hashes[position]


def test_an_entry_that_is_not_there_has_no_receipt(end: End) -> None:
    for position in (-1, 1 << 40):
        with pytest.raises(LocalProtocolError, match="there is no entry"):
            end.call(ProveEntry(position=position))


CHANGES = {
    "a kept hash is changed": "UPDATE subtrees SET hash = zeroblob(32) WHERE level = 9 AND number = 0",
    "a kept hash is gone": "DELETE FROM subtrees WHERE level = 9 AND number = 0",
    "a kept hash is another's": "UPDATE subtrees SET hash = "
    "(SELECT hash FROM subtrees WHERE level = 9 AND number = 1) WHERE level = 9 AND number = 0",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_hashes_that_were_changed_are_found_on_opening(tmp_path: Path, change: str) -> None:
    end = End(tmp_path, ALICE)
    for _ in range(18):
        end.call(RecordEvents(events=(EVENT,) * 64))
    assert end.call(ProveEntry(position=600))
    end.vault.close()
    with end.tampering() as file:
        file.execute(change)
    with pytest.raises(VaultDamagedError, match="hash over entries 0 to 511"):
        end.open()


def test_no_proof_is_made_from_a_changed_leaf_or_hash(tmp_path: Path) -> None:
    end = End(tmp_path, ALICE)
    for _ in range(18):
        end.call(RecordEvents(events=(EVENT,) * 64))
    end.call(VerifyLog())
    with end.tampering() as file:
        file.execute("UPDATE subtrees SET hash = zeroblob(32) WHERE level = 9 AND number = 0")
    with pytest.raises(VaultDamagedError, match="not what was written"):
        end.call(ProveEntry(position=600))
    with end.tampering() as file:
        file.execute("UPDATE leaves SET leaf = replace(leaf, 'tried', 'wrote') WHERE position = 700")
    with pytest.raises(VaultDamagedError, match="not what was written"):
        end.call(ProveEntry(position=700))
    end.vault.close()
