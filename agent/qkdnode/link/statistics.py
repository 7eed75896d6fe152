"""What one link counts."""

import msgspec


class LinkStatistics(msgspec.Struct):
    """Counters since the start; rates are the reader's business."""

    state: str = "DOWN"
    session: int = 0
    sessions: int = 0
    windows: int = 0
    sifted_bits: int = 0  # key basis, agreed by both ends
    x_bits: int = 0
    x_errors: int = 0
    verified_bits: int = 0
    errors: int = 0
    qber_z: float = 0.0  # of the newest verified Block
    alice_bits: int = 0  # parities disclosed
    bob_bits: int = 0
    blocks: int = 0
    opened_frames: int = 0
    batches_ready: int = 0
    secret_bits: int = 0
    auth_spent_bits: int = 0
    auth_refilled_bits: int = 0
    messages_discarded: int = 0
    discards: dict[str, int] = {}

    def discard(self, reason: str, count: int = 1) -> None:
        """Count an outcome that made no key."""
        self.discards[reason] = self.discards.get(reason, 0) + count
