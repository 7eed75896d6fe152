"""Two links with real vaults under everything that a wire, a disk and a power switch can do to them.

QKDNODE_EXAMPLES multiplies the number of plans; 1 is the default suite.
"""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from link_world import CREDIT, WINDOW_S, Fault, Pace, Plan, World
from msgspec.structs import replace

from qkdnode.ids import ALICE, BOB, ROLES

# A crash cancels what was spawned and never ran.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")

TIMES = int(os.environ.get("QKDNODE_EXAMPLES", "1"))

OFTEN = ("lose", "repeat", "overtake", "stall", "reflect", "corrupt", "drop")
CRASHES = ("crash sender", "crash receiver", "crash both")
DISK = ("refuse", "crash before", "crash after")
FRAMES = {
    ALICE: (
        "Greeting",
        "Hello",
        "PadsWanted",
        "PadsGranted",
        "SiftAnswer",
        "BlockTag",
        "Amplify",
        "BatchCommit",
        "Settled",
        "Parities",
    ),
    BOB: (
        "Greeting",
        "Hello",
        "PadsWanted",
        "PadsGranted",
        "SiftList",
        "BatchEnd",
        "BlockStart",
        "BatchReport",
        "BatchClaim",
        "BatchAnswer",
        "Settled",
    ),
}
SETTLING_FRAMES = {ALICE: ("BatchCommit", "Settled"), BOB: ("BatchClaim", "BatchAnswer", "Settled")}
SETTLING_REQUESTS = {
    ALICE: ("StorePending", "SettlePending", "ReadyAnnounced"),
    BOB: ("FindAnswer", "StoreReady", "StoreAbandoned", "PeerReady"),
}
LINK_REQUESTS = ("NextSession", "ReservePads", "NoteSeen", "StateLink", "AdmitPeer", "GrantPads")
AGREEMENT_FRAMES = ("Allocate", "Allocated", "Delivered", "Received", "Subscription")
AGREEMENT_REQUESTS = (
    "AllocateKeys", "AcceptAllocation", "AllocationAnswered", "OpenKey", "KeysDelivered", "PeerDelivered",
    "OutboxCleared", "NeighbourOutbox",
)  # fmt: skip
SECONDS = st.sampled_from((0.0, 0.05, 1.0, 7.0))


def faults(names: dict[str, tuple[str, ...]], acts: tuple[str, ...], most: int = 4) -> st.SearchStrategy[Fault]:
    """Faults of these kinds at these messages or requests."""
    places = st.sampled_from([(role, name) for role in ROLES for name in names[role]])

    def fault(place: tuple[str, str], nth: int, act: str, seconds: float, share: float) -> Fault:
        return Fault(*place, nth, act, share if act == "corrupt" else seconds)

    shares = st.integers(0, 4095).map(lambda n: n / 4096)
    return st.builds(fault, places, st.integers(0, most), st.sampled_from(acts), SECONDS, shares)


def same_for_both(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(ROLES, names)


def plans(*some: st.SearchStrategy[Fault], windows: int) -> st.SearchStrategy[Plan]:
    """Three to eight faults, between ends of any pace."""
    pace = st.builds(
        Pace,
        vault=st.sampled_from((0.0, 0.004, 0.06)),
        wire=st.sampled_from((0.001, 0.02)),
        work=st.sampled_from((0.0, 0.03)),
        application=st.sampled_from((0.01, 0.5)),
    )
    return st.builds(
        Plan,
        faults=st.lists(st.one_of(*some), min_size=3, max_size=8).map(tuple),
        paces=st.tuples(pace, pace),
        windows=st.just(windows),
        target_pads=st.sampled_from((200, 200, 700)),
    )


def holds(plan: Plan) -> None:
    world = World(plan).play()
    assert world.rules.breaches == [], "\n".join(world.story)
    assert not world.failed, "\n".join(world.story)


def examples(count: int) -> settings:
    return settings(
        max_examples=count * TIMES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


@examples(16)
@given(plans(faults(FRAMES, OFTEN), faults(SETTLING_FRAMES, OFTEN), windows=32))
def test_no_wire_makes_the_ends_keep_different_keys(plan: Plan) -> None:
    holds(plan)


@examples(16)
@given(
    plans(
        faults(SETTLING_FRAMES, CRASHES + OFTEN, 2),
        faults(SETTLING_REQUESTS, DISK, 2),
        faults(same_for_both(LINK_REQUESTS), DISK),
        windows=32,
    )
)
def test_no_crash_around_the_commit_makes_the_ends_keep_different_keys(plan: Plan) -> None:
    holds(plan)


@examples(12)
@given(
    plans(
        faults(same_for_both(AGREEMENT_FRAMES), CRASHES + OFTEN, 5),
        faults(same_for_both(AGREEMENT_REQUESTS), DISK, 5),
        windows=32,
    )
)
def test_every_key_is_delivered_at_both_ends_or_at_neither(plan: Plan) -> None:
    holds(plan)


ALTERABLE = [
    *((ALICE, name) for name in ("SiftAnswer", "Parities", "BlockTag", "Amplify", "Settled", "Allocate", "Allocated")),
    *((BOB, name) for name in ("SiftList", "BatchEnd", "BlockStart", "Parities", "BlockOutcome", "BatchReport")),
    *((BOB, name) for name in ("BatchClaim", "BatchAnswer", "Settled", "Delivered", "Received", "Hello")),
    (ALICE, "BatchCommit"),
]


@pytest.mark.parametrize(("role", "name"), ALTERABLE)
def test_no_altered_message_makes_a_key_or_loses_one(role: str, name: str) -> None:
    shares = (0.999, 0.55, 0.75, 0.3)  # the tag, and the body
    faults = tuple(Fault(role, name, 2 * nth, "corrupt", share) for nth, share in enumerate(shares))
    holds(Plan(faults, windows=40))


def test_an_answer_turned_into_its_contrary_is_not_believed() -> None:
    holds(Plan((Fault(BOB, "BatchAnswer", 1, "contradict"), Fault(BOB, "BatchAnswer", 3, "contradict"))))


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_that_is_switched_while_keys_are_cut_burns_those_at_both_ends_and_stops_no_other(role: str) -> None:
    world = World(Plan(windows=12, switches=role)).play()
    assert world.rules.breaches == []
    refused = len(world.rules.refused)
    assert 0 < refused <= 2 * CREDIT
    assert all(life.alarms["POLICY"] for life in world.lives.values())


def test_an_older_copy_skips_the_pads_that_went_out_unseen() -> None:
    faults = (Fault(ALICE, "SiftAnswer", 8, "lose"), *(Fault(ALICE, "Hello", nth, "drop") for nth in (1, 2, 3)))
    world = World(Plan(faults, windows=40, restored=ALICE, copied_s=1.0, restored_s=5.0)).play()
    assert len(world.fired) == len(faults)
    assert [breach for breach in world.rules.breaches if "pad" in breach] == []


@examples(12)
@given(
    plans(faults(SETTLING_FRAMES, CRASHES + OFTEN, 2), windows=24),
    st.sampled_from(ROLES),
    st.sampled_from((0.0, 1.0, 3.0)),
    st.sampled_from((2.0, 4.0)),
)
def test_no_older_copy_of_a_vault_uses_a_pad_again(plan: Plan, role: str, copied_s: float, restored_s: float) -> None:
    world = World(replace(plan, restored=role, copied_s=copied_s, restored_s=restored_s)).play()
    assert [breach for breach in world.rules.breaches if "pad" in breach] == [], "\n".join(world.story)


@pytest.mark.parametrize("role", ROLES)
def test_a_copy_of_a_vault_from_before_the_first_session_stops_the_link(role: str) -> None:
    world = World(Plan(restored=role, copied_s=0.0, restored_s=3.0)).play()
    assert world.failed == set(ROLES)
    assert world.lives[role].alarms["AUTH_FAILED"]
    assert world.rules.breaches == []


def test_without_a_fault_batches_are_made_and_their_keys_delivered() -> None:
    world = World(Plan()).play()
    assert world.rules.breaches == []
    assert len(world.rules.ready[ALICE]) >= 4
    assert len(world.rules.acknowledged[BOB]) >= 20


@pytest.mark.parametrize("name", ["AcceptAllocation", "AllocationAnswered", "PeerDelivered", "OutboxCleared"])
def test_what_a_full_disk_left_unanswered_is_sent_again_within_a_minute(name: str) -> None:
    world = World(Plan(tuple(Fault(role, name, 1, "refuse") for role in ROLES), windows=32)).play()
    assert world.rules.breaches == []
    assert world.loop.time() < 32 * WINDOW_S + 60
