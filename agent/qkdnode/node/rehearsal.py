"""A rotation rehearsed: what stands in its way now, and how it goes on a shadow of its shape under the load of late.

Nothing of the node's vault comes in but counts (`qkdnode.wire.control.ShapeEntry`), and nothing goes back. All chosen
associations of a link share its stock, so they rotate together in one shadow, anew for each round.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from qkdnode.errors import OutOfStockError, QkdnodeError, VaultError
from qkdnode.ids import Association
from qkdnode.lifecycle.rotation import LINGER_NS, PATIENCE_NS, Phase
from qkdnode.lifecycle.states import Stage
from qkdnode.node.shadow import LINK, End, Shadow, scratch, shadow
from qkdnode.vault import requests as ask
from qkdnode.vault.inventory import ListedKeys, ListKeys
from qkdnode.vault.rotations import (
    AdvanceRotations,
    BeginRotation,
    EndGenerations,
    GenerationAcknowledged,
    GenerationPrepared,
    RotationState,
    ShowRotation,
)
from qkdnode.wire.control import ShapeEntry

MOST_KEYS = 20_000  # of an association in a shadow: what waits, and what the load cuts
MOST_TOGETHER = 2 * MOST_KEYS  # of all associations of a link
MOST_BITS = 32 * 2**20  # and bits of them
MOST_BATCHES = 16
USUAL_CREDIT = 64
OPENED_AT_ONCE = 128
STEPS = ("agreed", "prepared", "cut", "first_key", "closed", "ended")
# How much of the load comes before a step. First keys are cut before any of the load's, as the agreement does.
PLACES = {"agreed": 0.0, "prepared": 0.0, "cut": 0.25, "first_key": 0.25, "closed": 0.5, "ended": 0.75}
# States of a link in which messages go over it, and keys can be cut.
CUTTING = frozenset({"OPEN", "PAUSED"})


class Finding(msgspec.Struct, frozen=True):
    """Something that an operator should know; `blocks`: the rotation would not come to its end now."""

    about: str  # an association, or a link
    code: str
    blocks: bool
    detail: str


class Latency(msgspec.Struct, frozen=True):
    """How long a step took, over all rounds."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """How one association went. Counts of keys are the shadow's; `scale` is how many of the node's one of them stands
    for. Of several rounds the worst."""

    local: str
    remote: str
    link: str
    generation: int
    prepared: int  # keys of the next generation that each end cuts first
    scale: float
    waiting: int  # keys of the old generation that were there at the start
    load_minutes: int
    load_cut: int  # keys that the load cut, at both ends
    load_taken: int  # and that applications took
    unserved: int  # of these were not to be had by the end
    dry_minutes: int  # of the load, in which none was to be had while one was asked for
    gap_ms: float  # the longest time without, as the load was replayed
    destroyed: int  # keys of the old generation that no application had
    alone: int  # and that one application alone had


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a rehearsal found."""

    would_succeed: bool
    findings: tuple[Finding, ...]
    rounds: int
    duration_s: float  # the median round's steps, and the half second after the cut; no network, no applications
    steps: dict[str, Latency]
    associations: tuple[Rehearsed, ...]
    storage: str  # where the shadows were


# --- what stands in the way now --------------------------------------------------------------------------------------


def prepared_keys(entry: ShapeEntry) -> int:
    """Keys that each end cuts of the next generation before it is offered: as the agreement counts them."""
    return max(1, min(*(credit // 4 for credit in credits_of(entry)), entry.room // 2))


def credits_of(entry: ShapeEntry) -> tuple[int, int]:
    """What both applications accept at once. One that is away is taken for one like the other, or like most."""
    here, there = entry.credit_here, entry.credit_there
    return here or there or USUAL_CREDIT, there or here or USUAL_CREDIT


def findings(entries: Sequence[ShapeEntry]) -> list[Finding]:
    """What the shapes alone say."""
    found = [finding for entry in entries for finding in _of_one(entry)]
    by_link: dict[str, list[ShapeEntry]] = defaultdict(list)
    for entry in entries:
        by_link[entry.link].append(entry)
    for link, its in by_link.items():
        found += _of_stock(link, its)
    return found


def _of_one(entry: ShapeEntry) -> Iterable[Finding]:
    about, load = _named(entry), _load_of(entry)
    minute = PATIENCE_NS // 10**9
    away = [
        f"{name} {where}"
        for name, where, credit in (
            (entry.local, "here", entry.credit_here), (entry.remote, "at the far end", entry.credit_there),
        )
        if credit is None
    ]  # fmt: skip
    waits = f"the class lets it go on without after {minute} s" if entry.goes_without else "it would wait for it"
    held = f"a legal hold on class {entry.key_class!r}: old keys that nobody has are kept, not destroyed"
    for code, blocks, is_so, detail in (
        ("on-the-way", True, entry.phase != Phase.STEADY, f"a rotation is on the way already: it is {entry.phase}"),
        ("link", True, not entry.connected, "the link is down: no session with the neighbour is open"),
        ("link", True, entry.connected and entry.link_state not in CUTTING,
         f"no key is cut while the link is {entry.link_state}"),
        ("policy", True, not entry.allowed, f"no key may be cut: {entry.reason} [rule {entry.rule}]"),
        ("quota", True, entry.allowed and entry.room < 1, f"quotas leave no room for a key [rule {entry.rule}]"),
        ("application", not entry.goes_without, bool(away),
         f"not subscribed: {' and '.join(away)}; {waits}"),
        ("legal-hold", False, entry.held, held),
        ("counts", False, not entry.all_counted,
         f"more than {entry.waiting_here + entry.waiting_there} keys wait: so many were counted"),
        ("load", False, not load, f"no load was recorded in the last {entry.minutes} minutes: none is replayed"),
        ("load", False, load > 0 and entry.minutes < 60,
         f"the log of the last hour was too long: the load is that of {entry.minutes} minutes"),
    ):  # fmt: skip
        if is_so:
            yield Finding(about, code, blocks, detail)


def _of_stock(link: str, entries: Sequence[ShapeEntry]) -> Iterable[Finding]:
    needed = sum(prepared_keys(entry) * entry.size_bits for entry in entries)
    for half, there, cut in (
        ("this end's half", entries[0].stock_here, sum(sum(its.cut_here) * its.size_bits for its in entries)),
        ("the other end's half", entries[0].stock_there, sum(sum(its.cut_there) * its.size_bits for its in entries)),
    ):
        if there < needed:
            detail = f"stock is short: {needed} bits of {half} are needed for the first keys, there are {there}"
            yield Finding(link, "stock", True, detail)
        elif there < needed + cut:
            detail = f"with the load {needed + cut} bits of {half} are needed, there are {there}: new Batches must come"
            yield Finding(link, "stock", False, detail)


def _named(entry: ShapeEntry) -> str:
    return str(Association(entry.local, entry.remote, entry.link))


def _load_of(entry: ShapeEntry) -> int:
    return sum(map(sum, (entry.cut_here, entry.cut_there, entry.taken_here, entry.taken_there)))


# --- one association in a shadow -------------------------------------------------------------------------------------


class Player:
    """An association in a shadow: the keys that wait, the load that is replayed, and what of it was served.

    Lists have two items: for this end and for the other.
    """

    def __init__(self, number: int, entry: ShapeEntry, most_keys: int) -> None:
        self.entry = entry
        self.association = Association(f"here-{number}", f"there-{number}", LINK)
        cuts = (entry.cut_here, entry.cut_there)
        takes = (entry.taken_here, entry.taken_there)
        cut_in_all = sum(map(sum, cuts))
        # Who took more than was cut has taken what waited then: that it waits at the start.
        waiting = [entry.waiting_here, entry.waiting_there]
        waiting[0] += _missing(sum(waiting), cuts, takes)
        most = max(1, min(most_keys, MOST_BITS // entry.size_bits))
        self.scale = max(1.0, sum(waiting) / most, cut_in_all / most)
        self.cuts, self.takes = ([_scaled(minutes, self.scale) for minutes in its] for its in (cuts, takes))
        self.waiting = [round(keys / self.scale) for keys in waiting]
        self.waiting[0] += _missing(sum(self.waiting), self.cuts, self.takes)
        self.prepared = min(prepared_keys(entry), most)
        self.level = [min(keys, max(1, min(credits_of(entry)) // 2)) for keys in self.waiting]
        self.debt, self.unserved = [0, 0], 0
        self.dry_since: list[float | None] = [None, None]
        self.gap_s, self.dry_minutes, self.destroyed, self.alone = 0.0, 0, 0, 0

    @property
    def stock_needed(self) -> int:
        """Bits of either half that the shadow can use at most."""
        keys = self.prepared + sum(map(sum, self.cuts)) + len(self.cuts[0]) * max(self.level)
        return (2 * keys + sum(self.level) + 1) * self.entry.size_bits

    def result(self) -> Rehearsed:
        """How it went."""
        return Rehearsed(
            local=self.entry.local,
            remote=self.entry.remote,
            link=self.entry.link,
            generation=self.entry.generation,
            prepared=self.prepared,
            scale=round(self.scale, 3),
            waiting=sum(self.waiting),
            load_minutes=self.entry.minutes,
            load_cut=sum(map(sum, self.cuts)),
            load_taken=sum(map(sum, self.takes)),
            unserved=sum(self.debt),
            dry_minutes=self.dry_minutes,
            gap_ms=round(self.gap_s * 1e3, 2),
            destroyed=self.destroyed,
            alone=self.alone,
        )


def _missing(waiting: int, cuts: Iterable[Sequence[int]], takes: Iterable[Sequence[int]]) -> int:
    """Keys that must have waited beside those, as an application took more than was cut by then."""
    there = list(itertools.accumulate(map(sum, zip(*cuts, strict=True))))
    lacks = [
        taken - cut for its in takes for taken, cut in zip(itertools.accumulate(its), there, strict=True)
    ]  # fmt: skip
    return max(0, max(lacks, default=0) - waiting)


def _scaled(minutes: Sequence[int], scale: float) -> list[int]:
    """The same course with fewer keys: no minute's rest is lost, it comes with a later one."""
    sums = [int(keys / scale) for keys in itertools.accumulate(minutes)]
    return [keys - before for keys, before in zip(sums, [0, *sums], strict=False)]


# --- one round -------------------------------------------------------------------------------------------------------


class Round:
    """The rotation of all associations of a link in one shadow, with the load between its steps."""

    def __init__(self, made: Shadow, players: Sequence[Player]) -> None:
        self._shadow, self._players = made, players
        self.took_ms: dict[str, float] = {}
        self.failures: list[Finding] = []

    def run(self) -> None:
        """Lay in, then minute by minute with the steps between them. What fails in the shadow is a finding."""
        try:
            self._run()
        except QkdnodeError as error:
            self.failures.append(Finding(self._players[0].entry.link, "shadow", True, f"in the shadow: {error}"))
        for player in self._players:
            for side in (0, 1):
                self._end_dry(player, side)

    def _run(self) -> None:
        self._fill()
        minutes = max(len(player.cuts[0]) for player in self._players)
        at = defaultdict(list)
        for step in self._steps():
            at[int(PLACES[step[0]] * minutes)].append(step)
        for minute in range(minutes + 1):
            for name, work, wanted in at[minute]:
                if not self._failed:
                    self._step(name, work, wanted)
            if minute < minutes:
                self._replay(minute)

    @property
    def _failed(self) -> bool:
        return any(finding.blocks for finding in self.failures)

    def _fill(self) -> None:
        its, first = self._shadow, self._players[0].entry
        for player in self._players:
            its.associate(player.association)
        old = [sum(player.waiting[side] * player.entry.size_bits for player in self._players) for side in (0, 1)]
        its.stock(*old)
        for player in self._players:
            for side in (0, 1):
                self._cut(player, side, player.waiting[side])
        its.carry()
        most = sum(player.stock_needed for player in self._players)
        here, there = (min(bits, most) // 8 * 8 for bits in (first.stock_here, first.stock_there))
        its.stock(here, there, min(first.batches, MOST_BATCHES))

    def _steps(self) -> Iterable[tuple[str, Callable[[], None], tuple[Phase, int]]]:
        yield "agreed", self._agree, (Phase.AGREED, 1)
        yield "prepared", self._prepare, (Phase.OFFERED, 1)
        yield "cut", self._cut_over, (Phase.CUT, 1)
        yield "first_key", self._open_first, (Phase.CUT, 1)
        yield "closed", self._close, (Phase.STEADY, 2)
        yield "ended", self._end_rows, (Phase.STEADY, 2)

    def _step(self, name: str, work: Callable[[], None], wanted: tuple[Phase, int]) -> None:
        self._before(name)
        begun = time.perf_counter()
        try:
            work()
        except QkdnodeError as error:
            code = "stock" if isinstance(error, OutOfStockError) else "shadow"
            self.failures.append(Finding(self._players[0].entry.link, code, True, f"in the shadow, {name}: {error}"))
            return
        self.took_ms[name] = (time.perf_counter() - begun) * 1e3
        for player in self._players:
            for side, end in enumerate(self._shadow.ends):
                state = self._state(player, side)
                if (state.phase, state.current) != wanted:
                    told = (
                        f"in the shadow, after {name}: generation {state.current} is {state.phase} at {end.role}'s, "
                        f"not {wanted[1]} {wanted[0]}"
                    )
                    self.failures.append(Finding(_named(player.entry), "shadow", True, told))
        self._after(name)
        if name != "cut":  # the first keys are looked for before they are taken
            for player in self._players:
                for side in (0, 1):
                    self._take(player, side)

    # --- the steps ---

    def _agree(self) -> None:
        for player in self._players:
            self._shadow.here.call(BeginRotation(association=player.association, reason="operator", by="rehearsal"))
        self._shadow.carry()

    def _prepare(self) -> None:
        for player in self._players:
            for side in (0, 1):
                self._cut(player, side, player.prepared, 2)
        self._shadow.carry()
        for player in self._players:
            for end, its in self._both(player):
                end.call(GenerationPrepared(association=its, keys=player.prepared))
        self._shadow.carry()

    def _cut_over(self) -> None:
        """From the second application's acknowledgement on."""
        for player in self._players:
            its = self._shadow.named_by(self._shadow.there, player.association)
            self._shadow.there.call(GenerationAcknowledged(association=its, number=2))
        self._shadow.carry()

    def _open_first(self) -> None:
        for player in self._players:
            for end, its in self._both(player):
                ids = [row.key_id for row in self._offered(end, its, OPENED_AT_ONCE) if row.generation == 2]
                opened = (
                    end.call(ask.OpenKeys(key_ids=tuple(ids[:OPENED_AT_ONCE]), application=its.local)) if ids else None
                )
                if opened is None:
                    told = f"in the shadow, no key of the next generation is to be had at {end.role}'s after the cut"
                    self.failures.append(Finding(_named(player.entry), "shadow", True, told))
                else:
                    opened.material.release()

    def _close(self) -> None:
        for end in self._shadow.ends:
            end.call(AdvanceRotations(link=LINK))
        self._shadow.carry()

    def _end_rows(self) -> None:
        for end in self._shadow.ends:
            while end.call(EndGenerations()):
                pass
        self._shadow.carry()

    def _before(self, name: str) -> None:
        """What comes before a step and is not of its time: the first application's word, pairs that are made."""
        if name == "cut":
            for player in self._players:
                self._shadow.here.call(GenerationAcknowledged(association=player.association, number=2))
            self._shadow.carry()
        if name == "closed":
            for player in self._players:
                for end, its in self._both(player):
                    while rows := [row for row in self._offered(end, its, 256) if row.generation == 1]:
                        if not self._deliver(end, its, rows):
                            break
            self._shadow.carry()
            for end in self._shadow.ends:
                end.ahead_ns += LINGER_NS

    def _after(self, name: str) -> None:
        """What must be so behind a step."""
        for player in self._players:
            for end, its in self._both(player):
                generations = {row.generation for row in self._offered(end, its, 256)}
                allowed = {"agreed": {1}, "prepared": {1}, "closed": {2}, "ended": {2}}.get(name, {1, 2})
                if generations - allowed:
                    told = f"in the shadow, after {name}: keys of generation {generations} are offered at {end.role}'s"
                    self.failures.append(Finding(_named(player.entry), "shadow", True, told))
            if name == "ended":
                player.destroyed, player.alone = self._count_destroyed(player)

    # --- the load ---

    def _replay(self, minute: int) -> None:
        for player in self._players:
            for side in (0, 1):
                if minute < len(player.cuts[side]):
                    self._cut_for_load(player, side, player.cuts[side][minute])
        self._shadow.carry()
        for player in self._players:
            for side in (0, 1):
                if minute < len(player.takes[side]):
                    player.debt[side] += player.takes[side][minute]
                self._take(player, side)
            player.dry_minutes += any(since is not None for since in player.dry_since)
        self._shadow.carry()

    def _cut_for_load(self, player: Player, side: int, keys: int) -> None:
        """As many as were cut; after the cut, as the agreement does, what the generation before has left behind too."""
        state = self._state(player, side)
        if state.phase in (Phase.CUT, Phase.CLOSED) or state.current > 1:
            end = self._shadow.ends[side]
            its = self._shadow.named_by(end, player.association)
            known = end.call(ask.Entitle(association=its, size_bits=player.entry.size_bits))
            keys += max(0, player.level[side] - known.outstanding - keys)
        try:
            self._cut(player, side, keys)
        except OutOfStockError as error:
            told = Finding(player.entry.link, "stock", False, f"in the shadow the load ran out of stock: {error}")
            if not any(finding.code == "stock" for finding in self.failures):
                self.failures.append(told)

    def _take(self, player: Player, side: int) -> None:
        """Give an application what it is owed, as far as there is; note since when there is nothing."""
        end, got = self._shadow.ends[side], 0
        its = self._shadow.named_by(end, player.association)
        while player.debt[side]:
            rows = self._offered(end, its, min(player.debt[side], OPENED_AT_ONCE))
            given = self._deliver(end, its, rows)
            player.debt[side] -= given
            got += given
            if not given:
                break
        if got:
            self._end_dry(player, side)
        elif player.debt[side] and player.dry_since[side] is None:
            player.dry_since[side] = time.perf_counter()

    def _deliver(self, end: End, its: Association, rows: Sequence[ask.Delivery]) -> int:
        """Open keys of one generation and acknowledge them; how many."""
        ids = [row.key_id for row in rows if row.generation == rows[0].generation]
        if not ids:
            return 0
        try:
            opened = end.call(ask.OpenKeys(key_ids=tuple(ids[:OPENED_AT_ONCE]), application=its.local))
        except VaultError as error:
            if type(error) is not VaultError:  # more than that none of them may go out now
                raise
            return 0
        opened.material.release()
        end.call(ask.KeysDelivered(application=its.local, key_ids=opened.key_ids, details={}))
        return len(opened.key_ids)

    def _end_dry(self, player: Player, side: int) -> None:
        since, player.dry_since[side] = player.dry_since[side], None
        if since is not None:
            player.gap_s = max(player.gap_s, time.perf_counter() - since)

    # --- parts ---

    def _both(self, player: Player) -> list[tuple[End, Association]]:
        return [(end, self._shadow.named_by(end, player.association)) for end in self._shadow.ends]

    def _cut(self, player: Player, side: int, keys: int, generation: int | None = None) -> None:
        end = self._shadow.ends[side]
        end.cut(self._shadow.named_by(end, player.association), keys, player.entry.size_bits, generation)

    def _state(self, player: Player, side: int) -> RotationState:
        end, its = self._both(player)[side]
        state: RotationState = end.call(ShowRotation(association=its))
        return state

    def _offered(self, end: End, its: Association, limit: int) -> tuple[ask.Delivery, ...]:
        rows: tuple[ask.Delivery, ...] = end.call(
            ask.ApplicationOutbox(application=its.local, association=its, limit=limit)
        )
        return rows

    def _count_destroyed(self, player: Player) -> tuple[int, int]:
        """Keys that were destroyed at this end: that no application had, and that one had."""
        nobody, alone, after = 0, 0, 0
        while True:
            page: ListedKeys = self._shadow.here.call(
                ListKeys(after=after, local=player.association.local, state=Stage.DESTROYED.value)
            )
            for key in page.keys:
                had = key.delivered_ns is not None or key.delivered_remote_ns is not None
                nobody, alone = nobody + (not had), alone + had
            if page.next is None:
                return nobody, alone
            after = page.next


# --- all of it -------------------------------------------------------------------------------------------------------


def rehearse(
    entries: Sequence[ShapeEntry], rounds: int = 5, *, most_keys: int = MOST_KEYS, where: Path | None = None
) -> Report:
    """Rehearse the rotation of these associations, so many times."""
    found = findings(entries)
    by_link: dict[str, list[ShapeEntry]] = defaultdict(list)
    for entry in entries:
        by_link[entry.link].append(entry)
    took: dict[str, list[float]] = defaultdict(list)
    durations: list[float] = []
    results: list[Rehearsed] = []
    for its in by_link.values():
        played = []
        most = min(most_keys, max(1, MOST_TOGETHER // len(its)))
        for _ in range(rounds):
            players = [Player(number, entry, most) for number, entry in enumerate(its)]
            with shadow(its[0].role, where) as made:
                done = Round(made, players)
                done.run()
            for name, ms in done.took_ms.items():
                took[name].append(ms)
            durations.append((sum(done.took_ms.values()) / 1e3) + LINGER_NS / 1e9)
            for finding in (*filter(None, map(_fewer, players)), *done.failures):
                if finding not in found:
                    found.append(finding)
            played.append([player.result() for player in players])
        results += [max(of_one, key=_badness) for of_one in zip(*played, strict=True)]
    return Report(
        would_succeed=bool(entries) and not any(finding.blocks for finding in found),
        findings=tuple(found),
        rounds=rounds,
        duration_s=round(_share(durations, 0.5), 3),
        steps={
            name: Latency(*(round(_share(took[name], below), 2) for below in (0.5, 0.99, 1)))
            for name in STEPS
            if took[name]
        },
        associations=tuple(results),
        storage=str(where or scratch() or "the directory of temporary files"),
    )


def _fewer(player: Player) -> Finding | None:
    """That the shadow was too small for all first keys."""
    wanted = prepared_keys(player.entry)
    if player.prepared == wanted:
        return None
    detail = f"each end has to cut {wanted} keys first: the shadow has {player.prepared}"
    return Finding(_named(player.entry), "counts", False, detail)


def _badness(result: Rehearsed) -> tuple[Any, ...]:
    return result.unserved, result.dry_minutes, result.gap_ms, result.destroyed


def _share(values: Sequence[float], below: float) -> float:
    """The value below which so large a share of them is."""
    return sorted(values)[min(len(values) - 1, int(len(values) * below))] if values else 0.0
