"""The node's end of one application's connection: sans-IO, time comes in, frames and outcomes go out.

A new Open is a candidate until a message verifies under it: a repeated Open cannot end a session that works.
"""

from collections.abc import Sequence

import msgspec

from qkdnode.access.identities import ApplicationIdentity
from qkdnode.channel.identity import OwnIdentity
from qkdnode.channel.session import DrawInto, Session, accept
from qkdnode.errors import AuthenticationError, LocalProtocolError, NoEntropyError, RemoteProtocolError
from qkdnode.ids import Association, KeyId
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault.endings import Ended
from qkdnode.vault.requests import Delivery
from qkdnode.wire.supply import (
    MAX_CREDIT,
    Acknowledge,
    Alive,
    EndedNoted,
    Fetch,
    FetchLater,
    FromApplication,
    FromNode,
    GenerationAccepted,
    GenerationCurrent,
    GenerationNoted,
    GenerationOffered,
    GenerationWithdrawn,
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
    decode_from_application,
    decode_outer,
    encode,
    keys_body,
    keys_in_a_message,
)

MAX_DISCARDS = 64  # of one session; then it is dropped, and the application opens another
REMEMBERED_IDS = 2 * MAX_CREDIT  # journalled acknowledgements: repeats of these are no surprise
RESEND_MAX_S = 60.0


class Reply(msgspec.Struct, frozen=True):
    """Send this frame."""

    frame: bytes


class SubscriptionWanted(msgspec.Struct, frozen=True):
    """Decide, then call `subscribe` or `refuse`."""

    association: Association
    size_bits: int
    credit: int
    pushes: bool = True  # keys are sent unasked


class KeysWanted(msgspec.Struct, frozen=True):
    """Look for these keys of the subscription, then call `send_keys`, `refuse_keys`, or `answer_later`."""

    request: int
    key_ids: tuple[KeyId, ...]


class KeysAcknowledged(msgspec.Struct, frozen=True):
    """Journal these, then call `record`; or `retry` if that fails."""

    key_ids: tuple[KeyId, ...]


class NotSent(msgspec.Struct, frozen=True):
    """The application acknowledged keys that it was not sent: nothing was done about them."""

    key_ids: tuple[KeyId, ...]


class EndingsNoted(msgspec.Struct, frozen=True):
    """The application has noted that keys are out of use: journal it."""

    numbers: tuple[int, ...]


class GenerationTaken(msgspec.Struct, frozen=True):
    """The application is ready for a generation that it was offered: journal it, or offer it again."""

    association: Association
    number: int


class SubscriptionEnded(msgspec.Struct, frozen=True):
    """The subscription is over; keys that were not acknowledged are sent anew to the next one."""

    association: Association
    reason: str


class OpenRefused(msgspec.Struct, frozen=True):
    """An Open was not accepted; the answer is the Reply beside it."""

    reason: str


class Discarded(msgspec.Struct, frozen=True):
    """A frame was not used."""

    reason: str


Outcome = (
    Reply
    | SubscriptionWanted
    | KeysWanted
    | KeysAcknowledged
    | NotSent
    | EndingsNoted
    | GenerationTaken
    | SubscriptionEnded
    | OpenRefused
    | Discarded
)


class Sent(msgspec.Struct):
    """A key that was sent and is not acknowledged."""

    delivery: Delivery
    due_s: float
    pause_s: float


class Told(msgspec.Struct):
    """A notice that was sent and is not noted."""

    due_s: float
    pause_s: float


class Telling(msgspec.Struct):
    """What an application is told of generations until it answers."""

    body: GenerationOffered | GenerationCurrent
    due_s: float
    pause_s: float


class Subscription(msgspec.Struct):
    """What one connection is supplied with, and what it has not yet acknowledged."""

    association: Association
    size_bits: int
    credit: int
    sent: dict[KeyId, Sent]
    settling: dict[KeyId, Sent]  # acknowledged, not yet journalled
    recorded: dict[KeyId, None]  # journalled, the newest last
    pushes: bool = True  # keys are sent unasked
    withdrawn: dict[KeyId, Sent] = msgspec.field(default_factory=dict)  # sent, and out of use before an acknowledgement
    notices: dict[int, Told] = msgspec.field(default_factory=dict)  # of ended keys, told and not noted
    offered: Telling | None = None  # a generation
    current: Telling | None = None
    promised: int = 0  # the generation that it was offered last, until that is supplied or withdrawn
    known: int = 1  # the generation that it was told to be the one

    @property
    def room(self) -> int:
        """How many more keys may be sent."""
        return self.credit - len(self.sent) - len(self.settling)


class Attendant:
    """Serves one connection of one application, whose name the Gate has tied to its CURVE key."""

    def __init__(
        self,
        node: OwnIdentity,
        application: ApplicationIdentity,
        *,
        draw_into: DrawInto,
        alive_ms: int,
        lapse_s: float,
        resend_s: float,
        key_class: str,
        now_s: float,
    ) -> None:
        self._node, self.application = node, application
        self._draw_into = draw_into
        self._alive_ms, self._lapse_s, self._resend_s = alive_ms, lapse_s, resend_s
        self._key_class = key_class
        self._session: Session | None = None
        self._candidate: Session | None = None
        self._discards = 0
        self._heard_s = now_s
        self.subscription: Subscription | None = None

    def receive(self, frame: bytes, now_s: float) -> list[Outcome]:
        """What follows from a frame."""
        try:
            message = decode_outer(frame)
        except RemoteProtocolError as error:
            return self._discard(str(error))
        if isinstance(message, Open):
            return self._open(message, now_s)
        if isinstance(message, Sealed):
            return self._unseal(message, now_s)
        return self._discard(f"{type(message).__name__} comes from nodes only")

    def subscribe(self, wanted: SubscriptionWanted) -> bytes:
        """Grant a subscription (or confirm the present one); the frame to send."""
        present = self.subscription
        if present is None:
            self.subscription = Subscription(
                wanted.association, wanted.size_bits, wanted.credit, {}, {}, {}, wanted.pushes
            )
        else:
            present.credit, present.pushes = wanted.credit, wanted.pushes
        return self._seal(Subscribed(self._alive_ms))

    def refuse(self, reason: str) -> bytes:
        """Refuse a subscription, or end it for good; the frame to send."""
        self.subscription = None
        return self._seal(SubscribeRefused(reason[:256]))

    def send_keys(self, deliveries: Sequence[Delivery], material: SecretBuffer, now_s: float) -> bytes:
        """Seal keys, new or sent before, side by side in `material`, into one frame, to be sent.

        The caller keeps `material`.
        """
        subscription, count = self.subscription, len(deliveries)
        if subscription is None or any(one.association != subscription.association for one in deliveries):
            raise LocalProtocolError(f"these {count} keys are not for this subscription of {self.application.name}")
        size = deliveries[0].size_bits if deliveries else 0
        fits = len(material) * 8 == size * count and all(one.size_bits == size for one in deliveries)
        if len({one.generation for one in deliveries}) > 1:
            raise LocalProtocolError(f"these {count} keys are of several generations: a message has those of one")
        if not fits or not 1 <= count <= keys_in_a_message(size):
            raise LocalProtocolError(f"{len(material)} bytes are not {count} keys of {size} bits for one message")
        earlier = [subscription.sent.get(one.key_id) for one in deliveries]
        if subscription.room < earlier.count(None):
            raise LocalProtocolError(f"{self.application.name} has no credit left")
        ids = [one.key_id for one in deliveries]
        body = keys_body(ids, subscription.association, size, self._key_class, deliveries[0].generation)
        frame = self._seal(body, material)
        for one, before in zip(deliveries, earlier, strict=True):
            pause = self._resend_s if before is None else min(2 * before.pause_s, RESEND_MAX_S)
            subscription.sent[one.key_id] = Sent(one, now_s + pause, pause)
        return frame

    def refuse_keys(self, wanted: KeysWanted, key_ids: tuple[KeyId, ...]) -> bytes | None:
        """There are no keys for the application under these ids; the frame to send, unless the session has ended."""
        if self.subscription is None:
            return None
        return self._seal(NotFetched(wanted.request, tuple([key_id.bytes for key_id in key_ids])))

    def answer_later(self, wanted: KeysWanted) -> bytes:
        """The application asks too often; the frame to send."""
        return self._seal(FetchLater(wanted.request))

    def record(self, key_ids: tuple[KeyId, ...]) -> bytes | None:
        """The acknowledgement of these is journalled; the frame to send, unless the subscription has ended."""
        if self.subscription is None:
            return None
        settling, recorded = self.subscription.settling, self.subscription.recorded
        for key_id in key_ids:
            settling.pop(key_id, None)
            recorded[key_id] = None
        while len(recorded) > REMEMBERED_IDS:
            del recorded[next(iter(recorded))]
        return self._seal(Recorded(tuple([key_id.bytes for key_id in key_ids])))

    def retry(self, key_ids: tuple[KeyId, ...], now_s: float) -> None:
        """Journalling these failed: they are sent again when due, and acknowledged again."""
        if self.subscription is None:
            return
        for key_id in key_ids:
            if sent := self.subscription.settling.pop(key_id, None):
                sent.due_s = now_s + sent.pause_s
                self.subscription.sent[key_id] = sent

    def tell_generations(self, current: int, coming: int, is_offered: bool, now_s: float) -> list[bytes]:
        """Which generation is supplied, which is to come (0: none), and whether it waits for the application's answer:
        frames to send for what is new in that."""
        subscription = self.subscription
        if subscription is None:
            return []
        frames = []
        if subscription.promised not in (0, coming):
            if subscription.promised > current:
                frames.append(self._seal(GenerationWithdrawn(subscription.promised)))
            subscription.promised, subscription.offered = 0, None
        if not is_offered:
            subscription.offered = None
        elif subscription.offered is None:
            subscription.promised = coming
            subscription.offered = Telling(GenerationOffered(coming, current), now_s + self._resend_s, self._resend_s)
            frames.append(self._seal(subscription.offered.body))
        if current > subscription.known:
            subscription.known = current
            subscription.current = Telling(GenerationCurrent(current), now_s + self._resend_s, self._resend_s)
            frames.append(self._seal(subscription.current.body))
        return frames

    def offer_again(self, now_s: float) -> None:
        """That the application has accepted could not be journalled: it is offered again when due."""
        if self.subscription is not None and self.subscription.offered is not None:
            offered = self.subscription.offered
            offered.due_s = now_s + offered.pause_s

    def tell_again(self, now_s: float) -> list[bytes]:
        """Frames to send again, as the application has not answered them."""
        if self.subscription is None:
            return []
        frames = []
        for telling in (self.subscription.offered, self.subscription.current):
            if telling is not None and telling.due_s <= now_s:
                telling.pause_s = min(2 * telling.pause_s, RESEND_MAX_S)
                telling.due_s = now_s + telling.pause_s
                frames.append(self._seal(telling.body))
        return frames

    def forget(self, key_id: KeyId) -> None:
        """A sent key is no longer supplied (revoked or expired); that the application has it may still be said."""
        if self.subscription is None:
            return
        sent, withdrawn = self.subscription.sent.pop(key_id, None), self.subscription.withdrawn
        if sent is not None:
            withdrawn[key_id] = sent
            while len(withdrawn) > REMEMBERED_IDS:
                del withdrawn[next(iter(withdrawn))]

    def tell_ended(self, ended: Ended, now_s: float) -> bytes | None:
        """A notice of ended keys; the frame to send, None if it was sent a moment ago."""
        if self.subscription is None:
            return None
        told = self.subscription.notices.get(ended.number)
        if told is not None and told.due_s > now_s:
            return None
        pause_s = self._resend_s if told is None else min(2 * told.pause_s, RESEND_MAX_S)
        self.subscription.notices[ended.number] = Told(now_s + pause_s, pause_s)
        return self._seal(KeysEnded(ended.number, ended.stage, ended.reason[:64], ended.key_ids))

    def due(self, now_s: float) -> list[Delivery]:
        """Keys to send again."""
        if self.subscription is None:
            return []
        return [sent.delivery for sent in self.subscription.sent.values() if sent.due_s <= now_s]

    def tick(self, now_s: float) -> list[Outcome]:
        """What follows from the time."""
        if self._session is None:
            return []
        # The Unknown makes an application that is there after all open a new session.
        farewell = Reply(encode(Unknown(self._session.identifier)))
        if now_s - self._heard_s >= self._lapse_s:
            return [farewell, *self.close(f"nothing heard for {self._lapse_s:g} s")]
        if self._session.is_used_up(now_s):
            return [farewell, *self.close("the session is used up")]
        return []

    def close(self, reason: str) -> list[Outcome]:
        """End everything and wipe the session's keys."""
        outcomes = self._end(reason)
        for session in (self._session, self._candidate):
            if session is not None:
                session.release()
        self._session = self._candidate = None
        return outcomes

    def _open(self, message: Open, now_s: float) -> list[Outcome]:
        try:
            answer, session = accept(message, self._node, self.application, self._draw_into, now_s)
        except (AuthenticationError, RemoteProtocolError) as error:
            reason = str(error)
        except NoEntropyError:
            reason = f"node {self._node.name} has no healthy source of random numbers; try again later"
        else:
            if self._candidate is not None:
                self._candidate.release()
            self._candidate = session
            return [Reply(encode(answer))]
        return [OpenRefused(reason), Reply(encode(Refused(reason[:256])))]

    def _unseal(self, message: Sealed, now_s: float) -> list[Outcome]:
        session = next(
            (s for s in (self._session, self._candidate) if s is not None and s.identifier == message.session), None
        )
        if session is None:
            return [*self._discard("a message of an unknown session"), Reply(encode(Unknown(message.session)))]
        try:
            body, material = session.open(message)
        except (AuthenticationError, RemoteProtocolError) as error:
            return self._discard(str(error))
        outcomes = self._promote(session) if session is self._candidate else []
        self._heard_s = now_s
        if material is not None:
            material.release()
            return outcomes + self._discard("an application sent a key")
        try:
            return outcomes + self._act(decode_from_application(body))
        except RemoteProtocolError as error:
            return outcomes + self._discard(str(error))

    def _act(self, body: FromApplication) -> list[Outcome]:
        match body:
            case Subscribe() | SubscribeToFetch():
                return self._want(body)
            case Acknowledge():
                return self._acknowledge(body)
            case Fetch():
                return self._fetch(body)
            case EndedNoted():
                return self._note(body)
            case GenerationAccepted() | GenerationNoted():
                return self._answered(body)
            case Unsubscribe():
                return self._end("unsubscribed")
            case Alive():
                return []

    def _fetch(self, body: Fetch) -> list[Outcome]:
        if self.subscription is None:
            return self._discard("keys are asked for without a subscription")
        return [KeysWanted(body.request, tuple(dict.fromkeys(KeyId(bytes=raw) for raw in body.key_ids)))]

    def _note(self, body: EndedNoted) -> list[Outcome]:
        notices = {} if self.subscription is None else self.subscription.notices
        noted = tuple([number for number in dict.fromkeys(body.notices) if notices.pop(number, None) is not None])
        # A repeat is no surprise: the notice was sent twice.
        return [EndingsNoted(noted)] if noted else []

    def _want(self, body: Subscribe | SubscribeToFetch) -> list[Outcome]:
        association = Association(self.application.name, body.remote, body.link)
        present = self.subscription
        changed = present is not None and (present.association, present.size_bits) != (association, body.size_bits)
        ended = self._end("replaced by another subscription") if changed else []
        pushes = isinstance(body, Subscribe)
        return [*ended, SubscriptionWanted(association, body.size_bits, body.credit, pushes)]

    def _answered(self, body: GenerationAccepted | GenerationNoted) -> list[Outcome]:
        """An answer that is late, or comes again, is no surprise; only what is offered is taken."""
        subscription = self.subscription
        if subscription is None:
            return self._discard("an answer about generations without a subscription")
        if isinstance(body, GenerationNoted):
            if subscription.current is not None and subscription.current.body.number == body.number:
                subscription.current = None
            return []
        offered = subscription.offered
        if offered is None or offered.body.number != body.number:
            return []
        offered.due_s = float("inf")  # until it is journalled, or could not be
        return [GenerationTaken(subscription.association, body.number)]

    def _acknowledge(self, body: Acknowledge) -> list[Outcome]:
        if self.subscription is None:
            return self._discard("an acknowledgement without a subscription")
        sent, settling, recorded = self.subscription.sent, self.subscription.settling, self.subscription.recorded
        ids = dict.fromkeys([KeyId(bytes=raw) for raw in body.key_ids])
        withdrawn = self.subscription.withdrawn
        known = tuple([key_id for key_id in ids if key_id in sent or key_id in withdrawn])
        for key_id in known:
            settling[key_id] = sent.pop(key_id) if key_id in sent else withdrawn.pop(key_id)
        # A repeat of what is settling or recorded is no surprise: its answer is on the way, or was lost.
        strange = tuple([key_id for key_id in ids if key_id not in settling and key_id not in recorded])
        outcomes: list[Outcome] = [KeysAcknowledged(known)] if known else []
        if strange:
            outcomes += [NotSent(strange), *self._discard("an acknowledgement of keys that were not sent")]
        return outcomes

    def _promote(self, session: Session) -> list[Outcome]:
        outcomes = self._end("the application opened a new session")
        if self._session is not None:
            self._session.release()
        self._session, self._candidate, self._discards = session, None, 0
        return outcomes

    def _end(self, reason: str) -> list[Outcome]:
        if self.subscription is None:
            return []
        ended = SubscriptionEnded(self.subscription.association, reason)
        self.subscription = None
        return [ended]

    def _discard(self, reason: str) -> list[Outcome]:
        self._discards += 1
        if self._discards <= MAX_DISCARDS:
            return [Discarded(reason)]
        self._discards = 0
        dropped = self._session
        outcomes: list[Outcome] = [Discarded(reason), *self.close(f"more than {MAX_DISCARDS} unusable messages")]
        return outcomes if dropped is None else [*outcomes, Reply(encode(Unknown(dropped.identifier)))]

    def _seal(self, body: FromNode, material: SecretBuffer | None = None) -> bytes:
        if self._session is None:
            raise LocalProtocolError(f"{self.application.name} has no session")
        return self._session.seal(body, material)
