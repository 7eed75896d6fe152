"""The two ends of a link compare what they hold, from the roots of their trees down to what differs, and repair it.

Each end asks for itself and answers without keeping anything of who asks. Beside the agreement: nothing of this holds
up a key or ends a session, and a neighbour that answers nonsense costs a bounded number of questions.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

from qkdnode.access.pace import Pace
from qkdnode.errors import LocalProtocolError, QkdnodeError
from qkdnode.lifecycle.holdings import (
    FAN_OUT,
    HASH_BYTES,
    LEVELS,
    NOTHING,
    STRETCH_BITS,
    node_digest,
    pack_stretch,
    unpack_entries,
    unpack_stretch,
)
from qkdnode.link.surroundings import Link
from qkdnode.vault.doubts import Compared, CompareHeld, DoubtList, Doubts, EndDoubts
from qkdnode.vault.holdings import HeldIn, HoldingsNode, LogPosition, Node
from qkdnode.wire.messages import (
    Holdings,
    HoldingsAsked,
    HoldingsDiffer,
    Message,
    Stretch,
    StretchAsked,
    StretchHeld,
)

FIRST_S = 0.5  # after the opening of a session
AGAIN_S = 60.0  # to the second look at what a second look decides
HOURLY_S, DAILY_S = 3600.0, 86_400.0
IN_A_ROW = 10  # second looks at most, then it is hourly
ANSWER_S, TRIES = 10.0, 3
PAUSE_S = 0.02  # between pages of hashes that are made anew
PAGES = 512  # of those, while somebody waits for the answer
QUESTIONS = 2048  # of one comparison: what differs in more places is repaired over several
BURST, PER_S = 64, 100.0  # questions of the peer that are answered
NUDGED_S = 30.0  # what the peer finds has this end look again no sooner
INBOX = 64


class ComparisonState(msgspec.Struct, frozen=True):
    """How the last comparison ended, or how far the present one is."""

    looks: int = 0
    running: bool = False
    begun_ns: int = 0  # monotonic; 0: there was none
    ended_ns: int = 0
    here: bytes = NOTHING  # the roots
    there: bytes = NOTHING
    questions: int = 0
    stretches: int = 0  # that were looked at
    found: dict[str, int] = {}
    repaired: dict[str, int] = {}
    unsettled: int = 0
    failed: str = ""  # why it was given up

    @property
    def agrees(self) -> bool:
        """Whether nothing was found that both ends do not have alike."""
        return not self.running and bool(self.ended_ns) and not self.failed and not self.found


class Interrupted(Exception):
    """The comparison cannot go on now: the session has ended, or the peer does not answer."""


class Comparison:
    """Runs the comparing of one link."""

    def __init__(self, link: Link, every_s: float = DAILY_S) -> None:
        self._link, self._every_s = link, every_s
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(INBOX)
        self._pace = Pace(burst=BURST, per_s=PER_S)
        self._due_ns: int | None = None  # None: not before a session
        self._woken = asyncio.Event()
        self._number = 0
        self._awaited: tuple[int, asyncio.Future[Message]] | None = None
        self._nudged_ns: int | None = None
        self._told_ns: int | None = None
        self._row = 0
        self.state = ComparisonState()

    # --- told by others --------------------------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """An authenticated message of the peer. Answers that nobody awaits and questions beyond INBOX are dropped."""
        if isinstance(message, Holdings | StretchHeld):
            if self._awaited is not None and self._awaited[0] == message.number and not self._awaited[1].done():
                self._awaited[1].set_result(message)
        elif isinstance(message, HoldingsDiffer):
            self._nudge()
        else:
            with suppress(asyncio.QueueFull):
                self._inbox.put_nowait(message)

    def session_opened(self) -> None:
        """Compare soon: something may have happened to either vault meanwhile."""
        self._row = 0
        self._look_after(FIRST_S)

    def session_closed(self) -> None:
        """Nothing can be asked."""
        if self._awaited is not None and not self._awaited[1].done():
            self._awaited[1].set_exception(Interrupted("the session has ended"))

    def compare_now(self) -> bool:
        """Compare at once; whether that can be."""
        if self._link.is_open and not self.state.running:
            self._row = 0
            self._look_after(0.0)
        return self._link.is_open

    def _nudge(self) -> None:
        now = self._now_ns
        if self.state.failed:
            return  # who is asked in vain, or answers nonsense, does not say when it is asked again
        if self._nudged_ns is None or now - self._nudged_ns > NUDGED_S * 1e9:
            self._nudged_ns = now
            self._look_after(FIRST_S)

    def _look_after(self, seconds: float) -> None:
        due = self._now_ns + round(seconds * 1e9)
        self._due_ns = due if self._due_ns is None else min(self._due_ns, due)
        self._woken.set()

    # --- answers ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer what the peer asks."""
        while True:
            message = await self._inbox.get()
            wait_s = self._pace.step(self._now_ns / 1e9)
            if wait_s:
                await asyncio.sleep(wait_s)
            try:
                await ANSWERS[type(message)](self, message)
            except Interrupted:
                continue  # the peer asks again
            except LocalProtocolError as error:
                told = f"{self._link.peer!r} asks for what there cannot be: {error}"
                self._link.around.alarm("PROTOCOL", self._link.name, told)
            except QkdnodeError as error:
                self._link.around.alarm(error.code, self._link.name, str(error))

    async def _on_holdings_asked(self, message: HoldingsAsked) -> None:
        node = await self._node(message.path, message.after)
        self._link.send_soon(
            Holdings(message.number, message.path, node.digest, node.children, node.stretches, node.more)
        )

    async def _on_stretch_asked(self, message: StretchAsked) -> None:
        request = HeldIn(link=self._link.name, stretch=message.stretch, from_bits=message.from_bits)
        held: StretchHeld = await self._ask(request)
        self._link.send_soon(msgspec.structs.replace(held, number=message.number))

    async def _node(self, path: bytes, after: bytes = b"") -> Node:
        """A node of this end's tree, once its hashes are made."""
        for _ in range(PAGES):
            node: Node = await self._ask(HoldingsNode(link=self._link.name, path=path, after=after))
            if not node.stale:
                return node
            await asyncio.sleep(PAUSE_S)
        raise Interrupted("too much changes here to make the hashes")

    # --- questions -------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Compare when it is due."""
        self._look_after(HOURLY_S)
        while True:
            self._woken.clear()
            now = self._now_ns
            if self._due_ns is not None and now >= self._due_ns:
                self._due_ns = None
                await self._look()
            else:
                wait_s = None if self._due_ns is None else (self._due_ns - now) / 1e9
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._woken.wait()

    async def _look(self) -> None:
        if not self._link.is_open:
            # What only waits for its time ends all the same; the next session begins another look.
            await self._end_doubts()
            self._look_after(HOURLY_S)
            return
        self._tell(ComparisonState(looks=self.state.looks + 1, running=True, begun_ns=self._now_ns))
        failed = ""
        try:
            await self._compare()
        except Interrupted as error:
            failed = str(error)
        except QkdnodeError as error:
            failed = str(error)
            self._link.around.alarm(error.code, self._link.name, failed)
        self._tell(self.state, running=False, ended_ns=self._now_ns, failed=failed)
        await self._conclude()

    async def _conclude(self) -> None:
        """Say what was found, and decide when to look again."""
        state = self.state
        doubts = await self._end_doubts()
        if state.found:
            what = ", ".join(f"{count} {name}" for name, count in state.found.items())
            told = f"the ends hold different things: {what}; qkdnode inventory reconcile shows what is done about it"
            self._link.around.alarm("INVENTORY", self._link.name, told)
            self._nudge_peer()
        elif state.agrees and doubts is not None and not doubts.total:
            self._link.around.clear("INVENTORY", self._link.name)
        waits = state.failed or state.found or doubts is None or doubts.hurried
        soon = waits or (state.unsettled and not self._row)
        slow = doubts is None or doubts.total
        if soon and self._row < IN_A_ROW:
            self._row += 1
            self._look_after(AGAIN_S)
        else:
            self._look_after(min(HOURLY_S, self._every_s) if waits or slow else self._every_s)

    def _nudge_peer(self) -> None:
        """What is the peer's to repair it finds when it looks itself."""
        now = self._now_ns
        if self._link.is_open and (self._told_ns is None or now - self._told_ns > NUDGED_S * 1e9):
            self._told_ns = now
            self._link.send_soon(HoldingsDiffer(self.state.here))

    async def _end_doubts(self) -> DoubtList | None:
        try:
            while await self._ask(EndDoubts(link=self._link.name)):
                await asyncio.sleep(PAUSE_S)
            doubts: DoubtList = await self._ask(Doubts(link=self._link.name, limit=1))
        except QkdnodeError as error:
            self._link.around.alarm(error.code, self._link.name, str(error))
            return None
        return doubts

    async def _compare(self) -> None:
        """From the roots to what differs, and to what is in doubt already."""
        looked = set[bytes]()
        paths = [b""]
        while paths:
            path = paths.pop()
            mine = await self._node(path)
            if len(path) == LEVELS:
                await self._compare_bucket(path, looked)
                continue
            theirs = await self._holdings(path)
            if not path:
                self._tell(self.state, here=mine.digest, there=theirs.digest)
            for step in range(FAN_OUT):
                step = (step + self.state.looks) % FAN_OUT  # what is given up is begun elsewhere the next time
                at = slice(step * HASH_BYTES, (step + 1) * HASH_BYTES)
                if mine.children[at] != theirs.children[at]:
                    paths.append(path + bytes((step,)))
        after = 0
        while True:
            doubts: DoubtList = await self._ask(Doubts(link=self._link.name, after=after))
            for doubt in doubts.doubts:
                await self._compare_stretch(doubt.stretch, looked)
            after += len(doubts.doubts)
            if not doubts.doubts or after >= doubts.total:
                return

    async def _compare_bucket(self, path: bytes, looked: set[bytes]) -> None:
        """Every stretch that the two ends do not list alike. Pages of both go by the names of stretches."""
        mine, theirs = dict[bytes, bytes](), dict[bytes, bytes]()
        after, more = b"", True
        while more:
            node = await self._node(path, after)
            mine.update(unpack_entries(node.stretches, path))
            after, more = max(mine, default=b""), node.more
        after, more = b"", True
        while more:
            node_ = await self._holdings(path, after)
            entries = self._entries(node_, path)
            if node_.more and (not entries or entries[0][0] <= after):
                raise self._fault("its bucket has no end")
            theirs.update(entries)
            after, more = max(theirs, default=b""), node_.more
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                await self._compare_stretch(unpack_stretch(name), looked)

    async def _compare_stretch(self, stretch: Stretch, looked: set[bytes]) -> None:
        name = pack_stretch(stretch)
        if name in looked:
            return
        looked.add(name)
        at, end = STRETCH_BITS * stretch.number, STRETCH_BITS * (stretch.number + 1)
        while at < end:
            since: int = await self._ask(LogPosition())
            held = await self._question(StretchAsked(0, stretch, at))
            if not isinstance(held, StretchHeld) or (held.stretch, held.from_bits) != (stretch, at):
                raise self._fault("it answers another question")
            try:
                compared: Compared = await self._ask(CompareHeld(link=self._link.name, held=held, since=since))
            except LocalProtocolError as error:
                raise self._fault(str(error)) from None
            self._add(compared)
            at = held.until_bits
        self._tell(self.state, stretches=len(looked))

    def _add(self, compared: Compared) -> None:
        state = self.state
        found, repaired = Counter(state.found), Counter(state.repaired)
        found.update(compared.found)
        repaired.update(compared.repaired)
        unsettled = state.unsettled + compared.unsettled
        self._tell(state, found=dict(found), repaired=dict(repaired), unsettled=unsettled)
        for application in compared.notify:
            self._link.around.notify_supply(application)

    async def _holdings(self, path: bytes, after: bytes = b"") -> Holdings:
        answer = await self._question(HoldingsAsked(0, path, after))
        if not isinstance(answer, Holdings) or answer.path != path:
            raise self._fault("it answers another question")
        if len(path) == LEVELS:
            return answer
        size = HASH_BYTES * FAN_OUT
        children = [answer.children[at : at + HASH_BYTES] for at in range(0, len(answer.children), HASH_BYTES)]
        if len(answer.children) != size or node_digest(path, children) != answer.digest:
            raise self._fault("its hashes do not go together")
        return answer

    def _entries(self, answer: Holdings, path: bytes) -> list[tuple[bytes, bytes]]:
        try:
            entries = unpack_entries(answer.stretches, path)
        except ValueError as error:
            raise self._fault(str(error)) from None
        return entries

    async def _question(self, question: HoldingsAsked | StretchAsked) -> Message:
        """Ask the peer under a new number, again if it does not answer."""
        if not self._may_ask():
            self._row = IN_A_ROW
            raise Interrupted(f"more differs than {QUESTIONS} questions find out: the rest is left to the next time")
        for _ in range(TRIES):
            self._number += 1
            if not self._link.is_open:
                break
            self._awaited = (self._number, asyncio.get_running_loop().create_future())
            self._tell(self.state, questions=self.state.questions + 1)
            self._link.send_soon(msgspec.structs.replace(question, number=self._number))
            try:
                async with asyncio.timeout(ANSWER_S):
                    return await self._awaited[1]
            except TimeoutError:
                continue
            finally:
                self._awaited = None
        raise Interrupted(f"{self._link.peer!r} does not answer")

    def _may_ask(self) -> bool:
        return self.state.questions < QUESTIONS

    def _fault(self, what: str) -> Interrupted:
        told = f"what {self._link.peer!r} tells of its holdings is not true: {what}"
        self._link.around.alarm("PROTOCOL", self._link.name, told)
        return Interrupted(told)

    def _tell(self, state: ComparisonState, **changes: Any) -> None:
        self.state = msgspec.structs.replace(state, **changes)

    @property
    def _now_ns(self) -> int:
        return self._link.around.monotonic_ns()

    async def _ask(self, request: Any) -> Any:
        return await self._link.around.ask(request)


ANSWERS: dict[type[Message], Callable[[Comparison, Any], Awaitable[None]]] = {
    HoldingsAsked: Comparison._on_holdings_asked,
    StretchAsked: Comparison._on_stretch_asked,
}
