"""Two vaults whose ends compare what they hold, in virtual time, over a wire that a test plays."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog
from vaults import LINK, NODES, End, Pair
from virtual_time import VirtualTimeLoop

from qkdnode.errors import QkdnodeError, VaultError
from qkdnode.ids import other_role
from qkdnode.lifecycle.states import Stage
from qkdnode.link.comparison import Comparison
from qkdnode.link.surroundings import Surroundings
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.vault.doubts import Doubts
from qkdnode.vault.holdings import HoldingsNode
from qkdnode.vault.inventory import ListKeys
from qkdnode.vault.revocations import FollowRevoked
from qkdnode.wire.messages import KIND_OF_BODY, Allocate, Delivered, KeysRevoked, Message

HOUR_S, DAY_S = 3600.0, 86_400.0
Wire = Callable[["Side", Message], Iterable[tuple[Message, float]]]


class Side:
    """One end: its vault, its Comparison, and what came of it."""

    def __init__(self, world: "World", end: End) -> None:
        self.world, self.end = world, end
        self.name, self.role, self.peer = LINK, end.role, NODES[other_role(end.role)]
        self.sent: list[Message] = []
        self.alarms: Counter[str] = Counter()
        self.told: list[str] = []
        self.cleared = 0
        self.notified: set[str] = set()
        self.failing = False
        self.tasks: list[asyncio.Task[None]] = []
        self.around = Surroundings(
            ask=self.ask,
            draw=SecretBuffer,
            alarm=self._alarm,
            clear=self._clear,
            record=lambda kind, subject, details: None,
            notify_supply=self.notified.add,
            monotonic_ns=lambda: round(world.loop.time() * 1e9),
            log=structlog.get_logger(),
        )
        self.comparison = Comparison(self)

    @property
    def other(self) -> "Side":
        return next(side for side in self.world.sides if side is not self)

    @property
    def is_open(self) -> bool:
        return self.world.is_open

    async def ask(self, request: Any) -> Any:
        await asyncio.sleep(0.001)
        if self.failing:
            raise VaultError("the disk is on fire")
        self.end.counter.ahead_ns = round(self.world.loop.time() * 1e9)
        return self.end.call(request)

    def send_soon(self, message: Message) -> None:
        raw = msgspec.msgpack.encode(message)
        assert len(raw) + 64 < KIND_OF_BODY[type(message)].max_bytes
        self.sent.append(message)
        session = self.world.session

        def arrive(its: Message) -> None:
            if session == self.world.session:
                self.other.comparison.take(its)

        for its, after_s in self.world.wire(self, msgspec.msgpack.decode(raw, type=type(message))):
            self.world.loop.call_later(0.001 + after_s, arrive, its)

    def start(self) -> None:
        self.tasks = [self.world.loop.create_task(work) for work in (self.comparison.run(), self.comparison.look())]

    def restart(self) -> None:
        """The process ends where it is, and another begins on the same file; both ends open another session."""
        self.world.session += 1
        for task in self.tasks:
            task.cancel()
        self.end.reopen()
        self.comparison = Comparison(self)
        self.start()
        self.other.comparison.session_closed()
        for side in self.world.sides:
            side.comparison.session_opened()

    def root(self) -> bytes:
        while True:
            node = self.end.call(HoldingsNode(link=LINK))
            if not node.stale:
                return bytes(node.digest)

    def stages(self) -> Counter[str]:
        return Counter(key.state for key in self.end.call(ListKeys()).keys)

    def stage(self, key_id: Any) -> str:
        return next((key.state for key in self.end.call(ListKeys()).keys if key.key_id == key_id), "unknown")

    def doubts(self) -> Any:
        return self.end.call(Doubts(link=LINK)).doubts

    def offered(self) -> set[Any]:
        application = self.end.association.local
        return {its.key_id for its in self.end.call(ask.ApplicationOutbox(application=application))}

    def _alarm(self, code: str, subject: str, detail: str) -> None:
        self.alarms[code] += 1
        self.told.append(detail)

    def _clear(self, code: str, subject: str) -> None:
        self.cleared += code == "INVENTORY"


class World:
    """Both sides and the wire; outboxes of the vaults are carried over by `exchange`, as the agreement does."""

    def __init__(self, pair: Pair, wire: Wire | None = None) -> None:
        self.loop = VirtualTimeLoop()
        self.pair = pair
        self.wire: Wire = wire or (lambda side, message: [(message, 0.0)])
        self.is_open = True
        self.session = 1  # what was sent in another does not arrive
        self.sides = tuple(Side(self, end) for end in pair.ends)
        self.alice, self.bob = self.sides

    def play(self, seconds: float, *steps: tuple[float, Callable[[], Any]]) -> "World":
        """Open a session and run for so long; do these things at their moments."""

        async def run() -> None:
            for side in self.sides:
                side.start()
                side.comparison.session_opened()
            begun = self.loop.time()
            for at, step in steps:
                await asyncio.sleep(begun + at - self.loop.time())
                step()
            await asyncio.sleep(begun + seconds - self.loop.time())
            tasks = [task for side in self.sides for task in side.tasks]
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result

        self.loop.run_until_complete(run())
        return self

    def exchange(self, lost: type[Message] | None = None) -> None:
        """Carry over what waits in both outboxes, but what is lost for good."""
        for side in self.sides:
            for entry in side.end.call(ask.NeighbourOutbox(link=LINK, limit=1000)):
                message = entry.message
                if lost is not None and isinstance(message, lost):
                    self.lose(side, entry.number)
                    continue
                match message:
                    case Allocate():
                        outcome = side.other.end.call(ask.AcceptAllocation(link=LINK, allocate=message))
                        request = ask.AllocationAnswered(link=LINK, request=message.request, outcome=outcome)
                        side.end.call(request)
                    case Delivered():
                        ids = tuple(_ids(message.key_ids))
                        application = message.application
                        side.other.end.call(ask.PeerDelivered(link=LINK, application=application, key_ids=ids))
                        side.end.call(ask.OutboxCleared(link=LINK, numbers=(entry.number,)))
                    case KeysRevoked():
                        side.other.end.call(FollowRevoked(link=LINK, message=message))
                        side.end.call(ask.OutboxCleared(link=LINK, numbers=(entry.number,)))

    def lose(self, side: Side, number: int) -> None:
        """A row of an outbox is gone, as one is that was damaged."""
        with side.end.tampering() as connection:
            connection.execute("DELETE FROM outbox WHERE number = ?", (number,))

    def deliver(self, side: Side, ids: Iterable[Any]) -> None:
        application = side.end.association.local
        side.end.call(ask.KeysDelivered(application=application, key_ids=tuple(ids), details={}))

    @property
    def roots(self) -> tuple[bytes, bytes]:
        return self.alice.root(), self.bob.root()

    def agrees(self) -> bool:
        here, there = self.roots
        return here == there


def _ids(packed: bytes) -> list[Any]:
    from uuid import UUID

    return [UUID(bytes=packed[at : at + 16]) for at in range(0, len(packed), 16)]


__all__ = ["DAY_S", "HOUR_S", "QkdnodeError", "Side", "Stage", "World"]
