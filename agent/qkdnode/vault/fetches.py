"""Keys that an application asks for by id: what is for it is opened, and of all else nothing shows.

Each id costs the same work, whatever it is: a look-up of the id, one verified Bundle (another one where there is none
of the id), its association, scopes, the policy's decision, and a pseudonym. Only what is released is unsealed.
"""

import msgspec

from qkdnode.errors import LocalProtocolError
from qkdnode.ids import Association, KeyId
from qkdnode.lifecycle.states import Stage
from qkdnode.vault import bundles, entitlements, generations, marks, reach
from qkdnode.vault.bundles import Chosen
from qkdnode.vault.records import KEYS_PER_BUNDLE, Bundle, KnownAssociation
from qkdnode.vault.requests import Caller, Delivery, OpenedKeys, Request
from qkdnode.vault.store import Store

_STAND_IN = """
SELECT coalesce(
    (SELECT number FROM bundles WHERE number >= ? ORDER BY number LIMIT 1), (SELECT min(number) FROM bundles), -1
)
"""


class FetchKeys(Request, frozen=True):
    """Unseal those of up to 128 keys that are READY for an association, of its size, and may go out now.

    `release`: whether the link lets any of its keys go. Answer: FetchedKeys. VaultDamagedError if some do not unseal:
    those are set aside, ask again.
    """

    key_ids: tuple[KeyId, ...]
    association: Association
    size_bits: int
    release: bool = True
    peer_reachable: bool = True
    caller: Caller = Caller()


class FetchedKeys(msgspec.Struct, frozen=True):
    """Answer to FetchKeys: the keys that were opened, side by side in the order of `deliveries`; and the others."""

    opened: OpenedKeys | None
    deliveries: tuple[Delivery, ...]
    refused: tuple[KeyId, ...]
    names: tuple[str, ...]  # of the refused: their pseudonyms in the log
    decoys: tuple[str, ...] = ()  # of the decoys among them


class Found(msgspec.Struct, frozen=True):
    """What one look-up has come to: a verified Bundle and, if it holds the key, its place there."""

    bundle: Bundle | None
    place: int | None


def fetch_keys(store: Store, request: FetchKeys) -> FetchedKeys:
    """FetchKeys."""
    asked = tuple(dict.fromkeys(request.key_ids))
    if not 1 <= len(asked) <= KEYS_PER_BUNDLE:
        raise LocalProtocolError(f"{len(asked)} keys are asked for at once: ask for 1 to {KEYS_PER_BUNDLE}")
    known = entitlements.known_association(store, request.association)
    names = {key_id: store.sealing.pseudonym(key_id.bytes) for key_id in asked}
    granted: list[tuple[KeyId, Bundle, int]] = []
    suspects: list[str] = []
    for key_id in asked:
        found = look_up(store, key_id)
        suspects += [names[key_id]] * (is_decoy(store, found) and found.place is not None)
        if may_have(store, found, known, request) and found.bundle is not None and found.place is not None:
            granted.append((key_id, found.bundle, found.place))
    given = {key_id for key_id, _, _ in granted}
    refused = tuple(key_id for key_id in asked if key_id not in given)
    told = tuple(names[key_id] for key_id in refused)
    if not granted:
        return FetchedKeys(None, (), refused, told, tuple(suspects))
    material = bundles.unseal(store, [Chosen(bundle, [place]) for _, bundle, place in granted])
    deliveries = tuple(
        Delivery(
            bundle.number * KEYS_PER_BUNDLE + place,
            key_id,
            request.association,
            bundle.size_bits,
            bundle.key_generation,
        )
        for key_id, bundle, place in granted
    )
    opened = OpenedKeys(tuple(key_id for key_id, _, _ in granted), request.size_bits, material)
    return FetchedKeys(opened, deliveries, refused, told, tuple(suspects))


def look_up(store: Store, key_id: KeyId) -> Found:
    """The key of an id, by as many steps as if there were none."""
    numbers = bundles.numbers_of(store, [key_id.bytes])
    # Where any number will do: one that the id alone determines, so that asking again shows the same.
    highest = max(1, store.journal.size)
    number = numbers[0] if numbers else int.from_bytes(key_id.bytes[8:], "big") % highest
    existing = store.scalar(_STAND_IN, number)
    found = store.find(Bundle, "number = ?", existing)
    bundle = found[0] if found else None
    place = None if bundle is None else bundle.place(key_id.bytes)
    for other in numbers[1:]:  # ids that begin alike
        more = store.get(Bundle, other)
        if place is None and more is not None:
            bundle, place = more, more.place(key_id.bytes)
    return Found(bundle, place)


def is_decoy(store: Store, found: Found) -> bool:
    """Whether the Bundle that was found, or stands in, is one of decoys."""
    return found.bundle is not None and marks.is_decoy(store, found.bundle)


def may_have(store: Store, found: Found, known: KnownAssociation | None, request: FetchKeys) -> bool:
    """Whether a key is what was asked for, and may go out; every question is asked, whatever the others say."""
    bundle = found.bundle
    if bundle is None:
        return False
    stage = bundle.stage(found.place or 0)
    questions = (
        found.place is not None,
        known is not None and known.number == bundle.association,
        bundle.application == request.association.local,
        bundle.size_bits == request.size_bits,
        stage is Stage.READY,
        reach.scope_of_bundle(store, bundle) is None,
        bool(generations.releasable(store, bundle, (found.place or 0,))),
        entitlements.would_release(store, bundle, peer_reachable=request.peer_reachable),
        request.release,
        not is_decoy(store, found),
    )
    return all(questions)


HANDLERS = {FetchKeys: fetch_keys}
