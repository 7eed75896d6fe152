"""Settling a Batch: journal before send, the same bytes again until they are answered, one final answer.

Alice is PENDING once her commit stands in the vault; from there on only Bob's tagged answer decides. Bob is READY or
ABANDONED once his answer stands in his.
"""

import asyncio
from typing import Any, Protocol

import msgspec

from qkdnode.authentication.pool import AuthKeyPool
from qkdnode.authentication.session import Session, State
from qkdnode.distill import effects as fx
from qkdnode.distill.alice import Alice
from qkdnode.distill.bob import Bob
from qkdnode.errors import AuthenticationError, QkdnodeError, RemoteProtocolError
from qkdnode.ids import BatchId
from qkdnode.link.statistics import LinkStatistics
from qkdnode.link.surroundings import Surroundings
from qkdnode.vault import requests as ask
from qkdnode.wire.codec import Frame
from qkdnode.wire.messages import BatchAnswer, BatchCommit, Settled

RESEND_PENDING_S = 5.0
PAD_POLL_S = 0.005


class Link(Protocol):
    """What settling needs of its link."""

    statistics: LinkStatistics

    @property
    def name(self) -> str: ...
    @property
    def around(self) -> Surroundings: ...
    @property
    def session(self) -> Session: ...
    @property
    def pool(self) -> AuthKeyPool: ...
    @property
    def machine(self) -> Alice | Bob | None: ...
    async def transmit(self, raw: bytes) -> None: ...
    def spent(self, pads: int) -> None: ...
    def note_seen(self, frame: Frame) -> None: ...
    def feed(self, event: fx.Event) -> None: ...
    def run_effects(self, effects: fx.Effects) -> None: ...
    def give_up(self, reason: str) -> None: ...
    def batch_ready(self, record: ask.BatchRecord | None, segment: ask.SegmentState | None) -> None: ...
    def pads_wanted(self) -> None: ...


class Settlement:
    """The settling messages of one link."""

    def __init__(self, link: Link, devices: tuple[str, ...], software: str, log: Any) -> None:
        self._link, self._devices, self._software, self._log = link, devices, software, log
        self.unsettled: dict[BatchId, bytes] = {}  # Alice: PENDING, with the commit's exact bytes
        self._records: dict[BatchId, ask.BatchRecord] = {}  # of PENDING Batches made since the start
        self._peer_unsettled: set[BatchId] = set()  # Bob: what Alice's Hello says is PENDING
        self._resent_ns = 0

    def session_opened(self, peer_unsettled: tuple[BatchId, ...]) -> None:
        """A new session: what is PENDING is sent again at once."""
        self._peer_unsettled = set(peer_unsettled)
        self._resent_ns = 0

    async def pad_granted(self, session: int) -> bool:
        """Wait for a pad to tag with; False if the session ends before there is one."""
        while not self._link.pool.granted:
            if not await self.pad_awaited(session):
                return False
        return self._is_open(session)

    async def pad_awaited(self, session: int) -> bool:
        """Ask for pads and wait a moment; False if the session has ended."""
        if self._is_open(session):
            self._link.pads_wanted()
            await asyncio.sleep(PAD_POLL_S)
        return self._is_open(session)

    def _is_open(self, session: int) -> bool:
        return self._link.session.state is State.OPEN and self._link.session.session == session

    async def journal(self, effect: fx.JournalPending | fx.JournalReady) -> None:
        """Journal PENDING or READY with the exact bytes, then send them, then tell the machine."""
        link = self._link
        message = effect.commit if isinstance(effect, fx.JournalPending) else effect.answer
        batch = message.batch
        if not await self.pad_granted(batch.session):
            effect.key.release()
            return
        raw = link.session.seal(message)
        link.spent(1)
        try:
            await self._store(effect, batch, raw)
        except QkdnodeError as error:
            effect.key.release()
            self._log.error("batch not journalled", batch=str(batch), reason=str(error))
            link.around.alarm(error.code, link.name, str(error))
            link.give_up(f"the vault did not journal Batch {batch}: {error}")
            return
        if link.machine is not None and link.session.session == batch.session:
            link.session.forget_batch(batch.number)
            link.feed(fx.Committed(batch))
        self._resent_ns = link.around.monotonic_ns()
        await link.transmit(raw)

    async def _store(self, effect: fx.JournalPending | fx.JournalReady, batch: BatchId, raw: bytes) -> None:
        link, record = self._link, self._record_of(batch, effect.facts)
        if isinstance(effect, fx.JournalPending):
            await link.around.ask(ask.StorePending(link=link.name, record=record, key=effect.key, commit=raw))
            self.unsettled[batch] = raw
            self._records[batch] = record
        else:
            request = ask.StoreReady(link=link.name, record=record, key=effect.key, answer=raw)
            settled = await link.around.ask(request)
            link.batch_ready(record, settled.segment)

    async def resend_due(self, now_ns: int) -> None:
        """Alice: send every PENDING commit again, at a bounded rate."""
        if self.unsettled and now_ns - self._resent_ns > RESEND_PENDING_S * 1e9:
            self._resent_ns = now_ns
            for raw in list(self.unsettled.values()):
                await self._link.transmit(raw)

    async def commit_received(self, frame: Frame, message: BatchCommit) -> None:
        """Bob: Alice is PENDING. Answer READY, ABANDONED, or again what was answered before.

        A commit that does not verify changes nothing: the genuine one is sent again. One that can no longer be verified
        is answered ABANDONED only for a Batch that Bob has claimed or that Alice's tagged Hello names, so that nobody
        else can make Bob spend a pad.
        """
        link, batch = self._link, message.batch
        answer = await link.around.ask(ask.FindAnswer(link=link.name, batch=batch))
        if answer is not None:
            await link.transmit(answer)
            return
        machine = link.machine
        if link.session.state is not State.OPEN or not isinstance(machine, Bob):
            raise RemoteProtocolError(f"commit of Batch {batch} while no session is open")
        if machine.is_journalling(batch):
            return
        effects: fx.Effects | None = None
        if batch.session == link.session.session and batch.number in machine.batches:
            try:
                link.session.opened(frame)
            except AuthenticationError as error:
                link.around.alarm("AUTH_FAILED", link.name, f"commit of Batch {batch}: {error}")
                return
            link.note_seen(frame)
            effects = machine.committed_by_peer(message)
        elif batch not in self._peer_unsettled and not machine.has_claimed(batch):
            raise RemoteProtocolError(f"commit of Batch {batch}, which is not known to be PENDING")
        if effects is None:
            await self._answer_abandoned(batch)
        else:
            link.run_effects(effects)

    async def _answer_abandoned(self, batch: BatchId) -> None:
        link = self._link
        if not await self.pad_granted(link.session.session):
            return
        raw = link.session.seal(BatchAnswer(batch, False))
        link.spent(1)
        reason = "not held when committed"
        await link.around.ask(ask.StoreAbandoned(link=link.name, batch=batch, reason=reason, answer=raw))
        link.statistics.discard("abandoned")
        await link.transmit(raw)

    async def answer_received(self, frame: Frame, message: BatchAnswer) -> Settled | None:
        """Alice: Bob's word on a PENDING Batch; what to tell him then. A bad answer changes nothing but an alarm."""
        link, batch = self._link, message.batch
        if batch not in self.unsettled:
            return None
        if not link.session.verifies(frame):
            link.around.alarm("AUTH_FAILED", link.name, f"the answer to Batch {batch} does not verify")
            return None
        settled = await link.around.ask(ask.SettlePending(link=link.name, batch=batch, ready=message.ready))
        del self.unsettled[batch]
        record = self._records.pop(batch, None)
        if message.ready:
            link.batch_ready(record, settled.segment)
            return Settled((batch,))
        link.statistics.discard("abandoned")
        self._log.warning("batch abandoned by the peer", batch=str(batch))
        return None

    def _record_of(self, batch: BatchId, facts: fx.BatchFacts) -> ask.BatchRecord:
        return ask.BatchRecord(
            batch=batch,
            bits_in=facts.bits_in,
            bits_out=facts.bits_out,
            refill_bits=facts.refill_bits,
            method=facts.method,
            booking=facts.booking,
            family=facts.family,
            eps_sec=facts.eps_sec,
            eps_cor=facts.eps_cor,
            qber_z=facts.qber_z,
            disclosed_bits=facts.disclosed_bits,
            devices=self._devices,
            details={
                "windows": facts.windows,
                "qber_x": facts.qber_x,
                "efficiency": facts.efficiency,
                "n_z": sum(facts.n_z),
                "n_x": sum(facts.n_x),
                "m_z": sum(facts.m_z),
                "m_x": sum(facts.m_x),
                **{f"ledger_{name}": bits for name, bits in msgspec.structs.asdict(facts.ledger).items()},
                "software": f"qkdnode {self._software}",
                **self._link.around.origins(self._devices),
            },
        )
