"""Rotations at two nodes, enumerated, and planted faults that the search must find."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rotation_life import Search, Violation, both_ends

from qkdnode.ids import ALICE, BOB
from qkdnode.lifecycle import rotation
from qkdnode.lifecycle.rotation import Phase, Way
from qkdnode.vault import core, generations, outbox, rotations
from qkdnode.vault.store import Store
from qkdnode.wire.messages import KeysRevoked, RotationGivenUp, RotationProposed, RotationStands, RotationWanted

# Begun by Alice, who may give up; by Bob, who may wish that she does; one after another; and with an old key that
# applications take and acknowledge at any time.
BY_ALICE: dict[str, Any] = {"begins": (True, False), "gives_up": (True, False), "takes": (False, False)}
BY_BOB: dict[str, Any] = {"begins": (False, True), "gives_up": (False, True), "takes": (False, False)}
IN_ORDER: dict[str, Any] = {"begins": (True, False), "gives_up": (False, False), "repeats": False}
AGAIN = {**IN_ORDER, "takes": (False, False), "newest": 3}
WITH_A_KEY = {**IN_ORDER, "takes": (True, False)}
TAKEN_BY_BOTH = {**IN_ORDER, "takes": (True, True)}
Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(("scenario", "worlds"), [(BY_ALICE, 500), (BY_BOB, 1_400)])
def test_whatever_the_wire_and_the_operators_do_both_ends_come_to_the_same(scenario: Any, worlds: int) -> None:
    with both_ends() as ends:
        search = Search(ends, **scenario)
        search.run()
        assert search.worlds > worlds
        assert all(end.survives_restart(view) for end in ends for view in end.views[::9])


def _way(start: Phase, **changes: Any) -> Plant:
    """Ways from a phase ask for something else."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        ways = tuple(msgspec.structs.replace(way, **changes) if way.start is start else way for way in rotation.WAYS)
        patch.setattr(rotation, "WAYS", ways)

    return plant


def _phase(phase: Phase, **changes: Any) -> Plant:
    changed = msgspec.structs.replace(rotation.PHASES[phase], **changes)
    return lambda patch: patch.setitem(rotation.PHASES, phase, changed)


def _bob_cuts_by_himself(patch: pytest.MonkeyPatch) -> None:
    early = Way(Phase.ACKNOWLEDGED, Phase.CUT, role=BOB, peer=Phase.ACKNOWLEDGED)
    patch.setattr(rotation, "WAYS", (early, *rotation.WAYS))
    patch.setattr(rotation, "may_follow", lambda role, phase, heard: True)


def _alice_cuts_unheard(patch: pytest.MonkeyPatch) -> None:
    early = Way(Phase.ACKNOWLEDGED, Phase.CUT, role=ALICE)
    patch.setattr(rotation, "WAYS", (early, *rotation.WAYS))
    patch.setattr(rotation, "may_follow", lambda role, phase, heard: True)


def _not_posted(kind: type[Any], phase: str | None = None) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        right = outbox.post

        def post(store: Any, link: str, number: int, message: Any) -> None:
            if not (isinstance(message, kind) and phase in (None, getattr(message, "phase", None))):
                right(store, link, number, message)

        patch.setattr(outbox, "post", post)

    return plant


def _handler(request: type[Any], otherwise: Callable[..., Any]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        right = core.HANDLERS[request]
        patch.setitem(core.HANDLERS, request, lambda store, asked: otherwise(right, store, asked))

    return plant


def _changed(change: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Plant:
    """Rows are written otherwise."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = rotations._change

        def changed(store: Store, row: Any, happened: str, details: Any, **changes: Any) -> Any:
            return right(store, row, happened, details, **change(happened, changes))

        patch.setattr(rotations, "_change", changed)

    return plant


def _any_phase_is_given_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rotations, "GIVEN_UP_IN", rotations.GIVEN_UP_IN | {Phase.CUT})


def _bob_gives_up_by_himself(patch: pytest.MonkeyPatch) -> None:
    """As Alice does: at once, and telling her."""
    right = rotations.give_up

    def give_up(store: Any, request: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(rotations, "ALICE", BOB)
            return right(store, request)

    patch.setitem(core.HANDLERS, rotations.GiveUpRotation, give_up)


FAULTS: dict[str, Plant] = {
    "Bob cuts when both have acknowledged, not when Alice has cut": _bob_cuts_by_himself,
    "Alice cuts when only her application has acknowledged": _alice_cuts_unheard,
    "an end is steady before the other has closed": _way(Phase.CLOSED, peer=None),
    "an end closes before the other has cut": _way(Phase.CUT, peer=None),
    "old keys go out after the cut": _phase(Phase.CUT, releases_old="all"),
    "old keys go out after the close": _phase(Phase.CLOSED, releases_old="pairs"),
    "old keys are held back before the cut": _phase(Phase.ACKNOWLEDGED, releases_old="none"),
    "generations are not looked at on release": lambda patch: patch.setattr(
        generations, "released", lambda store, chosen: chosen
    ),
    "what Bob wants is not told": _not_posted(RotationWanted),
    "a proposal is not told": _not_posted(RotationProposed),
    "the cut is not told": _not_posted(RotationStands, "cut"),
    "the close is not told": _not_posted(RotationStands, "closed"),
    "that a rotation is given up is not told": _not_posted(RotationGivenUp),
    "a key that is destroyed while the far end takes it for active is not told": _not_posted(KeysRevoked),
    "a rotation is given up after the cut": _any_phase_is_given_up,
    "Bob gives up by himself": _bob_gives_up_by_himself,
    "the phase of the peer is forgotten": _changed(
        lambda happened, changes: {
            name: its for name, its in changes.items() if name != "peer" or "peer_" not in happened
        }
    ),
    "a number is given again": _changed(
        lambda happened, changes: changes | ({"newest": 1} if happened == "rotation.given_up" else {})
    ),
    "rows of the old generation stay": _handler(rotations.EndGenerations, lambda right, store, asked: False),
    "what cannot be followed yet is confirmed": _handler(
        rotations.FollowRotation, lambda right, store, asked: right(store, asked) or True
    ),
}


FOUND_IN: dict[str, dict[str, Any]] = {
    "old keys go out after the close": WITH_A_KEY,
    "an end is steady before the other has closed": WITH_A_KEY,
    "an end closes before the other has cut": WITH_A_KEY,
    "old keys go out after the cut": WITH_A_KEY,
    "generations are not looked at on release": WITH_A_KEY,
    "what Bob wants is not told": BY_BOB,
    "Bob gives up by himself": BY_BOB,
    "a rotation is given up after the cut": BY_BOB,
    "a key that is destroyed while the far end takes it for active is not told": TAKEN_BY_BOTH,
    "what cannot be followed yet is confirmed": AGAIN,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    with pytest.raises(Violation), both_ends() as ends:
        Search(ends, **FOUND_IN.get(fault, BY_ALICE)).run()
