"""Between a node and its applications: outer messages, the agreement of a session, what it seals, and the gate."""

from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any, get_args

import msgspec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fuzz.engine import Violation
from fuzz.examples import example, integers
from fuzz.files import identity_of
from fuzz.mutation import Mutator, as_bytes, as_msgpack, pack
from qkdnode.access.identities import ApplicationIdentity, NodeIdentity
from qkdnode.channel.gate import GRANTED, MALFORMED, REFUSED, Gate
from qkdnode.channel.identity import OwnIdentity
from qkdnode.channel.session import Opening, Session, accept
from qkdnode.client.subscriber import KeyArrived, KeysOutOfUse, Subscriber
from qkdnode.errors import RemoteProtocolError
from qkdnode.ids import Association, KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.supply.protocol import Attendant, EndingsNoted, KeysAcknowledged, KeysWanted, Reply, SubscriptionWanted
from qkdnode.vault.endings import Ended
from qkdnode.vault.requests import Delivery
from qkdnode.wire import supply

LINK = "metro"
NOTICE = 5


def bodies_of(union: Any) -> list[bytes]:
    """Each message of a union at its least and ample."""
    return [supply.encode(example(kind, ample=ample)) for kind in get_args(union) for ample in (False, True)]


def outer_seeds() -> list[bytes]:
    return bodies_of(supply.Outer)


def body_seeds() -> list[bytes]:
    return bodies_of(supply.FromApplication) + bodies_of(supply.FromNode)


def application_seeds() -> list[bytes]:
    return bodies_of(supply.FromApplication)


def node_seeds() -> list[bytes]:
    return bodies_of(supply.FromNode)


def _canonical(message: Any, data: bytes) -> Iterable[Hashable]:
    if supply.encode(message) != data:
        raise Violation(f"{type(message).__name__} decodes and encodes to other bytes")
    if any(not 0 <= value < 2**63 for value in integers(message)):
        raise Violation(f"{type(message).__name__} holds an integer beyond 63 bits")
    for raw in getattr(message, "key_ids", ()):
        KeyId(bytes=raw)
    return (type(message), len(data).bit_length())


def take_outer(data: bytes) -> Iterable[Hashable]:
    if len(data) > supply.MAX_SUPPLY_BYTES and not isinstance(_error(supply.decode_outer, data), RemoteProtocolError):
        raise Violation("an oversized message was decoded")
    return _canonical(supply.decode_outer(data), data)


def _error(function: Any, data: bytes) -> Exception | None:
    try:
        function(data)
    except RemoteProtocolError as error:
        return error
    return None


def take_from_application(data: bytes) -> Iterable[Hashable]:
    return _canonical(supply.decode_from_application(data), data)


def take_from_node(data: bytes) -> Iterable[Hashable]:
    message = supply.decode_from_node(data)
    if isinstance(message, supply.KeysBody):
        supply.association_of(message)
    return _canonical(message, data)


# --- the agreement of a session  ---


@cache
def _identities() -> tuple[OwnIdentity, OwnIdentity]:
    return identity_of("node", "node-a"), identity_of("application", "payroll")


def _publics() -> tuple[NodeIdentity, ApplicationIdentity]:
    node, application = (identity.public for identity in _identities())
    assert isinstance(node, NodeIdentity)
    assert isinstance(application, ApplicationIdentity)
    return node, application


_draws = 0


def draw_into(view: memoryview) -> None:
    """Other bytes at each draw."""
    global _draws
    _draws += 1
    for i in range(len(view)):
        view[i] = (_draws * 31 + i * 7) & 255


@cache
def _opening_seeds() -> tuple[bytes, ...]:
    application, (node_public, public) = _identities()[1], _publics()
    x25519 = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
    mlkem = MLKEM768PrivateKey.from_seed_bytes(bytes(range(64))).public_key().public_bytes_raw()
    opening = supply.Open(supply.VERSION, "payroll", x25519, mlkem, bytes(32), bytes(64))
    digest = supply.open_transcript(node_public.name, node_public.ed25519, public.ed25519, opening)
    opening = msgspec.structs.replace(opening, signature=application.sign(digest))
    answer = supply.Accept(bytes(8), x25519, bytes(supply.MLKEM_CIPHERTEXT_BYTES), bytes(32), bytes(64))
    return tuple(bytes([signed]) + supply.encode(message) for signed in (0, 1) for message in (opening, answer))


def agreement_seeds() -> list[bytes]:
    """A true Open, and an Accept; either sent as it is, or signed anew after mutation."""
    return list(_opening_seeds())


def take_agreement(data: bytes) -> Iterable[Hashable]:
    """An Open is accepted as its application signed it, an Accept as its node did; both then hold the same keys."""
    signed, message = bool(data and data[0] & 1), supply.decode_outer(data[1:])
    node, application = _identities()
    node_public, application_public = _publics()
    if isinstance(message, supply.Open):
        if signed:
            digest = supply.open_transcript(node_public.name, node_public.ed25519, application_public.ed25519, message)
            message = msgspec.structs.replace(message, signature=application.sign(digest))
        answer, session = accept(message, node, application_public, draw_into, 0.0)
        session.release()
        if not signed and data[1:] not in (seed[1:] for seed in _opening_seeds()):
            raise Violation("an Open that its application did not sign was accepted")
        return ("open", len(answer.session))
    if isinstance(message, supply.Accept):
        opening = Opening(application, node_public, draw_into)
        if signed:
            started = supply.open_transcript(
                node_public.name, node_public.ed25519, application_public.ed25519, opening.message
            )
            whole = supply.accept_transcript(started, opening.message.signature, message)
            message = msgspec.structs.replace(message, signature=node.sign(whole))
        session = opening.finish(message, 0.0)
        session.release()
        if not signed:
            raise Violation("an Accept of another Open was accepted")
        return ("accept",)
    raise RemoteProtocolError("neither an Open nor an Accept")


# --- a running session  ---


def _session_pair() -> tuple[Session, Session]:
    keys = [SecretBuffer.copy_of(bytes([number]) * 32) for number in (1, 2)]
    others = [SecretBuffer.copy_of(bytes([number]) * 32) for number in (2, 1)]
    return Session(b"sessions", keys[0], keys[1], 0.0), Session(b"sessions", others[0], others[1], 0.0)


@cache
def _sealed() -> tuple[bytes, bytes]:
    """Two frames, the second with a key."""
    sender, _ = _session_pair()
    with SecretBuffer.copy_of(bytes(range(32))) as key:
        return sender.seal(supply.Alive()), sender.seal(example(supply.KeysBody, ample=True), key)


def sealed_seeds() -> list[bytes]:
    return list(_sealed())


def take_sealed(data: bytes) -> Iterable[Hashable]:
    """Only a frame that the peer sealed opens, once, and to what was sealed."""
    message = supply.decode_outer(data)
    if not isinstance(message, supply.Sealed):
        raise RemoteProtocolError("not a sealed message")
    sender, receiver = _session_pair()
    try:
        body, material = receiver.open(message)
        if material is not None:
            material.release()
        if data not in _sealed():
            raise Violation("a frame that nobody sealed was opened")
        try:
            receiver.open(message)
        except RemoteProtocolError:
            return (len(body),)
        raise Violation("a sealed frame was opened twice")
    finally:
        sender.release()
        receiver.release()


class Connected:
    """An application and its node with a session and a subscription, one key sent and one notice told."""

    def __init__(self) -> None:
        node, application = _identities()
        node_public, application_public = _publics()
        self.association = Association("payroll", "ledger", LINK)
        self.subscriber = Subscriber(
            application, node_public, remote="ledger", link=LINK, size_bits=256, credit=4, draw_into=draw_into
        )
        self.attendant = Attendant(
            node,
            application_public,
            draw_into=draw_into,
            alive_ms=1000,
            lapse_s=60.0,
            resend_s=1.0,
            key_class="qkd",
            now_s=0.0,
        )
        frames = [outcome.frame for outcome in self.subscriber.connect(0.0)]
        for _ in range(3):
            answers = []
            for frame in frames:
                for outcome in self.attendant.receive(frame, 0.0):
                    if isinstance(outcome, Reply):
                        answers.append(outcome.frame)
                    elif isinstance(outcome, SubscriptionWanted):
                        answers.append(self.attendant.subscribe(outcome))
            frames = [
                o.frame for answer in answers for o in self.subscriber.receive(answer, 0.0) if hasattr(o, "frame")
            ]
        assert self.subscriber.subscribed
        self.key = KeyId(int=7)
        self.attendant.tell_ended(Ended(NOTICE, (self.key.bytes,), "compromised", "key-compromise"), 0.0)
        with SecretBuffer.copy_of(bytes(32)) as material:
            delivery = Delivery(1, self.key, self.association, 256)
            self.received = self.subscriber.receive(self.attendant.send_keys([delivery], material, 0.0), 0.0)
        for outcome in self.received:
            if isinstance(outcome, KeyArrived):
                outcome.material.release()

    def close(self) -> None:
        self.attendant.close("over")
        self.subscriber.disconnect()


def take_from_authentic_application(data: bytes) -> Iterable[Hashable]:
    """Whatever an authentic application says, only a key that it was sent counts as acknowledged."""
    ends = Connected()
    try:
        session = ends.subscriber._session
        assert session is not None
        outcomes = ends.attendant.receive(_seal_bytes(session, data), 1.0)
        for outcome in outcomes:
            if isinstance(outcome, KeysAcknowledged) and outcome.key_ids != (ends.key,):
                raise Violation("a key was taken as acknowledged that was never sent")
            if isinstance(outcome, EndingsNoted) and outcome.numbers != (NOTICE,):
                raise Violation("a notice was taken as noted that was never sent")
            if isinstance(outcome, KeysWanted) and not 1 <= len(set(outcome.key_ids)) == len(outcome.key_ids) <= 32:
                raise Violation("no keys are asked for, or too many, or one twice")
            if isinstance(outcome, SubscriptionWanted) and outcome.association.local != "payroll":
                raise Violation("an application subscribed in the name of another")
        return tuple(type(outcome) for outcome in outcomes)
    finally:
        ends.close()


def take_from_authentic_node(data: bytes) -> Iterable[Hashable]:
    """Whatever an authentic node says beside a key, the application sees each key once and only as subscribed."""
    ends = Connected()
    try:
        session = ends.attendant._session
        assert session is not None
        arrived, notices = list[KeyId](), list[int]()
        with SecretBuffer.copy_of(bytes(32)) as material:
            for sealed in (material, None, material):
                for outcome in ends.subscriber.receive(_seal_bytes(session, data, sealed), 1.0):
                    if isinstance(outcome, KeysOutOfUse):
                        notices.append(outcome.notice)
                        if outcome.association != ends.association or not outcome.key_ids:
                            raise Violation("a notice is of another association, or of no key")
                    if isinstance(outcome, KeyArrived):
                        arrived.append(outcome.key_id)
                        outcome.material.release()
                        if outcome.association != ends.association or outcome.key_id == ends.key:
                            raise Violation("a key of another association, or one that was there before, was reported")
        if len(set(arrived)) < len(arrived) or len(set(notices)) < len(notices):
            raise Violation("one key, or one notice, was reported twice")
        return (len(arrived), len(notices), ends.subscriber.discarded, ends.subscriber.repeated)
    finally:
        ends.close()


def _seal_bytes(session: Session, body: bytes, material: SecretBuffer | None = None) -> bytes:
    """Seal a body that no encoder would write."""
    return session.seal(msgspec.Raw(body), material)  # type: ignore[arg-type]


def subscribed_seeds() -> list[bytes]:
    bodies = [
        supply.keys_body(ids, Association("payroll", "ledger", LINK), 256 // len(ids), "qkd")
        for ids in ([KeyId(int=9)], [KeyId(int=9), KeyId(int=10)], [KeyId(int=7)], [KeyId(int=9), KeyId(int=9)])
    ]
    return [*node_seeds(), *map(supply.encode, bodies), supply.encode(supply.Recorded((KeyId(int=7).bytes,)))]


def acknowledging_seeds() -> list[bytes]:
    key = KeyId(int=7).bytes
    bodies = (supply.Acknowledge((key,)), supply.Fetch(1, (key, key)), supply.EndedNoted((NOTICE, NOTICE + 1)))
    return [*application_seeds(), *map(supply.encode, bodies)]


# --- the gate  ---

ALLOWED_KEY = bytes(range(32))


class _Pump:
    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []

    def send(self, parts: list[bytes]) -> None:
        self.sent.append(parts)


class _Part(msgspec.Struct):
    bytes: Any


def gate_seeds() -> list[bytes]:
    """A ZAP request (RFC 27) as a MessagePack list of its frames."""
    request = [b"peer", b"", b"1.0", b"1", b"links", b"127.0.0.1", b"", b"CURVE", ALLOWED_KEY]
    return [pack(request), pack([*request[:-2], b"NULL"]), pack([*request[:-2], b"PLAIN", b"user", b"password"])]


def take_at_gate(data: bytes) -> Iterable[Hashable]:
    """Only the allowed key under CURVE and in the gate's own domain is let in, and every answer has RFC 27's form."""
    parts = msgspec.msgpack.decode(data, type=list[bytes])
    pump = _Pump()
    gate = Gate.__new__(Gate)
    gate._domain, gate._pump = b"links", pump  # type: ignore[assignment]
    gate._admit = lambda key: "node-b" if key == _z85(ALLOWED_KEY) else None
    gate._answer([_Part(part) for part in parts])  # type: ignore[arg-type]
    if not pump.sent:
        return (0,)
    answer = pump.sent[0]
    status = answer[-4]
    if status not in (GRANTED, REFUSED, MALFORMED) or (status == GRANTED) != (answer[-2] == b"node-b"):
        raise Violation(f"the gate answers {status!r}")
    request = parts[parts.index(b"") + 1 :] if b"" in parts else []
    genuine = len(request) == 7 and (request[2], request[5], request[6]) == (b"links", b"CURVE", ALLOWED_KEY)
    if status == GRANTED and not genuine:
        raise Violation("the gate lets somebody in who is not allowed")
    return (status, len(answer))


def _z85(key: bytes) -> str:
    from zmq.utils import z85

    return z85.encode(key).decode()


as_bodies: tuple[Mutator, ...] = (as_msgpack, as_msgpack, as_bytes)
