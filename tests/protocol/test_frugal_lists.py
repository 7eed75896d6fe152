"""A list costs a pad of a pool that only key can refill: no list where no key can come of it."""

import numpy as np
from distill_pair import DistillEnd, opened, settle, shine

from qkdnode.distill import effects as fx
from qkdnode.distill.batch import QBER_HIGH

SECOND = 10**9


def pads_of(end: DistillEnd) -> int:
    return len(end.used)


def dropped(end: DistillEnd, reason: str) -> int:
    return sum(effect.reason == reason for effect in end.effects_of(fx.Discarded))  # type: ignore[attr-defined]


def test_a_dark_fibre_costs_no_pads() -> None:
    _, bob = opened()
    before = pads_of(bob)
    for index in range(50):
        slots = np.arange(100, 400, 100, dtype=np.uint32)
        bob.feed(fx.ReceiverWindowReady(index, slots, np.ones(3, np.uint8)))
    assert pads_of(bob) == before
    assert dropped(bob, "dark") == 50


def test_after_an_eavesdropper_was_noticed_bob_waits_longer_each_time_before_he_lists_again() -> None:
    alice, bob = opened()
    listed_at_s = []
    for second in range(9):
        before = pads_of(bob)
        shine(alice, bob, second, error=0.25, count=9)
        settle(alice, bob)
        if pads_of(bob) > before:
            listed_at_s.append(second)
        for end in (alice, bob):
            end.feed(fx.Tick((second + 1) * SECOND))
    assert dropped(bob, QBER_HIGH) == len(listed_at_s)
    assert listed_at_s == [0, 1, 3, 7]
