"""Comparisons over a wire that loses, repeats and reorders, with ends that crash, and with a neighbour that lies."""

import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from comparing import DAY_S, HOUR_S, Side, World
from msgspec.structs import replace
from vaults import FIRST, LINK, Pair

from qkdnode.ids import BatchId
from qkdnode.lifecycle.holdings import FAN_OUT, HASH_BYTES, NOTHING, STRETCH_BITS, node_digest, pack_stretch, path_of
from qkdnode.lifecycle.states import HOLDING, LETTERS, Stage
from qkdnode.link import comparison
from qkdnode.vault import requests as ask
from qkdnode.vault.doubts import CompareHeld
from qkdnode.vault.holdings import LogPosition
from qkdnode.vault.inventory import ListKeys
from qkdnode.vault.revocations import RevokeKeys
from qkdnode.wire.messages import (
    Delivered,
    HeldBundle,
    Holdings,
    HoldingsAsked,
    HoldingsDiffer,
    KeysRevoked,
    Message,
    Stretch,
    StretchAsked,
    StretchHeld,
)

Answer = Callable[[Message], Message]
pytestmark = pytest.mark.usefixtures("few_looks")


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "QUESTIONS", 200)


def plant_differences(world: World) -> None:
    """A revocation and a delivery that never come, keys damaged at one end, and some under way."""
    pair = world.pair
    ids = pair.ready(count=9)
    pair.bob.call(RevokeKeys(key_ids=ids[:2], reason="superseded", by="olga"))
    world.exchange(lost=KeysRevoked)
    world.deliver(world.bob, ids[3:5])
    world.exchange(lost=Delivered)
    lost = pair.ready(pair.bob, count=3)
    with pair.alice.tampering() as connection:
        connection.execute("UPDATE bundles SET size_bits = 512 WHERE number = (SELECT max(number) FROM bundles)")
    assert lost
    world.deliver(world.alice, ids[5:6])


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_wire_does_the_ends_come_to_the_same(world: World, seed: int) -> None:
    draws = random.Random(seed)

    def wire(side: Side, message: Message) -> Iterable[tuple[Message, float]]:
        if draws.random() < 0.1:
            return
        for _ in range(draws.choice([1, 1, 2])):
            yield message, draws.choice([0.0, 0.0, 0.5, 12.0])
        if draws.random() < 0.1 and isinstance(message, HoldingsAsked | StretchAsked):
            world.loop.call_later(0.01, side.comparison.take, message)  # reflected

    world.wire = wire
    plant_differences(world)
    crashes = [(t, draws.choice(world.sides).restart) for t in sorted(draws.uniform(0.5, 300) for _ in range(4))]
    world.play(600, *crashes)
    world.wire = lambda side, message: [(message, 0.0)]
    world.play(400)
    assert world.alice.stages() == {"ready": 6, "destroyed": 2, "delivered": 1}
    if not seed:
        world.play(1.5 * DAY_S)
        world.exchange()
        assert world.agrees()
    assert {side.comparison.state.failed for side in world.sides} <= {"", "'a' does not answer", "'b' does not answer"}
    assert not any(side.alarms["PROTOCOL"] for side in world.sides)


def test_a_vault_that_fails_loses_no_key_and_answers_again(world: World) -> None:
    plant_differences(world)

    def fail(failing: bool) -> None:
        world.bob.failing = failing

    world.play(400, (0.3, lambda: fail(True)), (100.0, lambda: fail(False)))
    assert world.alice.stages() == {"ready": 6, "destroyed": 2, "delivered": 1}
    assert world.bob.alarms["VAULT"]


def test_a_session_that_ends_ends_the_comparison_and_the_next_one_begins_it_anew(world: World) -> None:
    world.wire = lambda side, message: []

    def end() -> None:
        world.is_open = False
        for side in world.sides:
            side.comparison.session_closed()

    world.play(3.0, (1.0, end))
    for side in world.sides:
        assert side.comparison.state.failed == "the session has ended"
        assert not side.comparison.compare_now()
    world.is_open, world.wire = True, lambda side, message: [(message, 0.0)]
    world.play(3.0)
    assert all(side.comparison.state.agrees for side in world.sides)


def test_answers_that_nobody_has_asked_for_change_nothing(world: World) -> None:
    world.pair.ready(count=3)
    forged = StretchHeld(1, Stretch(FIRST, "alice", 0), "usable", 0, STRETCH_BITS, (), ())

    def flood() -> None:
        for number in range(1, 50):
            world.alice.comparison.take(replace(forged, number=number))
            world.alice.comparison.take(Holdings(number, b"", bytes(32), bytes(512), b"", False))

    world.play(100, (0.1, flood), (30.0, flood))
    assert world.alice.stages() == {"ready": 3}
    assert not world.alice.alarms


# --- a neighbour that lies -----------------------------------------------------------------------------------------


def lying(world: World, lie: Answer) -> None:
    """Bob's answers are replaced."""
    world.wire = lambda side, message: [(lie(message) if side is world.bob else message, 0.0)]


def random_hashes(message: Message) -> Message:
    """Different everywhere, and in themselves whole."""
    if isinstance(message, Holdings) and len(message.path) < 4:
        children = [bytes([step + 1]) * HASH_BYTES for step in range(FAN_OUT)]
        return replace(message, digest=node_digest(message.path, children), children=b"".join(children))
    return message


def test_hashes_that_differ_everywhere_cost_a_bounded_number_of_questions_and_no_key(
    world: World, few_questions: None
) -> None:
    ids = world.pair.ready(count=3)
    lying(world, random_hashes)
    world.play(600)
    state = world.alice.comparison.state
    assert state.looks == 1  # the next one is an hour later
    assert world.alice.stages() == {"ready": 3}
    assert world.alice.offered() == set(ids)
    assert state.questions <= comparison.QUESTIONS
    assert "more differs" in state.failed


LIES: dict[str, Answer] = {
    "hashes that do not go together": lambda m: (
        replace(m, digest=b"x" * 32) if isinstance(m, Holdings) and len(m.path) < 4 else m
    ),
    "fewer children": lambda m: replace(m, children=m.children[32:]) if isinstance(m, Holdings) else m,
    "another node": lambda m: replace(m, path=b"\1\2") if isinstance(m, Holdings) else m,
    "another kind": lambda m: (
        StretchHeld(m.number, Stretch(FIRST, "alice", 0), "usable", 0, STRETCH_BITS, (), ())
        if isinstance(m, Holdings)
        else m
    ),
}
OF_STRETCHES: dict[str, Answer] = {
    "another stretch": lambda m: replace(m, stretch=Stretch(BatchId(7, 7), "bob", 3)),
    "another offset": lambda m: replace(m, from_bits=8),
    "a page that ends where it begins": lambda m: replace(m, until_bits=m.from_bits),
    "a page that crawls": lambda m: replace(m, until_bits=m.from_bits + 1, bundles=(), spans=()),
    "a page beyond the stretch": lambda m: replace(m, until_bits=2 * STRETCH_BITS),
    "Bundles out of order": lambda m: replace(m, bundles=(*m.bundles, *m.bundles)),
    "a stage that is none": lambda m: replace(m, bundles=tuple(replace(b, states=b"?" * 3) for b in m.bundles)),
    "fewer marks than keys": lambda m: replace(m, bundles=tuple(replace(b, far=b"\0") for b in m.bundles)),
    "marks that are none": lambda m: replace(m, bundles=tuple(replace(b, far=b"\7" * 3) for b in m.bundles)),
    "stock out of order": lambda m: replace(m, spans=((64, 128), (0, 8))),
    "stock outside": lambda m: replace(m, spans=((0, 2 * STRETCH_BITS),)),
    "half bytes of stock": lambda m: replace(m, spans=((0, 7),)),
    "stock that is none": lambda m: replace(m, spans=((8, 8),)),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LIES, *OF_STRETCHES])
def test_what_contradicts_itself_is_an_alarm_and_changes_nothing(world: World, name: str) -> None:
    ids = world.pair.ready(count=3)
    stock = world.pair.alice.call(ask.Status()).stock_bits_own
    if name in LIES:
        lying(world, LIES[name])
    else:
        world.deliver(world.bob, ids[:1])  # so that the stretch is looked at
        lying(world, lambda m: OF_STRETCHES[name](m) if isinstance(m, StretchHeld) else m)
    world.play(300)
    assert world.alice.alarms["PROTOCOL"], world.alice.told
    assert "is not true" in world.alice.told[0]
    assert world.alice.stages() == {"ready": 3}
    assert world.alice.offered() == set(ids)
    assert world.pair.alice.call(ask.Status()).stock_bits_own == stock
    assert "is not true" in world.alice.comparison.state.failed


def test_a_bucket_without_an_end_is_left(world: World) -> None:
    world.pair.ready(count=3)

    def endless(message: Message) -> Message:
        if isinstance(message, Holdings):
            return replace(message, more=True) if len(message.path) == 4 else random_hashes(message)
        return message

    lying(world, endless)
    world.play(100)
    assert world.alice.alarms["PROTOCOL"]
    assert world.alice.stages() == {"ready": 3}


def test_stretches_that_there_are_not_cost_their_questions_alone(world: World, few_questions: None) -> None:
    world.pair.ready(count=3)
    made_up = [Stretch(BatchId(number, 1), "alice", 0) for number in range(3000)]

    def lie(message: Message) -> Message:
        if not isinstance(message, Holdings):
            return message
        if len(message.path) < 4:
            return random_hashes(message)
        names = sorted(pack_stretch(one) for one in made_up if path_of(one) == message.path)
        return replace(message, stretches=b"".join(name + b"h" * 32 for name in names))

    lying(world, lie)
    world.play(600)
    assert world.alice.stages() == {"ready": 3}
    assert world.alice.comparison.state.questions <= comparison.QUESTIONS


def test_who_denies_every_key_keeps_them_from_their_application_and_destroys_none_while_it_may_be_a_mistake(
    world: World,
) -> None:
    ids = world.pair.ready(count=3)
    truth = world.wire

    def deny(message: Message) -> Message:
        if isinstance(message, StretchHeld):
            return replace(message, bundles=())
        if isinstance(message, Holdings) and len(message.path) < 4:
            children = [NOTHING] * FAN_OUT
            return replace(message, digest=NOTHING, children=b"".join(children))
        return replace(message, stretches=b"") if isinstance(message, Holdings) else message

    lying(world, deny)
    world.play(20 * HOUR_S)
    assert world.alice.stages() == {"quarantined": 3}
    assert world.alice.offered() == set()
    assert world.alice.alarms["INVENTORY"]
    world.wire = truth
    world.play(200)
    assert world.alice.offered() == set(ids)
    assert world.agrees()
    assert not world.alice.doubts()


def test_a_flood_of_questions_is_answered_at_a_bounded_rate_and_kept_in_bounded_room(world: World) -> None:
    def flood() -> None:
        for number in range(2000):
            world.alice.comparison.take(HoldingsAsked(number, b"", b""))
            world.alice.comparison.take(HoldingsDiffer(bytes(32)))

    world.play(2.0)
    before = len(world.alice.sent)
    world.play(10.0, *((0.01 * n, flood) for n in range(1, 10)))
    answers = [m for m in world.alice.sent[before:] if isinstance(m, Holdings)]
    assert len(answers) <= comparison.BURST + comparison.INBOX + 10.0 * comparison.PER_S
    assert sum(isinstance(m, HoldingsAsked) for m in world.alice.sent[before:]) <= 6


def test_questions_about_what_there_cannot_be_are_not_answered(world: World) -> None:
    asked = [
        HoldingsAsked(1, b"\x10", b""),
        StretchAsked(2, Stretch(FIRST, "alice", 0), STRETCH_BITS),
        StretchAsked(3, Stretch(FIRST, "alice", 1), 0),
    ]
    world.play(3.0, *((0.1, lambda m=m: world.alice.comparison.take(m)) for m in asked))
    assert world.alice.alarms["PROTOCOL"] == 3
    assert not [m for m in world.alice.sent if isinstance(m, StretchHeld)]


def test_no_word_of_the_neighbour_about_one_key_releases_what_was_not_to_be(pair: Pair) -> None:
    """Every stage here, every lie about it, two looks a day apart: nothing is offered that was not before."""
    pair.stock(bits_out=700_000)
    world = World(pair)
    world.loop.close()
    lies = list(itertools.product((None, *Stage), (False, True), (False, True)))
    for own in ("ready", "delivered", "revoked", "compromised", "allocated"):
        ids = pair.allocate(pair.alice, len(lies))
        if own != "allocated":
            pair.exchange()
        if own == "delivered":
            world.deliver(world.alice, ids)
        elif own in ("revoked", "compromised"):
            reason = "superseded" if own == "revoked" else "key-compromise"
            pair.alice.call(RevokeKeys(key_ids=ids, reason=reason, by="olga"))
        before = world.alice.offered()
        (keys,) = {its.offset_bits - i * 256 for i, its in enumerate(_listed(pair, ids))}
        header = _header(pair, keys)
        for _ in range(2):
            for place, (stage, far, waits) in enumerate(lies):
                _look(pair, keys, place, header, len(ids), stage, far=far, waits=waits)
            pair.alice.counter.ahead_ns += 86_400 * 10**9
        offered = world.alice.offered()
        if own != "allocated":
            assert offered & set(ids) <= before
        assert offered.isdisjoint(ids) or own in ("ready", "allocated")
        states = {its.key_id: its.state for its in _listed(pair, ids)}
        if own in ("revoked", "compromised"):
            assert not any(LETTERS[Stage(state)] in HOLDING for state in states.values())


def _listed(pair: Pair, ids: Iterable[Any]) -> list[Any]:
    found, after = {}, 0
    while True:
        page = pair.alice.call(ListKeys(after=after))
        found.update({its.key_id: its for its in page.keys})
        if page.next is None:
            return [found[key_id] for key_id in ids]
        after = page.next


def _header(pair: Pair, offset_bits: int) -> bytes:
    held = pair.alice.call(_held_in(offset_bits))
    (row,) = [row for row in held.bundles if row.offset_bits == offset_bits]
    return bytes(row.header)


def _held_in(offset_bits: int) -> Any:
    from qkdnode.vault.holdings import HeldIn

    stretch = Stretch(FIRST, "alice", offset_bits // STRETCH_BITS)
    return HeldIn(link=LINK, stretch=stretch, from_bits=stretch.number * STRETCH_BITS)


def _look(
    pair: Pair, offset: int, place: int, header: bytes, count: int, stage: Stage | None, *, far: bool, waits: bool
) -> None:
    """The neighbour says this of one key, and of the others what this vault holds itself."""
    held = pair.alice.call(_held_in(offset))
    rows = []
    for row in held.bundles:
        if row.offset_bits != offset:
            rows.append(replace(row, waiting=False))
        elif stage is not None:
            states, marks = bytearray(row.states), bytearray(row.far)
            states[place], marks[place] = LETTERS[stage], int(far)
            rows.append(HeldBundle(offset, 256, header, bytes(states), bytes(marks), waits))
    since = pair.alice.call(LogPosition()) + 1
    pair.alice.call(CompareHeld(link=LINK, held=replace(held, bundles=tuple(rows)), since=since))


def test_who_lies_does_not_decide_when_it_is_asked_again(world: World, few_questions: None) -> None:
    lying(world, random_hashes)
    nudges = [
        (float(at), lambda: world.alice.comparison.take(HoldingsDiffer(bytes(32)))) for at in range(100, 1000, 50)
    ]
    world.play(1000, *nudges)
    assert world.alice.comparison.state.looks == 1
