"""What applications are told of generations: each thing once, whatever the wire loses or repeats."""

from collections.abc import Callable
from random import Random

import pytest
from test_supply_protocol import ASSOCIATION, RESEND_S, attendant_for, subscriber_for

from qkdnode.client.subscriber import GenerationChange, Transmit
from qkdnode.client.subscriber import Outcome as ClientOutcome
from qkdnode.errors import LocalProtocolError
from qkdnode.ids import KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.supply.protocol import GenerationTaken, Reply, SubscriptionWanted
from qkdnode.supply.protocol import Outcome as NodeOutcome
from qkdnode.vault.requests import Delivery


class Wire:
    """Both machines, with frames that a test may lose or repeat, and an application that accepts what it is offered."""

    def __init__(self, pass_on: Callable[[bytes], int] = lambda frame: 1) -> None:
        self.now_s, self.pass_on = 0.0, pass_on
        self.attendant, self.subscriber = attendant_for(), subscriber_for()
        self.told: list[tuple[str, int]] = []
        self.taken: list[int] = []
        self.hesitates = False
        self.current, self.coming, self.is_offered = 1, 0, False
        self.client(self.subscriber.connect(0.0), sure=True)
        assert self.attendant.subscription is not None

    def client(self, outcomes: list[ClientOutcome], *, sure: bool = False) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Transmit):
                for _ in range(1 if sure else self.pass_on(outcome.frame)):
                    self.node(self.attendant.receive(outcome.frame, self.now_s), sure=sure)
            elif isinstance(outcome, GenerationChange):
                self.told.append((outcome.what, outcome.number))
                if outcome.what == "offered" and self.hesitates:
                    self.subscriber.hesitate()
                elif outcome.what == "offered":
                    self.client(self.subscriber.accept(outcome.number, self.now_s))

    def node(self, outcomes: list[NodeOutcome], *, sure: bool = False) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Reply):
                self.to_client(outcome.frame, sure=sure)
            elif isinstance(outcome, SubscriptionWanted):
                self.to_client(self.attendant.subscribe(outcome), sure=sure)
            elif isinstance(outcome, GenerationTaken):
                assert outcome.association == ASSOCIATION
                self.taken.append(outcome.number)
                if outcome.number == self.coming:
                    self.is_offered = False
                    self.tell()

    def to_client(self, frame: bytes, *, sure: bool = False) -> None:
        for _ in range(1 if sure else self.pass_on(frame)):
            self.client(self.subscriber.receive(frame, self.now_s), sure=sure)

    def tell(self) -> None:
        for frame in self.attendant.tell_generations(self.current, self.coming, self.is_offered, self.now_s):
            self.to_client(frame)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        for frame in self.attendant.tell_again(self.now_s):
            self.to_client(frame)

    def offer(self, number: int) -> None:
        self.coming, self.is_offered = number, True
        self.tell()

    def finish(self) -> None:
        self.current, self.coming, self.is_offered = self.coming, 0, False
        self.tell()


def test_an_application_hears_of_an_offer_accepts_it_and_hears_when_it_is_the_one() -> None:
    wire = Wire()
    wire.offer(2)
    assert wire.taken == [2]
    wire.finish()
    assert wire.told == [("offered", 2), ("current", 2)]
    assert wire.subscriber.generation == 2
    wire.wait(1000.0)
    assert wire.told == [("offered", 2), ("current", 2)], "what was answered is not said again"


@pytest.mark.parametrize("seed", range(6))
def test_a_wire_that_loses_and_repeats_only_delays_it(seed: int) -> None:
    draws = Random(seed)
    wire = Wire()
    wire.pass_on = lambda frame: draws.choice([0, 0, 1, 2])
    for number in (2, 3, 5):
        wire.offer(number)
        while wire.is_offered:
            wire.wait(60.0)
        wire.finish()
        while wire.attendant.subscription is not None and wire.attendant.subscription.current is not None:
            wire.wait(60.0)
    assert wire.told == [(what, number) for number in (2, 3, 5) for what in ("offered", "current")]
    assert set(wire.taken) == {2, 3, 5}


def test_who_hesitates_is_asked_again() -> None:
    wire = Wire()
    wire.hesitates = True
    wire.offer(2)
    assert (wire.told, wire.taken) == ([("offered", 2)], [])
    wire.wait(RESEND_S - 1)
    assert wire.told == [("offered", 2)]
    wire.hesitates = False
    wire.wait(1)
    assert wire.told == [("offered", 2)] * 2
    assert wire.taken == [2]


@pytest.mark.parametrize("accepted", [False, True])
def test_what_was_offered_and_will_not_come_is_withdrawn_and_what_comes_is_not(accepted: bool) -> None:
    wire = Wire()
    wire.hesitates = not accepted
    wire.offer(2)
    wire.coming, wire.is_offered = 0, False
    wire.tell()
    wire.tell()
    assert wire.told == [("offered", 2), ("withdrawn", 2)]
    wire.hesitates = False
    wire.offer(3)
    wire.finish()
    assert wire.told[2:] == [("offered", 3), ("current", 3)]


def test_an_acceptance_that_could_not_be_journalled_is_asked_for_again_and_not_reported_twice() -> None:
    wire = Wire()
    wire.coming, wire.is_offered = 2, True
    before = wire.attendant.tell_generations(1, 2, True, 0.0)
    wire.coming = 0  # nothing follows from the first acceptance
    for frame in before:
        wire.to_client(frame)
    assert wire.taken == [2]
    wire.wait(1000.0)
    assert wire.taken == [2], "it waits for the journal"
    wire.attendant.offer_again(wire.now_s)
    wire.wait(RESEND_S)
    assert wire.taken == [2, 2]
    assert wire.told == [("offered", 2)]


def test_only_what_is_offered_is_taken() -> None:
    wire = Wire()
    wire.client(wire.subscriber.accept(7, 0.0))
    assert wire.taken == []
    wire.offer(2)
    wire.client(wire.subscriber.accept(7, 0.0))
    assert wire.taken == [2]


def test_a_message_with_keys_has_those_of_one_generation_and_says_which() -> None:
    wire = Wire()
    rows = [Delivery(i, KeyId(int=i), ASSOCIATION, 256, 1 + i) for i in (1, 2)]
    with SecretBuffer.copy_of(bytes(64)) as material, pytest.raises(LocalProtocolError, match="generations"):
        wire.attendant.send_keys(rows, material, 0.0)
    with SecretBuffer.copy_of(bytes(32)) as material:
        (arrived,) = wire.subscriber.receive(wire.attendant.send_keys(rows[1:], material, 0.0), 0.0)
    assert arrived.generation == 3  # type: ignore[union-attr]
    arrived.material.release()  # type: ignore[union-attr]
