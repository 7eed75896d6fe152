"""The audit log: typed leaves, the Merkle tree over them, signed checkpoints, the export and its offline verifier."""
