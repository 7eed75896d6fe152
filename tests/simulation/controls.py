"""Planted bugs that the simulation must find: a harness that finds nothing proves nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import msgspec

from qkdnode.authentication import session as authentication
from qkdnode.client import order, subscription
from qkdnode.lifecycle.clockguard import Standing
from qkdnode.lifecycle.states import HOLDING, Stage
from qkdnode.link.settlement import Settlement
from qkdnode.node.clock import NodeClock
from qkdnode.supply import replay, server
from qkdnode.vault import (
    core,
    decoys,
    endings,
    entitlements,
    fetches,
    generations,
    journal,
    keys,
    marks,
    outbox,
    retirement,
    revocations,
    schema,
    stretches,
)
from qkdnode.vault import requests as ask
from qkdnode.vault.records import Ending, Link, Segment, pack_batch
from qkdnode.vault.store import Store
from qkdnode.wire.events import Head
from qkdnode.wire.messages import Delivered
from simulation.run import FAULTS, LIT_S, OF_EVENTS, OF_OPERATORS, PERIOD_S, Outcome, Simulation

Handler = Callable[[Store, Any], Any]
Plant = Callable[[], Any]  # a context manager


class Control(msgspec.Struct, frozen=True):
    """One planted bug, and the faults under which it must show: their kinds and how many.

    If none are named, all but those of events.
    """

    name: str
    plant: Plant
    faults: tuple[str, ...] = ()
    hours: float = 0.2
    faults_per_hour: float = 240.0
    lit_s: float = LIT_S
    timed: bool = False  # whether keys end soon
    deep: bool = False  # looked for by `make simulate` alone: it takes too long for the default suite

    def found(self, seeds: range) -> Outcome | None:
        """The first run that shows the bug."""
        kept = FAULTS.keys() if self.faults else FAULTS.keys() - OF_EVENTS.keys() - OF_OPERATORS.keys()
        chosen = {name: FAULTS[name] for name in sorted(kept) if name.startswith(self.faults or "")}
        with self.plant():
            for seed in seeds:
                outcome = Simulation(
                    seed,
                    hours=self.hours,
                    faults_per_hour=self.faults_per_hour,
                    faults=chosen,
                    lit_s=self.lit_s,
                    timed=self.timed,
                ).play()
                if outcome.breaches:
                    return outcome
        return None


def handler(request: type[ask.Request], make: Callable[[Handler], Handler]) -> Plant:
    """The vault answers a request otherwise."""
    return lambda: mock.patch.dict(core.HANDLERS, {request: make(core.HANDLERS[request])})


@contextmanager
def sent_before_it_is_journalled() -> Iterator[None]:
    async def journalled(self: Any, effect: Any) -> None:
        link = self._link
        message = getattr(effect, "commit", None) or effect.answer
        if not await self.pad_granted(message.batch.session):
            effect.key.release()
            return
        raw = link.session.seal(message)
        link.spent(1)
        await link.transmit(raw)
        await self._store(effect, message.batch, raw)

    with mock.patch.object(Settlement, "journal", journalled):
        yield


@contextmanager
def pragmas(otherwise: str) -> Iterator[None]:
    changed = tuple(pragma.replace("= FULL", otherwise) for pragma in schema.PRAGMAS)
    with mock.patch.object(schema, "PRAGMAS", changed):
        yield


def pads_handed_out_again(reserve: Handler) -> Handler:
    def again(store: Store, request: ask.ReservePads) -> Any:
        taken = reserve(store, request)
        row = store.get(Segment, request.link, pack_batch(taken[-1].segment))
        if row is not None and row.sending > 40 and row.sending % 3 == 0:
            store.change(row, "pads.reserved", {}, sending=row.sending - 1)
        return taken

    return again


def counter_stands_still(counter: Handler) -> Handler:
    def same(store: Store, request: ask.NextSession) -> Any:
        link = store.get(Link, request.link)
        return link.session_counter if link is not None and link.session_counter > 1 else counter(store, request)

    return same


def outbox_cleared_when_sent(read: Handler) -> Handler:
    def cleared(store: Store, request: ask.NeighbourOutbox) -> Any:
        entries = read(store, request)
        for entry in entries:
            if isinstance(entry.message, Delivered):
                outbox.clear(store, request.link, entry.number)
        return entries

    return cleared


def pending_is_taken_as_ready(opening: Handler) -> Handler:
    def settled(store: Store, request: ask.OpenLink) -> Any:
        state = opening(store, request)
        for batch in state.unsettled:
            core.HANDLERS[ask.SettlePending](store, ask.SettlePending(link=request.link, batch=batch.batch, ready=True))
        return msgspec.structs.replace(state, unsettled=())

    return settled


def delivery_forgotten(delivered: Handler) -> Handler:
    return lambda store, request: len(request.key_ids)


@contextmanager
def leaf_lost() -> Iterator[None]:
    write = journal.Journal.write

    def short(self: Any) -> None:
        if len(self._pending) > 2:
            del self._pending[1]
        write(self)

    with mock.patch.object(journal.Journal, "write", short):
        yield


@contextmanager
def any_tag_will_do() -> Iterator[None]:
    with mock.patch.object(authentication, "equal", return_value=True):
        yield


@contextmanager
def nothing_is_missed() -> Iterator[None]:
    """A subscriber believes that each Head goes on where the last ended, and that all of it has come."""
    merge = order.EventOrder._merge

    def believing(self: Any, head: Head) -> None:
        merge(self, msgspec.structs.replace(head, start=self.next or 0, sequences=()))

    with mock.patch.object(order.EventOrder, "_merge", believing):
        yield


@contextmanager
def a_replay_that_ends_early() -> Iterator[None]:
    """The last entry of an answer is left out, but told as sent."""
    pages_of = replay.pages_of

    def short(stream: bytes, leaves: Any, labels: Any, notes: Any) -> Any:
        return pages_of(stream, leaves[:-1], list(labels)[:-1], notes)

    with mock.patch.object(replay, "pages_of", short):
        yield


@contextmanager
def the_last_one_again() -> Iterator[None]:
    """Who was away begins with the last event known, not with the one after it."""
    begin = order.EventOrder.__init__

    def off_by_one(self: Any, node: str, public_key: bytes, topics: Any, after: int | None) -> None:
        begin(self, node, public_key, topics, after if not after or after < 0 else after - 1)

    with mock.patch.object(order.EventOrder, "__init__", off_by_one):
        yield


@contextmanager
def hashes_outlive_what_they_are_over() -> Iterator[None]:
    """At one node nothing is made anew any more once something was made."""
    write = stretches.Stretches.write

    def forgetful(self: Any, connection: Any) -> None:
        made = "SELECT 1 FROM digests WHERE level = 5 AND digest <> x'' LIMIT 1"
        if "node-a" in connection.filename and connection.execute(made).fetchall():
            self._touched.clear()
        write(self, connection)

    with mock.patch.object(stretches.Stretches, "write", forgetful):
        yield


@contextmanager
def released_at_any_age() -> Iterator[None]:
    """Timers are late, as on a node with much to end; only the gate is left."""
    due = entitlements.due

    def ageless(decision: Any, **facts: Any) -> Any:
        return due(decision, **{**facts, "age_ns": None})

    late = mock.patch.object(retirement, "due", return_value=None)
    with mock.patch.object(entitlements, "due", ageless), late:
        yield


@contextmanager
def timers_act_early() -> Iterator[None]:
    due = retirement.due

    def early(terms: Any, timer: Any, since_ns: int, *, own: bool) -> Any:
        its = due(terms, timer, since_ns, own=own)
        return None if its is None else msgspec.structs.replace(its, at_ns=its.at_ns - 300 * 10**9)

    with mock.patch.object(retirement, "due", early):
        yield


@contextmanager
def the_wall_clock_is_trusted() -> Iterator[None]:
    """By the node: the guard is passed by."""

    def read(self: Any) -> Standing:
        with self._gate:
            return Standing(self._wall_ns(), 0, None)

    with mock.patch.object(NodeClock, "read", read):
        yield


@contextmanager
def the_vault_looks_at_the_wall_clock() -> Iterator[None]:
    with mock.patch.object(Store, "trusted_ns", property(lambda self: self.now_ns)):
        yield


def nothing_is_retired(retire: Handler) -> Handler:
    return lambda store, request: retirement.Retired(0, 0, (), False)


def any_generation_is_released() -> Any:
    """Keys go out whatever generation they are of."""
    return mock.patch.object(generations, "releases", return_value=True)


def name(module: Any, attribute: str, value: Any) -> Plant:
    """Something in the program is another thing."""
    return lambda: mock.patch.object(module, attribute, value)


def read_and_deleted(read: Handler) -> Handler:
    def deleted(store: Store, request: Any) -> Any:
        rows = read(store, request)
        for row in rows:
            store.delete(store.get(Ending, row.number))
        return rows

    return deleted


def fetched_at_any_stage(fetch: Handler) -> Handler:
    """Whoever asks by id is given what both the index and the application fit."""

    def given(store: Store, request: Any) -> Any:
        with mock.patch.object(fetches, "may_have", _fits):
            return fetch(store, request)

    return given


def _fits(store: Store, found: Any, known: Any, request: Any) -> bool:
    bundle, place = found.bundle, found.place
    return place is not None and known.number == bundle.association and bundle.states[place] in HOLDING


@contextmanager
def ended_at_one_end() -> Iterator[None]:
    """Old decoys are destroyed here, and the neighbour is not told."""
    end = decoys.end

    def alone(store: Store, held: Any, why: Any) -> int:
        with mock.patch.object(revocations, "tell", return_value=None):
            return end(store, held, why)

    with mock.patch.object(decoys, "RENEWED_AFTER_S", 60), mock.patch.object(decoys, "end", alone):
        yield


@contextmanager
def told_who_never_had_it() -> Iterator[None]:
    told = {step: {*stages, Stage.READY} for step, stages in endings.TOLD.items()}
    with mock.patch.dict(endings.TOLD, told):
        yield


@contextmanager
def acknowledged_before_the_program_knows() -> Iterator[None]:
    """A notice is noted, and the program not told."""

    def silent(self: Any, ended: Any) -> None:
        self._apply(self._subscriber.noted(ended.notice, 0.0))

    with mock.patch.object(subscription.AsyncSubscription, "_end_keys", silent):
        yield


def untold() -> Any:
    """No step is told to whoever has the key."""
    return mock.patch.dict(endings.TOLD, clear=True)


def never_a_decoy(store: Store, bundle: Any) -> bool:
    return False


REVOKED = ("keys are revoked", "the link is compromised", "an agent is killed", "an application is killed")
ROTATED = ("keys are rotated", "the link is cut", "a frame is repeated")
POWER, KILLS = ("power loss",), ("an agent is killed", "both agents", "kill at")
LINK_BREAKS = ("the link's connection breaks",)
AWAY = ("a subscriber is away",)
ABSENCE = ("an application is killed", "the supply's connection", "the link is cut")
JUMPS = (*ABSENCE, "the clock jumps")
CONTROLS = (
    Control("a message is sent before it is journalled", sent_before_it_is_journalled),
    Control("synchronous=NORMAL", lambda: pragmas("= NORMAL"), POWER),
    Control("synchronous=OFF", lambda: pragmas("= OFF"), POWER),
    Control("a pad mark that rewinds", handler(ask.ReservePads, pads_handed_out_again)),
    Control("the session counter stands still", handler(ask.NextSession, counter_stands_still), KILLS),
    Control("a notice is cleared when it is sent", handler(ask.NeighbourOutbox, outbox_cleared_when_sent)),
    Control(
        "PENDING is taken as READY after a crash",
        handler(ask.OpenLink, pending_is_taken_as_ready),
        ("kill at",),
        0.1,
        1800.0,
        PERIOD_S,
    ),
    Control("keys of any generation are released", any_generation_is_released, ROTATED),
    Control("a delivery is not journalled", handler(ask.KeysDelivered, delivery_forgotten)),
    Control("a leaf of the audit log is lost", leaf_lost),
    Control("a hash outlives what it is over", hashes_outlive_what_they_are_over, LINK_BREAKS, 0.05, 1200.0, PERIOD_S),
    Control("an unauthenticated message is accepted", any_tag_will_do, ("a frame is altered",)),
    Control("a subscriber takes a gap for silence", nothing_is_missed, ("published events",)),
    Control("a replay leaves out an entry", a_replay_that_ends_early, AWAY),
    Control("an event is given again after an absence", the_last_one_again, AWAY),
    Control("a key is released at any age", released_at_any_age, ABSENCE, 0.06, 600.0, timed=True),
    Control("timers act before their time", timers_act_early, ABSENCE, 0.05, 600.0, timed=True),
    Control("the wall clock is trusted as it is", the_wall_clock_is_trusted, JUMPS, 0.03, 900.0, timed=True),
    Control(
        "the vault holds timers to the wall clock", the_vault_looks_at_the_wall_clock, JUMPS, 0.03, 900.0, timed=True
    ),
    Control(
        "what is due is never ended",
        handler(retirement.RetireKeys, nothing_is_retired),
        ("an application is killed",),
        0.03,
        900.0,
        timed=True,
    ),
    Control("a decoy is supplied as a key", name(keys.marks, "is_decoy", never_a_decoy), deep=True),
    Control("the far end takes decoys for keys", name(marks, "came_as_decoy", lambda *asked: False), deep=True),
    Control("old decoys are ended at one end alone", ended_at_one_end, ("the clock jumps",), deep=True),
    Control(
        "a decoy alarms nobody", name(server.SupplyServer, "_alarm_of_decoys", lambda *told: None), KILLS, deep=True
    ),
    Control("a key is fetched at any stage", handler(fetches.FetchKeys, fetched_at_any_stage), REVOKED, deep=True),
    Control("a notice is deleted when it is read", handler(endings.EndedKeys, read_and_deleted), REVOKED, deep=True),
    Control("a notice is noted unseen", acknowledged_before_the_program_knows, REVOKED, deep=True),
    Control("a compromise is not told to who has its keys", untold, REVOKED, deep=True),
    Control("who never had a key is told of its end", told_who_never_had_it, REVOKED, deep=True),
)


def is_found(name: str, seeds: range) -> bool:
    """Whether the bug of this name shows in one of these runs; for a process of its own."""
    return next(control for control in CONTROLS if control.name == name).found(seeds) is not None
