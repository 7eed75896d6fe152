"""Decoys: keys of stock at both ends that nobody is given, and that alarm when somebody asks for one.

They are cut, agreed on and kept as keys are, in Bundles that only a mark tells from others. They are left out of what
waits for applications, of what is outstanding, and of quotas. Alice's end makes them, and renews them by their age.
"""

import msgspec

from qkdnode.errors import LocalProtocolError, PolicyDeniedError, VaultError
from qkdnode.ids import ALICE, Association, KeyId
from qkdnode.lifecycle.policy.document import SECOND_NS, KeyClass
from qkdnode.lifecycle.reasons import Reason
from qkdnode.lifecycle.states import HOLDING, Stage, Step
from qkdnode.vault import bundles, marks, revocations
from qkdnode.vault.bundles import Chosen, Why
from qkdnode.vault.records import HELD, Bundle, KnownAssociation, Link
from qkdnode.vault.requests import Request
from qkdnode.vault.rows import read_rows
from qkdnode.vault.store import Store

RENEWED_AFTER_S = 86_400  # or at the age at which a key of the class is released no more
MOST_IDS = 1024
# Own Bundles that are to be delivered, and whatever has a key in an application's outbox.
_LIVE = f"""
SELECT number, mark FROM bundles WHERE outstanding AND state = '{HELD}'
UNION SELECT number, mark FROM bundles WHERE delivery IS NOT NULL
"""
_ENDING = (Stage.ALLOCATED, Stage.READY, Stage.QUARANTINED)


class WhichDecoys(Request, frozen=True):
    """Which of up to 1,024 ids are those of decoys, now or before. Answer: Suspects."""

    key_ids: tuple[KeyId, ...]


class Suspects(msgspec.Struct, frozen=True):
    """Answer to WhichDecoys: their names in the log."""

    names: tuple[str, ...]


class Decoys(Request, frozen=True):
    """How many decoys there are for each association. Answer: tuple[DecoyCount, ...]."""


class DecoyCount(msgspec.Struct, frozen=True):
    """The decoys of an association that hold bits here; `oldest_ns` is when the oldest was cut."""

    association: Association
    key_class: str
    size_bits: int
    keys: int
    oldest_ns: int


class EndDecoys(Request, frozen=True):
    """Destroy all decoys at both ends: new ones are made in their place. Answer: int, how many."""

    by: str


def which_decoys(store: Store, request: WhichDecoys) -> Suspects:
    """WhichDecoys."""
    if not 1 <= len(request.key_ids) <= MOST_IDS:
        raise LocalProtocolError(f"{len(request.key_ids)} ids are looked at together: give 1 to {MOST_IDS}")
    ids = [key_id.bytes for key_id in request.key_ids]
    names = [store.sealing.pseudonym(raw) for raw in ids]  # of all, that the time tells nothing
    found = {raw for one in bundles.choose(store, ids) if marks.is_decoy(store, one.bundle) for raw in one.ids()}
    return Suspects(tuple(name for raw, name in zip(ids, names, strict=True) if raw in found))


def decoys(store: Store, request: Decoys) -> tuple[DecoyCount, ...]:
    """Decoys."""
    counts: dict[tuple[int, str, int], list[Bundle]] = {}
    for bundle in live(store):
        counts.setdefault((bundle.association, bundle.class_, bundle.size_bits), []).append(bundle)
    found = []
    for (number, key_class, size_bits), held in sorted(counts.items()):
        association = store.get_association(number)
        if association is not None:
            keys = sum(map(_held, held))
            oldest = min(bundle.allocated_ns for bundle in held)
            found.append(DecoyCount(association.association, key_class, size_bits, keys, oldest))
    return tuple(found)


def end_decoys(store: Store, request: EndDecoys) -> int:
    """EndDecoys."""
    actor = f"operator/{store.sealing.pseudonym(request.by.encode())}"
    return end(store, live(store), Why(actor, Reason.SUPERSEDED.value))


def live(store: Store) -> list[Bundle]:
    """Every verified Bundle of decoys that holds bits, as far as the file told at the first question of this run."""
    numbers = numbers_of_live(store)
    found = []
    for number in sorted(numbers):
        bundle = store.get(Bundle, number)
        if bundle is not None and marks.is_decoy(store, bundle) and _held(bundle):
            found.append(bundle)
        else:
            numbers.discard(number)
    return found


def numbers_of_live(store: Store) -> set[int]:
    """Bundles that may hold decoys; found once in a run by their marks, which no row's MAC was read for."""
    if store.decoys is None:
        rows = read_rows(store.connection, (int, bytes), "a mark of bundles in the vault", _LIVE)
        store.decoys = {number for number, mark in rows if marks.marks_decoy(store, number, mark)}
    return store.decoys


def left_out(store: Store) -> str:
    """A condition in SQL that leaves out the Bundles of decoys."""
    numbers = numbers_of_live(store)
    return f"AND number NOT IN ({', '.join(map(str, sorted(numbers)))})" if numbers else ""


def waiting(store: Store) -> int:
    """Decoys that are ready: they look as if they waited for an application."""
    return sum(len(bundle.places(Stage.READY)) for bundle in live(store))


class Due(msgspec.Struct, frozen=True):
    """What is to be done for the decoys of one association."""

    old: list[Bundle]  # to be ended
    missing: int  # to be cut


def due(store: Store, association: KnownAssociation, terms: KeyClass) -> Due:
    """What the policy's terms ask for now. Only Alice's end does it."""
    link = store.get(Link, association.link)
    held = [bundle for bundle in live(store) if bundle.own and bundle.association == association.number]
    if link is None or link.role != ALICE or (not held and not terms.decoys):
        return Due([], 0)
    age_s = min(RENEWED_AFTER_S, terms.max_age_at_release_s or RENEWED_AFTER_S)
    oldest_ns = store.now_ns - age_s * SECOND_NS
    young = [bundle for bundle in held if bundle.class_ == terms.name and bundle.allocated_ns >= oldest_ns]
    if sum(map(_held, young)) > terms.decoys:
        young = []  # the policy asks for fewer
    old = [bundle for bundle in held if bundle not in young]
    return Due(old, terms.decoys - sum(map(_held, young)))


def end(store: Store, held: list[Bundle], why: Why) -> int:
    """Destroy decoys, here and, by the message of a revocation, at the neighbour."""
    ended = 0
    for bundle in held:
        places = bundle.places(*_ENDING)
        if places:
            moved = bundles.move(store, Chosen(bundle, places), Step.DESTROY, why)
            chosen = Chosen(moved, places)
            told = [(key_id, moved.states[place]) for key_id, place in zip(chosen.ids(), places, strict=True)]
            revocations.tell(store, bundle.link, Reason.SUPERSEDED.value, told)
            ended += len(places)
    return ended


def demand_missing(due_now: Due, count: int) -> None:
    """PolicyDeniedError if so many are not to be cut."""
    if count > due_now.missing:
        raise PolicyDeniedError("decoys", f"{count} decoys: the policy asks for {due_now.missing} more")


def refuse_use(store: Store, chosen: list[Chosen], what: str) -> None:
    """VaultError, as of an unknown id, if any of these is a decoy."""
    if any(marks.is_decoy(store, one.bundle) for one in chosen):
        raise VaultError(what)


def _held(bundle: Bundle) -> int:
    return sum(letter in HOLDING for letter in bundle.states)


HANDLERS = {WhichDecoys: which_decoys, Decoys: decoys, EndDecoys: end_decoys}
