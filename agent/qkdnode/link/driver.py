"""The asyncio driver of one QKD link: events to machines, effects to the channel, the workers and the vault."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from qkdnode.authentication import session as sessions
from qkdnode.authentication.pool import PAD_BYTES, AuthKeyPool, Segment
from qkdnode.authentication.session import Session, State
from qkdnode.distill import effects as fx
from qkdnode.distill.alice import Alice
from qkdnode.distill.bob import Bob
from qkdnode.distill.reconciliation import StepJob
from qkdnode.distill.settings import Settings
from qkdnode.errors import (
    AuthenticationError,
    ChannelError,
    NoEntropyError,
    PoolExhaustedError,
    RemoteProtocolError,
    VaultError,
)
from qkdnode.ids import ALICE, BatchId
from qkdnode.link.agreement import Agreement
from qkdnode.link.statistics import LinkStatistics
from qkdnode.native.secret import SecretBuffer
from qkdnode.vault import requests as ask
from qkdnode.wire import codec
from qkdnode.wire.messages import (
    BatchAnswer,
    BatchClaim,
    BatchCommit,
    Greeting,
    Hello,
    Mark,
    Message,
    Parameters,
    Protection,
    Settled,
)

TICK_S = 0.25
GRANT_PADS = 16
GRANT_BELOW = 6
RESEND_PENDING_S = 5.0
HANDSHAKE_S = 5.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 30.0
PAD_BITS = 8 * PAD_BYTES


class Channel(Protocol):
    """What the driver needs of the classical channel."""

    @property
    def connected(self) -> bool: ...
    async def send(self, frame: bytes) -> None: ...
    async def receive(self) -> bytes: ...


class Lanes(Protocol):
    """What the driver needs of the workers."""

    def submit(self, job: Any, long: bool, done: Callable[[Any, Any], None]) -> None: ...


class Surroundings(msgspec.Struct, frozen=True):
    """What the node gives a link: callables, no adapters' types."""

    ask: Callable[[Any], Awaitable[Any]]  # the vault
    draw: Callable[[int], SecretBuffer]  # the entropy pool
    alarm: Callable[[str, str, str], None]  # code, subject, detail
    record: Callable[[str, str, dict[str, Any]], None]  # kind, subject, details: an audit leaf
    notify_supply: Callable[[str], None]  # an application's outbox may have grown
    monotonic_ns: Callable[[], int]
    log: Any


class Authentication(msgspec.Struct, frozen=True):
    """How much authentication key the link keeps, in bits for sending."""

    reserve_bits: int
    target_bits: int


class Link:
    """One end of one QKD link."""

    def __init__(
        self,
        *,
        name: str,
        node: str,
        peer: str,
        role: str,
        settings: Settings,
        authentication: Authentication,
        devices: tuple[str, ...],
        channel: Channel,
        lanes: Lanes,
        around: Surroundings,
        software: str,
    ) -> None:
        self.name, self.node, self.peer, self.role = name, node, peer, role
        self.statistics = LinkStatistics(discards={})
        self._settings, self._authentication, self._devices = settings, authentication, devices
        self._channel, self._lanes, self._around, self._software = channel, lanes, around, software
        self._log = around.log.bind(link=name)
        self._pool = AuthKeyPool(role)
        self._session: Session
        self._machine: Alice | Bob | None = None
        self._events: deque[fx.Event] = deque()
        self._handling = False
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self._pads_wanted = asyncio.Event()
        self._unsettled: dict[BatchId, bytes] = {}  # Alice: PENDING, with the commit's exact bytes
        self._records: dict[BatchId, ask.BatchRecord] = {}  # of PENDING Batches made since the start
        self._resent_ns = 0
        self._handshake_ns = 0
        self._backoff_s = BACKOFF_FIRST_S
        self._next_attempt_ns = 0
        self._pads_left = 0
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.agreement = Agreement(self)

    # --- running ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the link's durable state from the vault."""
        state = await self._around.ask(ask.OpenLink(link=self.name, role=self.role, peer=self.peer))
        for segment in state.segments:
            self.add_segment(segment)
        self._unsettled = {batch.batch: batch.commit for batch in state.unsettled}
        self._session = Session(
            node=self.node,
            peer=self.peer,
            role=self.role,
            link=self.name,
            parameters=self._settings.agreed,
            pool=self._pool,
            software=self._software,
        )
        await self.measure_pool()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            for loop in (self._receive_loop, self._send_loop, self._tick_loop, self._pad_loop, self.agreement.run):
                group.create_task(loop(), name=f"{self.name} {loop.__name__}")

    def window(self, event: fx.TransmitterWindowReady | fx.ReceiverWindowReady) -> None:
        """A Window from the module (call in the loop)."""
        if self._machine is None or (self._stopping and self.role != ALICE):
            if isinstance(event, fx.TransmitterWindowReady):
                event.choices.discard()
            self.statistics.discard("no-session")
            return
        self._feed(event)

    def stop_distilling(self) -> None:
        """List no more Windows and make no new Batch; what is claimed is settled."""
        self._stopping = True
        if isinstance(self._machine, Bob):
            self._execute(self._machine.stop())

    def connected(self) -> None:
        """The channel is up: greet."""
        self._next_attempt_ns = 0

    def lost(self, reason: str) -> None:
        """The channel is down: what is in flight is dropped."""
        self._end_session(reason)

    @property
    def is_open(self) -> bool:
        """Whether a session is open."""
        return self._machine is not None

    @property
    def starved(self) -> bool:
        """Whether the pool is below its reserve."""
        return self._pads_left * PAD_BITS < self._authentication.reserve_bits

    @property
    def idle(self) -> bool:
        """Whether no Batch is in flight and none waits to be settled."""
        return (self._machine is None or not self._machine.batches) and not self._unsettled

    def send_soon(self, message: Message) -> None:
        """Queue a message for the session's order."""
        self._outgoing.put_nowait(message)

    async def close(self) -> None:
        """Wipe what the link holds."""
        for task in self._tasks:
            task.cancel()
        self._end_session("closing")
        self._session.close()
        self._pool.close()

    # --- loops -----------------------------------------------------------------------------------------------------

    async def _receive_loop(self) -> None:
        while True:
            raw = await self._channel.receive()
            try:
                await self._take(raw)
            except RemoteProtocolError as error:
                self.statistics.messages_discarded += 1
                self._log.warning("message discarded", reason=str(error))
            except AuthenticationError as error:
                self._quarantine(str(error))

    async def _send_loop(self) -> None:
        while True:
            message = await self._outgoing.get()
            tagged = codec.kind_of(message).protection in (Protection.TAG, Protection.SETTLING)
            session = self._session.session
            while tagged and self._session.state is State.OPEN and not self._pool.granted:
                self._pads_wanted.set()
                await asyncio.sleep(0.005)
            if self._session.state is not State.OPEN or self._session.session != session:
                self.statistics.discard("unsent")
                continue
            raw = self._session.seal(message)
            if tagged:
                self._spent(1)
            await self._transmit(raw)

    async def _transmit(self, raw: bytes) -> None:
        try:
            await self._channel.send(raw)
        except ChannelError as error:
            self._end_session(str(error))

    async def _pad_loop(self) -> None:
        while True:
            await self._pads_wanted.wait()
            self._pads_wanted.clear()
            if self._pool.granted >= GRANT_BELOW or self._machine is None:
                continue
            try:
                await self._reserve(GRANT_PADS)
            except PoolExhaustedError as error:
                self._around.alarm("AUTH_STARVED", self.name, str(error))
                self._end_session("no authentication key left")
                self._back_off()
            except VaultError as error:
                self._end_session(str(error))
                self._back_off()

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._around.monotonic_ns()
            if self._machine is not None:
                self._feed(fx.Tick(now))
                if self._session.needs_renewal:
                    self._end_session("the hash key has served its time")
                if self._unsettled and now - self._resent_ns > RESEND_PENDING_S * 1e9:
                    await self._resend_pending()
            elif self._may_greet(now):
                self._handshake_ns = now
                self._back_off()
                await self._follow(self._session.begin(tuple(self._unsettled)))

    def _may_greet(self, now_ns: int) -> bool:
        """Whether to begin a session: connected, not held back, and no handshake under way that may still succeed."""
        if not self._channel.connected or now_ns < self._next_attempt_ns or self._session.state is State.FAILED:
            return False
        return self._session.state is State.IDLE or now_ns - self._handshake_ns > HANDSHAKE_S * 1e9

    # --- frames ----------------------------------------------------------------------------------------------------

    async def _take(self, raw: bytes) -> None:
        frame = codec.decode(raw)
        self._session.addressed(frame)
        message = frame.message
        if isinstance(message, Greeting):
            await self._follow(self._session.greeted(message))
        elif isinstance(message, BatchCommit):
            await self._on_commit(frame, message)
        elif isinstance(message, BatchAnswer):
            await self._on_answer(frame, message)
        elif self._session.is_gap(frame):
            self._end_session(f"messages before {type(message).__name__} were lost")
            raise RemoteProtocolError(f"{type(message).__name__} after a gap: the session begins anew")
        else:
            self._session.opened(frame)
            if frame.trailer is not None:
                self._note_seen()
            if isinstance(message, Hello):
                await self._follow(self._session.hello(frame))
            elif isinstance(message, BatchClaim):
                assert isinstance(self._machine, Alice)
                assert frame.trailer is not None
                self._execute(self._machine.claimed(message, frame.trailer.tag))
                self._drain()
            elif frame.kind.protection is Protection.VAULT:
                self.agreement.take(message)
            else:
                self._feed(fx.MessageReceived(message))

    async def _follow(self, effects: list[sessions.Effect]) -> None:
        """Run the session's effects; what they yield goes back into it."""
        todo = deque(effects)
        while todo:
            effect = todo.popleft()
            match effect:
                case sessions.Send(raw=raw):
                    await self._transmit(raw)
                case sessions.DrawCounter():
                    self._handshake_ns = self._around.monotonic_ns()
                    counter = await self._around.ask(ask.NextSession(link=self.name))
                    todo.extend(self._session.counter_drawn(effect, counter))
                case sessions.ReservePads(count=count):
                    try:
                        pads = await self._around.ask(ask.ReservePads(link=self.name, count=count, contiguous=True))
                    except PoolExhaustedError as error:
                        self._around.alarm("AUTH_STARVED", self.name, str(error))
                        self._end_session("no authentication key left for a Hello")
                        return
                    self._spent(len(pads))
                    for pad in pads:
                        self._pool.reserved(pad)
                    todo.extend(self._session.pads_reserved(pads))
                case sessions.Opened(session=session, peer=peer):
                    self._opened(session, peer)
                case sessions.Reset(reason=reason):
                    self._end_session(reason, keep_session=True)
                case sessions.Failed(code=code, reason=reason):
                    self._end_session(reason, keep_session=True)
                    self.statistics.state = "FAILED"
                    self._around.alarm(code, self.name, reason)

    def _opened(self, session: int, peer: Hello) -> None:
        self._machine = (Alice if self.role == ALICE else Bob)(self._settings, session)
        self._backoff_s = BACKOFF_FIRST_S
        self.statistics.session, self.statistics.sessions = session, self.statistics.sessions + 1
        self.statistics.state = "STARVED" if self.starved else "OPEN"
        self._log.info("session open", session=f"{session:016x}", peer=self.peer, software=peer.software)
        self._around.record("link.opened", self.name, {"session": f"{session:016x}", "peer": self.peer})
        self._pads_wanted.set()
        self._feed(fx.Tick(self._around.monotonic_ns()))
        self._resent_ns = 0
        self.agreement.session_opened()

    def _end_session(self, reason: str, keep_session: bool = False) -> None:
        if self._machine is not None:
            for batch in self._machine.batches.values():
                self.statistics.discard("connection-lost", 1)
                self._log.warning("batch dropped", batch=batch.number, reason=reason)
            self._machine.close()
            self._machine = None
            self._events.clear()
            self._around.record("link.closed", self.name, {"reason": reason})
            self._log.info("session closed", reason=reason)
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
        self.agreement.session_closed()
        if not keep_session and self._session.state is not State.FAILED:
            self._session.close()
        if self.statistics.state != "FAILED":
            self.statistics.state = "DOWN"

    def _quarantine(self, reason: str) -> None:
        """A tag failed: everything learned from the Batches in flight goes, and the link comes back slowly."""
        self.statistics.discard("quarantined")
        self._around.alarm("AUTH_FAILED", self.name, reason)
        self._around.record("link.quarantined", self.name, {"reason": reason})
        self._end_session("QUARANTINED")
        self.statistics.state = "QUARANTINED"
        self._back_off()

    def _back_off(self) -> None:
        self._next_attempt_ns = self._around.monotonic_ns() + round(self._backoff_s * 1e9)
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    # --- the machine -----------------------------------------------------------------------------------------------

    def _feed(self, event: fx.Event) -> None:
        self._events.append(event)
        self._drain()

    def _drain(self) -> None:
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and self._machine is not None:
                event = self._events.popleft()
                try:
                    effects = self._machine.handle(event)
                except RemoteProtocolError as error:
                    self.statistics.messages_discarded += 1
                    self._log.warning("message discarded", reason=str(error))
                    continue
                self._execute(effects)
        finally:
            self._handling = False

    def _execute(self, effects: fx.Effects) -> None:
        for effect in effects:
            EXECUTORS[type(effect)](self, effect)

    def _do_send(self, effect: fx.Send) -> None:
        self._outgoing.put_nowait(effect.message)

    def _do_work(self, effect: fx.Work) -> None:
        machine = self._machine

        def done(job: Any, result: Any) -> None:
            if self._machine is machine and machine is not None:
                self._feed(fx.Done(job, result))

        if isinstance(effect.job, StepJob):
            # A round takes less than the way to a thread and back.
            try:
                result: Any = effect.job.run()
            except RemoteProtocolError as error:
                result = error
            self._events.append(fx.Done(effect.job, result))
        else:
            self._lanes.submit(effect.job, effect.long, done)

    def _do_draw(self, effect: fx.Draw) -> None:
        try:
            random = self._around.draw(effect.size)
        except NoEntropyError as error:
            self._around.alarm("NO_ENTROPY", self.name, str(error))
            self._end_session(f"NO_ENTROPY: {error}")
            self._back_off()
            return
        self._events.append(fx.Drawn(effect.purpose, random))

    def _do_discarded(self, effect: fx.Discarded) -> None:
        self.statistics.discard(effect.reason, effect.windows or 1)
        if effect.batch is not None:
            self._log.warning("batch discarded", batch=effect.batch, reason=effect.reason, bits=effect.bits)
            self._around.record(
                "link.batch_discarded", self.name, {"reason": effect.reason, "bits": effect.bits, "batch": effect.batch}
            )

    def _do_alarmed(self, effect: fx.Alarmed) -> None:
        self._around.alarm(effect.code, self.name, effect.detail)

    def _do_sifted(self, effect: fx.SiftedWindow) -> None:
        counts = self.statistics
        counts.windows += 1
        counts.sifted_bits += effect.bits
        counts.x_bits += effect.x_bits
        counts.x_errors += effect.x_errors

    def _do_verified(self, effect: fx.BlockVerified) -> None:
        counts = self.statistics
        counts.blocks += 1
        counts.verified_bits += effect.bits
        counts.errors += effect.errors
        counts.alice_bits += effect.alice_bits
        counts.bob_bits += effect.bob_bits
        counts.opened_frames += effect.opened_frames

    def _do_forget(self, effect: fx.Forget) -> None:
        self._session.forget_batch(effect.batch)

    def _do_journal(self, effect: fx.JournalPending | fx.JournalReady) -> None:
        self.spawn(self._journal(effect))

    async def _journal(self, effect: fx.JournalPending | fx.JournalReady) -> None:
        """Journal before send: the exact bytes stand in the vault before the channel has them."""
        pending = isinstance(effect, fx.JournalPending)
        message = effect.commit if isinstance(effect, fx.JournalPending) else effect.answer
        batch = message.batch
        while not self._pool.granted and self._session.state is State.OPEN:
            self._pads_wanted.set()
            await asyncio.sleep(0.005)
        if self._session.state is not State.OPEN or self._session.session != batch.session:
            effect.key.release()
            return
        covered = b"" if pending else self.agreement.commits.get(batch, b"")
        raw = self._session.seal(message, covered=covered)
        self._spent(1)
        record = self._record_of(batch, effect.facts)
        try:
            if pending:
                await self._around.ask(ask.StorePending(link=self.name, record=record, key=effect.key, commit=raw))
                self._unsettled[batch] = raw
                self._records[batch] = record
            else:
                settled = await self._around.ask(
                    ask.StoreReady(link=self.name, record=record, key=effect.key, answer=raw)
                )
                self._ready(record, settled.segment)
        except VaultError as error:
            self._log.error("batch not journalled", batch=str(batch), reason=str(error))
            self._around.alarm(error.code, self.name, str(error))
            self._end_session(f"the vault did not journal Batch {batch}: {error}")
            self._back_off()
            return
        if self._machine is not None and self._session.session == batch.session:
            self._session.forget_batch(batch.number)
            self._feed(fx.Committed(batch))
        self._resent_ns = self._around.monotonic_ns()
        await self._transmit(raw)

    # --- settling --------------------------------------------------------------------------------------------------

    async def _on_commit(self, frame: codec.Frame, message: BatchCommit) -> None:
        """Bob: Alice is PENDING. Answer READY, ABANDONED, or again what was answered before."""
        answer = await self._around.ask(ask.FindAnswer(link=self.name, batch=message.batch))
        if answer is not None:
            await self._transmit(answer)
            return
        if self._session.state is not State.OPEN:
            raise RemoteProtocolError(f"commit of Batch {message.batch} while no session is open")
        effects: fx.Effects | None = None
        if message.batch in self.agreement.commits:
            return
        if isinstance(self._machine, Bob) and frame.header.session == self._session.session:
            try:
                self._session.opened(frame)
            except AuthenticationError as error:
                self._around.alarm("AUTH_FAILED", self.name, f"commit of Batch {message.batch}: {error}")
            else:
                self._note_seen()
                effects = self._machine.committed_by_peer(message)
        self.agreement.commits[message.batch] = frame.raw
        if effects is not None:
            self._execute(effects)
            self._drain()
        else:
            await self._answer_abandoned(message.batch)

    async def _answer_abandoned(self, batch: BatchId) -> None:
        while not self._pool.granted and self._session.state is State.OPEN:
            self._pads_wanted.set()
            await asyncio.sleep(0.005)
        if self._session.state is not State.OPEN:
            return
        raw = self._session.seal(BatchAnswer(batch, False))
        self._spent(1)
        await self._around.ask(
            ask.StoreAbandoned(link=self.name, batch=batch, reason="not held when committed", answer=raw)
        )
        self.statistics.discard("abandoned")
        await self._transmit(raw)

    async def _on_answer(self, frame: codec.Frame, message: BatchAnswer) -> None:
        """Alice: Bob's word on a PENDING Batch. A bad answer changes nothing but an alarm."""
        commit = self._unsettled.get(message.batch)
        if commit is None:
            return
        # ABANDONED does not cover the commit: the one that Bob has may be altered, and it is none the less final.
        if not self._session.verifies(frame, covered=commit if message.ready else b""):
            self._around.alarm("AUTH_FAILED", self.name, f"the answer to Batch {message.batch} does not verify")
            return
        settled = await self._around.ask(ask.SettlePending(link=self.name, batch=message.batch, ready=message.ready))
        del self._unsettled[message.batch]
        if message.ready:
            self._ready(self._records.pop(message.batch, None), settled.segment)
            self.send_soon(Settled((message.batch,)))
            self.agreement.stock_grew()
        else:
            self.statistics.discard("abandoned")
            self._log.warning("batch abandoned by the peer", batch=str(message.batch))

    def _ready(self, record: ask.BatchRecord | None, segment: ask.SegmentState | None) -> None:
        if segment is not None:
            self.add_segment(segment)
        self.spawn(self.measure_pool())
        self.statistics.batches_ready += 1
        if record is None:
            return
        self.statistics.secret_bits += record.bits_out
        self.statistics.auth_refilled_bits += record.refill_bits
        self._log.info(
            "batch ready",
            batch=str(record.batch),
            secret_bits=record.bits_out,
            refill_bits=record.refill_bits,
            qber=round(record.qber_z, 5),
        )

    async def _resend_pending(self) -> None:
        self._resent_ns = self._around.monotonic_ns()
        for raw in list(self._unsettled.values()):
            await self._transmit(raw)

    # --- authentication key ----------------------------------------------------------------------------------------

    def add_segment(self, segment: ask.SegmentState) -> None:
        """Make a segment's pads available; one that is held already only frees the copy."""
        self._pool.add(
            Segment(segment.segment, segment.pads_per_direction, segment.material, segment.sending, segment.seen)
        )

    async def _reserve(self, count: int) -> None:
        self._pool.grant(await self._around.ask(ask.ReservePads(link=self.name, count=count)))
        await self.measure_pool()

    async def measure_pool(self) -> None:
        """See how much authentication key is left, and whether the link is starved."""
        was_starved = self.starved
        self._pads_left = await self._around.ask(ask.PadsLeft(link=self.name))
        wanted = self._authentication.target_bits - self._pads_left * PAD_BITS
        if self._machine is not None:
            self._feed(fx.PoolLevel(max(0, 2 * wanted)))
            self.statistics.state = "STARVED" if self.starved else "OPEN"
            if self.starved and not was_starved:
                self._around.alarm(
                    "AUTH_STARVED", self.name, f"{self._pads_left * PAD_BITS} bits of authentication key are left"
                )

    def _spent(self, pads: int) -> None:
        self.statistics.auth_spent_bits += pads * PAD_BITS
        if self._pool.granted < GRANT_BELOW:
            self._pads_wanted.set()

    def _note_seen(self) -> None:
        marks = tuple(mark for mark in self._pool.seen_marks() if mark.index)[:1]
        self.spawn(self._note(marks))

    async def _note(self, marks: tuple[Mark, ...]) -> None:
        await self._around.ask(ask.NoteSeen(link=self.name, marks=marks))

    # --- small things ----------------------------------------------------------------------------------------------

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
            },
        )

    def spawn(self, work: Any) -> None:
        """Run a coroutine beside the loops; a VaultError of it becomes an alarm."""
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except VaultError as error:
            self._around.alarm(error.code, self.name, str(error))

    @property
    def around(self) -> Surroundings:
        """What the node gave."""
        return self._around

    @property
    def parameters(self) -> Parameters:
        """What both ends have agreed."""
        return self._settings.agreed


EXECUTORS: dict[type[fx.Effect], Callable[[Link, Any], None]] = {
    fx.Send: Link._do_send,
    fx.Work: Link._do_work,
    fx.Draw: Link._do_draw,
    fx.Discarded: Link._do_discarded,
    fx.Alarmed: Link._do_alarmed,
    fx.SiftedWindow: Link._do_sifted,
    fx.BlockVerified: Link._do_verified,
    fx.JournalPending: Link._do_journal,
    fx.JournalReady: Link._do_journal,
    fx.Forget: Link._do_forget,
}
