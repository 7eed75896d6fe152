"""Both ends of the supply of keys, over a channel that loses, repeats, reorders, reflects and corrupts, and crashes."""

import hashlib
from collections.abc import Callable
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkdnode.access.identities import ApplicationIdentity, NodeIdentity
from qkdnode.channel.identity import OwnIdentity, make_identity
from qkdnode.channel.session import MAX_MESSAGES, Opening, Session, accept, draw_from_system
from qkdnode.client import subscriber
from qkdnode.client.subscriber import KeyArrived, KeyNotFetched, KeysOutOfUse, Refusal, Subscriber, Transmit
from qkdnode.client.subscriber import Outcome as ClientOutcome
from qkdnode.errors import AuthenticationError, LocalProtocolError, MemoryLockError, NoEntropyError, RemoteProtocolError
from qkdnode.ids import Association
from qkdnode.native.secret import SecretBuffer, equal
from qkdnode.supply import protocol
from qkdnode.supply.protocol import (
    Attendant,
    Discarded,
    EndingsNoted,
    KeysAcknowledged,
    KeysWanted,
    NotSent,
    OpenRefused,
    Reply,
    SubscriptionEnded,
    SubscriptionWanted,
)
from qkdnode.supply.protocol import Outcome as NodeOutcome
from qkdnode.supply.throttle import Throttle
from qkdnode.vault.endings import Ended
from qkdnode.vault.requests import Delivery
from qkdnode.wire.supply import (
    MAX_SUPPLY_BYTES,
    Accept,
    Alive,
    Open,
    Refused,
    Sealed,
    Subscribe,
    Unknown,
    decode_outer,
    encode,
    keys_body,
)

NODE, OTHER_NODE = make_identity("node", "n"), make_identity("node", "n")
APPLICATION, OTHER_APPLICATION = make_identity("application", "app"), make_identity("application", "other")
ASSOCIATION = Association("app", "far", "link")
LAPSE_S, RESEND_S = 15.0, 5.0


def application_of(own: OwnIdentity) -> ApplicationIdentity:
    assert isinstance(own.public, ApplicationIdentity)
    return own.public


def node_of(own: OwnIdentity) -> NodeIdentity:
    assert isinstance(own.public, NodeIdentity)
    return own.public


def attendant_for(application: OwnIdentity = APPLICATION, now_s: float = 0.0) -> Attendant:
    return Attendant(
        NODE,
        application_of(application),
        draw_into=draw_from_system,
        alive_ms=4000,
        lapse_s=LAPSE_S,
        resend_s=RESEND_S,
        key_class="qkd",
        now_s=now_s,
    )


def subscriber_for(application: OwnIdentity = APPLICATION, credit: int = 3) -> Subscriber:
    return Subscriber(application, node_of(NODE), remote="far", link="link", size_bits=256, credit=credit)


def material_of(key_id: UUID) -> bytes:
    return hashlib.sha256(b"key" + key_id.bytes).digest()


class World:
    """A node, its vault, an application with a user, and a channel whose frames the test moves by hand."""

    def __init__(self, keys: int = 8, credit: int = 3) -> None:
        self.now_s = 0.0
        self.credit = credit
        self.outbox = {UUID(int=i + 1): Delivery(i + 1, UUID(int=i + 1), ASSOCIATION, 256) for i in range(keys)}
        self.delivered: set[UUID] = set()
        self.user_acknowledged: set[UUID] = set()
        self.most_unacknowledged = 0
        self.refusals: list[str] = []
        self.node_discards = 0
        self.not_sent = 0
        self.to_node: list[bytes] = []
        self.to_application: list[bytes] = []
        self.start_node()
        self.start_application()

    def start_node(self) -> None:
        self.attendant = attendant_for(now_s=self.now_s)

    def start_application(self) -> None:
        self.subscriber = subscriber_for(credit=self.credit)
        self.yielded: list[UUID] = []
        self.unacknowledged: list[UUID] = []
        self.client(self.subscriber.connect(self.now_s))

    def client(self, outcomes: list[ClientOutcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Transmit(frame):
                    self.to_node.append(frame)
                case KeyArrived(key_id, association, size_bits, key_class, material):
                    assert key_id not in self.yielded, "a key was reported twice"
                    assert (association, size_bits, key_class) == (ASSOCIATION, 256, "qkd")
                    assert equal(material, material_of(key_id))
                    material.release()
                    self.yielded.append(key_id)
                    self.unacknowledged.append(key_id)
                case Refusal(reason):
                    self.refusals.append(reason)

    def node(self, outcomes: list[NodeOutcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Reply(frame):
                    self.to_application.append(frame)
                case SubscriptionWanted():
                    self.to_application.append(self.attendant.subscribe(outcome))
                    self.supply()
                case KeysAcknowledged(key_ids):
                    assert set(key_ids) <= self.user_acknowledged, "a key was delivered that nobody acknowledged"
                    self.delivered |= set(key_ids)
                    for key_id in key_ids:
                        self.outbox.pop(key_id, None)
                    frame = self.attendant.record(key_ids)
                    assert frame is not None
                    self.to_application.append(frame)
                    self.supply()
                case Discarded():
                    self.node_discards += 1
                case NotSent(key_ids):
                    self.not_sent += len(key_ids)
                case SubscriptionEnded() | OpenRefused():
                    pass

    def supply(self) -> None:
        subscription = self.attendant.subscription
        if subscription is None:
            return
        fresh = [row for row in self.outbox.values() if row.key_id not in subscription.sent][: subscription.room]
        for rows in (self.attendant.due(self.now_s), fresh):
            if rows:
                with SecretBuffer.copy_of(b"".join(material_of(row.key_id) for row in rows)) as material:
                    self.to_application.append(self.attendant.send_keys(rows, material, self.now_s))
        self.most_unacknowledged = max(self.most_unacknowledged, len(subscription.sent) + len(subscription.settling))

    def pass_to_node(self, frame: bytes) -> None:
        self.node(self.attendant.receive(frame, self.now_s))

    def pass_to_application(self, frame: bytes) -> None:
        self.client(self.subscriber.receive(frame, self.now_s))

    def acknowledge(self, count: int = 1) -> None:
        said, self.unacknowledged = self.unacknowledged[:count], self.unacknowledged[count:]
        if said:
            self.user_acknowledged |= set(said)
            self.client(self.subscriber.acknowledge(said, self.now_s))

    def tick(self, seconds: float) -> None:
        self.now_s += seconds
        self.client(self.subscriber.tick(self.now_s))
        self.node(self.attendant.tick(self.now_s))
        self.supply()

    def settle(self) -> None:
        """A channel that works again, for as long as it takes."""
        for _ in range(60):
            while self.to_node or self.to_application:
                if self.to_node:
                    self.pass_to_node(self.to_node.pop(0))
                if self.to_application:
                    self.pass_to_application(self.to_application.pop(0))
                self.acknowledge(10)
            if not self.outbox:
                return
            self.tick(2.0)


def either(world: World, index: int) -> tuple[list[bytes], int] | None:
    queue = (world.to_node, world.to_application)[index % 2]
    return (queue, index // 2 % len(queue)) if queue else None


def forward(world: World, index: int) -> None:
    if index % 2 and world.to_node:
        world.pass_to_node(world.to_node.pop(0))
    elif world.to_application:
        world.pass_to_application(world.to_application.pop(0))


def drop(world: World, index: int) -> None:
    if found := either(world, index):
        del found[0][found[1]]


def repeat(world: World, index: int) -> None:
    if found := either(world, index):
        found[0].append(found[0][found[1]])


def reorder(world: World, index: int) -> None:
    if found := either(world, index):
        found[0].insert(0, found[0].pop(found[1]))


def reflect(world: World, index: int) -> None:
    if found := either(world, index):
        (world.to_application, world.to_node)[index % 2].insert(0, found[0][found[1]])


def corrupt(world: World, index: int) -> None:
    if found := either(world, index):
        queue, at = found
        frame = bytearray(queue[at])
        frame[index % len(frame)] ^= 1 << index % 8
        queue[at] = bytes(frame)


ACTIONS: dict[str, Callable[[World, int], None]] = {
    "forward": forward,
    "drop": drop,
    "repeat": repeat,
    "reorder": reorder,
    "reflect": reflect,
    "corrupt": corrupt,
    "acknowledge": lambda world, index: world.acknowledge(1 + index % 3),
    "wait": lambda world, index: world.tick(0.5 * (1 + index % 12)),
    "crash the node": lambda world, index: world.start_node(),
    "crash the application": lambda world, index: world.start_application(),
    "reconnect": lambda world, index: world.client(world.subscriber.connect(world.now_s)),
}
# Mostly progress, or no schedule would get far enough to be interesting.
LIKELY = ["forward"] * 12 + ["acknowledge"] * 3 + ["wait"] * 2 + list(ACTIONS)
SCHEDULES = st.lists(st.tuples(st.sampled_from(LIKELY), st.integers(0, 100_000)), max_size=80)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(SCHEDULES)
def test_no_channel_behaviour_loses_a_key_or_yields_it_twice(schedule: list[tuple[str, int]]) -> None:
    world = World()
    for name, index in schedule:
        ACTIONS[name](world, index)
        assert world.most_unacknowledged <= world.credit
    world.settle()
    assert world.outbox == {}
    assert len(world.delivered) == 8
    assert world.refusals == []


def subscribed_world(keys: int = 4, credit: int = 4) -> World:
    world = World(keys, credit)
    while not world.subscriber.subscribed:
        forward(world, 1)
        forward(world, 0)
    return world


def test_a_lost_acknowledgement_is_made_up_for_by_a_repeated_key() -> None:
    world = subscribed_world(keys=1)
    world.pass_to_application(world.to_application.pop(0))
    world.acknowledge()
    world.to_node.clear()
    assert not world.delivered
    world.tick(RESEND_S)
    world.pass_to_application(world.to_application.pop(0))
    assert world.subscriber.repeated == 1
    assert len(world.yielded) == 1
    world.settle()
    assert len(world.delivered) == 1


def test_a_repeated_key_is_sealed_under_a_new_sequence_number() -> None:
    world = subscribed_world(keys=1)
    world.tick(RESEND_S)
    first, second = (msgspec.msgpack.decode(frame) for frame in world.to_application)
    assert first[3] == second[3]
    assert first[2] < second[2]
    assert first[4] != second[4]


def test_repeated_frames_are_discarded_and_counted_at_both_ends() -> None:
    world = subscribed_world(keys=1)
    key = world.to_application.pop(0)
    for _ in range(3):
        world.pass_to_application(key)
    assert world.subscriber.discarded == 2
    assert len(world.yielded) == 1
    world.acknowledge()
    for _ in range(3):
        world.pass_to_node(world.to_node[0])
    assert world.node_discards == 2


def test_too_many_bad_messages_drop_the_session_and_the_application_opens_another() -> None:
    world = subscribed_world()
    key = world.to_application[0]
    for _ in range(protocol.MAX_DISCARDS + 1):
        world.pass_to_node(key)
    assert world.attendant.subscription is None
    world.settle()
    assert world.subscriber.sessions == 2
    assert len(world.delivered) == 4


def test_an_application_whose_subscription_lapsed_while_it_slept_comes_back() -> None:
    world = subscribed_world()
    world.now_s += LAPSE_S
    outcomes = world.attendant.tick(world.now_s)
    assert [type(outcome) for outcome in outcomes] == [Reply, SubscriptionEnded]
    world.settle()
    assert world.subscriber.sessions == 2
    assert world.outbox == {}


def test_a_session_ends_at_its_age() -> None:
    world = subscribed_world()
    for _ in range(24 * 3600 // 12):
        world.now_s += 12.0
        world.pass_to_node(world.subscriber._say(Alive(), world.now_s).frame)
    world.tick(0.0)
    world.settle()
    assert world.subscriber.sessions == 2


def test_a_repeated_open_does_not_disturb_the_session() -> None:
    world = World()
    opening = world.to_node[0]
    for _ in range(20):
        forward(world, 1)
        forward(world, 0)
    world.pass_to_node(opening)
    world.to_application.pop()
    world.settle()
    assert world.subscriber.sessions == 1
    assert len(world.delivered) == 8


def test_an_application_cannot_acknowledge_what_was_not_sent_to_it() -> None:
    world = subscribed_world(keys=2, credit=1)
    world.client(world.subscriber.acknowledge([UUID(int=2)], world.now_s))
    world.pass_to_node(world.to_node.pop())
    assert world.delivered == set()
    assert (world.not_sent, world.node_discards) == (1, 1)


def test_a_repeated_acknowledgement_is_no_surprise() -> None:
    world = subscribed_world(keys=3)
    world.pass_to_application(world.to_application.pop(0))
    ids = list(world.unacknowledged)
    world.acknowledge(3)
    for _ in range(2):
        world.client(world.subscriber.acknowledge(ids, world.now_s))
    while world.to_node:
        world.pass_to_node(world.to_node.pop(0))
    assert world.delivered == set(ids)
    assert (world.not_sent, world.node_discards) == (0, 0)


def test_of_keys_acknowledged_together_those_that_were_sent_count() -> None:
    world = subscribed_world(keys=2, credit=1)
    world.pass_to_application(world.to_application.pop(0))
    world.user_acknowledged |= {UUID(int=1)}
    world.client(world.subscriber.acknowledge([UUID(int=1), UUID(int=2), UUID(int=77)], world.now_s))
    world.pass_to_node(world.to_node.pop())
    assert world.delivered == {UUID(int=1)}
    assert world.not_sent == 2


def test_whoever_goes_on_acknowledging_what_was_not_sent_loses_the_session() -> None:
    world = subscribed_world(keys=1)
    for number in range(protocol.MAX_DISCARDS + 1):
        world.client(world.subscriber.acknowledge([UUID(int=100 + number)], world.now_s))
        world.pass_to_node(world.to_node.pop())
    assert world.attendant.subscription is None
    world.settle()
    assert world.delivered == {UUID(int=1)}


def test_many_keys_come_in_one_message_and_out_one_by_one() -> None:
    world = subscribed_world(keys=128, credit=128)
    assert len(world.to_application) == 1
    assert len(world.to_application[0]) < MAX_SUPPLY_BYTES
    world.pass_to_application(world.to_application.pop(0))
    assert world.yielded == list(world.outbox)


def test_of_keys_sent_again_together_the_new_ones_are_reported() -> None:
    world = subscribed_world(keys=3)
    lost = world.to_application.pop(0)
    world.tick(RESEND_S)
    world.pass_to_application(world.to_application.pop(0))
    world.acknowledge(1)
    world.to_node.clear()
    world.pass_to_application(lost)
    assert world.subscriber.discarded == 1  # an old number
    world.pass_to_node(world.subscriber._say(Alive(), world.now_s).frame)
    world.tick(2 * RESEND_S)
    world.pass_to_application(world.to_application.pop(0))
    assert world.subscriber.repeated == 3
    world.settle()
    assert len(world.yielded) == 3
    assert world.outbox == {}


def test_keys_for_which_no_memory_can_be_locked_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = subscribed_world(keys=3)

    class Short:
        left = 2

        @classmethod
        def copy_of(cls, source: memoryview) -> SecretBuffer:
            cls.left -= 1
            if cls.left < 0:
                raise MemoryLockError("cannot lock 32 bytes")
            return SecretBuffer.copy_of(source)

    with monkeypatch.context() as patch:
        patch.setattr(subscriber, "SecretBuffer", Short)
        world.pass_to_application(world.to_application.pop(0))
    assert len(world.yielded) == 2
    assert "cannot lock" in world.subscriber.failure
    world.settle()
    assert len(world.yielded) == 3


def test_keys_that_do_not_fit_together_are_not_sealed() -> None:
    world = subscribed_world(keys=0, credit=300)
    rows = [Delivery(i, UUID(int=i), ASSOCIATION, 256) for i in range(129)]
    other = Delivery(1, UUID(int=1), Association("app", "another", "link"), 256)
    long = Delivery(2, UUID(int=2), ASSOCIATION, 512)
    for some, size in ((rows, 129 * 32), (rows[:2], 32), ([other], 32), ([rows[0], long], 96), ([], 32)):
        with SecretBuffer(size) as material, pytest.raises(LocalProtocolError):
            world.attendant.send_keys(some, material, 0.0)
    assert world.attendant.subscription is not None
    assert world.attendant.subscription.sent == {}


@pytest.mark.parametrize("wrong", ["too short", "another association", "no material"])
def test_keys_that_do_not_fit_their_message_are_not_taken(wrong: str) -> None:
    world = subscribed_world(keys=0)
    association = Association("app", "another", "link") if wrong == "another association" else ASSOCIATION
    body = keys_body([UUID(int=1), UUID(int=2)], association, 256, "qkd")
    with SecretBuffer(63 if wrong == "too short" else 64) as material:
        world.to_application.append(world.attendant._seal(body, None if wrong == "no material" else material))
    world.pass_to_application(world.to_application.pop())
    assert world.yielded == []
    assert world.subscriber.discarded == 1


def test_a_message_of_one_session_is_nothing_to_another() -> None:
    """Same application, same node, two connections: neither acknowledges for the other."""
    one, two = subscribed_world(keys=1), subscribed_world(keys=1)
    one.pass_to_application(one.to_application.pop(0))
    one.acknowledge()
    two.pass_to_node(one.to_node.pop())
    assert two.delivered == set()
    assert isinstance(decode_outer(two.to_application[-1]), Unknown)


# The agreement


def agreed() -> tuple[Session, Session]:
    opening = Opening(APPLICATION, node_of(NODE))
    answer, at_node = accept(opening.message, NODE, application_of(APPLICATION), draw_from_system, 0.0)
    return opening.finish(answer, 0.0), at_node


def sealed(frame: bytes) -> Sealed:
    message = decode_outer(frame)
    assert isinstance(message, Sealed)
    return message


def test_both_ends_derive_the_same_keys_and_each_session_others() -> None:
    (application, node), (_, other) = agreed(), agreed()
    with SecretBuffer.copy_of(b"k" * 32) as key:
        message = sealed(node.seal(Alive(), key))
        assert b"k" * 8 not in message.sealed
        _, material = application.open(message)
    assert material is not None
    assert equal(material, b"k" * 32)
    assert other.identifier != node.identifier
    with pytest.raises(RemoteProtocolError):
        other.open(sealed(application.seal(Alive())))


def test_a_reflected_message_does_not_verify() -> None:
    application, _ = agreed()
    with pytest.raises(AuthenticationError):
        application.open(sealed(application.seal(Alive())))


@pytest.mark.parametrize("field", ["session", "sequence", "body", "sealed"])
def test_every_field_of_a_sealed_message_is_covered(field: str) -> None:
    application, node = agreed()
    message = sealed(application.seal(Alive()))
    changed = {
        "session": bytes(8),
        "sequence": message.sequence + 1,
        "body": encode(Subscribe("far", "link", 256, 1)),
        "sealed": bytes(16),
    }[field]
    with pytest.raises((AuthenticationError, RemoteProtocolError)):
        node.open(msgspec.structs.replace(message, **{field: changed}))
    assert node.open(message) == (encode(Alive()), None)


def test_a_forgery_does_not_move_the_sequence() -> None:
    application, node = agreed()
    message = sealed(application.seal(Alive()))
    with pytest.raises(AuthenticationError):
        node.open(msgspec.structs.replace(message, sequence=MAX_MESSAGES))
    node.open(message)


def test_no_sequence_number_is_used_beyond_the_last() -> None:
    application, _ = agreed()
    application._sent = MAX_MESSAGES
    assert application.is_used_up(0.0)
    with pytest.raises(LocalProtocolError, match="open a new one"):
        application.seal(Alive())


def test_only_the_named_application_opens_a_session_with_only_the_named_node() -> None:
    message = Opening(APPLICATION, node_of(NODE)).message
    for node, application in ((NODE, OTHER_APPLICATION), (OTHER_NODE, APPLICATION)):
        with pytest.raises(AuthenticationError, match="is not signed by"):
            accept(message, node, application_of(application), draw_from_system, 0.0)


@pytest.mark.parametrize("field", ["application", "x25519", "mlkem", "nonce", "signature"])
def test_a_changed_open_is_refused(field: str) -> None:
    message = Opening(APPLICATION, node_of(NODE)).message
    value = "other" if field == "application" else bytes(len(getattr(message, field)))
    changed = msgspec.structs.replace(message, **{field: value})
    outcomes = attendant_for().receive(encode(changed), 0.0)
    assert isinstance(outcomes[0], OpenRefused)
    assert isinstance(outcomes[1], Reply)
    assert isinstance(decode_outer(outcomes[1].frame), Refused)


@pytest.mark.parametrize("field", ["session", "x25519", "ciphertext", "nonce", "signature"])
def test_a_changed_accept_is_refused(field: str) -> None:
    opening = Opening(APPLICATION, node_of(NODE))
    answer, _ = accept(opening.message, NODE, application_of(APPLICATION), draw_from_system, 0.0)
    with pytest.raises(AuthenticationError, match="not signed by node n"):
        opening.finish(msgspec.structs.replace(answer, **{field: bytes(len(getattr(answer, field)))}), 0.0)


def test_an_accept_answers_one_open_only() -> None:
    one, two = Opening(APPLICATION, node_of(NODE)), Opening(APPLICATION, node_of(NODE))
    answer, _ = accept(one.message, NODE, application_of(APPLICATION), draw_from_system, 0.0)
    with pytest.raises(AuthenticationError):
        two.finish(answer, 0.0)


def test_a_low_order_point_is_refused_even_if_it_is_signed() -> None:
    opening = Opening(APPLICATION, node_of(NODE))
    public = NODE.public
    from qkdnode.wire.supply import open_transcript

    bad = msgspec.structs.replace(opening.message, x25519=bytes(32))
    signature = APPLICATION.sign(open_transcript(public.name, public.ed25519, APPLICATION.public.ed25519, bad))
    bad = msgspec.structs.replace(bad, signature=signature)
    with pytest.raises(RemoteProtocolError, match="X25519 or ML-KEM"):
        accept(bad, NODE, application_of(APPLICATION), draw_from_system, 0.0)


def test_a_node_without_entropy_opens_no_session_and_says_so() -> None:
    def dry(buffer: memoryview) -> None:
        raise NoEntropyError("no healthy QRNG")

    attendant = attendant_for()
    attendant._draw_into = dry
    subscriber = subscriber_for()
    (opening,) = subscriber.connect(0.0)
    assert isinstance(opening, Transmit)
    refused, reply = attendant.receive(opening.frame, 0.0)
    assert isinstance(refused, OpenRefused)
    assert isinstance(reply, Reply)
    assert subscriber.receive(reply.frame, 0.0) == []
    assert "no healthy source of random numbers" in subscriber.failure
    assert len(subscriber.tick(10.0)) == 1


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=300))
def test_any_bytes_decode_to_a_canonical_message_or_a_remote_error(data: bytes) -> None:
    try:
        message = decode_outer(data)
    except RemoteProtocolError:
        return
    assert encode(message) == data


def test_oversized_and_overlong_encodings_are_refused() -> None:
    frame = encode(Unknown(bytes(8)))
    for bad in (frame + b"\0", bytes(100_000), frame[:-1], b"", b"\xc1", frame.replace(b"\xc4\x08", b"\xc5\x00\x08")):
        with pytest.raises(RemoteProtocolError):
            decode_outer(bad)


def test_every_outer_message_has_its_own_tag() -> None:
    tags = [message.__struct_config__.tag for message in (Open, Accept, Refused, Unknown, Sealed)]
    assert len(set(tags)) == len(tags)


def test_a_throttled_topic_speaks_again_and_says_what_was_left_out() -> None:
    throttle = Throttle(burst=2, per_s=1.0)
    assert [throttle.take("a", 0.0) for _ in range(4)] == [0, 0, None, None]
    assert throttle.take("b", 0.0) == 0
    assert throttle.take("a", 1.0) == 2
    assert throttle.take("a", 1.5) is None


def test_the_topics_of_a_throttle_are_bounded() -> None:
    throttle = Throttle(burst=1, per_s=0.0)
    for number in range(5000):
        throttle.take(str(number), 0.0)
    assert len(throttle._buckets) <= 1024


def fetching_world(key_ids: list[UUID]) -> World:
    """A world whose application asks for keys by id; what comes unasked is not supplied."""
    world = subscribed_world(keys=0)
    world.client(world.subscriber.fetch(key_ids, world.now_s))
    return world


def wanted_at(world: World) -> KeysWanted:
    (outcome,) = world.attendant.receive(world.to_node.pop(0), world.now_s)
    assert isinstance(outcome, KeysWanted)
    return outcome


def test_a_fetch_is_repeated_until_it_is_answered_and_an_answer_to_an_earlier_one_says_nothing() -> None:
    key_id = UUID(int=7)
    world = fetching_world([key_id])
    first = wanted_at(world)
    assert first.key_ids == (key_id,)
    world.client(world.subscriber.tick(world.now_s + subscriber.ANSWER_WAIT_S))
    second = wanted_at(world)
    assert second.request != first.request
    late, answer = (world.attendant.refuse_keys(wanted, (key_id,)) for wanted in (first, second))
    assert late is not None
    assert answer is not None
    assert world.subscriber.receive(late, world.now_s) == []
    assert world.subscriber.receive(answer, world.now_s) == [KeyNotFetched(key_id)]
    assert world.subscriber.tick(world.now_s + 2 * subscriber.ANSWER_WAIT_S) == []


def test_a_fetch_waits_for_a_session_and_is_said_again_in_the_next() -> None:
    key_id = UUID(int=7)
    world = fetching_world([key_id])
    world.to_node.clear()
    world.client(world.subscriber.connect(world.now_s))
    while not world.subscriber.subscribed:
        forward(world, 1)
        forward(world, 0)
    assert wanted_at(world).key_ids == (key_id,)


def test_who_is_put_off_asks_again_later() -> None:
    world = fetching_world([UUID(int=7)])
    put_off = world.attendant.answer_later(wanted_at(world))
    assert world.subscriber.receive(put_off, world.now_s) == []
    assert "too often" in world.subscriber.failure
    assert world.subscriber.tick(world.now_s + 1.0) == []
    world.client(world.subscriber.tick(world.now_s + subscriber.ANSWER_WAIT_S))
    assert wanted_at(world).key_ids == (UUID(int=7),)


def test_keys_are_asked_for_within_a_subscription_only() -> None:
    world = fetching_world([UUID(int=7)])
    world.attendant.subscription = None
    assert [type(outcome) for outcome in world.attendant.receive(world.to_node.pop(0), world.now_s)] == [Discarded]


def test_a_lost_acknowledgement_of_a_fetched_key_is_made_up_for_in_the_next_session() -> None:
    world = World(keys=0)
    world.subscriber = Subscriber(
        APPLICATION, node_of(NODE), remote="far", link="link", size_bits=256, credit=3, pushed=False
    )
    key_id = UUID(int=7)
    world.client(world.subscriber.connect(world.now_s))
    world.client(world.subscriber.fetch([key_id], world.now_s))

    def served() -> list[NodeOutcome]:
        """The node answers all but what is asked for by id."""
        rest: list[NodeOutcome] = []
        while world.to_node or world.to_application:
            if world.to_node:
                outcomes = world.attendant.receive(world.to_node.pop(0), world.now_s)
                rest += [outcome for outcome in outcomes if isinstance(outcome, KeysWanted | KeysAcknowledged)]
                world.node([outcome for outcome in outcomes if not isinstance(outcome, KeysWanted | KeysAcknowledged)])
            else:
                world.pass_to_application(world.to_application.pop(0))
        return rest

    (wanted,) = served()
    assert isinstance(wanted, KeysWanted)
    assert world.attendant.subscription is not None
    assert not world.attendant.subscription.pushes
    row = Delivery(1, key_id, ASSOCIATION, 256)
    with SecretBuffer.copy_of(material_of(key_id)) as material:
        world.to_application.append(world.attendant.send_keys([row], material, world.now_s))
    assert served() == []
    world.acknowledge()
    world.to_node.clear()  # it is lost, and the connection with it
    world.client(world.subscriber.connect(world.now_s))
    (again,) = served()
    assert isinstance(again, KeysWanted)
    assert again.key_ids == (key_id,)
    with SecretBuffer.copy_of(material_of(key_id)) as material:
        world.to_application.append(world.attendant.send_keys([row], material, world.now_s))
    assert served() == [KeysAcknowledged((key_id,))]
    assert world.yielded == [key_id]
    # And if the node has it no more, nothing is left to be said.
    world.client(world.subscriber.connect(world.now_s))
    (last,) = served()
    assert isinstance(last, KeysWanted)
    frame = world.attendant.refuse_keys(last, (key_id,))
    assert frame is not None
    assert world.subscriber.receive(frame, world.now_s) == []
    world.client(world.subscriber.connect(world.now_s))
    assert served() == []


def test_an_acknowledgement_of_a_key_that_was_withdrawn_still_counts() -> None:
    world = subscribed_world(keys=1)
    (key_id,) = world.outbox
    world.pass_to_application(world.to_application.pop(0))
    world.attendant.forget(key_id)
    assert world.attendant.due(world.now_s + RESEND_S) == []
    world.acknowledge()
    (outcome,) = world.attendant.receive(world.to_node.pop(0), world.now_s)
    assert outcome == KeysAcknowledged((key_id,))


def test_a_notice_is_reported_once_and_noted_each_time_that_it_comes_after_that() -> None:
    world = subscribed_world(keys=0)
    ended = Ended(5, (UUID(int=7).bytes,), "compromised", "key-compromise")
    first = world.attendant.tell_ended(ended, world.now_s)
    assert first is not None
    assert world.attendant.tell_ended(ended, world.now_s + 1.0) is None
    expected = KeysOutOfUse(5, ASSOCIATION, (UUID(int=7),), "compromised", "key-compromise")
    assert world.subscriber.receive(first, world.now_s) == [expected]
    second, third = (world.attendant.tell_ended(ended, world.now_s + at) for at in (RESEND_S, 3 * RESEND_S))
    assert second is not None
    assert third is not None
    assert world.subscriber.receive(second, world.now_s) == []
    world.client(world.subscriber.noted(5, world.now_s))
    assert world.attendant.receive(world.to_node.pop(0), world.now_s) == [EndingsNoted((5,))]
    world.client(world.subscriber.receive(third, world.now_s))
    assert world.attendant.receive(world.to_node.pop(0), world.now_s) == []
