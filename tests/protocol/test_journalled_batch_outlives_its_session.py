"""A Batch that the vault is storing is the vault's: the end of the session does not take its key away."""

import pytest
from distill_pair import opened

from qkdnode.distill.batch import Batch, Phase
from qkdnode.native.secret import SecretBuffer


@pytest.mark.parametrize("phase", [Phase.CLAIMED, Phase.JOURNALLING])
def test_closing_the_machine_wipes_the_key_of_a_batch_unless_it_is_being_journalled(phase: Phase) -> None:
    _, bob = opened()
    batch = bob.machine.batches[0] = Batch(0, 2, 0)
    batch.key, batch.phase = SecretBuffer(64), phase
    key = batch.key
    bob.machine.close()
    assert key.released == (phase is not Phase.JOURNALLING)
