"""Every state of a rotation at two nodes, enumerated: both ends are real vaults, wire and applications are free.

As in key_life, each vault's automaton is found by doing every input once in every state of its file. There is one old
key, READY at both ends; keys of the next generation are taken to be there when an end says so. The wire loses, repeats
and reorders whatever was ever sent. A receipt comes with what it is for: that it is lost is no more than a message that
comes again.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import key_life
from approving import policy
from key_life import HERE, KEY, LINK, NODES, End, MemoryDisk, Moment, Violation, allocation

from qkdnode.errors import QkdnodeError
from qkdnode.ids import ALICE, BOB
from qkdnode.lifecycle.clockguard import Standing
from qkdnode.lifecycle.rotation import GRACE_NS, LINGER_NS, Phase
from qkdnode.lifecycle.states import STAGE_OF_LETTER, Stage
from qkdnode.vault import generations
from qkdnode.vault import requests as ask
from qkdnode.vault.revocations import FollowRevoked
from qkdnode.vault.rotations import (
    AdvanceRotations,
    BeginRotation,
    EndGenerations,
    FollowRotation,
    GenerationAcknowledged,
    GenerationPrepared,
    GiveUpRotation,
    RotationState,
    ShowRotation,
)
from qkdnode.wire.messages import (
    Allocate,
    Delivered,
    KeysRevoked,
    Message,
    RotationGivenUp,
    RotationProposed,
    RotationStands,
    RotationWanted,
)

Token = tuple[str, ...]
Input = tuple[str, ...]
DOCUMENT = policy("", name="qkd", purpose="session")
GONE = frozenset({Stage.DEACTIVATED, Stage.DESTROYED})


class View(NamedTuple):
    """All of one vault that has to do with the rotation and the old key."""

    phase: Phase
    peer: Phase
    number: int
    current: int
    newest: int
    ending: int
    stage: Stage
    far: bool
    opens: bool
    outbox: frozenset[Token]
    level: int = 0  # of key_life's time, which stands still here


class World(NamedTuple):
    """Both vaults, all that was ever sent, and which application has the old key."""

    views: tuple[View, View]
    sent: tuple[frozenset[Token], frozenset[Token]]
    has: tuple[bool, bool]
    acknowledged: tuple[bool, bool]


class RotatingEnd(End):
    """One vault with a key that both ends hold."""

    def _stocked(self) -> bytes:
        image = super()._stocked()
        self._core = self._open(MemoryDisk(image), create=False)
        if self.role == ALICE:
            self._call(ask.AllocateKeys(association=HERE, count=1, size_bits=256, entropy=KEY.bytes))
            (entry,) = self._outbox()
            self._call(ask.AllocationAnswered(link=LINK, request=entry.number, outcome="accepted"))
        else:
            self._call(ask.AcceptAllocation(link=LINK, allocate=allocation(DOCUMENT)))
        made = self._core._connection.serialize("main")
        self._core.close()
        return made

    def _clock_ns(self) -> int:
        return self._now_ns

    def _standing(self) -> Standing:
        return Standing(self._now_ns, 0, None)

    def _state(self) -> RotationState:
        state: RotationState = self._call(ShowRotation(association=self.association))
        return state

    def _look(self) -> Any:
        state = self._state()
        ((states, far),) = self._core._connection.execute("SELECT states, far FROM bundles").fetchall()
        entries = {token_of(entry.message): entry.number for entry in self._outbox()}
        view = View(
            state.phase,
            state.peer,
            state.number,
            state.current,
            state.newest,
            state.ending,
            STAGE_OF_LETTER[states[0]],
            bool(far[0]),
            self._opens(),
            frozenset(entries),
        )
        if view not in self._moments:
            its: Any = view
            self._moments[its] = Moment(self._core._connection.serialize("main"), self._store.journal.mark())
            self._numbers[its] = entries
        return view

    def _do(self, view: Any, what: Input) -> list[Message]:
        kind, *rest = what
        local, remote = self.association.local, self.association.remote
        match kind:
            case "begin":
                self._call(BeginRotation(association=self.association, reason="operator", by="olga"))
            case "give up":
                self._call(GiveUpRotation(association=self.association, reason="operator"))
            case "prepare":
                self._call(GenerationPrepared(association=self.association, keys=1))
            case "accept":
                self._call(GenerationAcknowledged(association=self.association, number=view.number))
            case "linger" | "grace":
                before = self._now_ns
                self._now_ns = self._state().phase_ns + (LINGER_NS if kind == "linger" else GRACE_NS)
                self._call(AdvanceRotations(link=LINK))
                self._now_ns = before
            case "move":
                self._call(EndGenerations())
            case "acknowledge":
                self._call(ask.KeysDelivered(application=local, key_ids=(KEY,), details={}))
            case "heard":
                self._call(ask.OutboxCleared(link=LINK, numbers=(self._numbers[view][tuple(rest)],)))
            case "Delivered":
                self._call(ask.PeerDelivered(link=LINK, application=remote, key_ids=(KEY,)))
            case "KeysRevoked":
                message = KeysRevoked(0, rest[0], KEY.bytes, rest[1].encode())  # type: ignore[arg-type]
                self._call(FollowRevoked(link=LINK, message=message))
            case _:
                if not self._call(FollowRotation(link=LINK, message=rotation_message(what, remote, local))):
                    return [Delivered(0, remote, KEY.bytes)]  # any answer stands for none: it is not followed
        return []


def rotation_message(token: Token, local: str, remote: str) -> Any:
    """The message of a token, as its sender says it."""
    kind, *rest = token
    match kind:
        case "Wanted":
            return RotationWanted(1, local, remote, int(rest[0]), "operator")
        case "Proposed":
            return RotationProposed(1, local, remote, int(rest[0]), int(rest[1]), "operator")
        case "Stands":
            return RotationStands(1, local, remote, int(rest[0]), rest[1])  # type: ignore[arg-type]
        case "GivenUp":
            return RotationGivenUp(1, local, remote, int(rest[0]), "operator")
    raise ValueError(token)


def token_of(message: Message) -> Token:
    """A message without its notice."""
    match message:
        case RotationWanted(above=above):
            return ("Wanted", str(above))
        case RotationProposed(number=number, replaces=replaces):
            return ("Proposed", str(number), str(replaces))
        case RotationStands(number=number, phase=phase):
            return ("Stands", str(number), phase)
        case RotationGivenUp(number=number):
            return ("GivenUp", str(number))
        case Delivered():
            return ("Delivered",)
        case KeysRevoked(reason=reason, stages=stages):
            return ("KeysRevoked", reason, stages.decode())
        case Allocate():
            return ("Allocate",)
    raise ValueError(message)


@contextmanager
def both_ends() -> Iterator[tuple[RotatingEnd, RotatingEnd]]:
    """Both vaults; what an end says of the keys that it has cut of the next generation is taken for true."""
    with (
        mock.patch.object(generations, "prepared", return_value=1),
        key_life.both_ends(DOCUMENT, RotatingEnd) as ends,
    ):
        yield ends


class Search:
    """Looks at every world that can come about: rotations up to a number, begun and given up by whom may."""

    def __init__(
        self,
        ends: tuple[RotatingEnd, RotatingEnd],
        *,
        begins: tuple[bool, bool] = (True, True),
        gives_up: tuple[bool, bool] = (True, True),
        newest: int = 2,
        takes: tuple[bool, bool] = (True, True),
        repeats: bool = True,
    ) -> None:
        self.ends, self._begins, self._gives_up = ends, begins, gives_up
        self._newest, self._takes, self._repeats = newest, takes, repeats
        self.worlds = self.transitions = 0
        self._settled: set[tuple[Any, ...]] = set()

    def run(self) -> None:
        """Search all; Violation with the way to the first thing that must not be."""
        nothing = frozenset[Token]()
        first = World(
            (self.ends[0].first, self.ends[1].first), (nothing, nothing), (False, False), (False, False)  # type: ignore[arg-type]
        )  # fmt: skip
        came: dict[World, tuple[World, Input] | None] = {first: None}
        todo = deque([first])
        while todo:
            world = todo.popleft()
            self.worlds += 1
            try:
                self._demand(world)
                for side in (0, 1):
                    for what in self._inputs(world, side):
                        following = self._after(world, side, what)
                        self.transitions += 1
                        if following not in came:
                            came[following] = (world, (NODES[ALICE] if side == 0 else NODES[BOB], *what))
                            todo.append(following)
                self._demand_settling(world)
            except (Violation, QkdnodeError) as fault:
                raise Violation(f"{fault}; after {_way(came, world)}") from None

    def _inputs(self, world: World, side: int) -> Iterator[Input]:
        view = world.views[side]
        if self._begins[side] and view.phase is Phase.STEADY and view.newest < self._newest:
            yield ("begin",)
        if self._gives_up[side] and view.phase in (
            Phase.PROPOSED, Phase.AGREED, Phase.PREPARED, Phase.OFFERED, Phase.ACKNOWLEDGED,
        ):  # fmt: skip
            yield ("give up",)
        if view.phase is Phase.AGREED:
            yield ("prepare",)
        if view.phase is Phase.OFFERED:
            yield ("accept",)
        if view.phase is Phase.CUT:
            yield ("linger",)
            yield ("grace",)
        if view.ending:
            yield ("move",)
        if self._takes[side] and view.opens:
            yield ("take",)
        if world.has[side] and not world.acknowledged[side]:
            yield ("acknowledge",)
        yield from world.sent[1 - side] if self._repeats else world.views[1 - side].outbox

    def _after(self, world: World, side: int, what: Input) -> World:
        """The world once one end has had an input; a message that waits is confirmed if it was followed."""
        if what == ("take",):
            self._demand_release(world, side)
            return world._replace(has=_with(world.has, side))
        views = list(world.views)
        views[side], said = self.ends[side].step(views[side], what)  # type: ignore[arg-type, call-overload]
        self._demand_forward(world.views[side], views[side])
        if not said and what in views[1 - side].outbox:
            views[1 - side], _ = self.ends[1 - side].step(views[1 - side], ("heard", *what))  # type: ignore[arg-type, call-overload]
        sent = list(world.sent)
        sent[side] |= views[side].outbox
        acknowledged = _with(world.acknowledged, side) if what == ("acknowledge",) else world.acknowledged
        return World((views[0], views[1]), (sent[0], sent[1]), world.has, acknowledged)

    # --- what must hold ---

    @staticmethod
    def _demand_release(world: World, side: int) -> None:
        if world.acknowledged[side]:
            raise Violation("a key is released again after its acknowledgement")

    @staticmethod
    def _demand_forward(before: View, then: View) -> None:
        if then.current < before.current or then.newest < before.newest:
            raise Violation(f"a number goes back: {before.current}, {before.newest} to {then.current}, {then.newest}")
        if then.current > before.current and then.current != before.number:
            raise Violation("a generation is supplied that was not rotated to")
        if before.number and then.number not in (0, before.number):
            raise Violation("one rotation takes the place of another")

    @staticmethod
    def _demand(world: World) -> None:
        alice, bob = world.views
        if max(alice.current, bob.current) > 1 and (alice.opens or bob.opens):
            raise Violation("an old key is to be had after an application was told that they are over")
        for view in world.views:
            is_supplied = view.current == 1 and view.phase not in (Phase.CUT, Phase.CLOSED)
            if is_supplied and view.stage is Stage.READY and not view.opens:
                raise Violation(f"the old generation is not supplied in phase {view.phase}")
            if view.opens and view.phase is Phase.CLOSED:
                raise Violation("an old key is released after the close")
            if view.opens and view.phase is Phase.CUT and not view.far:
                raise Violation("an old key that nobody has is released after the cut")
        for view, other in ((alice, bob), (bob, alice)):
            is_accepted = other.number == view.number and other.phase in (Phase.ACKNOWLEDGED, Phase.CUT, Phase.CLOSED)
            if view.phase in (Phase.CUT, Phase.CLOSED) and not is_accepted and other.current < view.number:
                raise Violation("an end has cut, and the other's application has not accepted the new generation")
            supplied = view.number if view.phase in (Phase.CUT, Phase.CLOSED) else view.current
            is_given_up = other.number == 0 and other.current < other.newest and other.phase is Phase.STEADY
            if is_given_up and other.current < supplied <= other.newest:
                raise Violation(f"generation {supplied} is supplied at one end and was given up at the other")

    def _demand_settling(self, world: World) -> None:
        """With a wire that works, and applications that answer, both ends come to the same."""
        key = (world.views, world.has, world.acknowledged)
        if key in self._settled:
            return
        self._settled.add(key)
        for _ in range(40):
            after = self._fair_round(world)
            if after._replace(sent=world.sent) == world:
                break
            world = after
        else:
            raise Violation("the ends never settle")
        alice, bob = world.views
        if alice.outbox or bob.outbox:
            raise Violation(f"messages wait for ever: {alice.outbox or bob.outbox}")
        if {alice.phase, bob.phase} != {Phase.STEADY}:
            raise Violation(f"a rotation ends at {alice.phase} and {bob.phase}")
        if (alice.current, alice.newest) != (bob.current, bob.newest):
            raise Violation(f"the ends supply generations {alice.current} and {bob.current}")
        if alice.stage is not bob.stage:
            raise Violation(f"an old key is {alice.stage} at one end and {bob.stage} at the other")
        if (alice.current > 1) != (alice.stage in GONE):
            raise Violation(f"generation {alice.current} is supplied, and an old key is {alice.stage}")

    def _fair_round(self, world: World) -> World:
        for side in (0, 1):
            view = world.views[side]
            wanted = {Phase.AGREED: "prepare", Phase.OFFERED: "accept", Phase.CUT: "grace"}.get(view.phase)
            if world.has[side] and not world.acknowledged[side]:
                world = self._after(world, side, ("acknowledge",))
            if wanted is not None:
                world = self._after(world, side, (wanted,))
            if world.views[side].ending:
                world = self._after(world, side, ("move",))
            for token in sorted(world.views[side].outbox):
                world = self._after(world, 1 - side, token)
            if any(self._takes) and world.views[side].opens and not world.has[side]:
                world = self._after(world, side, ("take",))
        return world


def _with(flags: tuple[bool, bool], side: int) -> tuple[bool, bool]:
    return (True, flags[1]) if side == 0 else (flags[0], True)


def _way(came: dict[World, tuple[World, Input] | None], world: World) -> str:
    way: list[str] = []
    step = came[world]
    while step is not None:
        way.append("/".join(step[1]))
        step = came[step[0]]
    return " ".join(reversed(way)) or "nothing"


if __name__ == "__main__":
    with both_ends() as both:
        whole = Search(both)
        whole.run()
        states = " and ".join(str(len(end.views)) for end in both)
        print(f"{whole.worlds} worlds, {whole.transitions} transitions, {states} states of the vaults: no violation")
