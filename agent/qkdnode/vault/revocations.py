"""Keys revoked one by one: each takes the step that its stage and the reason ask for, and the neighbour follows.

The neighbour is told where each key stands here, so that both ends come to the same state whatever each knew of the
other's deliveries. An id that it has not heard of yet leaves a tombstone there: it becomes no key any more.
"""

from collections import defaultdict

import msgspec

from qkdnode.errors import LocalProtocolError
from qkdnode.ids import KeyId
from qkdnode.lifecycle.reasons import FOLLOWED, Reason, revocation
from qkdnode.lifecycle.states import LETTERS, STAGE_OF_LETTER, Stage, Step, after
from qkdnode.vault import bundles, outbox
from qkdnode.vault.batches import known_link
from qkdnode.vault.bundles import Chosen, Why
from qkdnode.vault.records import Bundle, Tombstone
from qkdnode.vault.requests import OutboxEntry, Request
from qkdnode.vault.store import Store
from qkdnode.wire.messages import KeysRevoked

AT_ONCE = 1024


class RevokeKeys(Request, frozen=True):
    """Take keys out of use for a reason of KMIP. Answer: Revoked."""

    key_ids: tuple[KeyId, ...]
    reason: str
    by: str


class Revoked(msgspec.Struct, frozen=True):
    """Answer to RevokeKeys."""

    revoked: tuple[KeyId, ...]
    already: tuple[KeyId, ...]  # out of use before
    unknown: tuple[KeyId, ...]  # the vault holds no such key, or has set it aside as damaged


class FollowRevoked(Request, frozen=True):
    """The neighbour has revoked keys. Idempotent. Answer: int, how many took a step here."""

    link: str
    message: KeysRevoked


class RevocationsUnconfirmed(Request, frozen=True):
    """Revocations and compromises that the neighbour is yet to journal, oldest first.

    Answer: tuple[OutboxEntry, ...].
    """

    link: str
    limit: int = 64


def revoke_keys(store: Store, request: RevokeKeys) -> Revoked:
    """RevokeKeys."""
    if request.reason not in set(Reason):
        raise LocalProtocolError(f"{request.reason!r} is no reason to revoke: one of {', '.join(Reason)}")
    if not 1 <= len(request.key_ids) <= AT_ONCE:
        raise LocalProtocolError(f"{len(request.key_ids)} keys are revoked at once: give 1 to {AT_ONCE}")
    reason, why = Reason(request.reason), Why(_operator(store, request.by), request.reason)
    asked = {key_id.bytes: key_id for key_id in request.key_ids}
    chosen = bundles.choose(store, list(asked))
    told: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    revoked, already = list[bytes](), list[bytes]()
    for one in chosen:
        by_step: dict[Step, list[int]] = defaultdict(list)
        for place in one.places:
            step = revocation(reason, one.bundle.stage(place), bool(one.bundle.far[place]))
            if step is None:
                already.append(one.bundle.key_id(place))
            else:
                by_step[step].append(place)
        bundle = one.bundle
        for step, places in by_step.items():
            bundle = bundles.move(store, Chosen(bundle, places), step, why)
            ids = Chosen(bundle, places).ids()
            revoked += ids
            told[bundle.link] += [(key_id, bundle.states[place]) for key_id, place in zip(ids, places, strict=True)]
    for link, keys in told.items():
        tell(store, link, request.reason, keys)
    unknown = asked.keys() - set(revoked) - set(already)
    return Revoked(*(tuple(asked[raw] for raw in asked if raw in some) for some in (revoked, already, unknown)))


def follow_revoked(store: Store, request: FollowRevoked) -> int:
    """FollowRevoked."""
    link, message = known_link(store, request.link), request.message
    ids = bundles.split(message.key_ids)
    if len(ids) != len(message.stages) or len(message.key_ids) % 16 or not set(message.stages) <= TOLD:
        raise LocalProtocolError(f"the peer revokes {len(ids)} keys with {len(message.stages)} stages: nothing follows")
    stages = dict(zip(ids, message.stages, strict=True))
    why, moved, known = Why("neighbour", message.reason), 0, set[bytes]()
    for one in bundles.choose(store, list(stages)):
        known.update(one.ids())
        if one.bundle.link != link.link:
            continue
        for letter in sorted(TOLD):
            places = [place for place in one.places if stages[one.bundle.key_id(place)] == letter]
            if places:
                moved += follow(store, one.bundle.number, places, STAGE_OF_LETTER[letter], why)
    bury(store, link.link, stages.keys() - known, message.reason)
    return moved


def bury(store: Store, link: str, unknown: set[bytes], reason: str) -> None:
    """Ids of no key here that are out of use at the other end become none. A damaged key is out of use as it is."""
    for key_id in sorted(unknown):
        if not bundles.taken(store, [key_id]) and store.get(Tombstone, link, key_id) is None:
            store.create(Tombstone(link, key_id, reason), "key.revoked_unseen", "done", [key_id])


def is_revoked(store: Store, link: str, ids: list[bytes]) -> bool:
    """Whether the neighbour has revoked any of these ids before they became keys here."""
    slots = ", ".join("?" * len(ids))
    return bool(store.find(Tombstone, f"link = ? AND key_id IN ({slots}) LIMIT 1", link, *ids))


def unconfirmed(store: Store, request: RevocationsUnconfirmed) -> tuple[OutboxEntry, ...]:
    """RevocationsUnconfirmed."""
    return outbox.revocations(store, request.link, request.limit)


def follow(store: Store, number: int, places: list[int], target: Stage, why: Why) -> int:
    """Take keys of a Bundle to where they stand at the other end, or leave them where they are beyond that."""
    steps = _TO[target]
    moved = set[int]()
    for step in steps:
        bundle = store.get(Bundle, number)
        if bundle is None:
            break
        able = [place for place in places if _may(bundle, place, step)]
        if able:
            bundles.move(store, Chosen(bundle, able), step, why)
            moved.update(able)
    return len(moved)


def _may(bundle: Bundle, place: int, step: Step) -> bool:
    far = bool(bundle.far[place])
    if step is Step.FAR_DELIVER and far:
        return False
    return after(bundle.stage(place), far, step) is not None


def tell(store: Store, link: str, reason: str, keys: list[tuple[bytes, int]]) -> None:
    """Have the neighbour follow to where keys stand here now. Once in a request for a link, after its changes."""
    for page, at in enumerate(range(0, len(keys), AT_ONCE)):
        these = keys[at : at + AT_ONCE]
        packed, letters = b"".join(key_id for key_id, _ in these), bytes(letter for _, letter in these)
        number = store.journal.size - 1 - page  # of a leaf of the change: rising, and no other notice has it
        outbox.post(store, link, number, KeysRevoked(number, reason, packed, letters))  # type: ignore[arg-type]


def _operator(store: Store, name: str) -> str:
    return f"operator/{store.sealing.pseudonym(name.encode())}"


# A key is deactivated where it was active: its other application has it, whatever this end has heard of that.
_TO: dict[Stage, tuple[Step, ...]] = {
    Stage.DEACTIVATED: (Step.FAR_DELIVER, FOLLOWED[Stage.DEACTIVATED]),
    Stage.COMPROMISED: (FOLLOWED[Stage.COMPROMISED],),
    Stage.DESTROYED: (FOLLOWED[Stage.DESTROYED],),
    Stage.DESTROYED_COMPROMISED: (Step.COMPROMISE, Step.DESTROY),
}
TOLD = frozenset(LETTERS[stage] for stage in _TO)
HANDLERS = {RevokeKeys: revoke_keys, FollowRevoked: follow_revoked, RevocationsUnconfirmed: unconfirmed}
