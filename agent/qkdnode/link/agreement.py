"""Vault to vault over one link: stock that is settled, keys that are allocated, deliveries that are acknowledged."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import msgspec

from qkdnode.errors import (
    EntropyShortError,
    NoEntropyError,
    OutOfStockError,
    PolicyDeniedError,
    QkdnodeError,
    VaultError,
)
from qkdnode.ids import ALICE, Association, KeyId
from qkdnode.lifecycle.reasons import COMPROMISES
from qkdnode.lifecycle.rotation import PATIENCE_NS, STOCK_PATIENCE_NS, WAITS_FOR, Fact, Phase
from qkdnode.link.surroundings import Surroundings
from qkdnode.vault import requests as ask
from qkdnode.vault.retirement import FollowRetired
from qkdnode.vault.revocations import FollowRevoked, RevocationsUnconfirmed
from qkdnode.vault.rotations import (
    AdvanceRotations,
    FollowRotation,
    GenerationPrepared,
    GiveUpRotation,
    RotationMessage,
    RotationState,
)
from qkdnode.vault.scopes import FollowCompromise
from qkdnode.wire.messages import (
    ACCEPTED,
    DENIED,
    NOT_SETTLED,
    Allocate,
    Allocated,
    Compromised,
    Delivered,
    Goodbye,
    KeysRetired,
    KeysRevoked,
    Message,
    Received,
    RevocationsWaiting,
    RotationGivenUp,
    RotationProposed,
    RotationStands,
    RotationWanted,
    Settled,
    Subscription,
)

ALLOCATE_AT_MOST = 1_024
IDLE_S = 1.0  # how often to look again without being woken
ROTATING_S = 0.1  # and while old keys run out
RETRY_S = 0.5  # after a NOT_SETTLED
DECOYS_AGAIN_S = 60.0  # after there was no stock for them
DENIED_S = 60.0  # no key is cut for who was denied some, until then or until the peer says something new of them
RESEND_S = 5.0  # an entry that the peer could not journal is sent again
SWEEP_S = 2.5  # how often the whole outbox is looked at for those
TOGETHER = 128  # keys of one request: so many are allocated as soon as there is room
GATHER_S = 0.03  # fewer wait so long for more room, unless half of what may be outstanding is missing
OUTBOX_PAGE = 64
MESSAGES_AT_ONCE = 256


class LocalSubscription(msgspec.Struct, frozen=True):
    """What an application here accepts for an association."""

    association: Association
    connected: bool
    size_bits: int
    credit: int


class Link(Protocol):
    """What the agreement needs of its link."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def starved(self) -> bool: ...
    @property
    def around(self) -> Surroundings: ...
    def send_soon(self, message: Message) -> None: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...
    def add_segment(self, segment: ask.SegmentState) -> None: ...
    async def measure_pool(self) -> None: ...


class Agreement:
    """Runs the allocation protocol of one link.

    This end allocates from its own half of the stock while both applications of an association are connected, within
    half of the smaller credit: the other half is the peer's to allocate.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._local: dict[tuple[str, str], LocalSubscription] = {}
        self._remote: dict[tuple[str, str], Subscription] = {}
        self._told: dict[tuple[str, str], Subscription] = {}  # what the peer was told last, in this session
        self._denied: dict[tuple[str, str], int] = {}  # whose keys the peer's policy refused, and until when to wait
        self._cut_for: dict[int, tuple[str, str]] = {}  # Allocates sent in this session, and for whom
        self._sent: dict[int, int] = {}  # outbox entries sent in this session, and when
        self._sent_up_to = -1  # the last of them: newer ones are yet to be sent
        self._swept_ns = 0  # when the whole outbox was looked at last
        self._room_since: dict[tuple[str, str], int] = {}
        self._retry_at_ns = 0
        self._in_stock = True
        self._decoys_after_ns = 0
        self._allocating = True
        self._goodbye_sent = False
        self._announced_ns = 0
        self._revocations_sent = True
        self._revocations_there = 0  # of this end, not journalled there when it was told last
        self._revocations_here: int | None = None  # of the peer, not journalled here; None until it says so
        self._rotating = True  # a rotation may be on the way
        self._rotations: dict[tuple[str, str], RotationState] = {}  # as they were seen last
        self._warned: dict[tuple[str, str], int] = {}  # of rotations that wait, for so many minutes
        self.peer_drained = False

    @property
    def is_current(self) -> bool:
        """Whether everything that the peer has revoked stands in this vault: no key is released before."""
        return self._link.is_open and self._revocations_here == 0

    # --- told by others --------------------------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """An authenticated vault message of the peer."""
        self._inbox.put_nowait(message)

    def wake(self) -> None:
        """Something may have changed: look at the outbox and the subscriptions."""
        self._inbox.put_nowait(None)

    def session_opened(self) -> None:
        """Send again whatever the peer may not have."""
        self._sent.clear()
        self._sent_up_to = -1
        self._told.clear()
        self._cut_for.clear()
        self._rotating = True
        self._link.spawn(self._announce_ready())
        self.revoked()

    def session_closed(self) -> None:
        """What the peer said of its applications and revocations no longer holds."""
        self._remote.clear()
        self._denied.clear()
        self._revocations_here = None

    def revoked(self) -> None:
        """Keys were revoked here: tell the peer before all else."""
        self._revocations_sent = False
        self.wake()

    def subscriptions(self, association: Association) -> tuple[LocalSubscription | None, Subscription | None]:
        """What the applications of an association accept, here and at the far end; None: it is not connected."""
        here = self._local.get((association.local, association.remote))
        there = self._remote.get((association.remote, association.local))
        return here if here and here.connected else None, there if there and there.connected else None

    def rotated(self) -> None:
        """A rotation was begun, given up or gone on with here."""
        self._rotating = True
        self.wake()

    def subscribed(self, subscription: LocalSubscription) -> None:
        """An application here came, went, or changed what it accepts."""
        key = (subscription.association.local, subscription.association.remote)
        self._local[key] = subscription
        if not subscription.connected:
            self._announce(subscription, None)
        self.wake()

    def stock_grew(self) -> None:
        """A Batch was settled."""
        self._in_stock = True
        self.wake()

    def stop_allocating(self) -> None:
        """Allocate no more; what is allocated is delivered."""
        self._allocating = False

    def say_goodbye(self) -> None:
        """Tell the peer that this end waits for nothing."""
        if self._link.is_open and not self._goodbye_sent:
            self._goodbye_sent = True
            self._link.send_soon(Goodbye(True))

    # --- running ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle messages in order, then see what is to be sent and allocated."""
        while True:
            await self._handle(await self._next_messages())
            try:
                if self._link.is_open:
                    if not self._revocations_sent:
                        await self._send_revocations()
                    entitlements = await self._announce_subscriptions()
                    await self._rotate(entitlements)
                    await self._allocate(entitlements)
                    await self._send_outbox()
                    if self._link.around.monotonic_ns() - self._announced_ns > RESEND_S * 1e9:
                        await self._announce_ready()
                        self._revocations_sent = False
                else:
                    await self._rotate({})
            except VaultError as error:
                self._link.around.alarm(error.code, self._link.name, str(error))
                await asyncio.sleep(RETRY_S)

    async def _next_messages(self) -> list[Message]:
        """What the peer has sent, at most as much as is handled at once; nothing when woken or after a while."""
        taken: list[Message | None] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s()):  # wait_for may swallow a cancellation
                taken.append(await self._inbox.get())
            while not self._inbox.empty() and len(taken) < MESSAGES_AT_ONCE:
                taken.append(self._inbox.get_nowait())
        return [message for message in taken if message is not None]

    def _pause_s(self) -> float:
        if self._room_since:
            return GATHER_S
        return ROTATING_S if any(its.phase is Phase.CUT for its in self._rotations.values()) else IDLE_S

    async def _handle(self, messages: list[Message]) -> None:
        """Handle messages in order; those of one kind that follow one another together, so that they share a sync."""
        for kind, some in groupby(messages, type):
            try:
                await HANDLERS[kind](self, list(some))
            except QkdnodeError as error:
                self._complain(error)

    def _complain(self, error: QkdnodeError) -> None:
        # Not journalled, so not answered: the peer sends it again.
        self._link.around.alarm(error.code, self._link.name, str(error))

    async def _ask_each(self, requests: Iterable[Any]) -> list[Any]:
        """The answers, or errors that were complained of, to requests asked together, in this order."""
        return await asyncio.gather(*[self._try(request) for request in requests])

    async def _try(self, request: Any) -> Any:
        try:
            return await self._ask(request)
        except QkdnodeError as error:
            self._complain(error)
            return error

    async def _ask(self, request: Any) -> Any:
        return await self._link.around.ask(request)

    # --- stock -----------------------------------------------------------------------------------------------------

    async def _announce_ready(self) -> None:
        self._announced_ns = self._link.around.monotonic_ns()
        if self._link.role == ALICE:
            ready = await self._ask(ask.UnannouncedReady(link=self._link.name))
            if ready:
                self._link.send_soon(Settled(tuple(ready)[:256]))

    async def _on_settled(self, messages: list[Settled]) -> None:
        for message in messages:
            if self._link.role == ALICE:
                await self._ask(ask.ReadyAnnounced(link=self._link.name, batches=message.ready))
                continue
            for segment in await self._ask(ask.PeerReady(link=self._link.name, batches=message.ready)):
                self._link.add_segment(segment)
            self._link.send_soon(message)
            await self._link.measure_pool()
            self.stock_grew()

    # --- revocation ------------------------------------------------------------------------------------------------

    async def _send_revocations(self) -> None:
        """What the peer is yet to journal, and how many these are: until there are none it supplies no key."""
        self._revocations_sent = True
        waiting = await self._ask(RevocationsUnconfirmed(link=self._link.name, limit=OUTBOX_PAGE))
        now = self._link.around.monotonic_ns()
        for entry in waiting:
            sent = self._sent.get(entry.number)
            if sent is None or now - sent > RESEND_S * 1e9:
                self._sent[entry.number] = now
                self._link.send_soon(entry.message)
        self._revocations_there = len(waiting)
        self._link.send_soon(RevocationsWaiting(len(waiting)))

    async def _on_revoked(self, messages: list[KeysRevoked]) -> None:
        answers = await self._ask_each(FollowRevoked(link=self._link.name, message=message) for message in messages)
        self._confirm(messages, answers)

    async def _on_retired(self, messages: list[KeysRetired]) -> None:
        answers = await self._ask_each(FollowRetired(link=self._link.name, message=message) for message in messages)
        heard = [m.notice for m, answer in zip(messages, answers, strict=True) if not isinstance(answer, BaseException)]
        if heard:
            self._link.send_soon(Received(tuple(heard)))

    async def _on_compromised(self, messages: list[Compromised]) -> None:
        answers = await self._ask_each(FollowCompromise(link=self._link.name, message=message) for message in messages)
        self._confirm(messages, answers)

    def _confirm(self, messages: Sequence[KeysRevoked | Compromised], answers: list[Any]) -> None:
        heard = [m for m, answer in zip(messages, answers, strict=True) if not isinstance(answer, BaseException)]
        if heard:
            self._link.send_soon(Received(tuple(message.notice for message in heard)))
        if any(message.reason in COMPROMISES for message in heard):
            told = "the neighbour says that others may know keys of this link: none of them is released"
            self._link.around.alarm("COMPROMISED", self._link.name, told)

    async def _on_revocations_waiting(self, messages: list[RevocationsWaiting]) -> None:
        was_current, self._revocations_here = self.is_current, messages[-1].count
        if self.is_current and not was_current:
            for local, _ in self._local:
                self._link.around.notify_supply(local)

    # --- allocation ------------------------------------------------------------------------------------------------

    async def _announce_subscriptions(self) -> dict[tuple[str, str], ask.Entitlement]:
        """What the policy allows every application that is connected; the peer hears of it when it has changed."""
        entitlements = {}
        for key, local in list(self._local.items()):  # an application may come while the vault is asked
            if local.connected:
                request = ask.Entitle(association=local.association, size_bits=local.size_bits)
                entitlement: ask.Entitlement = await self._ask(request)
                if self._local.get(key) == local:
                    entitlements[key] = entitlement
                    self._announce(local, entitlement)
        return entitlements

    async def _allocate(self, entitlements: Mapping[tuple[str, str], ask.Entitlement]) -> None:
        if not self._allocating or not self._in_stock or self._link.starved:
            self._room_since.clear()
            return
        for key, local in list(self._local.items()):
            remote = self._remote.get((key[1], key[0]))
            its = entitlements.get(key)
            if not local.connected or its is None or remote is None or not remote.connected:
                self._room_since.pop(key, None)
                continue
            disagreement = _disagreement(local, its, remote)
            if disagreement is not None:
                self._room_since.pop(key, None)
                code, what = disagreement
                self._link.around.alarm(code, str(local.association), f"{what}: no key is allocated")
                continue
            if self._link.around.monotonic_ns() < self._denied.get(key, 0):
                continue
            if (its.decoys or its.old_decoys) and not await self._keep_decoys(local, its):
                return
            allowed = min(local.credit, remote.credit) // 2 or 1
            room = min(allowed - its.outstanding, its.room, ALLOCATE_AT_MOST)
            if self._is_time(key, room, allowed) and not await self._cut(local, room, its.generation):
                return

    async def _cut(self, local: LocalSubscription, count: int, generation: int) -> bool:
        """Cut keys of a generation from this end's half; whether it makes sense to go on with others."""
        request = partial(ask.AllocateKeys, association=local.association, count=count, size_bits=local.size_bits)
        try:
            return await self._ask_with_ids(count, partial(request, generation=generation))
        except OutOfStockError:
            self._in_stock = False
            return False
        except PolicyDeniedError:
            return True  # the policy was switched since it was asked: what it says now is told in the next round

    async def _keep_decoys(self, local: LocalSubscription, its: ask.Entitlement) -> bool:
        """Cut decoys that are missing, end old ones; whether there are random numbers and stock for more."""
        if self._link.around.monotonic_ns() < self._decoys_after_ns:
            return True
        request = partial(ask.KeepDecoys, association=local.association, count=its.decoys, size_bits=local.size_bits)
        try:
            if not await self._ask_with_ids(its.decoys, request):
                return False
        except (OutOfStockError, PolicyDeniedError):
            # What stock there is goes to the applications; or the policy was switched meanwhile.
            self._decoys_after_ns = self._link.around.monotonic_ns() + round(DECOYS_AGAIN_S * 1e9)
            return True
        if its.old_decoys:
            self.revoked()
        return True

    async def _ask_with_ids(self, count: int, request: Callable[..., Any]) -> bool:
        """Ask for keys under ids that are drawn now, as `entropy`; False if there are no random numbers for them."""
        try:
            with self._link.around.draw(16 * max(1, count)) as ids, memoryview(ids) as view:
                entropy = view.tobytes()[: 16 * count]
            await self._ask(request(entropy=entropy))
        except EntropyShortError:
            return False
        except NoEntropyError as error:
            self._link.around.alarm("NO_ENTROPY", self._link.name, str(error))
            return False
        return True

    def _is_time(self, key: tuple[str, str], room: int, allowed: int) -> bool:
        """Whether to allocate into this room, or to wait until there is more: keys cut together cost far less."""
        now = self._link.around.monotonic_ns()
        if room <= 0:
            self._room_since.pop(key, None)
            return False
        waited = now - self._room_since.setdefault(key, now)
        if room < TOGETHER and 2 * room < allowed and waited < GATHER_S * 1e9:
            return False
        del self._room_since[key]
        return True

    # --- rotation --------------------------------------------------------------------------------------------------

    async def _rotate(self, entitlements: Mapping[tuple[str, str], ask.Entitlement]) -> None:
        """Look after the rotations that are on the way; whoever is supplied hears of each that has gone on."""
        if not self._rotating:
            return
        self._rotating = False  # or again, by whoever begins one meanwhile
        states: tuple[RotationState, ...] = await self._ask(
            AdvanceRotations(link=self._link.name, cut=not self._link.is_open)
        )
        self._rotating = self._rotating or bool(states)
        now = {(state.association.local, state.association.remote): state for state in states}
        for key in self._rotations.keys() - now.keys():
            self._link.around.clear("ROTATION", str(Association(*key, self._link.name)))
            self._tell(Association(*key, self._link.name))
        before, self._rotations = self._rotations, now
        for key, state in now.items():
            if state.phase is Phase.AGREED:
                state = self._rotations[key] = await self._prepare(state, key, entitlements)
            if key not in before or before[key].phase is not state.phase:
                self._tell(state.association)
            if self._link.is_open:
                self._watch(state)

    def _tell(self, association: Association) -> None:
        self._link.around.notify_rotation(association)
        self._link.around.notify_supply(association.local)

    async def _prepare(
        self, state: RotationState, key: tuple[str, str], entitlements: Mapping[tuple[str, str], ask.Entitlement]
    ) -> RotationState:
        """Cut this end's part of the next generation's first keys, before any of the present one's.

        They are half of what may be outstanding, so that none is lacking while others are cut after the change.
        """
        local, remote, its = self._local.get(key), self._remote.get((key[1], key[0])), entitlements.get(key)
        if local is None or remote is None or its is None or not (local.connected and remote.connected):
            return state
        is_denied = self._link.around.monotonic_ns() < self._denied.get(key, 0)
        if not self._allocating or is_denied or _disagreement(local, its, remote) is not None:
            return state
        quota = its.room + its.outstanding + state.outstanding
        wanted = max(1, min(local.credit // 4, remote.credit // 4, quota // 2))
        if state.prepared >= wanted:
            prepared: RotationState = await self._ask(GenerationPrepared(association=state.association, keys=wanted))
            return prepared
        room = min(wanted - state.outstanding, its.room, ALLOCATE_AT_MOST)
        if room > 0 and self._in_stock and not self._link.starved:
            await self._cut(local, room, state.number)
        if not self._in_stock and state.now_ns - state.phase_ns >= STOCK_PATIENCE_NS:
            await self._ask(GiveUpRotation(association=state.association, reason="out of stock"))
        return state

    def _watch(self, state: RotationState) -> None:
        fact, key = WAITS_FOR.get(state.phase), (state.association.local, state.association.remote)
        waited_ns = state.now_ns - state.phase_ns
        if fact is None or waited_ns < PATIENCE_NS or self._warned.get(key) == waited_ns // PATIENCE_NS:
            return
        self._warned[key] = waited_ns // PATIENCE_NS
        what = (
            f"application {state.association.local} has not accepted it"
            if fact is Fact.ACKNOWLEDGED
            else "its first keys are not there: an application is away, or stock is short"
        )
        detail = f"generation {state.number} has waited for {waited_ns // 10**9} s: {what}"
        self._link.around.alarm("ROTATION", str(state.association), detail)

    async def _on_rotation(self, messages: Sequence[RotationMessage]) -> None:
        answers = await self._ask_each(FollowRotation(link=self._link.name, message=message) for message in messages)
        heard = [message.notice for message, answer in zip(messages, answers, strict=True) if answer is True]
        if heard:
            self._link.send_soon(Received(tuple(heard)))
        self._rotating = True

    # --- the outbox ------------------------------------------------------------------------------------------------

    async def _send_outbox(self) -> None:
        now = self._link.around.monotonic_ns()
        if now < self._retry_at_ns:
            return
        if now - self._swept_ns > SWEEP_S * 1e9:
            self._swept_ns, self._sent_up_to = now, -1
        while entries := await self._ask(
            ask.NeighbourOutbox(link=self._link.name, limit=OUTBOX_PAGE, after=self._sent_up_to)
        ):
            for entry in entries:
                sent = self._sent.get(entry.number)
                if sent is None or now - sent > RESEND_S * 1e9:
                    self._sent[entry.number] = now
                    if isinstance(entry.message, Allocate):
                        self._cut_for[entry.number] = (entry.message.local, entry.message.remote)
                    self._link.send_soon(entry.message)
            self._sent_up_to = entries[-1].number
            if len(entries) < OUTBOX_PAGE:
                break

    async def _on_allocate(self, messages: list[Allocate]) -> None:
        outcomes = await self._ask_each(
            ask.AcceptAllocation(link=self._link.name, allocate=message) for message in messages
        )
        for message, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, str):
                self._link.send_soon(Allocated(message.request, outcome))  # type: ignore[arg-type]
            if outcome == DENIED:
                self._burnt((message.remote, message.local), "the policy here does not let be what the far end cut")
        for local in {
            message.remote for message, outcome in zip(messages, outcomes, strict=True) if outcome == ACCEPTED
        }:
            self._link.around.notify_supply(local)

    async def _on_allocated(self, messages: list[Allocated]) -> None:
        answers = await self._ask_each(
            ask.AllocationAnswered(link=self._link.name, request=message.request, outcome=message.outcome)
            for message in messages
        )
        for message, answer in zip(messages, answers, strict=True):
            if isinstance(answer, BaseException):
                continue
            self._sent.pop(message.request, None)
            if message.outcome == NOT_SETTLED:
                self._retry_at_ns = self._link.around.monotonic_ns() + round(RETRY_S * 1e9)
                self._sent_up_to = min(self._sent_up_to, message.request - 1)
                continue
            key = self._cut_for.pop(message.request, None)
            if message.outcome == DENIED and key is not None:
                self._denied[key] = self._link.around.monotonic_ns() + round(DENIED_S * 1e9)
                self._burnt(key, "the far end's policy does not let be what was cut here")
        for local, _ in self._local:
            self._link.around.notify_supply(local)

    def _burnt(self, key: tuple[str, str], why: str) -> None:
        """It happens while one end switches its policy: what that end says of the association then mends it."""
        about = Association(*key, self._link.name)
        self._link.around.alarm("POLICY", str(about), f"{why}: those bits are burnt at both ends")

    # --- deliveries ------------------------------------------------------------------------------------------------

    async def _on_delivered(self, messages: list[Delivered]) -> None:
        answers = await self._ask_each(
            ask.PeerDelivered(link=self._link.name, application=message.application, key_ids=_split(message.key_ids))
            for message in messages
        )
        heard = [m.notice for m, answer in zip(messages, answers, strict=True) if not isinstance(answer, BaseException)]
        if heard:
            self._link.send_soon(Received(tuple(heard)))

    async def _on_received(self, messages: list[Received]) -> None:
        numbers = tuple(number for message in messages for number in message.notices)
        await self._ask(ask.OutboxCleared(link=self._link.name, numbers=numbers))
        for number in numbers:
            self._sent.pop(number, None)
        if self._revocations_there:
            self._revocations_sent = False

    async def _on_subscription(self, messages: list[Subscription]) -> None:
        for message in messages:
            self._remote[message.local, message.remote] = message
            self._denied.pop((message.remote, message.local), None)

    async def _on_goodbye(self, messages: list[Goodbye]) -> None:
        self.peer_drained = messages[-1].drained

    def _announce(self, subscription: LocalSubscription, entitlement: ask.Entitlement | None) -> None:
        """Tell the peer of an application here, unless it was told just that."""
        if not self._link.is_open:
            return
        association = subscription.association
        message = Subscription(
            association.local,
            association.remote,
            subscription.connected,
            subscription.size_bits,
            subscription.credit,
            entitlement.key_class if entitlement else "",
            entitlement.terms if entitlement else b"",
            entitlement.binding if entitlement else b"",
        )
        key = (association.local, association.remote)
        if self._told.get(key) != message:
            self._told[key] = message
            self._link.send_soon(message)


def _disagreement(local: LocalSubscription, its: ask.Entitlement, remote: Subscription) -> tuple[str, str] | None:
    """Why the two ends cannot have keys together, and the alarm's code; None if they can."""
    if local.size_bits != remote.size_bits:
        return "CONFIG", f"the applications want keys of {local.size_bits} and {remote.size_bits} bits"
    if not its.allowed:
        return "POLICY", f"the policy forbids it: {its.reason} [rule {its.rule}]"
    if not remote.key_class:
        return "POLICY", "the far end's policy gives them no key"
    if its.key_class != remote.key_class:
        return "POLICY", f"the policy here says class {its.key_class}, the far end's {remote.key_class}"
    if its.terms != remote.terms:
        return "POLICY", f"the terms of class {its.key_class} are not those of the far end's policy"
    if its.binding != remote.binding:
        return "CONFIG", "the services, or the names of nodes, are not those that the far end has configured"
    return None


def _split(key_ids: bytes) -> tuple[KeyId, ...]:
    whole = len(key_ids) - len(key_ids) % 16
    return tuple([KeyId(bytes=key_ids[at : at + 16]) for at in range(0, whole, 16)])


HANDLERS: dict[type[Message], Callable[[Agreement, Any], Awaitable[None]]] = {
    Settled: Agreement._on_settled,
    Allocate: Agreement._on_allocate,
    Allocated: Agreement._on_allocated,
    Delivered: Agreement._on_delivered,
    Received: Agreement._on_received,
    KeysRevoked: Agreement._on_revoked,
    KeysRetired: Agreement._on_retired,
    Compromised: Agreement._on_compromised,
    RevocationsWaiting: Agreement._on_revocations_waiting,
    RotationWanted: Agreement._on_rotation,
    RotationProposed: Agreement._on_rotation,
    RotationStands: Agreement._on_rotation,
    RotationGivenUp: Agreement._on_rotation,
    Subscription: Agreement._on_subscription,
    Goodbye: Agreement._on_goodbye,
}
