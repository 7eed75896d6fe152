"""Counts for another number of intensities end the Batch, not the agent."""

import pytest
from test_distillation import distilled, tampering

from qkdnode.wire.messages import BatchEnd, BatchReport, Message


@pytest.mark.parametrize(("kind", "field"), [(BatchEnd, "m_x"), (BatchReport, "m_z")])
def test_counts_for_a_third_intensity_give_up_the_batch(kind: type[Message], field: str) -> None:
    alice, bob = distilled(windows=0)
    tampering(alice, bob, kind, {field: (0, 0, 0)})
    assert all(batch.number > 0 for batch in alice.ready | bob.ready)
