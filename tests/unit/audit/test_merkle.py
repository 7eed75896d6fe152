"""The Merkle tree against the definition of RFC 9162 and the roots that Certificate Transparency publishes."""

import hashlib
from collections.abc import Callable

import pytest
from merkle_proofs import consistency_proof, inclusion_proof

from qkdnode.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_holds,
    inclusion_holds,
    leaf_hash,
    root_of,
)

REFERENCE_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
REFERENCE_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
FIRST_OF_EIGHT = [
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
]


def definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162 section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + definition(leaves[:k]) + definition(leaves[k:])).digest()


def definition_of_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162 section 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*definition_of_path(m, leaves[:k]), definition(leaves[k:])]
    return [*definition_of_path(m - k, leaves[k:]), definition(leaves[:k])]


def definition_of_subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1, word for word."""
    if m == len(leaves):
        return [] if whole else [definition(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*definition_of_subproof(m, leaves[:k], whole), definition(leaves[k:])]
    return [*definition_of_subproof(m - k, leaves[k:], False), definition(leaves[:k])]


LEAVES = [b"leaf %d" % i for i in range(40)]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]


@pytest.mark.parametrize("size", range(9))
def test_the_roots_are_those_of_certificate_transparency(size: int) -> None:
    hashes = [leaf_hash(leaf) for leaf in REFERENCE_LEAVES[:size]]
    assert root_of(hashes).hex() == REFERENCE_ROOTS[size]
    assert definition(REFERENCE_LEAVES[:size]).hex() == REFERENCE_ROOTS[size]


def test_the_first_inclusion_proof_is_that_of_certificate_transparency() -> None:
    proof = inclusion_proof([leaf_hash(leaf) for leaf in REFERENCE_LEAVES], 0)
    assert [step.hex() for step in proof] == FIRST_OF_EIGHT


def test_every_root_is_the_one_the_definition_gives() -> None:
    frontier = Frontier()
    for size, hashed in enumerate(HASHES):
        assert frontier.size == size
        assert frontier.root() == definition(LEAVES[:size])
        assert frontier.append(hashed) == size
    assert definition([]) == EMPTY_ROOT


def test_every_proof_is_the_one_the_definition_gives_and_holds() -> None:
    for size in range(1, len(LEAVES) + 1):
        root = definition(LEAVES[:size])
        for position in range(size):
            proof = inclusion_proof(HASHES[:size], position)
            assert list(proof) == definition_of_path(position, LEAVES[:size])
            assert inclusion_holds(HASHES[position], position, size, proof, root)
        for old in range(1, size + 1):
            steps = consistency_proof(HASHES[:size], old)
            assert list(steps) == definition_of_subproof(old, LEAVES[:size], True)
            assert consistency_holds(old, definition(LEAVES[:old]), size, root, steps)
        assert consistency_holds(0, EMPTY_ROOT, size, root, consistency_proof(HASHES[:size], 0))


MUTATIONS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a step changed": lambda proof: [*proof[:-1], bytes([proof[-1][0] ^ 1]) + proof[-1][1:]],
    "the last step dropped": lambda proof: proof[:-1],
    "the first step dropped": lambda proof: proof[1:],
    "a step added": lambda proof: [*proof, HASHES[0]],
    "a step of the wrong length": lambda proof: [*proof[:-1], proof[-1][:31]],
}


@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_changed_proof_does_not_hold(mutate: Callable[[list[bytes]], list[bytes]]) -> None:
    for size in range(2, 20):
        root = definition(LEAVES[:size])
        for position in range(size):
            proof = mutate(list(inclusion_proof(HASHES[:size], position)))
            assert not inclusion_holds(HASHES[position], position, size, proof, root)
        for old in range(1, size):
            steps = mutate(list(consistency_proof(HASHES[:size], old)))
            assert not consistency_holds(old, definition(LEAVES[:old]), size, root, steps)


def test_a_proof_holds_for_nothing_but_its_own_claim() -> None:
    for size in range(2, 20):
        root = definition(LEAVES[:size])
        for position in range(size):
            proof = inclusion_proof(HASHES[:size], position)
            for other in range(size):
                if other != position:
                    assert not inclusion_holds(HASHES[other], position, size, proof, root)
                    assert not inclusion_holds(HASHES[position], other, size, proof, root)
            assert not inclusion_holds(HASHES[position], position, size, proof, definition(LEAVES[: size + 1]))
            assert not inclusion_holds(HASHES[position], size, size, proof, root)
        for old in range(1, size):
            steps = consistency_proof(HASHES[:size], old)
            forged = definition([*LEAVES[: old - 1], b"forged"])
            assert not consistency_holds(old, forged, size, root, steps)
            assert not consistency_holds(old, definition(LEAVES[:old]), size, forged, steps)
            assert not consistency_holds(size, root, old, definition(LEAVES[:old]), steps)
    assert not consistency_holds(3, definition(LEAVES[:3]), 3, definition(LEAVES[:4]), ())
    assert not consistency_holds(0, HASHES[0], 3, definition(LEAVES[:3]), ())


def test_a_proof_does_not_hold_for_a_tree_of_another_depth() -> None:
    for size in range(2, 20):
        root = definition(LEAVES[:size])
        for position in range(size):
            assert not inclusion_holds(
                HASHES[position], position, 4 * size, inclusion_proof(HASHES[:size], position), root
            )
        for old in range(1, size):
            steps = consistency_proof(HASHES[:size], old)
            assert not consistency_holds(old, definition(LEAVES[:old]), 4 * size, root, steps)


def test_two_hashes_in_place_of_one_do_not_hold() -> None:
    """H(1 || a || b) does not show where a ends: only the lengths do."""
    root = definition(LEAVES[:2])
    assert inclusion_holds(HASHES[0], 0, 2, [HASHES[1]], root)
    assert not inclusion_holds(HASHES[0] + HASHES[1], 0, 2, [b""], root)
    assert not inclusion_holds(b"", 0, 2, [HASHES[0] + HASHES[1]], root)


def test_a_frontier_grows_on_after_being_stored() -> None:
    frontier = Frontier()
    for size, hashed in enumerate(HASHES):
        stored = frontier.encode()
        assert len(frontier.hashes) == size.bit_count()
        frontier = Frontier.decode(stored)
        assert (frontier.size, frontier.root()) == (size, definition(LEAVES[:size]))
        frontier.append(hashed)


def test_a_copy_grows_alone() -> None:
    frontier = Frontier(HASHES[:5])
    twin = frontier.copy()
    twin.append(HASHES[5])
    assert frontier.root() == definition(LEAVES[:5])
    assert twin.root() == definition(LEAVES[:6])


@pytest.mark.parametrize(
    "data",
    [b"", bytes(7), bytes(8) + HASHES[0], (3).to_bytes(8, "big") + HASHES[0], b"\xff" * 8 + bytes(64 * 32)],
    ids=["nothing", "cut size", "hash of no leaf", "hash missing", "size beyond counting"],
)
def test_a_damaged_frontier_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="frontier"):
        Frontier.decode(data)


def test_what_is_not_there_has_no_proof() -> None:
    with pytest.raises(ValueError, match="no leaf 5"):
        inclusion_proof(HASHES[:5], 5)
    with pytest.raises(ValueError, match="no leaf -1"):
        inclusion_proof(HASHES[:5], -1)
    with pytest.raises(ValueError, match="no prefix"):
        consistency_proof(HASHES[:5], 6)
    with pytest.raises(ValueError, match="32 bytes"):
        Frontier().append(b"short")
