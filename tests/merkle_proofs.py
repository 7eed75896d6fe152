"""Proofs made from the hashes of all leaves: the definition that the vault's quick ones are held to."""

from collections.abc import Sequence

from qkdnode.audit.merkle import consistency_path, inclusion_path, root_of


def inclusion_proof(leaf_hashes: Sequence[bytes], position: int) -> tuple[bytes, ...]:
    """That the leaf at `position` is in the tree over `leaf_hashes`."""
    return tuple(root_of(leaf_hashes[start:end]) for start, end in inclusion_path(position, len(leaf_hashes)))


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """That the tree over the first `old_size` leaves is a prefix of the whole one."""
    return tuple(root_of(leaf_hashes[start:end]) for start, end in consistency_path(old_size, len(leaf_hashes)))
