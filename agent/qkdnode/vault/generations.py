"""Which generation of an association's keys is supplied, and which are cut: asked before a key is cut, agreed to, told
of or released."""

from collections.abc import Sequence

from qkdnode.lifecycle.rotation import FIRST, Phase, cut_for, releases
from qkdnode.lifecycle.states import Stage
from qkdnode.vault.bundles import Chosen
from qkdnode.vault.records import HELD, Bundle, Generations
from qkdnode.vault.store import Store


def of(store: Store, association: int) -> Generations | None:
    """How an association stands; None: its first generation is supplied, and no other was ever spoken of.

    All rows must be there that the log tells of: one that is missing or altered stops every release.
    """
    rows = store.every(Generations)
    if not rows:
        return None
    known = store.generations
    if known is None or known[0] is not rows:
        known = store.generations = (rows, {row.association: row for row in rows})
    return known[1].get(association)


def releasable(store: Store, bundle: Bundle, places: Sequence[int]) -> list[int]:
    """Which of these keys of a Bundle may go out, as far as generations are concerned."""
    row = of(store, bundle.association)
    if row is None:
        return list(places) if bundle.key_generation == FIRST else []
    phase, its = Phase(row.phase), bundle.key_generation
    return [place for place in places if releases(phase, row.current, row.number, its, bool(bundle.far[place]))]


def released(store: Store, chosen: Sequence[Chosen]) -> list[Chosen]:
    """Those of these keys that may go out, as far as generations are concerned."""
    found = [Chosen(one.bundle, releasable(store, one.bundle, one.places)) for one in chosen]
    return [one for one in found if one.places]


def to_cut(store: Store, association: int) -> tuple[int, ...]:
    """The generations that keys are cut for, the one to be supplied next first."""
    row = of(store, association)
    return (FIRST,) if row is None else cut_for(Phase(row.phase), row.current, row.number)


def is_moving(store: Store, bundle: Bundle) -> bool:
    """Whether keys of a Bundle go, or have gone at the other end, where a rotation takes them: they settle with it."""
    row = of(store, bundle.association)
    if row is None:
        return False
    phase, its = Phase(row.phase), bundle.key_generation
    if phase is Phase.STEADY:
        return bool(row.ending) and its != row.current
    return its == row.number or phase in (Phase.CUT, Phase.CLOSED)


def may_come(store: Store, association: int, generation: int) -> bool:
    """Whether a generation that no keys are cut for yet may be agreed on by a message that is on the way."""
    row = of(store, association)
    if row is None:
        return generation > FIRST
    return generation > row.newest or (generation == row.number and Phase(row.phase) is Phase.PROPOSED)


def outstanding(store: Store, association: int, generation: int) -> list[Bundle]:
    """Bundles of a generation that hold keys which this end has cut, and which an application is yet to get."""
    condition = f"association = ? AND outstanding AND state = '{HELD}' AND key_generation = ?"
    return store.find_sound(Bundle, condition, association, generation)


def prepared(store: Store, association: int, generation: int) -> int:
    """Keys of a generation that this end has cut, and that both ends hold."""
    return sum(len(row.places(Stage.READY)) for row in outstanding(store, association, generation))


def unpaired(store: Store, association: int, generation: int) -> int:
    """Keys of a generation that one application has and the other is to get, as far as this end has a part in it."""
    own = outstanding(store, association, generation)
    condition = f"association = ? AND delivery IS NOT NULL AND state = '{HELD}' AND key_generation = ? AND NOT own"
    others = store.find_sound(Bundle, condition, association, generation)
    return sum(_unpaired(bundle) for bundle in (*own, *others))


def _unpaired(bundle: Bundle) -> int:
    here = sum(not bundle.far[place] for place in bundle.places(Stage.DELIVERED)) if bundle.own else 0
    return here + sum(bool(bundle.far[place]) for place in bundle.places(Stage.READY))
