"""The asyncio driver of one QKD link: events to machines, effects to the channel, the workers and the vault."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from qkdnode.authentication import session as sessions
from qkdnode.authentication.pool import PAD_BYTES, AuthKeyPool, Segment
from qkdnode.authentication.session import Session, State
from qkdnode.distill import effects as fx
from qkdnode.distill.alice import Alice
from qkdnode.distill.bob import Bob
from qkdnode.distill.quality.link import Finding, LinkQuality
from qkdnode.distill.reconciliation import StepJob
from qkdnode.distill.settings import Settings
from qkdnode.errors import (
    AuthenticationError,
    ChannelError,
    EntropyShortError,
    NoEntropyError,
    PoolExhaustedError,
    QkdnodeError,
    RemoteProtocolError,
    VaultError,
)
from qkdnode.ids import ALICE
from qkdnode.link.agreement import Agreement
from qkdnode.link.comparison import DAILY_S, Comparison
from qkdnode.link.cosigning import Cosigning
from qkdnode.link.settlement import Settlement
from qkdnode.link.statistics import LinkStatistics
from qkdnode.link.surroundings import Surroundings
from qkdnode.vault import requests as ask
from qkdnode.wire import codec
from qkdnode.wire.messages import (
    BatchAnswer,
    BatchClaim,
    BatchCommit,
    Cosigned,
    CosignWanted,
    Greeting,
    Hello,
    Holdings,
    HoldingsAsked,
    HoldingsDiffer,
    Mark,
    Message,
    NotCosigned,
    PadsGranted,
    PadsWanted,
    Parameters,
    Paused,
    Protection,
    StretchAsked,
    StretchHeld,
)

TICK_S = 0.25
DRAW_AGAIN_S = 0.1
DISCARD_LOG_S = 1.0
GRANT_PADS = 16  # reserved at once, and asked of the peer at once: what a start can lose of them twice
GRANT_BELOW = 6
HANDSHAKE_S = 5.0
ANSWER_S = 0.05  # Greetings that only ask are answered no faster
DOUBT_ALARM_S = 300.0  # how often what anybody may have sent raises an alarm
RENEW_AFTER_S = 3600.0  # the vault keys are drawn anew every hour
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 300.0
LINK_DOWN_S = 60.0
PADS_KEPT = 64  # for Hellos and the settling of every Batch in flight: below it no Window is listed
FAILED_PAUSE_S = 300.0
PAD_BITS = 8 * PAD_BYTES
COMPARED = (HoldingsAsked, Holdings, StretchAsked, StretchHeld, HoldingsDiffer)


class Channel(Protocol):
    """What the driver needs of the classical channel."""

    @property
    def connected(self) -> bool: ...
    async def send(self, frame: bytes) -> None: ...
    async def receive(self) -> bytes: ...


class Lanes(Protocol):
    """What the driver needs of the workers."""

    def submit(self, job: Any, long: bool, done: Callable[[Any, Any], None]) -> None: ...


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
        peer_log_key: bytes,
        compare_s: float = DAILY_S,
    ) -> None:
        self.name, self.node, self.peer, self.role = name, node, peer, role
        self.statistics = LinkStatistics(discards={})
        self._settings, self._authentication, self._devices = settings, authentication, devices
        self._channel, self._lanes, self._around, self._software = channel, lanes, around, software
        self._log = around.log.bind(link=name)
        self.pool = AuthKeyPool(role)
        self.session: Session
        self.machine: Alice | Bob | None = None
        self._events: deque[fx.Event] = deque()
        self._draws: deque[fx.Draw] = deque()
        self._handling = False
        self._outgoing: asyncio.Queue[Message | None] = asyncio.Queue()  # None: look at what goes first
        self._going_first: deque[Message] = deque()  # what asks for pads and grants them: nothing may hold it up
        self._pads_wanted = asyncio.Event()
        self._handshake_ns = 0
        self._opened_ns = 0
        self._discard_logged_ns = 0
        self._answered_ns = 0
        self._doubted_ns: int | None = None
        self._pads_asked = False  # a PadsWanted waits for its answer, or was answered with none
        self._backoff_s = BACKOFF_FIRST_S
        self._next_attempt_ns = 0
        self._pads_left = 0
        self._stopping = False
        self._paused = self._peer_paused = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshake = asyncio.Lock()
        self._fault: Exception | None = None
        self._faulted = asyncio.Event()
        self._up_ns = around.monotonic_ns()
        self._ended = 0  # sessions ended: what waited across an end is stale
        self._quality: LinkQuality | None = None  # only Bob sees detections
        if role != ALICE:
            agreed = settings.agreed
            self._quality = LinkQuality(
                settings.limits, p_z=agreed.p_z, window_slots=agreed.window_slots, window_s=settings.window_s
            )
        self.agreement = Agreement(self)
        self.cosigning = Cosigning(self, peer_log_key)
        self.comparison = Comparison(self, compare_s)
        self.settlement = Settlement(self, devices, software, self._log)

    # --- running ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the link's durable state from the vault."""
        state = await self._around.ask(ask.OpenLink(link=self.name, role=self.role, peer=self.peer))
        for segment in state.segments:
            self.add_segment(segment)
        self.settlement.unsettled.update((batch.batch, batch.commit) for batch in state.unsettled)
        if state.greeting_key is None:
            raise VaultError(f"link {self.name!r} has no authentication key yet: give its pair file")
        self.session = Session(
            node=self.node,
            peer=self.peer,
            role=self.role,
            link=self.name,
            pair=state.pair,
            start=state.start,
            greeting_key=state.greeting_key,
            parameters=self._settings.agreed,
            pool=self.pool,
            software=self._software,
        )
        await self.measure_pool()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            loops = (self._receive_loop, self._send_loop, self._tick_loop, self._pad_loop, self._fault_loop)
            for loop in (*loops, self.agreement.run, self.cosigning.run, self.comparison.run, self.comparison.look):
                group.create_task(loop(), name=f"{self.name} {loop.__name__}")

    def window(self, event: fx.TransmitterWindowReady | fx.ReceiverWindowReady) -> None:
        """A Window from the module (call in the loop)."""
        if self._quality is not None and isinstance(event, fx.ReceiverWindowReady):
            self._found(self._quality.clicks(event.slots.size))
        if self.machine is None or (self._stopping and self.role != ALICE):
            if isinstance(event, fx.TransmitterWindowReady):
                event.choices.discard()
            self.statistics.discard("no-session")
            return
        if self.paused and self.role != ALICE:
            self.statistics.discard("paused")
            return
        self.feed(event)

    def stop_distilling(self) -> None:
        """List no more Windows and make no new Batch; what is claimed is settled."""
        self._stopping = True
        if isinstance(self.machine, Bob):
            self.run_effects(self.machine.stop())

    def pause(self) -> None:
        """Make no new Batch until `resume`; the session, settlement and the supply of keys in stock go on."""
        self._set_paused(True)

    def resume(self) -> None:
        """Distil again, unless the far end is paused too."""
        self._set_paused(False)

    @property
    def paused(self) -> bool:
        """Whether this end or the far end is paused by its operator."""
        return self._paused or self._peer_paused

    @property
    def peer_paused(self) -> bool:
        """Whether the far end says that it is paused."""
        return self._peer_paused

    @property
    def reserve_bits(self) -> int:
        """Authentication key left for sending."""
        return self._pads_left * PAD_BITS

    def lost(self, reason: str) -> None:
        """The channel is down: what is in flight is dropped."""
        self._end_session(reason)

    @property
    def is_open(self) -> bool:
        """Whether a session is open."""
        return self.machine is not None

    @property
    def starved(self) -> bool:
        """Whether the pool is below its reserve."""
        return self._pads_left * PAD_BITS < self._authentication.reserve_bits

    @property
    def idle(self) -> bool:
        """Whether no Batch is in flight and none waits to be settled."""
        return (self.machine is None or not self.machine.batches) and not self.settlement.unsettled

    def send_soon(self, message: Message) -> None:
        """Queue a message for the session's order."""
        self._outgoing.put_nowait(message)

    async def close(self) -> None:
        """Wipe what the link holds."""
        for task in self._tasks:
            task.cancel()
        self._end_session("closing")
        self.session.close()
        self.pool.close()

    # --- loops -----------------------------------------------------------------------------------------------------

    async def _receive_loop(self) -> None:
        while True:
            raw = await self._channel.receive()
            try:
                await self._take(raw)
            except RemoteProtocolError as error:
                self._discarded(error)
            except AuthenticationError as error:
                self._quarantine(str(error))
            except VaultError as error:
                # Nothing was journalled, so nothing was answered: the peer asks again.
                self._around.alarm(error.code, self.name, str(error))
            except QkdnodeError as error:
                self._around.alarm(error.code, self.name, str(error))
                self.give_up(str(error))

    def _discarded(self, error: RemoteProtocolError) -> None:
        """Count every message that broke a rule, and log one a second at most: a stranger must not fill the disk."""
        self.statistics.messages_discarded += 1
        now = self._around.monotonic_ns()
        if now - self._discard_logged_ns > DISCARD_LOG_S * 1e9:
            self._discard_logged_ns = now
            self._log.warning("message discarded", reason=str(error), so_far=self.statistics.messages_discarded)

    async def _send_loop(self) -> None:
        while True:
            message = await self._outgoing.get()
            await self._send_first()
            if message is None:
                continue
            tagged = codec.kind_of(message).protection in (Protection.TAG, Protection.SETTLING)
            session = self.session.session
            if self.session.state is not State.OPEN or (tagged and not await self._pad_granted(session)):
                self.statistics.discard("unsent")
                continue
            try:
                raw = self.session.seal(message)
            except AuthenticationError:
                # A claim whose Batch was given up while it waited: its transcript is gone.
                self.statistics.discard("unsent")
                continue
            if tagged:
                self.spent(1)
            if isinstance(message, BatchClaim) and isinstance(self.machine, Bob):
                self.machine.claim_sent(message.batch.number, raw[-codec.TAG_BYTES :])
            await self.transmit(raw)

    async def _send_first(self) -> None:
        while self._going_first and self.session.state is State.OPEN:
            await self.transmit(self.session.seal(self._going_first.popleft()))

    async def _pad_granted(self, session: int) -> bool:
        """Wait for a pad to tag with, while what both ends need to get pads goes out; False if the session ends."""
        while not self.pool.granted:
            if not await self.settlement.pad_awaited(session):
                return False
            await self._send_first()
        return self.session.state is State.OPEN and self.session.session == session

    async def transmit(self, raw: bytes) -> None:
        """Hand a frame to the channel; the session ends if it cannot be sent."""
        try:
            await self._channel.send(raw)
        except ChannelError as error:
            self._end_session(str(error))

    async def _pad_loop(self) -> None:
        while True:
            await self._pads_wanted.wait()
            self._pads_wanted.clear()
            if self.machine is None:
                continue
            try:
                await self._replenish()
            except PoolExhaustedError as error:
                self._around.alarm("AUTH_STARVED", self.name, str(error))
                self.give_up("no authentication key left")
            except VaultError as error:
                self.give_up(str(error))

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._around.monotonic_ns()
            if self.machine is not None:
                self.feed(fx.Tick(now))
                if self.session.needs_renewal or now - self._opened_ns > RENEW_AFTER_S * 1e9:
                    self._end_session("the session's keys have served their time")
                await self.settlement.resend_due(now)
                self._up_ns = now
            else:
                self._watch_for_silence(now)
                if self._may_greet(now):
                    await self._greet(now)

    def _watch_for_silence(self, now_ns: int) -> None:
        """A link that stays down is an alarm, with why as far as this end can tell."""
        if now_ns - self._up_ns < LINK_DOWN_S * 1e9:
            return
        self._up_ns = now_ns
        if not self._channel.connected:
            why = f"{self.peer!r} is not connected"
        elif now_ns < self._next_attempt_ns:
            why = f"the next attempt is in {(self._next_attempt_ns - now_ns) / 1e9:.0f} s"
        else:
            why = f"{self.peer!r} does not answer the handshake"
        self._around.alarm("LINK_DOWN", self.name, f"no session for {LINK_DOWN_S:.0f} s: {why}")

    async def _greet(self, now_ns: int) -> None:
        """Begin a session, or ask for it again."""
        self._handshake_ns = now_ns
        try:
            async with self._handshake:
                await self._follow(self.session.begin(tuple(self.settlement.unsettled)))
        except VaultError as error:
            self._around.alarm(error.code, self.name, str(error))

    def _may_greet(self, now_ns: int) -> bool:
        """Whether to begin a session: connected, not held back, and no handshake under way that may still succeed."""
        if not self._channel.connected or now_ns < self._next_attempt_ns:
            return False
        return self.session.state is State.IDLE or now_ns - self._handshake_ns > HANDSHAKE_S * 1e9

    # --- frames ----------------------------------------------------------------------------------------------------

    async def _take(self, raw: bytes) -> None:
        frame = codec.decode(raw)
        self.session.addressed(frame)
        message = frame.message
        if isinstance(message, Greeting):
            await self._greeted(frame, message)
        elif isinstance(message, BatchCommit):
            await self.settlement.commit_received(frame, message)
        elif isinstance(message, BatchAnswer):
            settled = await self.settlement.answer_received(frame, message)
            if settled is not None:
                self.send_soon(settled)
                self.agreement.stock_grew()
        elif self.session.is_gap(frame):
            self._end_session(f"messages before {type(message).__name__} were lost")
            raise RemoteProtocolError(f"{type(message).__name__} after a gap: the session begins anew")
        else:
            self.session.opened(frame)
            self.note_seen(frame)
            if isinstance(message, Hello):
                async with self._handshake:
                    await self._follow(self.session.hello(frame))
            elif isinstance(message, BatchClaim):
                assert isinstance(self.machine, Alice)
                assert frame.trailer is not None
                self.run_effects(self.machine.claimed(message, frame.trailer.tag))
            elif isinstance(message, PadsWanted):
                self.spawn(self._grant_pads(message))
            elif isinstance(message, PadsGranted):
                self._pads_granted(message)
            elif isinstance(message, Paused):
                self._peer_paused = message.paused
                self._obey_pause()
            elif isinstance(message, CosignWanted | Cosigned | NotCosigned):
                self.cosigning.take(message)
            elif isinstance(message, COMPARED):
                self.comparison.take(message)
            elif frame.kind.protection is Protection.VAULT:
                self.agreement.take(message)
            else:
                self.feed(fx.MessageReceived(message))

    async def _greeted(self, frame: codec.Frame, message: Greeting) -> None:
        """A Greeting that only asks may be a recording: it is answered in its turn, and costs no pad."""
        now = self._around.monotonic_ns()
        if not message.answer_to:
            if now < self._next_attempt_ns:
                raise RemoteProtocolError("a greeting before the back-off is over")
            if now - self._answered_ns < ANSWER_S * 1e9:
                raise RemoteProtocolError("greetings that ask come too fast")
            self._answered_ns = now
        async with self._handshake:
            await self._follow(self.session.greeted(frame, tuple(self.settlement.unsettled)))

    async def _follow(self, effects: list[sessions.Effect]) -> None:
        """Run the session's effects; what they yield goes back into it, unless the session has ended meanwhile."""
        todo, ended = deque(effects), self._ended
        while todo and (ended == self._ended or isinstance(todo[0], sessions.Reset | sessions.Failed)):
            effect = todo.popleft()
            match effect:
                case sessions.Send(raw=raw):
                    await self.transmit(raw)
                case sessions.DrawCounter():
                    self._handshake_ns = self._around.monotonic_ns()
                    counter = await self._around.ask(ask.NextSession(link=self.name))
                    if ended == self._ended:
                        todo.extend(self.session.counter_drawn(effect, counter))
                case sessions.Greet():
                    statement = await self._around.ask(ask.StateLink(link=self.name))
                    if ended == self._ended:
                        await self.transmit(self.session.greeting(effect, statement))
                case sessions.Admit(greeting=greeting):
                    admission = await self._around.ask(ask.AdmitPeer(link=self.name, greeting=greeting))
                    # What follows before a Batch is READY waits longer each time: a wire that breaks every session
                    # makes this end spend the pads of a Hello no faster.
                    self._back_off()
                    if ended == self._ended:
                        todo.extend(self.session.admitted(greeting, admission.granted, admission.refused))
                case sessions.ReservePads(count=count):
                    request = ask.ReservePads(link=self.name, count=count, within=self.pool.allowed(), contiguous=True)
                    try:
                        pads = await self._around.ask(request)
                    except PoolExhaustedError as error:
                        self._around.alarm("AUTH_STARVED", self.name, str(error))
                        self._end_session("no authentication key left for a Hello")
                        return
                    self.spent(len(pads))
                    for pad in pads:
                        self.pool.reserved(pad)
                    if ended == self._ended and pads:
                        todo.extend(self.session.pads_reserved(pads))
                case sessions.Opened(session=session, peer=peer):
                    self._opened(session, peer)
                case sessions.Reset(reason=reason):
                    self._end_session(reason, keep_session=True)
                    ended = self._ended
                case sessions.Doubted(code=code, reason=reason):
                    self._doubted(code, reason)
                case sessions.Failed(code=code, reason=reason):
                    self._end_session(reason, keep_session=True)
                    self.statistics.state = "FAILED"
                    self._next_attempt_ns = self._around.monotonic_ns() + round(FAILED_PAUSE_S * 1e9)
                    self._around.alarm(code, self.name, reason)

    def _opened(self, session: int, peer: Hello) -> None:
        self.machine = (Alice if self.role == ALICE else Bob)(self._settings, session)
        self._opened_ns = self._around.monotonic_ns()
        self.statistics.session, self.statistics.sessions = session, self.statistics.sessions + 1
        self.statistics.state = self._open_state
        self._log.info("session open", session=f"{session:016x}", peer=self.peer, software=peer.software)
        self._around.clear("LINK_DOWN", self.name)
        self._around.record("link.opened", self.name, {"session": f"{session:016x}", "peer": self.peer})
        self._pads_asked = False
        self._pads_wanted.set()
        self.feed(fx.Tick(self._around.monotonic_ns()))
        self.settlement.session_opened(peer.unsettled)
        self.agreement.session_opened()
        self.cosigning.session_opened()
        self.comparison.session_opened()
        if self._paused:
            self.send_soon(Paused(True))
            self._obey_pause()

    @property
    def _open_state(self) -> str:
        """What an open session is called."""
        return "STARVED" if self.starved else "PAUSED" if self.paused else "OPEN"

    def _set_paused(self, paused: bool) -> None:
        if paused == self._paused:
            return
        self._paused = paused
        if self.is_open:
            self.send_soon(Paused(paused))
        self._obey_pause()

    def _obey_pause(self) -> None:
        """Bob gives up what he is sifting, or lists again. Alice answers what Bob still lists."""
        if self.machine is None:
            return
        self.statistics.state = self._open_state
        if not isinstance(self.machine, Bob):
            return
        if self.paused:
            self.run_effects(self.machine.stop("PAUSED"))
        elif not self._stopping:
            self.machine.listening = True

    def _end_session(self, reason: str, keep_session: bool = False) -> None:
        self._ended += 1
        if self.machine is not None:
            for batch in self.machine.batches.values():
                self.statistics.discard("connection-lost", 1)
                self._log.warning("batch dropped", batch=batch.number, reason=reason)
            self.machine.close()
            self.machine = None
            self._events.clear()
            self._draws.clear()
            self._around.record("link.closed", self.name, {"reason": reason})
            self._log.info("session closed", reason=reason)
        self._going_first.clear()
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
        self._peer_paused = False  # a paused peer says so in each session
        self.agreement.session_closed()
        self.comparison.session_closed()
        if not keep_session:
            self.session.end()
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

    def _doubted(self, code: str, reason: str) -> None:
        """Somebody sent what is not the peer's: counted each time, an alarm now and then, and nothing ends."""
        now = self._around.monotonic_ns()
        if self._doubted_ns is None or now - self._doubted_ns > DOUBT_ALARM_S * 1e9:
            self._doubted_ns = now
            self._around.alarm(code, self.name, reason)
        self._discarded(RemoteProtocolError(reason))

    def _back_off(self) -> None:
        self._next_attempt_ns = self._around.monotonic_ns() + round(self._backoff_s * 1e9)
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    # --- the machine -----------------------------------------------------------------------------------------------

    def feed(self, event: fx.Event) -> None:
        """Give the machine an event, and run what it asks for."""
        self._events.append(event)
        self._drain()

    def _drain(self) -> None:
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and self.machine is not None:
                event = self._events.popleft()
                try:
                    effects = self.machine.handle(event)
                    self._execute(effects)
                except RemoteProtocolError as error:
                    self._discarded(error)
                except QkdnodeError as error:
                    self._around.alarm("PROTOCOL", self.name, str(error))
                    self.give_up(str(error))
                except Exception as error:
                    self._fail(error)
        finally:
            self._handling = False

    def run_effects(self, effects: fx.Effects) -> None:
        """Run effects that a machine returned outside its events, and what follows from them."""
        self._execute(effects)
        self._drain()

    def _execute(self, effects: fx.Effects) -> None:
        for effect in effects:
            EXECUTORS[type(effect)](self, effect)

    def _do_send(self, effect: fx.Send) -> None:
        self._outgoing.put_nowait(effect.message)

    def _do_work(self, effect: fx.Work) -> None:
        machine = self.machine

        def done(job: Any, result: Any) -> None:
            if self.machine is machine and machine is not None:
                self.feed(fx.Done(job, result))

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
        self._draws.append(effect)
        if len(self._draws) == 1:
            self._draw_next()

    def _draw_next(self) -> None:
        """Serve the draws in their order; one that the QRNGs are too slow for holds up those behind it."""
        while self._draws:
            try:
                random = self._around.draw(self._draws[0].size)
            except EntropyShortError:
                asyncio.get_running_loop().call_later(DRAW_AGAIN_S, self._draw_again, self.machine)
                return
            except NoEntropyError as error:
                self._around.alarm("NO_ENTROPY", self.name, str(error))
                self.give_up(f"NO_ENTROPY: {error}")
                self.statistics.state = "NO_ENTROPY"
                return
            self._events.append(fx.Drawn(self._draws.popleft().purpose, random))

    def _draw_again(self, machine: Alice | Bob | None) -> None:
        if self.machine is machine and machine is not None:
            self._draw_next()
            self._drain()

    def _do_discarded(self, effect: fx.Discarded) -> None:
        self.statistics.discard(effect.reason, effect.windows or 1)
        if effect.batch is not None:
            self._log.warning("batch discarded", batch=effect.batch, reason=effect.reason, bits=effect.bits)
            self._around.record(
                "link.batch_discarded", self.name, {"reason": effect.reason, "bits": effect.bits, "batch": effect.batch}
            )

    def _do_alarmed(self, effect: fx.Alarmed) -> None:
        self._around.alarm(effect.code, self.name, effect.detail)

    def _found(self, findings: list[Finding]) -> None:
        for finding in findings:
            self._around.alarm(finding.code, self.name, finding.detail)

    def _do_listed(self, effect: fx.ListedWindow) -> None:
        if self._quality is not None:
            self._found(self._quality.listed(effect.detectors, effect.double_clicks))

    def _do_sifted(self, effect: fx.SiftedWindow) -> None:
        counts = self.statistics
        counts.windows += 1
        counts.sifted_bits += effect.bits
        counts.x_bits += effect.x_bits
        counts.x_errors += effect.x_errors
        if self._quality is not None:
            self._found(self._quality.sifted(effect.bits, effect.ones, effect.x_bits, effect.x_errors))

    def _do_verified(self, effect: fx.BlockVerified) -> None:
        counts = self.statistics
        counts.blocks += 1
        counts.verified_bits += effect.bits
        counts.errors += effect.errors
        counts.qber_z = effect.errors / effect.bits if effect.bits else counts.qber_z
        counts.alice_bits += effect.alice_bits
        counts.bob_bits += effect.bob_bits
        counts.opened_frames += effect.opened_frames
        if self._quality is not None:
            self._found(self._quality.verified(effect.bits, effect.errors))

    def _do_forget(self, effect: fx.Forget) -> None:
        self.session.forget_batch(effect.batch)

    def _do_journal(self, effect: fx.JournalPending | fx.JournalReady) -> None:
        self.spawn(self.settlement.journal(effect))

    # --- batches and authentication key ----------------------------------------------------------------------------

    def batch_ready(self, record: ask.BatchRecord | None, segment: ask.SegmentState | None) -> None:
        """A Batch is READY at this end; without its record only that it is."""
        if segment is not None:
            self.add_segment(segment)
        self.spawn(self.measure_pool())
        self.statistics.batches_ready += 1
        self._backoff_s = BACKOFF_FIRST_S
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

    def add_segment(self, segment: ask.SegmentState) -> None:
        """Make a segment's pads available; one that is held already only frees the copy."""
        self.pool.add(
            Segment(segment.segment, segment.pads_per_direction, segment.material, segment.sending, segment.seen)
        )
        self._pads_asked = False
        self.pads_wanted()

    async def _replenish(self) -> None:
        """Reserve what the peer has granted, and ask it for more in time."""
        ended = self._ended
        if self.pool.granted < GRANT_BELOW:
            request = ask.ReservePads(link=self.name, count=GRANT_PADS, within=self.pool.allowed())
            self.pool.grant(await self._around.ask(request))
            await self.measure_pool()
        granted = sum(span.end - span.first for span in self.pool.allowed())
        if granted < GRANT_PADS and not self._pads_asked:
            self._pads_asked = True
            statement = await self._around.ask(ask.StateLink(link=self.name))
            if ended == self._ended:
                self._go_first(PadsWanted(GRANT_PADS, statement.sending))

    async def _grant_pads(self, message: PadsWanted) -> None:
        ended = self._ended
        request = ask.GrantPads(link=self.name, count=message.count, sending=message.sending)
        spans = await self._around.ask(request)
        if ended == self._ended:
            self._go_first(PadsGranted(spans))

    def _go_first(self, message: PadsWanted | PadsGranted) -> None:
        self._going_first.append(message)
        self._outgoing.put_nowait(None)

    def _pads_granted(self, message: PadsGranted) -> None:
        self.pool.allow(message.spans)
        self._pads_asked = not message.spans  # more can come only of a new segment
        if message.spans:
            self._pads_wanted.set()
        elif not self.pool.granted and not self.pool.allowed():
            self._around.alarm("AUTH_STARVED", self.name, "the peer can grant no pads: all are used, here or by a copy")
            self.give_up("no authentication key left")

    async def measure_pool(self) -> None:
        """See how much authentication key is left, and whether the link is starved."""
        was_starved = self.starved
        self._pads_left = await self._around.ask(ask.PadsLeft(link=self.name))
        wanted = self._authentication.target_bits - self._pads_left * PAD_BITS
        if self.machine is not None:
            self.feed(fx.PoolLevel(max(0, 2 * wanted), self._pads_left >= PADS_KEPT))
            self.statistics.state = self._open_state
            if not self.starved:
                self._around.clear("AUTH_STARVED", self.name)
            if self.starved and not was_starved:
                self._around.alarm(
                    "AUTH_STARVED", self.name, f"{self._pads_left * PAD_BITS} bits of authentication key are left"
                )

    def pads_wanted(self) -> None:
        """Have more pads reserved."""
        self._pads_wanted.set()

    def spent(self, pads: int) -> None:
        """Count pads that were used, and have more reserved in time."""
        self.statistics.auth_spent_bits += pads * PAD_BITS
        if self.pool.granted < GRANT_BELOW:
            self._pads_wanted.set()

    def note_seen(self, frame: codec.Frame) -> None:
        """Raise the durable mark of the peer's pads past the one of this frame, if it has one."""
        if frame.trailer is not None:
            pad = frame.trailer.pad
            self.spawn(self._note(Mark(pad.segment, pad.index + 1)))

    async def _note(self, mark: Mark) -> None:
        await self._around.ask(ask.NoteSeen(link=self.name, marks=(mark,)))

    # --- small things ----------------------------------------------------------------------------------------------

    def spawn(self, work: Any) -> None:
        """Run a coroutine beside the loops; an error of the project in it ends the session, any other the link."""
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Any) -> None:
        try:
            await work
        except QkdnodeError as error:
            self._around.alarm(error.code, self.name, str(error))
            self.give_up(str(error))
        except Exception as error:
            self._fail(error)

    def give_up(self, reason: str) -> None:
        """End the session and come back after the back-off."""
        self._end_session(reason)
        self._back_off()

    def _fail(self, error: Exception) -> None:
        """A fault of the program: the link ends loudly instead of going on half dead."""
        self._fault = self._fault or error
        self._faulted.set()

    async def _fault_loop(self) -> None:
        await self._faulted.wait()
        assert self._fault is not None
        raise self._fault

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
    fx.ListedWindow: Link._do_listed,
    fx.SiftedWindow: Link._do_sifted,
    fx.BlockVerified: Link._do_verified,
    fx.JournalPending: Link._do_journal,
    fx.JournalReady: Link._do_journal,
    fx.Forget: Link._do_forget,
}
