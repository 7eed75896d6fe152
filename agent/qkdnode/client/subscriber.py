"""The application's end of one connection: sans-IO, time comes in, frames and keys go out."""

from collections import OrderedDict
from typing import Literal

import msgspec

from qkdnode.access.identities import NodeIdentity
from qkdnode.channel.identity import OwnIdentity
from qkdnode.channel.session import DrawInto, Opening, Session, draw_from_system
from qkdnode.errors import AuthenticationError, MemoryLockError, RemoteProtocolError
from qkdnode.ids import Association, KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.wire.supply import (
    MAX_FETCHED,
    MAX_IDS,
    Accept,
    Acknowledge,
    Alive,
    EndedNoted,
    Fetch,
    FetchLater,
    FromApplication,
    GenerationAccepted,
    GenerationCurrent,
    GenerationNoted,
    GenerationOffered,
    GenerationWithdrawn,
    KeysBody,
    KeysEnded,
    NotFetched,
    Open,
    Recorded,
    Refused,
    Sealed,
    Subscribe,
    Subscribed,
    SubscribeRefused,
    SubscribeToFetch,
    Unknown,
    Unsubscribe,
    association_of,
    decode_from_node,
    decode_outer,
    encode,
)

ANSWER_WAIT_S = 3.0  # then an Open or a Subscribe is repeated
MAX_DISCARDS = 64  # of one session; then a new one is opened
REMEMBERED_IDS = 65_536


class Transmit(msgspec.Struct, frozen=True):
    """Send this frame."""

    frame: bytes


class KeyArrived(msgspec.Struct, frozen=True):
    """A key that was never reported before; its material is the receiver's."""

    key_id: KeyId
    association: Association
    size_bits: int
    key_class: str
    material: SecretBuffer
    generation: int = 1


class KeyNotFetched(msgspec.Struct, frozen=True):
    """The node has no key for this application under an id that was asked for."""

    key_id: KeyId


class KeysOutOfUse(msgspec.Struct, frozen=True):
    """Keys that the application has are to be used no more. Say `noted` once it knows."""

    notice: int
    association: Association
    key_ids: tuple[KeyId, ...]
    stage: str  # such as "compromised", "deactivated", "destroyed"
    reason: str


class Refusal(msgspec.Struct, frozen=True):
    """The node will not supply: asking again will not help."""

    reason: str


class Asked(msgspec.Struct):
    """A key that was asked for by its id, and is not answered."""

    request: int
    said_s: float


class GenerationChange(msgspec.Struct, frozen=True):
    """What becomes of a generation of keys: it is "offered", and to be accepted; it is "current", and keys of earlier
    ones are over, also those that only one application has; or it was offered and is "withdrawn"."""

    what: Literal["offered", "current", "withdrawn"]
    number: int


Outcome = Transmit | KeyArrived | KeyNotFetched | KeysOutOfUse | Refusal | GenerationChange


class Subscriber:
    """Opens, subscribes, and sees to it that each key is reported once, until it is closed.

    A notice of keys that are out of use is reported once, and noted again each time that it comes again after that.
    An id is remembered from its first arrival until the node has journalled its acknowledgement. Repeats are not
    reported, and acknowledged again if the first was. At most 65,536 acknowledged ids wait for that; the oldest goes.
    """

    def __init__(
        self,
        application: OwnIdentity,
        node: NodeIdentity,
        *,
        remote: str,
        link: str,
        size_bits: int,
        credit: int,
        pushed: bool = True,
        draw_into: DrawInto = draw_from_system,
    ) -> None:
        self._application, self._node = application, node
        self._wanted = (Subscribe if pushed else SubscribeToFetch)(remote, link, size_bits, credit)
        self._association = Association(application.name, remote, link)
        self._draw_into = draw_into
        self._opening: Opening | None = None
        self._session: Session | None = None
        self._held: set[KeyId] = set()
        self._acknowledged: OrderedDict[KeyId, None] = OrderedDict()
        self._asked: dict[KeyId, Asked] = {}
        self._requests = 0
        self._notices: OrderedDict[int, bool] = OrderedDict()  # that were reported; whether each is noted
        self._alive_s: float | None = None
        self._spoke_s = 0.0
        self._session_discards = 0
        self._offered = self._accepted = 0  # generations, the newest
        self.generation = 1  # that the node has said to be the one
        self.subscribed = False
        self.failure = ""  # why the last unusable frame was not used
        self.discarded = 0
        self.repeated = 0
        self.sessions = 0

    def connect(self, now_s: float) -> list[Outcome]:
        """A connection stands: open a session on it."""
        self.disconnect()
        self._opening = Opening(self._application, self._node, self._draw_into)
        self._spoke_s = now_s
        return [Transmit(encode(self._opening.message))]

    def disconnect(self) -> None:
        """The connection is gone, and its session with it."""
        if self._session is not None:
            self._session.release()
        self._session = self._opening = None
        self.subscribed = False
        self._session_discards = 0

    def acknowledge(self, key_ids: list[KeyId], now_s: float) -> list[Outcome]:
        """The application has these keys; without a session the node learns it when it sends them again."""
        for key_id in key_ids:
            self._held.discard(key_id)
            self._acknowledged[key_id] = None
        while len(self._acknowledged) > REMEMBERED_IDS:
            self._acknowledged.popitem(last=False)
        if not self.subscribed:
            return []
        return [
            self._say(Acknowledge(tuple(key_id.bytes for key_id in key_ids[start : start + MAX_IDS])), now_s)
            for start in range(0, len(key_ids), MAX_IDS)
        ]

    def fetch(self, key_ids: list[KeyId], now_s: float) -> list[Outcome]:
        """Ask for keys by their ids until each has arrived or is refused, at once or as soon as there is a session."""
        for key_id in key_ids:
            self._asked.setdefault(key_id, Asked(0, now_s))
        return self._ask(key_ids, now_s)

    def give_up(self, key_ids: list[KeyId]) -> None:
        """Ask for these no more; one that comes all the same is reported."""
        for key_id in key_ids:
            self._asked.pop(key_id, None)

    def noted(self, notice: int, now_s: float) -> list[Outcome]:
        """The application knows that the keys of a notice are out of use."""
        self._notices[notice] = True
        return [self._say(EndedNoted((notice,)), now_s)] if self.subscribed else []

    def holds(self, key_id: KeyId) -> bool:
        """Whether a key has arrived and is not acknowledged."""
        return key_id in self._held

    def accept(self, number: int, now_s: float) -> list[Outcome]:
        """The application is ready for keys of a generation that was offered."""
        self._accepted = max(self._accepted, number)
        return [self._say(GenerationAccepted(number), now_s)] if self.subscribed else []

    def hesitate(self) -> None:
        """It is not: the next offer is reported again."""
        self._offered = self._accepted

    def unsubscribe(self, now_s: float) -> list[Outcome]:
        """Ask for no more keys."""
        return [self._say(Unsubscribe(), now_s)] if self.subscribed else []

    def receive(self, frame: bytes, now_s: float) -> list[Outcome]:
        """What follows from a frame."""
        try:
            return self._take(decode_outer(frame), now_s)
        except (RemoteProtocolError, AuthenticationError) as error:
            self.failure = str(error)
            return self._discard(now_s)

    def tick(self, now_s: float) -> list[Outcome]:
        """What follows from the time: a repeated question, a sign of life, a new session."""
        if self._opening is None and self._session is None:
            return []
        quiet_s = now_s - self._spoke_s
        if self._session is None:
            return self.connect(now_s) if quiet_s >= ANSWER_WAIT_S else []
        if self._session.is_used_up(now_s):
            return self.connect(now_s)
        if not self.subscribed:
            return [self._say(self._wanted, now_s)] if quiet_s >= ANSWER_WAIT_S else []
        again = [key_id for key_id, its in self._asked.items() if now_s - its.said_s >= ANSWER_WAIT_S]
        if again:
            return self._ask(again, now_s)
        if self._alive_s is not None and quiet_s >= self._alive_s:
            return [self._say(Alive(), now_s)]
        return []

    def _ask(self, key_ids: list[KeyId], now_s: float) -> list[Outcome]:
        if not self.subscribed:
            return []
        said: list[Outcome] = []
        for start in range(0, len(key_ids), MAX_FETCHED):
            page = key_ids[start : start + MAX_FETCHED]
            self._requests = (self._requests + 1) % 2**32
            for key_id in page:
                self._asked[key_id] = Asked(self._requests, now_s)
            said.append(self._say(Fetch(self._requests, tuple([key_id.bytes for key_id in page])), now_s))
        return said

    def _take(self, message: Open | Accept | Refused | Unknown | Sealed, now_s: float) -> list[Outcome]:
        if isinstance(message, Accept):
            return self._begin(message, now_s)
        if isinstance(message, Refused):
            # Not sealed, and some reasons pass (no entropy): a hint for people, the Open is repeated.
            self.failure = f"node {self._node.name} opens no session: {message.reason}"
            return []
        if isinstance(message, Unknown):
            if self._session is not None and message.session == self._session.identifier:
                return self.connect(now_s)
            return self._discard(now_s)
        if isinstance(message, Sealed) and self._session is not None:
            body, material = self._session.open(message)
            return self._act(body, material, now_s)
        return self._discard(now_s)

    def _begin(self, answer: Accept, now_s: float) -> list[Outcome]:
        if self._opening is None:
            return self._discard(now_s)
        self._session = self._opening.finish(answer, now_s)
        self._opening = None
        self.sessions += 1
        return [self._say(self._wanted, now_s)]

    def _act(self, data: bytes, material: SecretBuffer | None, now_s: float) -> list[Outcome]:
        try:
            body = decode_from_node(data)
            if isinstance(body, KeysBody):
                return self._take_keys(body, material, now_s)
        finally:
            if material is not None:
                material.release()
        if isinstance(body, Recorded):
            for raw in body.key_ids:
                self._acknowledged.pop(KeyId(bytes=raw), None)
        elif isinstance(body, Subscribed):
            began, self.subscribed = not self.subscribed, True
            self._alive_s = body.alive_ms / 1000
            # Nobody sends a fetched key again unasked: an acknowledgement that was lost is made up for by asking.
            unsure = [] if isinstance(self._wanted, Subscribe) else list(self._acknowledged)
            return self._ask([*self._asked, *unsure], now_s) if began else []
        elif isinstance(body, KeysEnded):
            return self._take_notice(body, now_s)
        elif isinstance(body, NotFetched):
            return self._take_refusal(body)
        elif isinstance(body, FetchLater):
            self.failure = f"node {self._node.name} was asked for keys too often: it is asked again"
        elif isinstance(body, SubscribeRefused):
            return [Refusal(body.reason)]
        elif isinstance(body, GenerationOffered):
            return self._take_offer(body.number, now_s)
        elif isinstance(body, GenerationCurrent):
            return self._take_current(body.number, now_s)
        elif isinstance(body, GenerationWithdrawn):
            return [GenerationChange("withdrawn", body.number)]
        return []

    def _take_notice(self, body: KeysEnded, now_s: float) -> list[Outcome]:
        noted = self._notices.get(body.notice)
        if noted is not None:
            return self.noted(body.notice, now_s) if noted else []
        self._notices[body.notice] = False
        while len(self._notices) > REMEMBERED_IDS:
            self._notices.popitem(last=False)
        ids = tuple([KeyId(bytes=raw) for raw in body.key_ids])
        return [KeysOutOfUse(body.notice, self._association, ids, body.stage, body.reason)]

    def _take_refusal(self, body: NotFetched) -> list[Outcome]:
        """An answer to what was asked last; an earlier one says nothing any more."""
        refused = [KeyId(bytes=raw) for raw in body.key_ids]
        refused = [key_id for key_id in refused if (its := self._asked.get(key_id)) and its.request == body.request]
        self.give_up(refused)
        unknown = [key_id for key_id in refused if key_id not in self._acknowledged]
        for key_id in refused:
            self._acknowledged.pop(key_id, None)  # the node has it no more
        return [KeyNotFetched(key_id) for key_id in unknown]

    def _take_offer(self, number: int, now_s: float) -> list[Outcome]:
        """Report an offer once, and accept again what was accepted."""
        if number == self._accepted:
            return self.accept(number, now_s)
        if number <= self._offered:
            return []
        self._offered = number
        return [GenerationChange("offered", number)]

    def _take_current(self, number: int, now_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = [self._say(GenerationNoted(number), now_s)] if self.subscribed else []
        if number > self.generation:
            self.generation = number
            outcomes.append(GenerationChange("current", number))
        return outcomes

    def _take_keys(self, body: KeysBody, material: SecretBuffer | None, now_s: float) -> list[Outcome]:
        """Report the keys that are new, acknowledge again what was acknowledged; the material stays the caller's."""
        association, size = association_of(body), body.size_bits // 8
        if material is None or len(material) != size * len(body.key_ids) or association != self._association:
            return self._discard(now_s)
        outcomes: list[Outcome] = []
        again: list[KeyId] = []
        with memoryview(material) as view:
            for place, raw in enumerate(body.key_ids):
                key_id = KeyId(bytes=raw)
                if key_id in self._held or key_id in self._acknowledged:
                    self.repeated += 1
                    self._asked.pop(key_id, None)
                    again += [key_id] * (key_id in self._acknowledged)
                    continue
                try:
                    with view[place * size : (place + 1) * size] as its:
                        own = SecretBuffer.copy_of(its)
                except MemoryLockError as error:
                    self.failure = str(error)  # this key and those behind it come again
                    break
                self._held.add(key_id)
                self._asked.pop(key_id, None)
                arrived = KeyArrived(key_id, association, body.size_bits, body.key_class, own, body.generation)
                outcomes.append(arrived)
        return outcomes + (self.acknowledge(again, now_s) if again else [])

    def _discard(self, now_s: float) -> list[Outcome]:
        self.discarded += 1
        self._session_discards += 1
        if self._session is None or self._session_discards <= MAX_DISCARDS:
            return []
        return self.connect(now_s)

    def _say(self, body: FromApplication, now_s: float) -> Transmit:
        assert self._session is not None
        self._spoke_s = now_s
        return Transmit(self._session.seal(body))
