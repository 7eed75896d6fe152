"""Vault to vault over one link: stock that is settled, keys that are allocated, deliveries that are acknowledged."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import msgspec

from qkdnode.errors import EntropyShortError, NoEntropyError, OutOfStockError, QkdnodeError, VaultError
from qkdnode.ids import ALICE, Association, KeyId
from qkdnode.link.surroundings import Surroundings
from qkdnode.vault import requests as ask
from qkdnode.wire.messages import (
    ACCEPTED,
    NOT_SETTLED,
    Allocate,
    Allocated,
    Delivered,
    Goodbye,
    Message,
    Received,
    Settled,
    Subscription,
)

ALLOCATE_AT_MOST = 1_024
IDLE_S = 1.0  # how often to look again without being woken
RETRY_S = 0.5  # after a NOT_SETTLED
RESEND_S = 5.0  # an entry that the peer could not journal is sent again


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
        self._sent: dict[int, int] = {}  # outbox entries sent in this session, and when
        self._retry_at_ns = 0
        self._in_stock = True
        self._allocating = True
        self._goodbye_sent = False
        self._announced_ns = 0
        self.peer_drained = False

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
        for subscription in self._local.values():
            self._announce(subscription)
        self._link.spawn(self._announce_ready())
        self.wake()

    def session_closed(self) -> None:
        """What the peer said of its applications no longer holds."""
        self._remote.clear()

    def subscribed(self, subscription: LocalSubscription) -> None:
        """An application here came, went, or changed what it accepts."""
        key = (subscription.association.local, subscription.association.remote)
        self._local[key] = subscription
        self._announce(subscription)
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
            try:
                async with asyncio.timeout(IDLE_S):  # wait_for may swallow a cancellation before Python 3.12
                    message = await self._inbox.get()
                while True:
                    if message is not None:
                        await self._handle(message)
                    if self._inbox.empty():
                        break
                    message = self._inbox.get_nowait()
            except TimeoutError:
                pass
            try:
                if self._link.is_open:
                    await self._allocate()
                    await self._send_outbox()
                    if self._link.around.monotonic_ns() - self._announced_ns > RESEND_S * 1e9:
                        await self._announce_ready()
            except VaultError as error:
                self._link.around.alarm(error.code, self._link.name, str(error))
                await asyncio.sleep(RETRY_S)

    async def _handle(self, message: Message) -> None:
        try:
            await HANDLERS[type(message)](self, message)
        except QkdnodeError as error:
            # Not journalled, so not answered: the peer sends it again in the next session.
            self._link.around.alarm(error.code, self._link.name, str(error))

    async def _ask(self, request: Any) -> Any:
        return await self._link.around.ask(request)

    # --- stock -----------------------------------------------------------------------------------------------------

    async def _announce_ready(self) -> None:
        self._announced_ns = self._link.around.monotonic_ns()
        if self._link.role == ALICE:
            ready = await self._ask(ask.UnannouncedReady(link=self._link.name))
            if ready:
                self._link.send_soon(Settled(tuple(ready)[:256]))

    async def _on_settled(self, message: Settled) -> None:
        if self._link.role == ALICE:
            await self._ask(ask.ReadyAnnounced(link=self._link.name, batches=message.ready))
            return
        for segment in await self._ask(ask.PeerReady(link=self._link.name, batches=message.ready)):
            self._link.add_segment(segment)
        self._link.send_soon(message)
        await self._link.measure_pool()
        self.stock_grew()

    # --- allocation ------------------------------------------------------------------------------------------------

    async def _allocate(self) -> None:
        if not self._allocating or not self._in_stock or self._link.starved:
            return
        for key, local in list(self._local.items()):  # an application may come while the vault is asked
            remote = self._remote.get((key[1], key[0]))
            if not local.connected or remote is None or not remote.connected:
                continue
            if local.size_bits != remote.size_bits:
                self._link.around.alarm(
                    "CONFIG",
                    str(local.association),
                    f"the applications want keys of {local.size_bits} and {remote.size_bits} bits: no key is allocated",
                )
                continue
            outstanding = await self._ask(ask.Outstanding(association=local.association))
            room = min(min(local.credit, remote.credit) // 2 or 1, ALLOCATE_AT_MOST) - outstanding
            if room <= 0:
                continue
            try:
                with self._link.around.draw(16 * room) as ids, memoryview(ids) as view:
                    entropy = view.tobytes()
                await self._ask(
                    ask.AllocateKeys(
                        association=local.association, count=room, size_bits=local.size_bits, entropy=entropy
                    )
                )
            except OutOfStockError:
                self._in_stock = False
                return
            except EntropyShortError:
                return
            except NoEntropyError as error:
                self._link.around.alarm("NO_ENTROPY", self._link.name, str(error))
                return

    async def _send_outbox(self) -> None:
        if self._link.around.monotonic_ns() < self._retry_at_ns:
            return
        now = self._link.around.monotonic_ns()
        for entry in await self._ask(ask.NeighbourOutbox(link=self._link.name)):
            sent = self._sent.get(entry.number)
            if sent is None or now - sent > RESEND_S * 1e9:
                self._sent[entry.number] = now
                self._link.send_soon(entry.message)

    async def _on_allocate(self, message: Allocate) -> None:
        outcome = await self._ask(ask.AcceptAllocation(link=self._link.name, allocate=message))
        self._link.send_soon(Allocated(message.request, outcome))
        if outcome == ACCEPTED:
            self._link.around.notify_supply(message.remote)

    async def _on_allocated(self, message: Allocated) -> None:
        await self._ask(ask.AllocationAnswered(link=self._link.name, request=message.request, outcome=message.outcome))
        self._sent.pop(message.request, None)
        if message.outcome == NOT_SETTLED:
            self._retry_at_ns = self._link.around.monotonic_ns() + round(RETRY_S * 1e9)
        for local, _ in self._local:
            self._link.around.notify_supply(local)

    # --- deliveries ------------------------------------------------------------------------------------------------

    async def _on_delivered(self, message: Delivered) -> None:
        raw = message.key_ids
        ids = tuple(KeyId(bytes=raw[at : at + 16]) for at in range(0, len(raw) - len(raw) % 16, 16))
        await self._ask(ask.PeerDelivered(link=self._link.name, application=message.application, key_ids=ids))
        self._link.send_soon(Received((message.notice,)))

    async def _on_received(self, message: Received) -> None:
        await self._ask(ask.OutboxCleared(link=self._link.name, numbers=message.notices))
        for notice in message.notices:
            self._sent.pop(notice, None)

    async def _on_subscription(self, message: Subscription) -> None:
        self._remote[message.local, message.remote] = message

    async def _on_goodbye(self, message: Goodbye) -> None:
        self.peer_drained = message.drained

    def _announce(self, subscription: LocalSubscription) -> None:
        if self._link.is_open:
            association = subscription.association
            self._link.send_soon(
                Subscription(
                    association.local,
                    association.remote,
                    subscription.connected,
                    subscription.size_bits,
                    subscription.credit,
                )
            )


HANDLERS: dict[type[Message], Callable[[Agreement, Any], Awaitable[None]]] = {
    Settled: Agreement._on_settled,
    Allocate: Agreement._on_allocate,
    Allocated: Agreement._on_allocated,
    Delivered: Agreement._on_delivered,
    Received: Agreement._on_received,
    Subscription: Agreement._on_subscription,
    Goodbye: Agreement._on_goodbye,
}
