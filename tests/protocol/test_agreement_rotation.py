"""What the agreement asks and says while an association is rotated, with vault and peer played by the test."""

from typing import Any

import msgspec
import pytest
from test_agreement import ENTITLED, HERE, End

from qkdnode.errors import OutOfStockError
from qkdnode.ids import Association
from qkdnode.lifecycle.rotation import PATIENCE_NS, STOCK_PATIENCE_NS, Phase
from qkdnode.vault import requests as ask
from qkdnode.vault.rotations import (
    AdvanceRotations,
    FollowRotation,
    GenerationPrepared,
    GiveUpRotation,
    RotationState,
)
from qkdnode.wire.messages import Received, RotationStands


class Rotating(End):
    """With a rotation in a phase, and keys of the next generation as they are cut."""

    def __init__(self, phase: Phase = Phase.AGREED) -> None:
        super().__init__()
        self.phase, self.cut_of_next, self.waited_ns, self.stock = phase, 0, 0, 2**30
        self.told_rotations: list[Association] = []
        self.answers |= {
            AdvanceRotations: lambda request: () if self.phase is Phase.STEADY else (self.state(),),
            GenerationPrepared: self._prepared,
            GiveUpRotation: self._give_up,
            FollowRotation: lambda request: request.message.number != 9,
        }
        around = msgspec.structs.replace(self.around, notify_rotation=self.told_rotations.append)
        self.around = around

    def state(self) -> RotationState:
        its = (1, 2, 2, self.phase, self.phase, "operator", "x", 0, 0, 0, self.waited_ns)
        return RotationState(HERE, *its, self.cut_of_next, self.cut_of_next, "", 0, 0)

    def _allocate(self, request: ask.AllocateKeys) -> tuple[Any, ...]:
        if request.count > self.stock:
            raise OutOfStockError("none")
        if request.generation != 2:
            return super()._allocate(request)
        self.cut_of_next += request.count
        return ()

    def _prepared(self, request: GenerationPrepared) -> RotationState:
        self.phase = Phase.PREPARED
        return self.state()

    def _give_up(self, request: GiveUpRotation) -> RotationState:
        self.phase = Phase.STEADY
        return self.state()


def test_first_keys_of_the_next_generation_are_cut_before_others_and_the_old_ones_go_on() -> None:
    end = Rotating()
    end.play(2.0, (0.1, lambda: end.subscribe(1024)))
    cuts = [(one.generation, one.count) for _, one in end.of(ask.AllocateKeys)]
    assert cuts == [(2, 256), (1, 512)]
    assert [one.keys for _, one in end.of(GenerationPrepared)] == [256]
    assert HERE in end.told_rotations


def test_a_quota_that_leaves_less_room_has_fewer_keys_prepared() -> None:
    end = Rotating()

    def entitled(request: ask.Entitle) -> ask.Entitlement:
        left = 8 - end.outstanding - end.cut_of_next
        return msgspec.structs.replace(ENTITLED, outstanding=end.outstanding, room=left)

    end.answers[ask.Entitle] = entitled
    end.play(1.0, (0.1, lambda: end.subscribe(1024)))
    assert [(one.generation, one.count) for _, one in end.of(ask.AllocateKeys)] == [(2, 4), (1, 4)]
    assert [one.keys for _, one in end.of(GenerationPrepared)] == [4]


@pytest.mark.parametrize("patient", [True, False])
def test_a_rotation_for_which_there_is_no_stock_is_given_up_after_a_while(patient: bool) -> None:
    end = Rotating()
    end.stock, end.waited_ns = 0, STOCK_PATIENCE_NS - 1 if patient else STOCK_PATIENCE_NS
    end.play(3.0, (0.1, lambda: end.subscribe(64)))
    assert [one.reason for _, one in end.of(GiveUpRotation)] == ([] if patient else ["out of stock"])


def test_nothing_is_cut_of_the_next_generation_once_it_is_prepared_or_while_an_application_is_away() -> None:
    end = Rotating(Phase.OFFERED)
    end.play(1.0, (0.1, lambda: end.subscribe(64)))
    assert {one.generation for _, one in end.of(ask.AllocateKeys)} == {1}
    away = Rotating()
    away.play(1.0)
    assert away.of(ask.AllocateKeys) == []


def test_a_rehearsal_hears_of_the_applications_that_are_connected_and_of_no_others() -> None:
    end = Rotating()
    assert end.agreement.subscriptions(HERE) == (None, None)
    end.play(1.0, (0.1, lambda: end.subscribe(64)))
    here, there = end.agreement.subscriptions(HERE)
    assert here is not None
    assert there is not None
    assert (here.association, here.credit, there.local, there.credit) == (HERE, 64, HERE.remote, 64)
    end.agreement.subscribed(msgspec.structs.replace(here, connected=False))
    assert end.agreement.subscriptions(HERE)[0] is None


def test_a_rotation_that_waits_alarms_once_a_minute() -> None:
    end = Rotating(Phase.OFFERED)
    end.waited_ns = PATIENCE_NS - 1
    end.play(2.0)
    assert end.alarms == []
    late = Rotating(Phase.OFFERED)
    late.waited_ns = PATIENCE_NS
    late.play(5.0, (4.0, lambda: setattr(late, "waited_ns", 2 * PATIENCE_NS)))
    assert late.alarms == ["ROTATION", "ROTATION"]


def test_what_was_followed_is_confirmed_and_what_cannot_be_followed_yet_is_not() -> None:
    end = Rotating(Phase.STEADY)
    said = [RotationStands(11, "ledger", "payroll", number, "cut") for number in (2, 9)]
    end.play(0.5, (0.1, lambda: [end.agreement.take(one) for one in said]))
    assert [one for _, one in end.of(Received)] == [Received((11,))]


def test_a_rotation_that_is_over_is_told_to_whoever_supplies() -> None:
    end = Rotating(Phase.CLOSED)
    end.play(3.0, (1.5, lambda: (setattr(end, "phase", Phase.STEADY), end.agreement.rotated())))
    assert end.told_rotations == [HERE, HERE]
    assert end.told.count("payroll") == 2


def test_while_the_link_is_cut_the_vault_is_asked_so_and_the_application_hears_of_what_a_courier_brought() -> None:
    end = Rotating(Phase.AGREED)
    end.is_open = False
    end.waited_ns = 5 * PATIENCE_NS
    end.subscribe(64)
    end.play(4.0, (1.5, lambda: (setattr(end, "phase", Phase.OFFERED), end.agreement.rotated())))
    assert {one.cut for _, one in end.of(AdvanceRotations)} == {True}
    assert end.told_rotations == [HERE, HERE]
    assert end.of(ask.AllocateKeys) == []
    assert end.alarms == [], "everybody knows that the link is cut"
    end = Rotating(Phase.OFFERED)
    end.play(2.5)
    assert {one.cut for _, one in end.of(AdvanceRotations)} == {False}


def test_one_that_is_begun_while_the_vault_is_asked_is_not_overlooked() -> None:
    end = Rotating(Phase.STEADY)

    def asked(request: AdvanceRotations) -> tuple[RotationState, ...]:
        if len(end.of(AdvanceRotations)) == 1:
            end.agreement.rotated()
            return ()
        return (end.state(),)

    end.answers[AdvanceRotations] = asked
    end.play(1.5)
    assert len(end.of(AdvanceRotations)) > 1
