"""An older copy of a vault is noticed, or does no harm: no pad protects two messages, whatever the wire swallows."""

import pytest
from link_world import WINDOW_S, Fault, Plan, World

from qkdnode.ids import ALICE, BOB, ROLES

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

WEEK_S = 7 * 86_400.0


def play(plan: Plan) -> World:
    world = World(plan).play()
    assert [breach for breach in world.rules.breaches if "pad" in breach] == [], "\n".join(world.story)
    return world


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("copied_s", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("restored_s", [0.2, 2.0])
def test_a_copy_taken_in_an_open_session_repeats_no_pad(role: str, copied_s: float, restored_s: float) -> None:
    play(Plan(restored=role, copied_s=copied_s, restored_s=restored_s, windows=32))


@pytest.mark.parametrize("role", ROLES)
def test_a_copy_from_before_the_last_batches_stops_the_link(role: str) -> None:
    world = play(Plan(restored=role, copied_s=1.0, restored_s=4.0, windows=32))
    assert world.failed
    assert world.lives[role].alarms["AUTH_FAILED"]


def swallowed(role: str, hellos: int) -> tuple[Fault, ...]:
    """The second session loses as many Hellos; with the last one the older copy comes back."""
    dropped = (Fault(role, "Hello", nth, "drop") for nth in range(1, hellos))
    return (Fault(ALICE, "SiftAnswer", 8, "lose"), *dropped, Fault(role, "Hello", hellos, "restore sender", 1.0))


@pytest.mark.parametrize(("role", "hellos"), [(ALICE, 8), (BOB, 8), (ALICE, 40)])
def test_pads_of_hellos_that_the_wire_swallowed_are_not_used_again(role: str, hellos: int) -> None:
    faults, wait_s = swallowed(role, hellos), 300.0 * hellos
    world = play(
        Plan(
            faults, windows=16, restored=role, copied_s=1.9, restored_s=None, wait_s=wait_s, windows_after=8, pads=1400
        )
    )
    assert len(world.fired) == len(faults)


@pytest.mark.parametrize("role", ROLES)
def test_pads_of_hellos_swallowed_over_many_restarts_are_not_used_again(role: str) -> None:
    faults = swallowed(role, 9)
    gone = tuple((role, 10.0 * n, 1.0) for n in range(1, 8))
    world = play(
        Plan(faults, windows=16, restored=role, copied_s=1.9, restored_s=None, gone=gone, wait_s=900.0, windows_after=8)
    )
    assert len(world.fired) == len(faults)


@pytest.mark.parametrize("role", ROLES)
def test_a_wire_that_denies_what_was_seen_does_not_make_an_older_copy_repeat_pads(role: str) -> None:
    other = BOB if role == ALICE else ALICE
    faults = tuple(Fault(other, "Greeting", nth, "deny") for nth in range(1, 60))
    play(Plan(faults, restored=role, copied_s=0.0, restored_s=3.0, windows=32))


@pytest.mark.parametrize("victim", ROLES)
def test_a_flood_of_old_greetings_and_hellos_costs_no_pad_and_no_session(victim: str) -> None:
    quiet, flooded = play(Plan(windows=32)), play(Plan(windows=32, flood=victim))
    assert flooded.rules.breaches == []
    assert flooded.lives[victim].link.statistics.messages_discarded > 100
    assert flooded.lives[victim].link.statistics.sessions == quiet.lives[victim].link.statistics.sessions == 1
    assert flooded.lives[victim].alarms["AUTH_FAILED"] == 1
    for role in ROLES:
        assert flooded.rules.pads_used(role) <= quiet.rules.pads_used(role) + 1


@pytest.mark.parametrize("role", ROLES)
def test_a_link_whose_peer_was_gone_for_long_is_up_within_seconds(role: str) -> None:
    """An hour, far beyond the longest back-off: an end that waits does the same after a week."""
    gone_s = 3600.0
    world = play(Plan(windows=8, gone=((role, 3.0, gone_s),), wait_s=gone_s + 10.0, windows_after=24))
    assert world.rules.breaches == []
    assert not world.failed
    assert len(world.rules.ready[ALICE]) > 2


def test_both_ends_off_for_a_week_and_started_together_open_at_once() -> None:
    gone = tuple((role, 3.0, WEEK_S) for role in ROLES)
    world = play(Plan(windows=8, gone=gone, wait_s=WEEK_S + 5.0, windows_after=24))
    assert world.rules.breaches == []
    assert len(world.rules.ready[ALICE]) > 2
    assert world.loop.time() < WEEK_S + 5.0 + (8 + 24) * WINDOW_S + 60


@pytest.mark.parametrize("role", ROLES)
def test_an_end_that_starts_again_and_again_keeps_its_pads(role: str) -> None:
    """Starting costs a Hello at most, and as long as the peer is away nothing."""
    gone = tuple((role, 3.0 + 2.0 * n, 1.0) for n in range(20))
    other = BOB if role == ALICE else ALICE
    world = play(Plan(windows=8, gone=((other, 2.5, 45.0), *gone), wait_s=50.0, windows_after=24))
    assert world.rules.breaches == []
    assert len(world.rules.ready[ALICE]) > 2
