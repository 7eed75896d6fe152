"""What a link counts reaches the statistics that watch it, over its sessions; what is right again is said."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from distill_pair import emitted, opened, settle, shine
from link_end import LinkEnd
from session_pair import opened_pair

from qkdnode.distill import effects as fx
from qkdnode.distill.quality.drift import LEARNING_BLOCKS
from qkdnode.ids import ALICE, BOB


def test_bob_counts_every_detection_by_its_detector_and_both_count_their_ones() -> None:
    alice, bob = opened()
    for index in range(2):
        shine(alice, bob, index, count=4)
        settle(alice, bob)
    listed = [effect for effect in bob.seen if isinstance(effect, fx.ListedWindow)]
    assert len(listed) == 2
    for effect in listed:
        _, slots, _ = emitted(4, 0.012, bob.settings.agreed)[effect.window]
        assert 0.8 * slots.size < sum(effect.detectors) + effect.double_clicks <= slots.size
        z0, z1, x0, x1 = effect.detectors
        assert z1 == pytest.approx(z0, rel=0.05)
        assert (x0 + x1) / sum(effect.detectors) == pytest.approx(1 - bob.settings.agreed.p_z, abs=0.01)
    for end in (alice, bob):
        sifted = [effect for effect in end.seen if isinstance(effect, fx.SiftedWindow)]
        assert len(sifted) == 2
        assert all(effect.ones == pytest.approx(effect.bits / 2, rel=0.05) for effect in sifted)


def in_loop(scenario: Callable[[LinkEnd, LinkEnd], Awaitable[None]]) -> None:
    async def run() -> None:
        alice, bob = (LinkEnd(end) for end in opened_pair())
        for end in (alice, bob):
            end.open()
        await scenario(alice, bob)

    asyncio.run(run())


def windows(link_end: LinkEnd, count: int, **other: object) -> None:
    usual: dict[str, object] = {"detectors": (20_000, 20_000, 3_500, 3_500), "double_clicks": 5}
    for _ in range(count):
        link_end.link.run_effects([fx.ListedWindow(0, **(usual | other))])  # type: ignore[arg-type]


def test_only_bob_judges_what_only_he_sees() -> None:
    async def scenario(alice: LinkEnd, bob: LinkEnd) -> None:
        assert (alice.end.role, bob.end.role) == (ALICE, BOB)
        for end in (alice, bob):
            windows(end, 500, double_clicks=1000)
        assert set(bob.alarms) == {"DOUBLE_CLICKS"}
        assert alice.alarms == []

    in_loop(scenario)


def test_what_was_learnt_outlives_the_session() -> None:
    async def scenario(_: LinkEnd, bob: LinkEnd) -> None:
        per_block = round(5 / bob.link._settings.window_s) + 1
        windows(bob, LEARNING_BLOCKS * per_block)
        bob.link._end_session("the channel was lost", keep_session=True)
        assert bob.link.machine is None
        bob.open()
        assert bob.alarms == []
        windows(bob, 2 * per_block, detectors=(25_000, 15_000, 3_500, 3_500))
        assert "STATE_ASYMMETRY" in bob.alarms

    in_loop(scenario)


@pytest.mark.parametrize(
    ("effect", "code"),
    [
        (fx.SiftedWindow(0, 8_000, 7_000, 40, 2_000), "BIT_BIAS"),
        (fx.SiftedWindow(0, 8_000, 4_000, 40, 2_000), None),
    ],
)
def test_a_sifted_window_is_judged(effect: fx.SiftedWindow, code: str | None) -> None:
    async def scenario(_: LinkEnd, bob: LinkEnd) -> None:
        for _ in range(200):
            bob.link.run_effects([effect])
        assert set(bob.alarms) == ({code} if code else set())

    in_loop(scenario)


def test_a_block_with_more_errors_than_is_usual_is_told() -> None:
    def block(errors: int) -> fx.BlockVerified:
        return fx.BlockVerified(0, 0, 100_000, errors, 30_000, 30_000, 6, 0)

    async def scenario(_: LinkEnd, bob: LinkEnd) -> None:
        for _ in range(2 * LEARNING_BLOCKS):
            bob.link.run_effects([block(2_000)])
        assert bob.alarms == []
        for _ in range(5):
            bob.link.run_effects([block(2_500)])
        assert set(bob.alarms) == {"QBER_RISEN"}

    in_loop(scenario)


def test_a_window_counts_for_the_rate_even_without_a_session() -> None:
    async def scenario(_: LinkEnd, bob: LinkEnd) -> None:
        bob.link.lost("the channel was lost")
        for size in [50_000] * 4_000 + [40_000] * 1_000:
            slots = np.arange(size, dtype=np.uint32)
            bob.link.window(fx.ReceiverWindowReady(0, slots, np.ones(size, np.uint8)))
        assert set(bob.alarms) == {"CLICK_RATE"}

    in_loop(scenario)


def test_a_session_that_opens_says_that_the_link_is_up_and_pads_that_it_is_not_starved() -> None:
    async def scenario(_: LinkEnd, bob: LinkEnd) -> None:
        assert bob.cleared == ["LINK_DOWN"]
        await bob.link.measure_pool()
        assert bob.cleared == ["LINK_DOWN", "AUTH_STARVED"]

    in_loop(scenario)
