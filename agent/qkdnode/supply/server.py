"""The supply of keys over ZeroMQ: one ROUTER, one Attendant per connection, keys named by the vault's outboxes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any, Self

import msgspec

from qkdnode.access.allowlist import AllowList
from qkdnode.access.identities import ApplicationIdentity, fingerprint
from qkdnode.channel.identity import OwnIdentity
from qkdnode.channel.listener import Listener, Peer
from qkdnode.channel.session import DrawInto
from qkdnode.channel.socket import Limits
from qkdnode.errors import ChannelError, VaultDamagedError, VaultError
from qkdnode.ids import Association, KeyId
from qkdnode.lifecycle.rotation import Phase
from qkdnode.native.secret import SecretBuffer
from qkdnode.supply.protocol import (
    Attendant,
    Discarded,
    EndingsNoted,
    GenerationTaken,
    KeysAcknowledged,
    KeysWanted,
    NotSent,
    OpenRefused,
    Outcome,
    Reply,
    Subscription,
    SubscriptionEnded,
    SubscriptionWanted,
)
from qkdnode.supply.throttle import Throttle
from qkdnode.vault.decoys import Suspects, WhichDecoys
from qkdnode.vault.endings import Ended, EndedKeys, EndedNoted, HadBefore
from qkdnode.vault.fetches import FetchedKeys, FetchKeys
from qkdnode.vault.requests import ApplicationOutbox, Caller, Delivery, KeysDelivered, OpenedKeys, OpenKeys, Request
from qkdnode.vault.rotations import GenerationAcknowledged, RotationState, ShowRotation
from qkdnode.wire.supply import MAX_CREDIT, MAX_IDS, MAX_SUPPLY_BYTES, keys_in_a_message

DOMAIN = "qkdnode.supply"
CONNECTIONS_PER_APPLICATION = 16
OUTBOX_PAGE = 256
FETCHES_BURST, FETCHES_PER_S = 64, 16.0  # of one application, over all its connections
REFUSED_AFTER_S = 0.1  # of whatever reason: what the vault did shows in no answer's time
NAMES_TOLD = 7  # pseudonyms of refused ids that a leaf holds
LIMITS = Limits(max_message_bytes=MAX_SUPPLY_BYTES, high_water=2 * MAX_CREDIT)

Ask = Callable[[Request], Awaitable[Any]]
Details = dict[str, str | int | float | bool | None]
Record = Callable[[str, str, str, Details], Awaitable[None]]  # kind, subject, outcome, details


class SubscriptionState(msgspec.Struct, frozen=True):
    """What the link must know of an application: whether it is there, and what it accepts."""

    association: Association
    connected: bool
    size_bits: int
    credit: int
    pushes: bool = True  # keys are sent unasked


class SupplyStatistics(msgspec.Struct, kw_only=True):
    """Counts since the start."""

    connections: int = 0
    refused_connections: int = 0  # failed handshakes of the transport
    refused_sessions: int = 0
    refused_subscriptions: int = 0
    subscriptions: int = 0
    ended: int = 0
    keys_sent: int = 0
    keys_sent_again: int = 0
    keys_delivered: int = 0
    keys_not_opened: int = 0  # refused by the vault: revoked, expired, already delivered
    keys_not_sent: int = 0  # acknowledged without having been sent
    endings_told: int = 0  # notices of keys out of use, repeats included
    keys_fetched: int = 0  # sent because they were asked for by id
    keys_not_fetched: int = 0  # asked for by id and refused
    fetches_put_off: int = 0  # asked for too often
    failed_records: int = 0  # acknowledgements or events that the vault would not journal
    discarded: int = 0


class Connection:
    """One connection's Attendant, its tasks, and how far it has read the outbox."""

    def __init__(self, peer: Peer, attendant: Attendant) -> None:
        self.peer, self.attendant = peer, attendant
        self.wanted = asyncio.Event()
        self.acknowledged: list[KeyId] = []
        self.settling = False
        self.delivering: asyncio.Task[None] | None = None
        self.waiting: list[Delivery] = []
        self.after = 0
        self.generations = True  # the vault is to be asked how they stand

    @property
    def application(self) -> str:
        """The application's name, as the Gate ties it to the CURVE key."""
        return self.attendant.application.name


class SupplyServer:
    """Supplies provisioned applications, each with its own keys and with nothing of anybody else's.

    `ask` is the vault. `decide(association, size_bits)` gives the reason to refuse a subscription, or None.
    `may_release` says whether keys of an association may go out now: what the neighbour has revoked is known first.
    `on_acknowledged` is told when an application's word that it is ready for a generation is journalled.
    `peer_reachable` is told to the vault with every request to open keys.
    `on_subscription` is told when one begins, changes and ends, `on_delivered` when acknowledgements of its keys are
    journalled, so that the neighbour hears of them; `on_decoy` of who has asked for a decoy, and how. `record`
    journals access events. At most `credit` keys of a subscription are unacknowledged, so an application that hangs
    holds up only itself; one that says nothing for `lapse_s` is taken as gone.
    """

    def __init__(
        self,
        node: OwnIdentity,
        applications: AllowList[ApplicationIdentity],
        *,
        ask: Ask,
        draw_into: DrawInto,
        decide: Callable[[Association, int], str | None],
        on_subscription: Callable[[SubscriptionState], None],
        record: Record,
        key_class: str,
        on_delivered: Callable[[Association], None] = lambda association: None,
        on_acknowledged: Callable[[Association], None] = lambda association: None,
        may_release: Callable[[Association], bool] = lambda association: True,
        peer_reachable: Callable[[Association], bool] = lambda association: True,
        on_decoy: Callable[[str, str], None] = lambda subject, detail: None,
        lapse_s: float = 15.0,
        resend_s: float = 5.0,
        limits: Limits = LIMITS,
    ) -> None:
        self._node, self._applications = node, applications
        self._ask, self._draw_into, self._decide = ask, draw_into, decide
        self._on_subscription, self._record, self._on_delivered = on_subscription, record, on_delivered
        self._may_release, self._peer_reachable, self._on_decoy = may_release, peer_reachable, on_decoy
        self._on_acknowledged = on_acknowledged
        self._key_class, self._lapse_s, self._resend_s, self._limits = key_class, lapse_s, resend_s, limits
        self._connections: dict[bytes, Connection] = {}
        self._statistics = SupplyStatistics()
        self._throttle = Throttle(burst=10, per_s=1.0)
        self._fetches = Throttle(burst=FETCHES_BURST, per_s=FETCHES_PER_S)
        self._errands: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._listener: Listener | None = None
        self._clock: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def endpoint(self) -> str:
        """Where it listens, the port in place of `*`."""
        if self._listener is None:
            raise ChannelError("the supply of keys is not started")
        return self._listener.endpoint

    def statistics(self) -> SupplyStatistics:
        """A copy of the counts."""
        return msgspec.structs.replace(self._statistics)

    def subscriptions(self) -> list[SubscriptionState]:
        """What is subscribed now."""
        return [
            SubscriptionState(held.association, True, held.size_bits, held.credit, held.pushes)
            for connection in self._connections.values()
            if (held := connection.attendant.subscription) is not None
        ]

    async def start(self, endpoint: str) -> None:
        """Listen. ChannelError if the endpoint cannot be had."""
        self._listener = Listener(
            endpoint,
            self._node.curve,
            self._limits,
            domain=DOMAIN,
            admit=self._admit,
            joined=self._join,
            left=self._leave,
            received=self._receive,
            refused=self._refuse,
            malformed=self._discard,
        )
        self._clock = asyncio.create_task(self._tick())

    def allow(self, applications: AllowList[ApplicationIdentity]) -> None:
        """Know these applications and no others; subscriptions that are no longer allowed end."""
        self._applications = applications
        for route, connection in list(self._connections.items()):
            attendant, held = connection.attendant, connection.attendant.subscription
            is_known = applications.named(connection.application) == attendant.application
            if held is not None:
                reason = self._decide(held.association, held.size_bits) if is_known else "it is not configured any more"
                if reason is not None:
                    self._send(connection, attendant.refuse(reason))
                    self._end(connection, held.association, reason)
            if not is_known:
                del self._connections[route]
                self._apply(connection, attendant.close("it is not configured any more"))

    def review(self) -> None:
        """Other rules are in force: who may no longer have keys is refused, and every outbox is read from its start."""
        self.allow(self._applications)
        for connection in self._connections.values():
            connection.after = 0
            connection.waiting.clear()
            connection.wanted.set()

    def notify(self, application: str) -> None:
        """The application's outbox may have new rows."""
        for connection in self._connections.values():
            if connection.application == application:
                connection.wanted.set()

    def rotated(self, association: Association) -> None:
        """A rotation has gone on: applications are told, and an outbox is read from its start."""
        for connection in self._connections.values():
            held = connection.attendant.subscription
            if held is not None and held.association == association:
                connection.generations = True
                connection.after = 0
                connection.waiting.clear()
                connection.wanted.set()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing waits for the applications that are connected; whether that came about in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while await self.anything_waits():
                    self._moved.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.25):
                            await self._moved.wait()
                return True
        return False

    async def close(self) -> None:
        """End all subscriptions and stop listening. Keys that are not acknowledged stay in the vault's outboxes."""
        if self._listener is None:
            return
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)
        for connection in list(self._connections.values()):
            self._apply(connection, connection.attendant.close("the node stops supplying"))
        while self._errands:
            await asyncio.gather(*self._errands, return_exceptions=True)
        self._connections.clear()
        await self._listener.close()
        self._listener = None

    # Connections

    def _admit(self, curve: str) -> str | None:
        identity = self._applications.decide(curve).identity
        return None if identity is None else identity.name

    def _join(self, peer: Peer) -> None:
        application = self._applications.named(peer.user)
        present = sum(connection.application == peer.user for connection in self._connections.values())
        if application is None or present >= CONNECTIONS_PER_APPLICATION:
            self._statistics.discarded += 1
            who = self._who(application, peer)
            self._note("connect", peer.user, "refused", {"reason": f"{present} connections are up already", **who})
            return
        self._statistics.connections += 1
        attendant = Attendant(
            self._node,
            application,
            draw_into=self._draw_into,
            alive_ms=max(10, int(self._lapse_s * 1000 / 4)),
            lapse_s=self._lapse_s,
            resend_s=self._resend_s,
            key_class=self._key_class,
            now_s=time.monotonic(),
        )
        self._connections[peer.route] = Connection(peer, attendant)

    def _leave(self, peer: Peer) -> None:
        connection = self._connections.pop(peer.route, None)
        if connection is not None:
            self._apply(connection, connection.attendant.close("disconnected"))

    def _receive(self, peer: Peer, frame: bytes) -> None:
        connection = self._connections.get(peer.route)
        if connection is None:
            self._discard()
        else:
            self._apply(connection, connection.attendant.receive(frame, time.monotonic()))

    def _refuse(self, reason: str) -> None:
        self._statistics.refused_connections += 1
        self._note("connect", "unknown", "refused", {"reason": reason})

    def _discard(self) -> None:
        self._statistics.discarded += 1

    # Outcomes of the Attendants

    def _apply(self, connection: Connection, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Reply(frame):
                    self._send(connection, frame)
                case SubscriptionWanted():
                    self._subscribe(connection, outcome)
                case KeysAcknowledged(key_ids):
                    connection.acknowledged.extend(key_ids)
                    if not connection.settling:
                        connection.settling = True
                        self._run(self._settle(connection))
                case KeysWanted():
                    self._run(self._fetch(connection, outcome))
                case EndingsNoted(numbers):
                    self._run(self._note_endings(connection, numbers))
                case NotSent(key_ids):
                    self._statistics.keys_not_sent += len(key_ids)
                    self._run(self._look_for_decoys(connection, key_ids))
                case GenerationTaken(association, number):
                    self._run(self._accept(connection, association, number))
                case SubscriptionEnded(association, reason):
                    self._end(connection, association, reason)
                case OpenRefused(reason):
                    self._statistics.refused_sessions += 1
                    self._tell(connection, "session", "refused", {"reason": reason})
                case Discarded(reason):
                    self._statistics.discarded += 1
                    self._tell(connection, "message", "discarded", {"reason": reason})

    def _subscribe(self, connection: Connection, wanted: SubscriptionWanted) -> None:
        attendant = connection.attendant
        reason = self._decide(wanted.association, wanted.size_bits)
        if reason is not None:
            if (held := attendant.subscription) is not None:
                self._end(connection, held.association, reason)
            self._statistics.refused_subscriptions += 1
            self._tell(connection, "subscribe", "refused", {"reason": reason, "to": str(wanted.association)})
            self._send(connection, attendant.refuse(reason))
            return
        for other in self._connections.values():
            held = other.attendant.subscription
            if other is not connection and held is not None and held.association == wanted.association:
                reason = "a newer connection of the same application subscribed to the same keys"
                self._send(other, other.attendant.refuse(reason))
                self._end(other, wanted.association, reason)
        began = attendant.subscription is None
        self._send(connection, attendant.subscribe(wanted))
        state = SubscriptionState(wanted.association, True, wanted.size_bits, wanted.credit, wanted.pushes)
        self._on_subscription(state)
        if began:
            self._statistics.subscriptions += 1
            details: Details = {"to": str(wanted.association), "size_bits": wanted.size_bits, "credit": wanted.credit}
            self._tell(connection, "subscribe", "granted", details, throttled=False)
            connection.after = 0
            connection.generations = True
            connection.waiting.clear()
            connection.delivering = self._run(self._deliver(connection))
        connection.wanted.set()

    def _end(self, connection: Connection, association: Association, reason: str) -> None:
        if connection.delivering is not None:
            connection.delivering.cancel()
            connection.delivering = None
        connection.waiting.clear()
        self._statistics.ended += 1
        self._moved.set()
        self._tell(connection, "unsubscribe", "ended", {"to": str(association), "reason": reason})
        self._on_subscription(SubscriptionState(association, False, 0, 0))

    def _send(self, connection: Connection, frame: bytes) -> bool:
        if self._listener is None:
            return False
        with suppress(ChannelError):
            # What does not fit now is sent again when due.
            return self._listener.send(connection.peer, frame)
        return False

    # Delivery

    async def _deliver(self, connection: Connection) -> None:
        """Keep one subscription supplied until cancelled."""
        attendant = connection.attendant
        while True:
            connection.wanted.clear()
            try:
                await self._tell_endings(connection)
                await self._tell_generations(connection)
                again = attendant.due(time.monotonic()) if self._releases(connection) else []
                await self._send_keys(connection, again, again=True)
                while (fresh := await self._next_rows(connection)) and attendant.subscription is not None:
                    if not await self._send_keys(connection, fresh, again=False):
                        break
            except VaultError as error:
                self._statistics.failed_records += 1
                self._tell(connection, "deliver", "failed", {"reason": str(error)})
            await connection.wanted.wait()

    async def _next_rows(self, connection: Connection) -> list[Delivery]:
        """Rows of the outbox for this subscription, as many as one message has room for and not sent yet."""
        subscription = connection.attendant.subscription
        idle = subscription is None or not subscription.pushes or subscription.room <= 0
        if subscription is None or idle or not self._releases(connection):
            return []
        while not connection.waiting:
            request = ApplicationOutbox(
                application=connection.application,
                after=connection.after,
                limit=OUTBOX_PAGE,
                association=subscription.association,
                size_bits=subscription.size_bits,
            )
            rows: tuple[Delivery, ...] = await self._ask(request)
            if not rows:
                return []
            connection.after = rows[-1].number
            connection.waiting = [
                row for row in rows if row.key_id not in subscription.sent and row.key_id not in subscription.settling
            ]
        count = min(subscription.room, keys_in_a_message(subscription.size_bits))
        fresh, connection.waiting = connection.waiting[:count], connection.waiting[count:]
        return fresh

    async def _tell_generations(self, connection: Connection) -> None:
        """Tell the application what is new of generations, and again what it has not answered."""
        attendant, subscription = connection.attendant, connection.attendant.subscription
        if subscription is None:
            return
        frames = attendant.tell_again(time.monotonic())
        if connection.generations:
            connection.generations = False
            try:
                state: RotationState = await self._ask(ShowRotation(association=subscription.association))
            except VaultError:
                connection.generations = True
                raise
            if attendant.subscription is not subscription:
                return
            is_offered = state.phase is Phase.OFFERED
            frames += attendant.tell_generations(state.current, state.number, is_offered, time.monotonic())
        for frame in frames:
            self._send(connection, frame)

    async def _accept(self, connection: Connection, association: Association, number: int) -> None:
        """Journal that an application is ready for a generation."""
        try:
            await self._ask(GenerationAcknowledged(association=association, number=number))
        except VaultError as error:
            self._statistics.failed_records += 1
            self._tell(connection, "generation", "failed", {"reason": str(error)})
            connection.attendant.offer_again(time.monotonic())
            return
        self._on_acknowledged(association)
        self.rotated(association)

    def _releases(self, connection: Connection) -> bool:
        subscription = connection.attendant.subscription
        return subscription is not None and self._may_release(subscription.association)

    async def _send_keys(self, connection: Connection, rows: list[Delivery], *, again: bool) -> bool:
        """Send what the vault opens; whether that was all. From what it did not open on, the outbox is read again."""
        attendant, all_opened = connection.attendant, True
        for some in _messages(rows):
            part = {row.key_id: row for row in some}
            opened = await self._open(connection, tuple(part))
            held = [part.pop(key_id) for key_id in opened.key_ids] if opened is not None else []
            if again and part:
                self._run(self._note_withdrawn(connection, tuple(part)))
            for row in part.values():
                all_opened = False
                self._statistics.keys_not_opened += 1
                attendant.forget(row.key_id)
                connection.after = min(connection.after, row.number - 1)
                connection.waiting.clear()
            if opened is None:
                continue
            with opened.material:
                subscription = attendant.subscription
                if subscription is None:
                    return False
                if again and any(row.key_id not in subscription.sent for row in held):
                    continue  # one was acknowledged meanwhile: the others are still due
                if not again and subscription.room < len(held):  # the application has lowered its credit
                    connection.waiting = held + connection.waiting
                    return False
                self._send(connection, attendant.send_keys(held, opened.material, time.monotonic()))
            self._statistics.keys_sent += len(held)
            self._statistics.keys_sent_again += again * len(held)
        return all_opened

    async def _open(self, connection: Connection, key_ids: tuple[KeyId, ...]) -> OpenedKeys | None:
        """What the vault opens of these keys; it names the damaged ones only once."""
        held = connection.attendant.subscription
        reachable = held is not None and self._peer_reachable(held.association)
        caller = Caller(fingerprint(connection.attendant.application), connection.peer.address)
        request = OpenKeys(key_ids=key_ids, application=connection.application, peer_reachable=reachable, caller=caller)
        try:
            try:
                opened: OpenedKeys = await self._ask(request)
            except VaultDamagedError:
                opened = await self._ask(request)
        except VaultError:
            return None
        return opened

    # Keys asked for by id

    async def _fetch(self, connection: Connection, wanted: KeysWanted) -> None:
        """Send what there is for the application. All else is refused in one way, at one time after it came."""
        attendant, began_s = connection.attendant, time.monotonic()
        subscription = attendant.subscription
        if subscription is None:
            return
        if self._fetches.take(connection.application, began_s) is None:
            self._statistics.fetches_put_off += 1
            self._send(connection, attendant.answer_later(wanted))
            return
        fetched = await self._look_up(connection, wanted)
        sent = self._send_fetched(connection, subscription, fetched)
        self._statistics.keys_fetched += len(sent)
        refused = tuple(key_id for key_id in wanted.key_ids if key_id not in sent)
        if not refused:
            return
        self._statistics.keys_not_fetched += len(refused)
        await asyncio.sleep(max(0.0, began_s + REFUSED_AFTER_S - time.monotonic()))
        if attendant.subscription is subscription and (frame := attendant.refuse_keys(wanted, refused)) is not None:
            self._send(connection, frame)
        if fetched is not None and fetched.decoys:
            self._alarm_of_decoys(connection, "fetch", fetched.decoys)
        names = " ".join(fetched.names[:NAMES_TOLD]) if fetched is not None else ""
        self._tell(connection, "fetch", "refused", {"ids": len(refused), "names": names})

    async def _look_for_decoys(self, connection: Connection, key_ids: tuple[KeyId, ...]) -> None:
        """Nobody can have a decoy: who acknowledges one knows its id from elsewhere."""
        try:
            suspects: Suspects = await self._ask(WhichDecoys(key_ids=key_ids))
        except VaultError:
            self._statistics.failed_records += 1
            return
        if suspects.names:
            self._alarm_of_decoys(connection, "acknowledgement", suspects.names)

    def _alarm_of_decoys(self, connection: Connection, how: str, names: tuple[str, ...]) -> None:
        who = self._who(connection.attendant.application, connection.peer)
        told = f"{how} of {len(names)}, such as {names[0]}; source {who['source']}, fingerprint {who['fingerprint']}"
        self._on_decoy(f"application/{connection.application}", told)

    async def _look_up(self, connection: Connection, wanted: KeysWanted) -> FetchedKeys | None:
        held = connection.attendant.subscription
        if held is None:
            return None
        request = FetchKeys(
            key_ids=wanted.key_ids,
            association=held.association,
            size_bits=held.size_bits,
            release=self._may_release(held.association),
            peer_reachable=self._peer_reachable(held.association),
            caller=Caller(fingerprint(connection.attendant.application), connection.peer.address),
        )
        try:
            try:
                fetched: FetchedKeys = await self._ask(request)
            except VaultDamagedError:  # it names the damaged ones only once
                fetched = await self._ask(request)
        except VaultError:
            return None
        return fetched

    def _send_fetched(
        self, connection: Connection, subscription: Subscription, fetched: FetchedKeys | None
    ) -> list[KeyId]:
        """Send the keys that were opened, as far as the credit goes; which."""
        if fetched is None or fetched.opened is None:
            return []
        attendant, opened = connection.attendant, fetched.opened
        with opened.material as material, memoryview(material) as view:
            if attendant.subscription is not subscription:
                return []
            size, room = opened.size_bits // 8, subscription.room
            rows, places = list[Delivery](), dict[KeyId, int]()
            for place, delivery in enumerate(fetched.deliveries):
                known = delivery.key_id in subscription.sent
                if delivery.key_id in subscription.settling or (not known and room <= 0):
                    continue
                room -= not known
                rows.append(delivery)
                places[delivery.key_id] = place
            for some in _messages(rows):
                with SecretBuffer(size * len(some)) as part, memoryview(part) as into:
                    for i, row in enumerate(some):
                        place = places[row.key_id]
                        into[i * size : (i + 1) * size] = view[place * size : (place + 1) * size]
                    frame = attendant.send_keys(some, part, time.monotonic())
                self._send(connection, frame)
            self._statistics.keys_sent += len(rows)
            return [row.key_id for row in rows]

    # Keys that are out of use

    async def _tell_endings(self, connection: Connection) -> None:
        """Tell the application of keys that it has and that are out of use, until it has noted them."""
        attendant = connection.attendant
        if (held := attendant.subscription) is None:
            return
        rows: tuple[Ended, ...] = await self._ask(EndedKeys(association=held.association))
        for ended in rows:
            if attendant.subscription is held and (frame := attendant.tell_ended(ended, time.monotonic())) is not None:
                self._send(connection, frame)
                self._statistics.endings_told += 1

    async def _note_endings(self, connection: Connection, numbers: tuple[int, ...]) -> None:
        try:
            await self._ask(EndedNoted(application=connection.application, numbers=numbers))
        except VaultError as error:
            self._statistics.failed_records += 1
            self._tell(connection, "ended", "failed", {"reason": str(error)})
            return
        connection.wanted.set()  # there may be more

    async def _note_withdrawn(self, connection: Connection, key_ids: tuple[KeyId, ...]) -> None:
        """Keys that were sent are not opened any more: of those that are out of use the application is told."""
        with suppress(VaultError):  # it is found again when it acknowledges them
            if await self._ask(HadBefore(application=connection.application, key_ids=key_ids)):
                connection.wanted.set()

    async def _settle(self, connection: Connection) -> None:
        """Journal what was acknowledged; what comes in meanwhile goes into the next request."""
        while connection.acknowledged:
            ids = tuple(connection.acknowledged[:MAX_IDS])
            del connection.acknowledged[:MAX_IDS]
            details: Details = {"class": self._key_class}
            request = KeysDelivered(application=connection.application, key_ids=ids, details=details)
            try:
                new: int = await self._ask(request)
            except VaultError as error:
                self._statistics.failed_records += 1
                self._tell(connection, "deliver", "failed", {"reason": str(error)})
                connection.attendant.retry(ids, time.monotonic())
                continue
            self._statistics.keys_delivered += new
            frame = connection.attendant.record(ids)
            if frame is not None:
                self._send(connection, frame)
            if (held := connection.attendant.subscription) is not None:
                self._on_delivered(held.association)
            connection.wanted.set()
            self._moved.set()
        connection.settling = False

    async def anything_waits(self) -> bool:
        """Whether a connected application has not acknowledged all the keys that it may have now."""
        for state in self.subscriptions():
            if not self._may_release(state.association) or not state.pushes:
                continue
            request = ApplicationOutbox(
                application=state.association.local,
                limit=1,
                association=state.association,
                size_bits=state.size_bits,
            )
            if await self._ask(request):
                return True
        return False

    # Time and events

    async def _tick(self) -> None:
        pause_s = min(self._lapse_s, self._resend_s) / 4
        while True:
            await asyncio.sleep(pause_s)
            now_s = time.monotonic()
            for connection in list(self._connections.values()):
                self._apply(connection, connection.attendant.tick(now_s))
                connection.wanted.set()

    @staticmethod
    def _who(application: ApplicationIdentity | None, peer: Peer) -> Details:
        """What leaves of access tell of who asks."""
        return {"fingerprint": "unknown" if application is None else fingerprint(application), "source": peer.address}

    def _tell(
        self, connection: Connection, kind: str, outcome: str, details: Details, *, throttled: bool = True
    ) -> None:
        who = self._who(connection.attendant.application, connection.peer)
        self._note(kind, connection.application, outcome, {**details, **who}, throttled=throttled)

    def _note(self, kind: str, subject: str, outcome: str, details: Details, *, throttled: bool = True) -> None:
        """Journal an access event; those that a stranger can cause at will are limited and the rest counted."""
        if throttled:
            left_out = self._throttle.take(f"{kind} {subject} {outcome}", time.monotonic())
            if left_out is None:
                return
            details = {**details, "left_out_before": left_out}
        self._run(self._journal(kind, subject, outcome, details))

    async def _journal(self, kind: str, subject: str, outcome: str, details: Details) -> None:
        try:
            await self._record(kind, subject, outcome, details)
        except VaultError:
            self._statistics.failed_records += 1

    def _run(self, errand: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        return task


def _messages(rows: list[Delivery]) -> Iterator[list[Delivery]]:
    """Rows of one size as messages carry them: of one generation each."""
    for _, group in groupby(rows, lambda row: row.generation):
        same = list(group)
        together = keys_in_a_message(same[0].size_bits)
        for start in range(0, len(same), together):
            yield same[start : start + together]
